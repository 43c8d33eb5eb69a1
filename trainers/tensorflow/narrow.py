"""Channel pruning of Keras models: the same model built again with narrower layers.

Every channel of every tensor bears a number. Convolutions and dense layers make new ones, other layers pass them on,
and a sum or product of two tensors makes the numbers of both one: what is one number is removed together, as DepGraph
(arXiv:2301.12900) has it. A layer whose channels reach an output, or a layer that is not known here, is left whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tf_keras

from trainers.base import narrowed
from trainers.tensorflow import models

L = tf_keras.layers
# Layers that make channels: the name of their width in the configuration.
MAKING: dict[type, str] = {L.Conv1D: "filters", L.Conv2D: "filters", L.Conv3D: "filters", L.Dense: "units"}
# Layers whose output has the channels of their input, in the same order.
PASSING = (
    L.Activation, L.ReLU, L.LeakyReLU, L.ELU, L.ThresholdedReLU, L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D,
    L.GaussianNoise, L.GaussianDropout, L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D, L.AveragePooling1D,
    L.AveragePooling2D, L.AveragePooling3D, L.GlobalAveragePooling1D, L.GlobalAveragePooling2D,
    L.GlobalAveragePooling3D, L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D, L.UpSampling1D,
    L.UpSampling2D, L.UpSampling3D, L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D, L.Cropping1D, L.Cropping2D,
    L.Cropping3D,
)  # fmt: skip
JOINING = (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)


@dataclass
class Channels:
    """What is known of a model's channels.

    `made`: layer -> int64 [width], the number of each channel that it makes; `read`: layer -> those that it takes.
    `fixed`: numbers that must stay. `reasons`: why layers are left whole, in words, by layer.
    """

    made: dict[str, np.ndarray] = field(default_factory=dict)
    read: dict[str, np.ndarray] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)
    parents: list[int] = field(default_factory=list)

    def new(self, count: int) -> np.ndarray:
        """Numbers that nothing has yet."""
        first = len(self.parents)
        self.parents += range(first, first + count)
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        """The number that stands for all that are one with this."""
        while self.parents[number] != number:
            self.parents[number] = number = self.parents[self.parents[number]]
        return number

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """`root` of each."""
        return np.array([self.root(int(number)) for number in numbers], np.int64)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """The channels of both tensors are the same from now on."""
        for a, b in zip(one, other, strict=True):
            self.parents[self.root(int(a))] = self.root(int(b))

    def fix(self, numbers: np.ndarray, reason: str) -> None:
        """These channels stay; the layers that made them are told why."""
        self.fixed |= {int(number) for number in numbers}
        for name, made in self.made.items():
            if set(made.tolist()) & set(np.asarray(numbers).tolist()):
                self.reasons.setdefault(name, reason)


def channels_of(model: tf_keras.Model, keep: Collection[str]) -> Channels:
    """Walk through a Sequential or Functional model once, each layer after those that feed it."""
    known = Channels()
    numbers: dict[int, np.ndarray] = {}  # by the identity of a symbolic tensor
    nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
    calls = Counter(node.layer.name for node in nodes)
    for node in nodes:
        outputs = _listed(node.outputs)
        inputs = [numbers[id(tensor)] for tensor in _listed(node.input_tensors)] if not node.is_input else []
        if not inputs or len(outputs) > 1 or calls[node.layer.name] > 1:
            for each in inputs:
                known.fix(each, f"{node.layer.name} behind it is called twice, or has several outputs")
            for tensor in outputs:
                numbers[id(tensor)] = _fixed(known, tensor)
        else:
            numbers[id(outputs[0])] = _through(known, node, inputs, keep)
    for tensor in _listed(model.outputs):
        known.fix(numbers[id(tensor)], "its channels are an output")
    return known


def _through(known: Channels, node: Any, inputs: list[np.ndarray], keep: Collection[str]) -> np.ndarray:
    """The numbers of a layer's output channels."""
    layer = node.layer
    tensor, given = _listed(node.outputs)[0], inputs[0]
    if _mixes(layer):
        return _unknown(known, layer, inputs, tensor)
    if type(layer) in MAKING and getattr(layer, "groups", 1) == 1:
        known.read[layer.name] = given
        known.made[layer.name] = made = known.new(_width(tensor))
        if layer.name in keep:
            known.fix(made, "it is kept")
        return made
    if isinstance(layer, L.DepthwiseConv2D):
        known.read[layer.name] = given
        return np.repeat(given, layer.depth_multiplier)
    if isinstance(layer, L.BatchNormalization) and _last(layer.axis, node):
        known.read[layer.name] = given
        return given
    if isinstance(layer, PASSING):
        return given
    if isinstance(layer, L.Flatten):
        return np.tile(given, _width(tensor) // len(given))
    if isinstance(layer, JOINING) and all(len(each) == len(given) for each in inputs):
        for other in inputs[1:]:
            known.join(given, other)
        return given
    if isinstance(layer, L.Concatenate) and _last(layer.axis, node):
        return np.concatenate(inputs)
    return _unknown(known, layer, inputs, tensor)


def _mixes(layer: Any) -> bool:
    """Whether the layer has its channels in another place, or computes one from all."""
    softmax = isinstance(layer, L.Activation) and layer.activation is tf_keras.activations.softmax
    return softmax or getattr(layer, "data_format", None) == "channels_first"


def _unknown(known: Channels, layer: Any, inputs: list[np.ndarray], tensor: Any) -> np.ndarray:
    for each in inputs:
        known.fix(each, f"{layer.name} ({type(layer).__name__}) behind it cannot be narrowed")
    return _fixed(known, tensor)


def _fixed(known: Channels, tensor: Any) -> np.ndarray:
    made = known.new(_width(tensor))
    known.fixed |= set(made.tolist())
    return made


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _width(tensor: Any) -> int:
    shape = tensor.shape
    return int(shape[-1]) if len(shape) > 1 and shape[-1] is not None else 1


def _last(axis: Any, node: Any) -> bool:
    rank = len(_listed(node.input_tensors)[0].shape)
    return [each % rank for each in _listed(axis)] == [rank - 1]


@dataclass(frozen=True)
class Narrowing:
    """How a model's layers may be narrowed. `groups`: layers that lose the same channels, in order.

    `widths`: of every layer in them, before the first narrowing. `reasons`: why other layers are left whole.
    """

    groups: tuple[tuple[str, ...], ...]
    widths: Mapping[str, int]
    reasons: Mapping[str, str]

    @staticmethod
    def of(model: tf_keras.Model, keep: Collection[str]) -> Narrowing:
        """What can be narrowed of this model; `keep`: layers that are left whole."""
        known = channels_of(model, keep)
        groups: list[list[str]] = []
        for name, made in known.made.items():
            own = set(known.roots(made).tolist())
            met = [group for group in groups if own & {r for each in group for r in known.roots(known.made[each])}]
            groups = [group for group in groups if group not in met]
            groups.append([*(each for group in met for each in group), name])
        fixed = {known.root(number) for number in known.fixed}
        free, reasons = [], dict(known.reasons)
        for group in groups:
            roots = known.roots(known.made[group[0]])
            whole = set(roots.tolist())
            alike = len(whole) == len(roots) and all(
                set(known.roots(known.made[each]).tolist()) == whole for each in group
            )
            if alike and not fixed & whole:
                free.append(tuple(group))
                continue
            for each in group:
                reasons.setdefault(each, "its channels are joined with some that stay")
        free.sort(key=lambda group: list(known.made).index(group[0]))
        widths = {name: len(known.made[name]) for group in free for name in group}
        return Narrowing(tuple(free), widths, reasons)


def narrow(model: tf_keras.Model, narrowing: Narrowing, keep: Collection[str], sparsity: float) -> tf_keras.Model:
    """The model with `narrowed(width, sparsity)` channels left of each layer: those of largest norm, in their order.

    The norm is of a filter as it acts: without the inputs that are gone, times the scale of the batch normalization
    behind it; of layers that are narrowed together, the sum.
    """
    known, weights = channels_of(model, keep), models.weights_of(model)
    gone: set[int] = set()
    for group in narrowing.groups:
        roots = known.roots(known.made[group[0]])
        place = {int(root): at for at, root in enumerate(roots)}
        scores = np.zeros(len(roots))
        for name in group:
            order = [place[int(root)] for root in known.roots(known.made[name])]
            scores[order] += _norms(known, weights, model, name, gone)
        goal = narrowed(narrowing.widths[group[0]], sparsity)
        lost = np.argsort(-scores, kind="stable")[goal:]
        gone |= {int(roots[at]) for at in lost}
    return _rebuilt(model, known, weights, gone)


def removed(narrowing: Narrowing, weights: Mapping[str, np.ndarray]) -> float:
    """Share of the channels of the layers that can be narrowed which `weights`, by layer, no longer have."""
    left = sum(weights[name].shape[-1] for name in narrowing.widths)
    return 1 - left / sum(narrowing.widths.values())


def _stays(known: Channels, numbers: np.ndarray, gone: set[int]) -> np.ndarray:
    return np.array([int(root) not in gone for root in known.roots(numbers)], bool)


def _norms(
    known: Channels, weights: Mapping[str, np.ndarray], model: tf_keras.Model, name: str, gone: set[int]
) -> np.ndarray:
    kernel = np.compress(_stays(known, known.read[name], gone), weights[f"{name}.kernel"], axis=-2)
    norms = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
    for layer in model.layers:
        behind = isinstance(layer, L.BatchNormalization) and np.array_equal(
            known.read.get(layer.name, ()), known.made[name]
        )
        if behind and f"{layer.name}.gamma" in weights:
            variance = weights[f"{layer.name}.moving_variance"]
            norms = norms * (np.abs(weights[f"{layer.name}.gamma"]) / np.sqrt(variance + layer.epsilon))
    return np.asarray(norms)


def _rebuilt(
    model: tf_keras.Model, known: Channels, weights: Mapping[str, np.ndarray], gone: set[int]
) -> tf_keras.Model:
    def clone(layer: Any) -> Any:
        settings = layer.get_config()
        if layer.name in known.made:
            settings[MAKING[type(layer)]] = int(_stays(known, known.made[layer.name], gone).sum())
        return type(layer).from_config(settings)

    made = tf_keras.models.clone_model(model, clone_function=clone)
    left = dict(weights)
    for layer in model.layers:
        if layer.name not in known.read:
            continue
        inputs = _stays(known, known.read[layer.name], gone)
        outputs = _stays(known, known.made[layer.name], gone) if layer.name in known.made else None
        for key in [key for key in weights if key.rpartition(".")[0] == layer.name]:
            left[key] = _narrowed_variable(weights[key], key.rpartition(".")[2], inputs, outputs, layer)
    models.set_weights(made, left)
    return made


def _narrowed_variable(
    value: np.ndarray, name: str, inputs: np.ndarray, outputs: np.ndarray | None, layer: Any
) -> np.ndarray:
    if name == "kernel" and outputs is not None:
        return np.compress(outputs, np.compress(inputs, value, axis=-2), axis=-1)
    if name == "depthwise_kernel":
        return np.compress(inputs, value, axis=-2)
    if outputs is None:
        outputs = np.repeat(inputs, getattr(layer, "depth_multiplier", 1))
    return np.compress(outputs, value, axis=-1)
