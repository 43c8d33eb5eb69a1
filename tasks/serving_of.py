"""What a request goes through before and after a composed task's model, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.base import Port, Serving
from tasks.images import ImageOptions
from tasks.own import Parts
from tasks.user_code import files_of


def serving_of(
    outputs: Sequence[Port], classes: tuple[str, ...], image: ImageOptions | None, columns: Any, parts: Parts
) -> Serving:
    """An image where the data was images, a row where it was a table, else arrays through the user's own functions."""
    answer: Any = "values"
    if len(outputs) == 1 and outputs[0].kind == "logits":
        answer = "label" if len(outputs[0].shape) == 2 else "mask"
    if image is not None:
        return Serving("image", image.to_dict(), answer, classes)
    if columns:
        return Serving("row", {"columns": columns}, answer, classes)
    own = {part: name for part in ("preprocess", "postprocess") if (name := parts.names.get(part))}
    return Serving("arrays", own, answer, classes, _files(parts, own))


def _files(parts: Parts, own: dict[str, str]) -> dict[str, str]:
    """The files in which the user's functions are, with the modules beside them."""
    if parts.folder is None:
        return {}
    folder = parts.folder
    files = {each for name in own.values() for each in files_of(folder / name.rpartition(":")[0])}
    return {str(each.relative_to(folder)): str(each) for each in sorted(files)}
