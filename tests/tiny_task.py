"""A small task that is nothing like MNIST: find the pixels of a named colour, and how many they are.

Two inputs, one of them int64 ids; two outputs, a dense map of logits and a value; two metrics, one of them minimized.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import Arrays, Batch, Metric, Port, TaskInfo, TaskSpec, class_agreement, digest_of

SIDE, COLOURS = 12, 3
INPUTS = (Port("picture", ("batch", COLOURS, SIDE, SIDE), "float32", "NCHW"), Port("colour", ("batch",), "int64"))
OUTPUTS = (
    Port("map", ("batch", 2, SIDE, SIDE), layout="NCHW", kind="logits"),
    Port("share", ("batch",)),
)
METRICS = (Metric("pixel_accuracy", "maximize", "%", 100.0), Metric("share_error", "minimize"))
SIZES = {"train": 400, "validation": 120, "test": 100}


class Pictures:
    """Random patches, each of one colour. `streamed`: told to be fetched batch by batch."""

    def __init__(self, split: str, count: int, streamed: bool) -> None:
        self.resident, self.shuffled = not streamed, True
        draw = np.random.default_rng([*split.encode()])
        shape = (count, SIDE, SIDE)
        self._which = draw.integers(0, COLOURS, (count, SIDE // 3, SIDE // 3)).repeat(3, 1).repeat(3, 2)
        planes = np.moveaxis(np.eye(COLOURS, dtype=np.float32)[self._which], -1, 1)
        self._pictures = planes + draw.normal(0, 0.2, (count, COLOURS, SIDE, SIDE)).astype(np.float32)
        self._colours = draw.integers(0, COLOURS, count)
        self._masks = (self._which == self._colours[:, None, None]).astype(np.int64)
        assert self._masks.shape == shape

    def __len__(self) -> int:
        return len(self._colours)

    def batch(self, rows: np.ndarray, epoch: int | None = None) -> Batch:
        masks = self._masks[rows]
        inputs = {"picture": self._pictures[rows], "colour": self._colours[rows]}
        return Batch(inputs, {"mask": masks, "share": masks.mean((1, 2)).astype(np.float32)})


class Judge:
    def __init__(self) -> None:
        self.right = self.pixels = self.samples = 0
        self.error = 0.0

    def add(self, outputs: Arrays, batch: Batch) -> None:
        self.right += int((outputs["map"].argmax(1) == batch.targets["mask"]).sum())
        self.pixels += batch.targets["mask"].size
        self.error += float(np.abs(outputs["share"] - batch.targets["share"]).sum())
        self.samples += len(batch)

    def result(self) -> dict[str, float]:
        return {"pixel_accuracy": self.right / self.pixels, "share_error": self.error / self.samples}


class Regions:
    """See `tasks.base.Task`. The models `patches` of both trainers are trained here, `given` comes with its weights."""

    def __init__(
        self,
        spec: TaskSpec | None = None,
        home: Path = Path(),
        progress: Callable[[str, float], None] = lambda stage, fraction: None,
        *,
        streamed: bool = False,
        trains: bool = True,
        teacher: str = "cached",
        sizes: Mapping[str, int] = SIZES,
    ) -> None:
        self._streamed, self._trains, self._teacher, self._sizes = streamed, trains, teacher, sizes

    def info(self) -> TaskInfo:
        return TaskInfo(
            name="regions",
            models={"pytorch": ("patches", "given"), "tensorflow": ("patches", "given")},
            inputs=INPUTS,
            outputs=OUTPUTS,
            metrics=METRICS,
            data_digest=digest_of([*self._sizes.items(), self._streamed]),
            trains=self._trains,
            teacher=self._teacher,  # type: ignore[arg-type]
            counts=self._sizes,
        )

    @functools.cache  # noqa: B019 - as long-lived as the tests
    def data(self, split: str) -> Pictures:
        return Pictures(split, self._sizes[split], self._streamed)

    def scorer(self) -> Judge:
        return Judge()

    def agreement(self, file: Arrays, model: Arrays) -> float:
        return class_agreement(OUTPUTS, file, model)

    def serving(self) -> None:
        return None

    def program(self, trainer: str) -> Any:
        return torch_program() if trainer == "pytorch" else keras_program()


def torch_program() -> Any:
    """The PyTorch half, made here so that this module can be imported without a framework."""
    import torch
    from torch import nn

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm1, self.relu1 = nn.Conv2d(COLOURS, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
            self.name, self.conv2, self.relu2 = nn.Embedding(COLOURS, 16), nn.Conv2d(16, 16, 1), nn.ReLU()
            self.map, self.share = nn.Conv2d(16, 2, 1), nn.Linear(16, 1)

        def forward(self, picture: torch.Tensor, colour: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.relu1(self.norm1(self.conv1(picture)))
            found = self.relu2(self.conv2(found * self.name(colour)[:, :, None, None]))
            return self.map(found), self.share(found.mean((2, 3)))[:, 0]

    class Program:
        def build(self, model: str) -> nn.Module:
            if model == "given":
                with torch.random.fork_rng():
                    torch.manual_seed(17)
                    return Patches().eval()
            return Patches().eval()

        def pretrained(self, model: str) -> bool:
            return model == "given"

        def loss(
            self, outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor], targets: Any
        ) -> torch.Tensor:
            by_pixel = nn.functional.cross_entropy(outputs["map"], targets["mask"])
            return by_pixel + nn.functional.mse_loss(outputs["share"], targets["share"])

        def keep(self, network: nn.Module) -> Collection[str]:
            return ("map", "share")

        def augment(self, inputs: Mapping[str, torch.Tensor], generator: torch.Generator) -> Mapping[str, torch.Tensor]:
            return inputs

    return Program()


def keras_program() -> Any:
    """The TensorFlow half: a Functional model with a branch for the ids, a product and a sum."""
    import tensorflow as tf
    import tf_keras

    layers = tf_keras.layers

    def patches() -> tf_keras.Model:
        picture = layers.Input((SIDE, SIDE, COLOURS), name="picture")
        colour = layers.Input((), dtype="int64", name="colour")
        found = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv1")(picture)
        found = layers.ReLU(name="relu1")(layers.BatchNormalization(name="norm1")(found))
        name = layers.Reshape((1, 1, 16), name="name_shape")(layers.Embedding(COLOURS, 16, name="name")(colour))
        found = layers.Multiply(name="both")([found, name])
        found = layers.Conv2D(32, 1, activation="relu", name="conv2")(found)
        more = layers.Conv2D(32, 1, activation="relu", name="conv3")(found)
        found = layers.Add(name="sum")([found, more])
        values = layers.Dense(1, name="value")(layers.GlobalAveragePooling2D(name="mean")(found))
        return tf_keras.Model(
            [picture, colour],
            [layers.Conv2D(2, 1, name="map_maps")(found), layers.Reshape((), name="share_values")(values)],
            name="patches",
        )

    class Program:
        def build(self, model: str) -> tf_keras.Model:
            made = patches()
            if model == "given":
                draw = np.random.default_rng(17)
                made.set_weights(
                    [draw.uniform(0.05, 0.2, each.shape).astype(np.float32) for each in made.get_weights()]
                )
            return made

        def pretrained(self, model: str) -> bool:
            return model == "given"

        def loss(self, outputs: Mapping[str, tf.Tensor], inputs: Mapping[str, tf.Tensor], targets: Any) -> tf.Tensor:
            by_pixel = tf.nn.sparse_softmax_cross_entropy_with_logits(targets["mask"], outputs["map"])
            return tf.reduce_mean(by_pixel) + tf.reduce_mean(tf.square(outputs["share"] - targets["share"]))

        def keep(self, network: tf_keras.Model) -> Collection[str]:
            return ("map_maps", "value")

    return Program()
