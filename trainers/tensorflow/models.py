"""What every Keras model has, whoever built it: variables by layer and name, kernels, parameters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tf_keras


def weights_of(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """`{"conv1.kernel": float32 [...], ...}`: copies of all variables, by layer and name."""
    return {key: variable.numpy() for key, variable in _variables(model).items()}


def set_weights(model: tf_keras.Model, weights: Mapping[str, np.ndarray]) -> None:
    """Copy weights in; names and shapes must be the model's own, else ValueError."""
    variables = _variables(model)
    if set(weights) != set(variables):
        raise ValueError(f"weights of {sorted(weights)}; the model {model.name} has {sorted(variables)}")
    for key, variable in variables.items():
        variable.assign(weights[key])


def kernels_of(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layer name -> kernel: the prunable weights. Biases and batch normalization are never pruned."""
    return {key.removesuffix(".kernel"): array for key, array in weights.items() if key.endswith(".kernel")}


def parameters(model: tf_keras.Model) -> int:
    """Number of trainable parameters."""
    return int(sum(np.prod(variable.shape) for variable in model.trainable_variables))


def _variables(model: tf_keras.Model) -> dict[str, tf_keras.backend.Variable]:
    named = {}
    for layer in model.layers:
        for variable in layer.weights:
            named[f"{layer.name}.{variable.name.split('/')[-1].split(':')[0]}"] = variable
    return named
