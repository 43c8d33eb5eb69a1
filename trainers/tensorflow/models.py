"""What every Keras model has, whoever built it: variables by layer and name, kernels, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tf_keras

from trainers.recipe import RecipeError

# What TF-MOT masks and clusters, and does so in silence: depthwise kernels, embeddings and recurrent layers are left.
PRUNABLE = (
    tf_keras.layers.Dense,
    tf_keras.layers.Conv1D,
    tf_keras.layers.Conv2D,
    tf_keras.layers.Conv3D,
)
UNPRUNABLE = (tf_keras.layers.DepthwiseConv2D, tf_keras.layers.Conv2DTranspose)  # of those by inheritance


def checked(model: Any) -> tf_keras.Model:
    """The model itself; raises RecipeError unless it is Sequential or Functional, without models inside."""
    if not isinstance(model, tf_keras.Model) or not hasattr(model, "_nodes_by_depth"):
        raise RecipeError(
            f"recipe.model: {getattr(model, 'name', model)!r} is a {type(model).__name__}; the tensorflow trainer "
            "takes Sequential and Functional models of tf_keras, which can be taken apart into layers"
        )
    if nested := [layer.name for layer in model.layers if isinstance(layer, tf_keras.Model)]:
        raise RecipeError(
            f"recipe.model: {model.name!r} has whole models as layers ({', '.join(nested)}); put their layers into it"
        )
    return model


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


def kernels_of(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """Layer name -> kernel: the prunable weights, of a plain, wrapped or fake-quantized model."""
    kernels = {}
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        for variable in layer.weights if isinstance(inner, PRUNABLE) and not isinstance(inner, UNPRUNABLE) else ():
            # Wrappers put tensors in the place of `layer.kernel`; the variable keeps its name.
            if variable.name.split("/")[-1] == "kernel:0":
                kernels[inner.name] = variable.numpy()
    return kernels


def parameters(model: tf_keras.Model) -> int:
    """Number of trainable parameters."""
    return int(sum(np.prod(variable.shape) for variable in model.trainable_variables))


def _variables(model: tf_keras.Model) -> dict[str, tf_keras.backend.Variable]:
    named: dict[str, tf_keras.backend.Variable] = {}
    for layer in model.layers:
        paths = [variable.name.partition(":")[0].removeprefix(f"{layer.name}/") for variable in layer.weights]
        short = [path.rpartition("/")[2] for path in paths]
        # Both directions of a Bidirectional have a kernel: then the whole path tells them apart.
        names = short if len(set(short)) == len(short) else [path.replace("/", ".") for path in paths]
        for index, (name, variable) in enumerate(zip(names, layer.weights, strict=True)):
            key = f"{layer.name}.{name}"
            named[key if key not in named else f"{key}.{index}"] = variable
    return named
