"""The Open Inference Protocol, version 2 (KServe): requests and answers in JSON and with the binary tensor extension.

https://github.com/kserve/open-inference-protocol and Triton's extensions for binary tensors and classification. Bytes
in, arrays out, and back; no server. Every mistake is a RequestError of one sentence.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from serving.errors import RequestError
from serving.process import check_shape, plain
from tasks.base import Port

DATATYPES = {
    "BOOL": "bool",
    **{f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_NAME_OF = {np.dtype(dtype): name for name, dtype in DATATYPES.items()}  # a dtype's own .name takes 10 µs
HEADER = "inference-header-content-length"
EXTENSIONS = ["classification", "binary_tensor_data"]
JSON, BINARY = "application/json", "application/octet-stream"


@dataclass(frozen=True)
class Wanted:
    """An output that the client asks for. `top`: that many best classes as text instead of the scores, 0 for scores."""

    name: str
    binary: bool = False
    top: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request, read. `outputs`: what is asked for, in order; `reduced`: see serving/reduce.py."""

    inputs: Mapping[str, np.ndarray]
    outputs: tuple[Wanted, ...]
    id: str = ""
    reduced: str = ""


@dataclass(frozen=True)
class Ends:
    """The ports of a model, by name: what is the same for every request to it."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    plain_inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @staticmethod
    def of(inputs: Sequence[Port], outputs: Sequence[Port]) -> Ends:
        """Of a model's ports."""
        return Ends({p.name: p for p in inputs}, {p.name: p for p in outputs}, {p.name: p.__dict__ for p in inputs})


