"""POST /predict: what people send (an image file, a text, a JSON row, a form) and what they get."""

from __future__ import annotations

import io
from collections.abc import Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import orjson

from serving import reduce
from serving.errors import RequestError
from serving.model import Model
from serving.protocol import JSON, read_json

PNG = "image/png"
_FORM, _PARTS = "application/x-www-form-urlencoded", "multipart/form-data"
# kind of preprocessing -> the key that wraps it in JSON, and what to send instead
_KEYS = {"text": "text", "row": "row", "arrays": "inputs"}
_HOW = {
    "image": "the bytes of an image file",
    "text": "a text, or JSON {text: ...}",
    "row": "JSON {row: {...}}",
    "arrays": "JSON {inputs: {...}}",
}


def read(body: bytes, content_type: str, kind: str) -> Any:
    """A request of any of the usual forms -> what Process.inputs takes. Raises RequestError."""
    said = content_type.partition(";")[0].strip().lower()
    if not body:
        raise RequestError(f"predict: the body is empty; send {_HOW[kind]}")
    if said == _PARTS:
        body, said = _part(body, content_type)
    elif said == _FORM and kind in ("text", "row") and b"=" in body:  # what curl says of a plain -d, too
        fields = {key: values[0] for key, values in parse_qs(body.decode("utf-8", "replace")).items()}
        return fields.get("text", body) if kind == "text" else fields
    if kind == "image":
        if said == JSON:
            raise RequestError(f"predict: this model takes images; send {_HOW[kind]}")
        return body
    if kind == "text" and said != JSON:
        return body
    value = read_json(body, "predict")
    key = _KEYS[kind]
    if isinstance(value, dict) and key in value and (kind != "row" or isinstance(value[key], dict)):
        value = value[key]
    return value


def written(model: Model, outputs: Mapping[str, np.ndarray], way: str, accept: str, name: str) -> tuple[bytes, str]:
    """(the answer, its type): one object for one sample, a list `answers` for several; a mask as PNG where accepted."""
    process = model.process
    if process.answer == "mask" and PNG in accept:
        return _png(process.masks(outputs)[0]), PNG
    if way == "float16":
        outputs = {n: v.astype(np.float16) if v.dtype.kind == "f" else v for n, v in outputs.items()}
    answers = process.answers(outputs)
    if process.answer == "label":
        answers = [_narrowed(answer, way) for answer in answers]
    elif way and process.answer == "values":
        made = reduce.reduced(outputs, model.about.outputs, way)
        answers = [{n: v[i].tolist() for n, v in made.items()} for i in range(len(answers))]
    said: dict[str, Any] = {"model": name, "version": model.about.label}
    if len(answers) == 1 and isinstance(answers[0], dict):
        said |= answers[0]
    else:
        said["answers"] = answers
    return orjson.dumps(said), JSON


def _narrowed(answer: dict[str, Any], way: str) -> dict[str, Any]:
    if way == "labels":
        return {"label": answer["label"]}
    return answer


def _part(body: bytes, content_type: str) -> tuple[bytes, str]:
    """The first file of a form with parts, or its first field."""
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body
    )
    parts = [part for part in message.iter_parts() if part.get_content_disposition() == "form-data"]
    if not parts:
        raise RequestError("predict: the form has no part; send one file, such as curl -F file=@picture.png")
    part = next((p for p in parts if p.get_filename()), parts[0])
    content = part.get_payload(decode=True)
    return (content if isinstance(content, bytes) else b""), part.get_content_type()


def _png(mask: np.ndarray) -> bytes:
    from PIL import Image

    kept = io.BytesIO()
    image = Image.fromarray(mask, "P")
    image.putpalette([value for i in range(256) for value in _colour(i)])
    image.save(kept, "PNG")
    return kept.getvalue()


def _colour(index: int) -> tuple[int, int, int]:
    """Pascal VOC's colours: each bit of the class goes to a bit of red, green or blue."""
    bits = [(index >> shift) & 1 for shift in range(8)]
    red, green, blue = (sum(bits[3 * i + c] << (7 - i) for i in range(3) if 3 * i + c < 8) for c in range(3))
    return red, green, blue
