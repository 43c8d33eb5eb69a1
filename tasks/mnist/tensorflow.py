"""The models in tf_keras, as plain lists of layers, so that the same model can be built again with narrower ones.

Preprocessing stays outside, and the outputs are logits. The models hold only layers that TF-MOT can prune,
cluster and quantize.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tf_keras

INPUT_SHAPE = (28, 28, 1)
NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class Conv:
    """`norm`: batch normalization between a convolution without bias and its ReLU; `pool`: 2x2 max pooling after."""

    name: str
    channels: int
    kernel: int
    padding: str
    norm: bool = False
    pool: bool = True


@dataclass(frozen=True)
class Flatten:
    """Feature map to vector; `average`: by its mean over positions."""

    average: bool = False


@dataclass(frozen=True)
class Dense:
    """Fully connected layer; ReLU unless it is the last, then dropout at `dropout`."""

    name: str
    channels: int
    dropout: float = 0.0


# The classifier is the last Dense of each.
MODELS: dict[str, tuple[Conv | Flatten | Dense, ...]] = {
    # LeNet-5 as in Caffe's examples/mnist (431,080 parameters), which the pruning literature uses.
    "lenet5": (
        Conv("conv1", 20, 5, "valid"),
        Conv("conv2", 50, 5, "valid"),
        Flatten(),
        Dense("fc1", 500),
        Dense("fc2", 10),
    ),
    # LeNet-300-100 of LeCun et al. 1998 (266,610 parameters).
    "lenet300": (Flatten(), Dense("fc1", 300), Dense("fc2", 100), Dense("fc3", 10)),
    # 24,058 trainable parameters.
    "convnet": (
        Conv("conv1", 16, 3, "same", norm=True),
        Conv("conv2", 32, 3, "same", norm=True),
        Conv("conv3", 64, 3, "same", norm=True, pool=False),
        Flatten(average=True),
        Dense("fc", 10),
    ),
    # The model of TensorFlow's beginner tutorial (101,770 parameters).
    "mlp128": (Flatten(), Dense("fc1", 128, dropout=0.2), Dense("fc2", 10)),
}


def weighted(model: str) -> list[Conv | Dense]:
    """The layers that have kernels, in order; the last is the classifier."""
    return [layer for layer in MODELS[model] if not isinstance(layer, Flatten)]


def build(model: str, widths: Mapping[str, int] | None = None) -> tf_keras.Sequential:
    """The named model, newly initialized; `widths`: output channels by layer name where they differ.

    float32 [N, 28, 28, 1] -> logits float32 [N, 10].
    """
    widths = widths or {}
    last = weighted(model)[-1]
    layers = [tf_keras.layers.InputLayer(INPUT_SHAPE, name="images")]
    for layer in MODELS[model]:
        if isinstance(layer, Flatten):
            flatten = tf_keras.layers.GlobalAveragePooling2D if layer.average else tf_keras.layers.Flatten
            layers.append(flatten(name="flatten"))
        elif isinstance(layer, Conv):
            layers += _conv(layer, widths.get(layer.name, layer.channels))
        else:
            layers += _dense(layer, widths.get(layer.name, layer.channels), final=layer is last)
    return tf_keras.Sequential(layers, name=model)


def _conv(layer: Conv, channels: int) -> list[tf_keras.layers.Layer]:
    made = [
        tf_keras.layers.Conv2D(
            channels,
            layer.kernel,
            padding=layer.padding,
            use_bias=not layer.norm,
            activation=None if layer.norm else "relu",
            name=layer.name,
        )
    ]
    if layer.norm:
        made += [
            tf_keras.layers.BatchNormalization(epsilon=NORM_EPSILON, name=f"{layer.name}_norm"),
            tf_keras.layers.ReLU(name=f"{layer.name}_relu"),
        ]
    if layer.pool:
        made.append(tf_keras.layers.MaxPooling2D(name=f"{layer.name}_pool"))
    return made


def _dense(layer: Dense, channels: int, final: bool) -> list[tf_keras.layers.Layer]:
    made = [tf_keras.layers.Dense(channels, activation=None if final else "relu", name=layer.name)]
    if layer.dropout:
        made.append(tf_keras.layers.Dropout(layer.dropout, name=f"{layer.name}_dropout"))
    return made
