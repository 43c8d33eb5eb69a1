"""Between the layout of a task's ports, which may be NCHW, and that of Keras models, whose channels come last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tasks.base import Arrays, Port


def to_model(arrays: Arrays, ports: Sequence[Port]) -> dict[str, np.ndarray]:
    """A task's arrays as the model takes them."""
    turned = _turned(ports)
    return {
        name: np.ascontiguousarray(np.moveaxis(array, 1, -1)) if name in turned else array
        for name, array in arrays.items()
    }


def from_model(arrays: Arrays, ports: Sequence[Port]) -> dict[str, np.ndarray]:
    """The model's arrays as the task has them."""
    turned = _turned(ports)
    return {name: np.moveaxis(array, -1, 1) if name in turned else array for name, array in arrays.items()}


def to_task(tensors: Mapping[str, Any], ports: Sequence[Port]) -> dict[str, tf.Tensor]:
    """What the model gives, in the ports' layout."""
    turned = _turned(ports)
    return {name: tf.transpose(tensor, (0, 3, 1, 2)) if name in turned else tensor for name, tensor in tensors.items()}


def _turned(ports: Sequence[Port]) -> set[str]:
    return {port.name for port in ports if port.layout == "NCHW" and len(port.shape) == 4}


def by_name(raw: Any, ports: Sequence[Port]) -> dict[str, tf.Tensor]:
    """What a model gave, by output name, floats as float32."""
    parts = tuple(raw) if isinstance(raw, tuple | list) else (raw,)
    return {
        port.name: tf.cast(part, tf.float32) if part.dtype.is_floating else part
        for port, part in zip(ports, parts, strict=True)
    }


def call(model: Any, inputs: Mapping[str, Any], ports: Sequence[Port], training: bool) -> Any:
    """The model on inputs by name."""
    given = [inputs[port.name] for port in ports]
    return model(given if len(given) > 1 else given[0], training=training)
