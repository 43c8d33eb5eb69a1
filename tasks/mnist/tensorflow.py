"""MNIST for the TensorFlow trainer: the models in tf_keras, as plain lists of layers, and the loss.

Preprocessing stays outside, and the outputs are logits. The models hold only layers that TF-MOT can prune, cluster and
quantize.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import tensorflow as tf
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


class Program:
    """See `trainers.tensorflow.program.KerasProgram`."""

    def build(self, model: str) -> tf_keras.Sequential:
        """The named model, newly initialized: float32 [N, 28, 28, 1] -> logits float32 [N, 10]."""
        last = _classifier(model)
        layers = [tf_keras.layers.InputLayer(INPUT_SHAPE, name="images")]
        for layer in MODELS[model]:
            if isinstance(layer, Flatten):
                flatten = tf_keras.layers.GlobalAveragePooling2D if layer.average else tf_keras.layers.Flatten
                layers.append(flatten(name="flatten"))
            elif isinstance(layer, Conv):
                layers += _conv(layer)
            else:
                layers += _dense(layer, final=layer is last)
        return tf_keras.Sequential(layers, name=model)

    def pretrained(self, model: str) -> bool:
        """Never: the models are trained here."""
        return False

    def loss(
        self,
        outputs: Mapping[str, tf.Tensor],
        inputs: Mapping[str, tf.Tensor],
        targets: tf.Tensor,
        label_smoothing: float = 0.0,
    ) -> tf.Tensor:
        """Cross-entropy, mean over the batch; `targets`: int64 [B] labels."""
        logits = outputs["logits"]
        if not label_smoothing:
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits))
        wanted = tf.one_hot(targets, logits.shape[-1], 1.0 - label_smoothing) + label_smoothing / logits.shape[-1]
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(wanted, logits))

    def keep(self, network: tf_keras.Model) -> Collection[str]:
        """The classifier."""
        return (_classifier(network.name).name,)


def _classifier(model: str) -> Dense:
    return [layer for layer in MODELS[model] if isinstance(layer, Dense)][-1]


def _conv(layer: Conv) -> list[tf_keras.layers.Layer]:
    made = [
        tf_keras.layers.Conv2D(
            layer.channels,
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


def _dense(layer: Dense, final: bool) -> list[tf_keras.layers.Layer]:
    made = [tf_keras.layers.Dense(layer.channels, activation=None if final else "relu", name=layer.name)]
    if layer.dropout:
        made.append(tf_keras.layers.Dropout(layer.dropout, name=f"{layer.name}_dropout"))
    return made
