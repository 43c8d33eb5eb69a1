"""Pruning: masks through TF-MOT during training, and channels by building the model again with narrower layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

from trainers.base import TrainingError
from trainers.recipe import Pruning
from trainers.tensorflow import models

# Four neighbouring inputs of one output: they are neighbours in the .tflite file too, whose rows are outputs.
BLOCK = (4, 1)
N_M = (2, 4)
# Of the steps of a gradual run, the share in which sparsity grows, and in how many increments.
RAMP, INCREMENTS = 0.7, 20
TOLERANCE = 0.01


class _Blocks:
    """A kernel's masks in blocks over its [inputs, outputs] matrix; TF-MOT itself does so for Dense alone."""

    def __init__(self, pruning: pruning_wrapper.pruning_impl.Pruning) -> None:
        self._of_matrix: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]] = pruning._maybe_update_block_mask

    def __call__(self, kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        matrix = tf.reshape(kernel, (-1, kernel.shape[-1]))
        rows, columns = matrix.shape
        # TF-MOT takes a matrix of one row or column for a vector, and refuses it: double it.
        twice = tf.tile(matrix, (2 if rows == 1 else 1, 2 if columns == 1 else 1))
        threshold, mask = self._of_matrix(twice)
        return threshold, tf.reshape(mask[:rows, :columns], kernel.shape)


class _BlockWrapper(pruning_wrapper.PruneLowMagnitude):
    def build(self, input_shape: tf.TensorShape) -> None:
        super().build(input_shape)
        # Set only now: TF-MOT's own check refuses blocks for convolutions.
        self.pruning_obj._block_size = list(BLOCK)
        self.pruning_obj._maybe_update_block_mask = _Blocks(self.pruning_obj)


def wrapped(model: tf_keras.Model, pruning: Pruning, steps: int) -> tf_keras.Model:
    """The model with TF-MOT's wrappers around its prunable layers; `steps`: of the training that follows.

    One-shot masks are set here and stay; gradual ones grow during training with `UpdatePruningStep`.
    """
    goals = targets(models.kernels_of(model), pruning)
    at_once = pruning.schedule == "one_shot" or pruning.granularity == "n_m" or steps < 2
    wrapper = _BlockWrapper if pruning.granularity == "block" else pruning_wrapper.PruneLowMagnitude
    options = {"sparsity_m_by_n": N_M} if pruning.granularity == "n_m" else {}

    def wrap(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if layer.name not in goals:
            return layer
        return wrapper(layer, pruning_schedule=_schedule(goals[layer.name], steps, at_once), **options)

    made = tf_keras.models.clone_model(model, clone_function=wrap)
    if at_once:
        for layer in pruning_wrapper.collect_prunable_layers(made):
            layer.pruning_step.assign(1)
            layer.pruning_obj.conditional_mask_update()
            layer.pruning_obj.weight_mask_op()
    return made


def _schedule(goal: float, steps: int, at_once: bool) -> tfmot.sparsity.keras.PruningSchedule:
    if at_once:
        return tfmot.sparsity.keras.ConstantSparsity(goal, begin_step=1, end_step=1, frequency=1)
    # TF-MOT's default frequency of 100 steps leaves a short run dense, and an end between two updates short of it.
    every = max(1, int(RAMP * steps) // INCREMENTS)
    updates = min(INCREMENTS, max(1, int(RAMP * steps)))
    return tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.0, final_sparsity=goal, begin_step=1, end_step=1 + updates * every, power=3, frequency=every
    )


def targets(kernels: Mapping[str, np.ndarray], pruning: Pruning) -> dict[str, float]:
    """Layer name -> the sparsity TF-MOT is asked for, such that all layers together reach `pruning.sparsity`.

    The smallest weights (or blocks) of the whole model go: TF-MOT's one sparsity for every layer would take the
    500 weights of a first convolution as hard as the 400,000 of the layer that can spare them.
    """
    if pruning.granularity == "n_m":
        return dict.fromkeys(kernels, N_M[0] / N_M[1])
    size = BLOCK[0] if pruning.granularity == "block" else 1
    scores = {name: _scores(kernel, size) for name, kernel in kernels.items()}
    ranked = np.sort(np.concatenate([np.ravel(score) for score in scores.values()]))
    count = round(pruning.sparsity * len(ranked))
    threshold = ranked[count - 1] if count else -1.0
    return {name: min(float(np.mean(score <= threshold)), 1 - 1 / score.size) for name, score in scores.items()}


def _scores(kernel: np.ndarray, size: int) -> np.ndarray:
    """Mean magnitude of each block of `size` inputs: float32 [blocks, outputs]."""
    matrix = np.abs(kernel.reshape(-1, kernel.shape[-1]))
    starts = np.arange(0, len(matrix), size)
    lengths = np.minimum(size, len(matrix) - starts)[:, None]
    return np.add.reduceat(matrix, starts) / lengths


def stripped(model: tf_keras.Model) -> tf_keras.Model:
    """The model without wrappers, zeros in place."""
    return tfmot.sparsity.keras.strip_pruning(model)


def sparsity(kernels: Mapping[str, np.ndarray], dense: Mapping[str, np.ndarray]) -> float:
    """Share of the dense kernels' weights that are zero in `kernels` or no longer there."""
    left = sum(int(np.count_nonzero(kernel)) for kernel in kernels.values())
    return 1 - left / sum(kernel.size for kernel in dense.values())


def reached(kernels: Mapping[str, np.ndarray], pruning: Pruning, clustered: bool) -> float:
    """Share of zeros, checked against the recipe; raises TrainingError when they differ by more than 0.01.

    Clustering may add zeros: small weights join the cluster at zero.
    """
    found = sparsity(kernels, kernels)
    if pruning.granularity == "n_m":
        if not all(_is_n_m(kernel) for kernel in kernels.values()):
            raise TrainingError("pruning: some group of 4 input weights keeps more than 2")
    elif not -TOLERANCE <= found - pruning.sparsity <= (1.0 if clustered else TOLERANCE):
        raise TrainingError(f"pruning: sparsity is {found:.3f} after training, {pruning.sparsity:.3f} was asked for")
    return found


def _is_n_m(kernel: np.ndarray) -> bool:
    by_inputs = np.moveaxis(kernel, -2, -1) != 0
    groups = [by_inputs[..., start : start + N_M[1]].sum(axis=-1) for start in range(0, by_inputs.shape[-1], N_M[1])]
    return max(int(group.max()) for group in groups) <= N_M[0]
