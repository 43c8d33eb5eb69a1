"""`hf:FOLDER_OR_ID`: a Hugging Face classifier of texts or images with its tokenizer. Only workers import this."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks import cache
from tasks.address import Address, install
from tasks.base import ACCURACY, Metric, Serving, TaskError, TaskSpec
from tasks.images import ImageOptions
from tasks.imports import import_torchvision
from tasks.samples import COUNT
from tasks.scorers import METRICS
from tasks.sources.text import Texts

UNBOUNDED = 100_000  # tokenizers without a limit say 1e30
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
TOKENIZER = "tokenizer.json"


class HuggingFaceSubject:
    """A classifier in a local folder, or of the hub by its id. See `tasks.torch_program.Subject`."""

    def __init__(self, spec: TaskSpec, address: Address, home: Path) -> None:
        self.spec, self.home = spec, home
        self.folder = address.path(spec)
        self.local = self.folder.is_dir()
        self.source = str(self.folder) if self.local else address.place
        if not self.local and (address.place.startswith((".", "/", "~")) or address.place.count("/") > 1):
            raise TaskError(f"task.model: {self.folder} is not there; correct the path", "model")
        self.name = Path(address.place).name
        self.heads: tuple[str, ...] = ()
        self.labels: int | None = None
        self.fresh = False
        self.notes: list[str] = []
        self._state: dict[str, torch.Tensor] | None = None

    @functools.cached_property
    def library(self) -> Any:
        """The transformers package, silent; raises TaskError when it is not installed."""
        import_torchvision()  # transformers' models import it, and fail where it is broken
        try:
            import transformers
        except ImportError:
            raise TaskError(f"task.model: transformers is not installed; run {install('text')}", "model") from None
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        return transformers

    @functools.cached_property
    def config(self) -> Any:
        """The model's configuration."""
        if self.local and not (self.folder / "config.json").is_file():
            there = ", ".join(sorted(each.name for each in self.folder.iterdir())[:8]) or "nothing"
            raise TaskError(
                f"task.model: {self.folder} has no config.json; it holds {there}; write it with "
                "model.save_pretrained(FOLDER)",
                "model",
            )
        with self._reading("model"):
            return self.library.AutoConfig.from_pretrained(self.source, local_files_only=self.local)

    @contextmanager
    def _reading(self, step: str) -> Iterator[None]:
        """Transformers' errors in few words."""
        try:
            yield
        except TaskError:
            raise
        except Exception as error:  # of the hub, the network, the files
            reason = " ".join(str(error).split())[:300]
            where = f"in {self.folder}" if self.local else "on the Hugging Face hub, nor is it a folder here"
            raise TaskError(f"task.model: {self.source} cannot be read {where}: {reason}", step) from None

    @property
    def takes_images(self) -> bool:
        """Whether it classifies images."""
        return any("ImageClassification" in each for each in self.config.architectures or ())

    @property
    def regression(self) -> bool:
        """Whether its one output is a quantity."""
        return self.config.problem_type == "regression" or self.config.num_labels == 1

    @property
    def known_labels(self) -> tuple[str, ...]:
        """The classes that it was trained for, in its order."""
        return () if self.regression else tuple(self.config.id2label[i] for i in sorted(self.config.id2label))

    def metrics(self) -> tuple[Metric, ...]:
        """What it is judged by where the study names nothing."""
        return (METRICS["mse"],) if self.regression else (ACCURACY,)

    def settle(self, classes: int | None) -> None:
        """Take the number of classes and read the weights once."""
        self.labels = 1 if self.regression else classes
        kind = type(self.config).__name__.removesuffix("Config")
        network = self.library.AutoModelForImageClassification if self.takes_images else None
        network = network or self.library.AutoModelForSequenceClassification
        if self.local and not any((self.folder / name).is_file() for name in WEIGHT_FILES):
            self.notes.append(
                f"{self.folder.name} has no weights ({WEIGHT_FILES[0]}): {kind} starts fresh and is trained"
            )
            self.fresh = True
            self._make = lambda: network.from_config(self._sized(), attn_implementation="eager")
        else:
            self._load(network, kind)
        self.heads = _heads(self.build())

    def _sized(self) -> Any:
        config = type(self.config).from_dict(self.config.to_dict())
        if self.labels is not None and config.num_labels != self.labels:
            config.num_labels = self.labels
        return config

    def _load(self, network: Any, kind: str) -> None:
        with self._reading("weights"):
            model, about = network.from_pretrained(
                self.source,
                config=self._sized(),
                local_files_only=self.local,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                attn_implementation="eager",  # plain matrix products, which can be quantized and pruned
                dtype=torch.float32,
            )
        heads = _heads(model)
        fresh = [str(name) for name in about["missing_keys"]] + [str(key[0]) for key in about["mismatched_keys"]]
        strange = [name for name in fresh if not name.startswith(heads) and "pooler" not in name]
        if strange:
            raise TaskError(
                f"{self.source}: the weights are not those of {kind}: missing or of another shape are "
                f"{', '.join(strange[:5])}{f' and {len(strange) - 5} more' if len(strange) > 5 else ''}",
                "weights",
            )
        if fresh:
            self.fresh = True
            self.notes.append(
                f"{self.name}: the head ({', '.join(sorted({n.rpartition('.')[0] for n in fresh}))}) starts fresh for "
                f"{self.labels} classes and is trained"
            )
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

        def make() -> nn.Module:
            made = network.from_config(self._sized(), attn_implementation="eager")
            missed, surplus = made.load_state_dict(state, strict=False)
            assert not missed, missed
            assert not surplus, surplus
            return made

        self._make = make

    def build(self, model: str = "") -> nn.Module:
        """The module, new each time; the task's first one if none is named."""
        made: nn.Module = self._make().eval()
        return made

    def pretrained(self, model: str = "") -> bool:
        """See Subject: not where the head or all of it starts fresh."""
        return not self.fresh

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The model's tokenizer; raises TaskError when the folder has none."""
        if self.local and not any((self.folder / name).is_file() for name in TOKENIZER_FILES):
            there = ", ".join(sorted(each.name for each in self.folder.iterdir())[:8])
            raise TaskError(
                f"task.model: {self.folder} has no tokenizer; it holds {there}; write it there with "
                "tokenizer.save_pretrained(FOLDER)",
                "model",
            )
        with self._reading("model"):
            tokenizer = self.library.AutoTokenizer.from_pretrained(self.source, local_files_only=self.local)
        if not tokenizer.is_fast:
            raise TaskError(f"{self.source}: its tokenizer has no fast form (tokenizer.json)", "model")
        if tokenizer.pad_token_id is None:
            raise TaskError(f"{self.source}: its tokenizer has no padding token; set tokenizer.pad_token", "model")
        positions = getattr(self.config, "max_position_embeddings", None) or UNBOUNDED
        offset = 2 if self.config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        return Encoder(tokenizer, min(positions - offset, int(min(tokenizer.model_max_length, UNBOUNDED))))

    def image(self) -> ImageOptions:
        """Preprocessing of an image classifier, from its preprocessor_config.json."""
        file = self.folder / "preprocessor_config.json"
        if not self.local or not file.is_file():
            raise TaskError(f"task.model: {self.folder} has no preprocessor_config.json", "model")
        about = json.loads(file.read_text())
        size, crop = about.get("size", 224), about.get("crop_size") if about.get("do_center_crop") else None
        side = _side(crop or size)
        method = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")[int(about.get("resample", 2))]
        mean, std = about.get("image_mean", [0.5] * 3), about.get("image_std", [0.5] * 3)
        return ImageOptions(side, min(_side(size)) if crop else None, "crop" if crop else "squash", "RGB", method,
                            tuple(mean), tuple(std))  # fmt: skip

    def serving(self) -> Serving | None:
        """Texts are encoded by the tokenizer, which travels along."""
        if self.takes_images:
            return None
        folder = cache.entry(self.home, "tokenizer", {"tokenizer": self.encoder.digest})
        cache.fill(folder, lambda partial: self.encoder.save(partial / TOKENIZER))
        options = {"length": self.length, "inputs": list(self.encoder.names), "pad": self.encoder.pad}
        answer: Any = "values" if self.regression else "label"
        return Serving("text", options, answer, (), {TOKENIZER: str(folder / TOKENIZER)})

    length = 0  # tokens at which texts are cut, set once the data is known


