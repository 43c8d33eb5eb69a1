"""What a request goes through before and after the model: an image, a text or a row -> arrays -> an answer for people.

Stands alone with picture.py and errors.py: NumPy, Pillow for images, tokenizers for text, nothing else of Pare. What to
do is plain data, as `tasks.base.Serving.to_dict` gives it and about.json keeps it:

- image: `mode` (L, RGB), `size` ([height, width] that the model takes), `resize` (shorter side, or [height, width]),
  `fit` (crop: the centre of the resized image; squash: to the size; none: it has the size), `interpolation`, `mean`,
  `std` (per channel, of pixels in [0, 1])
- text: `length` (most tokens), `pad`; the file tokenizer.json
- row: `columns`: a name each, or {name, input, mean, std, categories, default}
- arrays: arrays by port name; `preprocess`, `postprocess`: functions of the user's own, `FILE.py:NAME` among the files
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving import picture
from serving.errors import RequestError

TOP = 5
SMALLEST = 8  # tokens that a text is padded to at least; then the next power of two, so that texts share batches
_DTYPES = {"float": "float32", "double": "float64"}


class Process:
    """The task's own way from a request to inputs and from outputs to an answer.

    `serving`: Serving.to_dict(), or None for arrays as they are. `inputs`, `outputs`: the model's ports as mappings
    with name, shape, dtype, layout, kind, axis. `folder`: where the files that travel along lie.
    """

    def __init__(
        self,
        serving: Mapping[str, Any] | None,
        inputs: Sequence[Mapping[str, Any]],
        outputs: Sequence[Mapping[str, Any]],
        folder: Path,
    ) -> None:
        said = dict(serving or {})
        self.kind: str = said.get("kind", "arrays")
        self.answer: str = said.get("answer", "values")
        self.classes = tuple(map(str, said.get("classes", ())))
        self.options: Mapping[str, Any] = said.get("options", {})
        self.ports, self.made, self.folder = tuple(inputs), tuple(outputs), folder
        kinds: dict[str, Callable[[Any], dict[str, np.ndarray]]] = {
            "image": self._image,
            "text": self._text,
            "row": self._row,
            "arrays": self._arrays,
        }
        if self.kind not in kinds:
            raise ValueError(f"serving.kind: {self.kind!r} is not valid; choose from {', '.join(kinds)}")
        self._read = kinds[self.kind]

    def inputs(self, request: Any) -> dict[str, np.ndarray]:
        """One sample, as the model takes it: arrays by port name, each with a batch of 1 (arrays: of any size).

        `request`: bytes of an image file; str; a mapping of a row's columns; arrays or nested lists by port name.
        Raises RequestError.
        """
        return self._read(request)

    def answers(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """The model's outputs -> one answer per sample, JSON values: label and top classes, mask, or values."""
        if function := self.options.get("postprocess"):
            return [_json(_called(self.folder, str(function), dict(outputs)))]
        port = self.subject()
        scores = np.asarray(outputs[port["name"]], np.float32)
        if self.answer == "label":
            return [self._label(row) for row in scores]
        if self.answer == "mask":
            return [{"mask": mask.tolist(), "classes": list(self.classes)} for mask in self.masks(outputs)]
        rows = range(len(scores))
        return [{name: plain(np.asarray(values)[i]) for name, values in outputs.items()} for i in rows]

    def subject(self) -> Mapping[str, Any]:
        """The output port that an answer is made of: the first that holds scores of classes, or else the first."""
        scored = [port for port in self.made if port.get("kind") == "logits"]
        return (scored or list(self.made))[0]

    def masks(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The class of every pixel, uint8 [N, height, width]."""
        port = self.subject()
        values = np.asarray(outputs[port["name"]])
        if values.ndim == 4:
            axis = int(port.get("axis", 1))
            single = values.shape[axis] == 1
            values = values.take(0, axis) > 0 if single else values.argmax(axis)
        return values.astype(np.uint8)

    def _label(self, scores: np.ndarray) -> dict[str, Any]:
        shares = probabilities(scores.reshape(-1))
        order = np.argsort(-shares, kind="stable")[:TOP]
        top = [{"label": self.name(i), "probability": round(float(shares[i]), 6)} for i in order]
        return {**top[0], "index": int(order[0]), "top": top}

    def name(self, index: int) -> str:
        """The name of a class; its number where it has none."""
        return self.classes[index] if index < len(self.classes) else str(int(index))

    def _image(self, request: Any) -> dict[str, np.ndarray]:
        pixels = picture.pixels(picture.opened(request), self.options)
        port = self.ports[0]
        mean, std = (
            np.asarray(self.options.get(key, default), np.float32) for key, default in (("mean", 0), ("std", 1))
        )
        values = (pixels.astype(np.float32) * np.float32(self.options.get("scale", 1 / 255)) - mean) / std
        if _channels_first(port, values.shape[-1]):
            values = np.moveaxis(values, -1, 0)
        return {port["name"]: np.ascontiguousarray(_cast(values[None], port))}

    def _text(self, request: Any) -> dict[str, np.ndarray]:
        if isinstance(request, bytes):
            try:
                request = request.decode()
            except UnicodeDecodeError:
                raise RequestError("text: it is not UTF-8; send it as UTF-8") from None
        texts = [request] if isinstance(request, str) else request
        if not isinstance(texts, list) or len(texts) not in (1, 2) or not all(isinstance(t, str) for t in texts):
            raise RequestError("text: send a text, or a list of two where the model takes pairs")
        if not texts[0].strip():
            raise RequestError("text: it is empty; send some words")
        length = int(self.options.get("length") or 512)
        found = _tokenizer(str(self.folder / "tokenizer.json"), length).encode(*texts)
        named = {"attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
        fixed = [port["shape"][1] for port in self.ports if isinstance(port["shape"][1], int)]
        masked = any(port["name"] == "attention_mask" for port in self.ports)  # else padding is part of the text
        size = fixed[0] if fixed else min(padded(len(found.ids)), length) if masked else length
        made = {}
        for port in self.ports:
            values = named.get(port["name"], found.ids)
            filler = 0 if port["name"] in named else int(self.options.get("pad", 0))
            made[port["name"]] = _cast(np.asarray([(list(values) + [filler] * size)[:size]]), port)
        return made

    def _row(self, request: Any) -> dict[str, np.ndarray]:
        if not isinstance(request, Mapping):
            raise RequestError(f"row: a {type(request).__name__} is not valid; send a JSON object of columns")
        columns = [{"name": c} if isinstance(c, str) else dict(c) for c in self.options.get("columns", ())]
        names = [column["name"] for column in columns]
        if unknown := sorted(set(map(str, request)) - set(names)):
            raise RequestError(f"row: {unknown[0]!r} is no column; the columns are {', '.join(names)}")
        gathered: dict[str, list[float]] = {port["name"]: [] for port in self.ports}
        for column in columns:
            gathered[column.get("input", self.ports[0]["name"])].append(_value(column, request))
        made = {}
        for port in self.ports:
            values = np.asarray([gathered[port["name"]]])
            made[port["name"]] = _cast(values[:, 0] if len(port["shape"]) == 1 else values, port)
        return made

    def _arrays(self, request: Any) -> dict[str, np.ndarray]:
        if function := self.options.get("preprocess"):
            request = _called(self.folder, str(function), request)
        names = [port["name"] for port in self.ports]
        if not isinstance(request, Mapping) and len(names) == 1:
            request = {names[0]: request}
        if not isinstance(request, Mapping) or set(request) != set(names):
            raise RequestError(f"inputs: send one array for each of {', '.join(names)}")
        return {port["name"]: array(request[port["name"]], port) for port in self.ports}


def array(value: Any, port: Mapping[str, Any]) -> np.ndarray:
    """Nested lists as the port's dtype, its shape checked; raises RequestError."""
    try:
        made = np.asarray(value)
    except ValueError:
        raise RequestError(f"{port['name']}: its rows have different lengths; send a full array") from None
    if made.dtype.kind not in "biuf":
        raise RequestError(f"{port['name']}: it holds more than numbers; send numbers only")
    made = _cast(made, port)
    check_shape(port, made.shape)
    return made


def check_shape(port: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Raise RequestError where the shape does not fit the port's, or is empty."""
    wanted = port["shape"]
    fits = len(shape) == len(wanted) and all(isinstance(w, str) or w == s for w, s in zip(wanted, shape, strict=True))
    if not fits or 0 in shape:
        said = ", ".join(map(str, wanted))
        raise RequestError(f"{port['name']}: shape {list(shape)} is not valid; send [{said}]")


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax of float [classes]; a single score is read as that of the second of two classes."""
    if scores.size == 1:
        one = 1.0 / (1.0 + math.exp(-float(np.clip(scores[0], -500, 500))))
        return np.array([1.0 - one, one])
    raised = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(raised / raised.sum())


def padded(tokens: int) -> int:
    """The length that a text of so many tokens is padded to."""
    return max(SMALLEST, 1 << max(0, tokens - 1).bit_length())


def plain(values: np.ndarray) -> Any:
    """Nested lists of JSON values: what is not finite becomes None."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        kept = values.astype(object)
        kept[~np.isfinite(values)] = None
        return kept.tolist()
    return values.tolist()


def _cast(values: np.ndarray, port: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(_DTYPES.get(port["dtype"], port["dtype"]))
    if dtype.kind in "iu" and values.dtype.kind == "f" and not (values == np.floor(values)).all():
        raise RequestError(f"{port['name']}: it takes whole numbers ({dtype})")
    return values.astype(dtype, copy=False)


def _channels_first(port: Mapping[str, Any], channels: int) -> bool:
    """Whether the port takes NCHW: as it says, or as its shape tells."""
    if layout := port.get("layout"):
        return str(layout).startswith("NC")
    return not (port["shape"][-1] == channels and port["shape"][1] != channels)


def _called(folder: Path, address: str, value: Any) -> Any:
    """What the user's function makes of the value; raises RequestError with what it raised."""
    file, _, name = address.rpartition(":")
    try:
        return getattr(_module(folder / Path(file).name), name)(value)
    except Exception as problem:  # their code may raise anything
        reason = " ".join(str(problem).split())[:200]
        raise RequestError(f"{Path(file).name}: {name}() raised {type(problem).__name__}: {reason}") from None


@functools.lru_cache(maxsize=8)
def _module(file: Path) -> Any:
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location(f"served_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.parent))  # for what it imports from beside it
    spec.loader.exec_module(module)
    return module


def _json(value: Any) -> Any:
    """Arrays and NumPy's numbers as JSON values."""
    if isinstance(value, Mapping):
        return {str(key): _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return plain(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _value(column: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    name = column["name"]
    value = row.get(name, column.get("default"))
    if value is None:
        raise RequestError(f"row: the column {name!r} is missing")
    if categories := column.get("categories"):
        texts = [str(c) for c in categories]
        if str(value) not in texts:
            raise RequestError(f"row: {name}: {value!r} is not known; choose from {', '.join(texts[:20])}")
        return float(texts.index(str(value)))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RequestError(f"row: {name}: {value!r} is not a number") from None
    if not math.isfinite(number):
        raise RequestError(f"row: {name}: {value!r} is not a finite number")
    return (number - float(column.get("mean", 0.0))) / float(column.get("std", 1.0))


@functools.lru_cache(maxsize=4)
def _tokenizer(path: str, length: int) -> Any:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(path)
    made.no_padding()  # padded here, to lengths that texts share
    made.enable_truncation(max_length=length)
    return made