def read_json(body: bytes | memoryview, what: str = "request") -> Any:
    """The JSON value; raises RequestError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise RequestError(f"{what}: it is not JSON ({str(problem)[:120]})") from None


def parse(body: bytes, header_length: str | None, ends: Ends) -> InferRequest:
    """A request body -> arrays. `header_length`: the header HEADER, the length of the JSON before binary tensors."""
    if header_length is None:
        said, rest = read_json(body), memoryview(b"")
    else:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise RequestError(f"{HEADER}: {header_length[:20]!r} is not the length of a JSON header in the body")
        view = memoryview(body)
        said, rest = read_json(view[: int(header_length)]), view[int(header_length) :]
    if not isinstance(said, dict) or not isinstance(said.get("inputs"), list):
        raise RequestError('request: it has no list "inputs"; send {"inputs": [{name, shape, datatype, data}]}')
    parameters = _mapping(said.get("parameters", {}), "parameters")
    inputs = _inputs(said["inputs"], rest, ends)
    return InferRequest(
        inputs,
        _outputs(said.get("outputs"), bool(parameters.get("binary_data_output")), ends),
        str(said.get("id", "")),
        str(parameters.get("outputs", "")),
    )


def _inputs(given: list[Any], rest: memoryview, ends: Ends) -> dict[str, np.ndarray]:
    inputs: dict[str, np.ndarray] = {}
    at = 0
    for tensor in given:
        tensor = _mapping(tensor, "inputs")
        name = str(tensor.get("name", ""))
        port = ends.inputs.get(name)
        if port is None or name in inputs:
            valid = ", ".join(ends.inputs)
            raise RequestError(f"inputs: {name[:80]!r} is no input, or given twice; the model takes {valid}")
        _check_type(port, tensor.get("datatype"))
        shape = _shape(port, tensor.get("shape"), ends)
        size = _mapping(tensor.get("parameters", {}), f"{name}: parameters").get("binary_data_size")
        if size is None:
            inputs[name] = _from_json(port, tensor.get("data"), shape)
            continue
        inputs[name] = _from_binary(port, rest[at:], size, shape)
        at += size
    if missing := [name for name in ends.inputs if name not in inputs]:
        raise RequestError(f"inputs: {missing[0]!r} is missing; the model takes {', '.join(ends.inputs)}")
    if at != len(rest):
        raise RequestError(f"inputs: {len(rest) - at} bytes follow the last tensor; binary_data_size must add up")
    rows = {name: value.shape[0] for name, value in inputs.items() if isinstance(ends.inputs[name].shape[0], str)}
    if len(set(rows.values())) > 1:
        raise RequestError(f"inputs: the first axes differ ({', '.join(f'{n} {r}' for n, r in rows.items())})")
    return inputs


def _check_type(port: Port, datatype: object) -> None:
    if datatype != NAMES.get(port.dtype):
        raise RequestError(f"{port.name}: datatype {str(datatype)[:20]!r} is not valid; send {NAMES.get(port.dtype)}")


def _shape(port: Port, shape: Any, ends: Ends) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise RequestError(f"{port.name}: shape is missing or not a list of whole numbers")
    check_shape(ends.plain_inputs[port.name], tuple(shape))
    return tuple(shape)


def _from_json(port: Port, data: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(data, list):
        raise RequestError(f"{port.name}: data is missing; send a list of numbers, or binary_data_size")
    if port.dtype == "float32" and len(data) == math.prod(shape):
        with contextlib.suppress(struct.error, OverflowError):  # nested, or no numbers: below
            return np.frombuffer(struct.pack(f"{len(data)}f", *data), np.float32).reshape(shape)
    kind = np.dtype(port.dtype).kind
    try:
        values = np.asarray(data, None if kind in "iub" else port.dtype)
    except (ValueError, TypeError):
        raise RequestError(f"{port.name}: data is no full array of numbers") from None
    if values.size != math.prod(shape):
        raise RequestError(f"{port.name}: {values.size} values do not fill the shape {list(shape)}")
    if values.dtype.kind not in {"i": "iu", "u": "iu", "b": "b"}.get(kind, "f"):
        raise RequestError(f"{port.name}: data holds {values.dtype}, not {port.dtype}")
    if kind in "iu" and values.size:
        limits = np.iinfo(port.dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise RequestError(f"{port.name}: data holds numbers that {port.dtype} does not")
    return np.asarray(values.reshape(shape), port.dtype, order="C")  # ascontiguousarray would make a number a vector


def _from_binary(port: Port, rest: memoryview, size: Any, shape: tuple[int, ...]) -> np.ndarray:
    wanted = math.prod(shape) * np.dtype(port.dtype).itemsize
    if type(size) is not int or size != wanted or size > len(rest):
        raise RequestError(
            f"{port.name}: binary_data_size {str(size)[:20]} is not valid: {list(shape)} of {port.dtype} are {wanted} "
            f"bytes, and {len(rest)} follow"
        )
    return np.frombuffer(rest[:size], port.dtype).reshape(shape)


def _outputs(given: Any, binary: bool, ends: Ends) -> tuple[Wanted, ...]:
    if given is None or given == []:
        return tuple(Wanted(name, binary) for name in ends.outputs)
    if not isinstance(given, list):
        raise RequestError("outputs: it is not a list; send [{name}]")
    found = []
    for each in given:
        each = _mapping(each, "outputs")
        name = str(each.get("name", ""))
        if name not in ends.outputs:
            raise RequestError(f"outputs: {name[:80]!r} is no output; the model gives {', '.join(ends.outputs)}")
        said = _mapping(each.get("parameters", {}), f"{name}: parameters")
        top = said.get("classification", 0)
        if type(top) is not int or not 0 <= top <= 10_000:
            raise RequestError(f"{name}: classification must be a whole number of classes")
        found.append(Wanted(name, bool(said.get("binary_data", binary)), top))
    return tuple(found)


def encode(
    request: InferRequest, outputs: Mapping[str, np.ndarray], name: str, version: str, classes: Sequence[str] = ()
) -> tuple[bytes, int | None]:
    """(body, length of its JSON header, None where there is nothing behind it)."""
    tensors, binaries = [], list[bytes]()
    wanted = (
        request.outputs
        if not request.reduced
        else tuple(Wanted(each, any(w.binary for w in request.outputs)) for each in outputs)
    )
    for each in wanted:
        tensor, binary = _tensor(each, outputs[each.name], classes)
        tensors.append(tensor)
        binaries.extend(binary)
    said: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": tensors}
    if request.id:
        said["id"] = request.id
    header = orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binaries:
        return header, None
    return b"".join((header, *binaries)), len(header)


def _tensor(wanted: Wanted, values: np.ndarray, classes: Sequence[str]) -> tuple[dict[str, Any], list[bytes]]:
    if wanted.top:
        texts = _classified(values, wanted.top, classes)
        shape, datatype = [len(values), len(texts) // max(1, len(values))], "BYTES"
        if not wanted.binary:
            return {"name": wanted.name, "datatype": datatype, "shape": shape, "data": texts}, []
        raw = b"".join(len(each).to_bytes(4, "little") + each for each in (text.encode() for text in texts))
    else:
        shape, datatype = list(values.shape), _NAME_OF[values.dtype]
        if not wanted.binary:
            return {"name": wanted.name, "datatype": datatype, "shape": shape, "data": _listed(values)}, []
        raw = values.tobytes()
    about = {"name": wanted.name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    return about, [raw]


def _listed(values: np.ndarray) -> Any:
    """Flat, as orjson takes it; float16, which it does not know, and what is not finite as plain lists."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype == np.float16:
        flat = flat.astype(np.float32)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        return plain(flat)
    return flat


def _classified(values: np.ndarray, top: int, classes: Sequence[str]) -> list[str]:
    """`score:index:class` of the best classes of each row, as Triton writes it."""
    texts = []
    for row in values.reshape(len(values), -1):
        for index in np.argsort(-row, kind="stable")[:top]:
            texts.append(f"{row[index]:f}:{index}" + (f":{classes[index]}" if index < len(classes) else ""))
    return texts


def metadata(name: str, version: str, platform: str, ends: Ends) -> dict[str, Any]:
    """What GET /v2/models/NAME answers."""
    return {
        "name": name,
        "versions": [version],
        "platform": platform,
        "inputs": [_described(port) for port in ends.inputs.values()],
        "outputs": [_described(port) for port in ends.outputs.values()],
    }


def _described(port: Port) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in port.shape]
    return {"name": port.name, "datatype": NAMES[port.dtype], "shape": shape}


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: it must hold JSON objects")
    return value