class Encoder:
    """See `tasks.sources.text.TextEncoder`."""

    def __init__(self, tokenizer: Any, limit: int) -> None:
        tokenizer.padding_side = "right"
        self.tokenizer, self.limit = tokenizer, limit
        names = ("input_ids", "attention_mask", "token_type_ids")
        self.names = tuple(name for name in names if name in tokenizer.model_input_names)
        self.pad = int(tokenizer.pad_token_id)
        self.digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]

    def lengths(self, texts: Texts) -> np.ndarray:
        """int64 [N]: tokens of each sample, uncut."""
        encoded = self.tokenizer(*map(list, texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(ids) for ids in encoded], np.int64)

    def encode(self, texts: Texts, length: int) -> dict[str, np.ndarray]:
        """See TextEncoder; the attention mask follows from the counts."""
        encoded = self.tokenizer(
            *map(list, texts), truncation=True, max_length=length, padding="max_length", verbose=False
        )
        counts = np.asarray(encoded["attention_mask"], np.int32).sum(1)
        kept = [name for name in self.names if name != "attention_mask"]
        arrays = {name: np.asarray(encoded[name], np.int32) for name in kept}
        return {**arrays, COUNT: counts.astype(np.int32)}

    def save(self, file: Path) -> None:
        """Write tokenizer.json, as the tokenizers package reads it."""
        logging.getLogger("tokenizers").setLevel(logging.ERROR)
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.save(str(file))


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Where the class scores come from, by the names that transformers uses."""
    usual = ("classifier", "score", "classification_head", "head")
    return tuple(name for name, _ in model.named_children() if name in usual)


def _side(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        if "shortest_edge" in size:
            return (int(size["shortest_edge"]), int(size["shortest_edge"]))
        return (int(size["height"]), int(size["width"]))
    return (int(size), int(size))
