"""Training a Keras model: plain, pruned, clustered or fake-quantized, with or without a teacher.

One compiled function takes several batches per call from arrays that stay where the model is. `fit` with the
same arrays spends its time between batches, and has no place for teacher logits but a second model.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from tasks.mnist.data import DataSet, normalized
from trainers.base import Job, TrainingError
from trainers.recipe import Distillation
from trainers.tensorflow import distill

# Batches per call of the compiled function: what `job.pause` waits for at most. One by one costs 50 % more time
# on the smallest models, more than 8 gains nothing.
BATCHES_PER_CALL = 8
WARM_UP = 0.05  # of all steps
PREDICT_ROWS = 500


@dataclass(frozen=True)
class Plan:
    """One stage of training. `teacher`: float32 [train size, 10] logits, None without distillation."""

    stage: str
    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    distillation: Distillation
    teacher: np.ndarray | None

    def steps(self, job: Job) -> int:
        """Optimizer steps in all."""
        return self.epochs * (len(dataset(job).train) // self.rows(job))

    def rows(self, job: Job) -> int:
        """Samples per batch: never more than there are."""
        return min(self.batch_size, len(dataset(job).train))


def train(
    model: tf_keras.Model, plan: Plan, job: Job, callbacks: tuple[tf_keras.callbacks.Callback, ...] = ()
) -> list[dict[str, float]]:
    """Train `model` in place; returns one dict per epoch. Raises TrainingError when the loss is not finite.

    Of the callbacks `on_train_begin` and `on_epoch_end` are called.
    """
    steps, rows = plan.steps(job), plan.rows(job)
    rates = cosine(steps, plan.learning_rate)
    run = _compiled(model, plan, job)
    for callback in callbacks:
        callback.set_model(model)
        callback.on_train_begin()
    curve: list[dict[str, float]] = []
    done = 0
    for epoch in range(plan.epochs):
        losses = []
        batches = _batches(len(dataset(job).train), rows, (plan.seed, epoch))
        for start in range(0, len(batches), BATCHES_PER_CALL):
            job.pause()
            chosen = batches[start : start + BATCHES_PER_CALL]
            with _bfloat16():
                losses.append(float(run(chosen, rates[done : done + len(chosen)])) / len(chosen))
            done += len(chosen)
            _check(losses[-1], plan, epoch, done)
            job.progress(plan.stage, done / steps)
        for callback in callbacks:
            callback.on_epoch_end(epoch)
        curve.append({"loss": float(np.mean(losses)), "accuracy": accuracy(model, job)})
    return curve


def _batches(samples: int, rows: int, seed: tuple[int, int]) -> np.ndarray:
    """int32 [batches, rows]: sample numbers in random order; what does not fill a batch is left out."""
    order = np.random.default_rng(seed).permutation(samples).astype(np.int32)
    return order[: samples // rows * rows].reshape(-1, rows)


def cosine(steps: int, peak: float) -> np.ndarray:
    """float32 [steps]: linear warm-up to `peak` over the first 5 %, then a half cosine towards 0."""
    step = np.arange(steps)
    warm_up = max(1, math.ceil(WARM_UP * steps))
    falling = 0.5 * (1 + np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up)))
    return (peak * np.where(step < warm_up, (step + 1) / warm_up, falling)).astype(np.float32)


def predict(model: tf_keras.Model, images: np.ndarray, job: Job) -> np.ndarray:
    """uint8 [N, 28, 28] -> logits float32 [N, 10] of the model as it is in use, in full precision."""
    parts = []
    for start in range(0, len(images), PREDICT_ROWS):
        job.pause()
        rows = normalized(images[start : start + PREDICT_ROWS], "NHWC")
        parts.append(model(rows, training=False).numpy())
    return np.concatenate(parts)


def accuracy(model: tf_keras.Model, job: Job) -> float:
    """Fraction of the validation split that the model labels rightly."""
    labels = predict(model, dataset(job).validation.images, job).argmax(axis=1)
    return float(np.mean(labels == dataset(job).validation.labels))


def dataset(job: Job) -> DataSet:
    """MNIST's arrays."""
    found: DataSet = job.task.dataset  # type: ignore[attr-defined]
    return found


def _check(loss: float, plan: Plan, epoch: int, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"{plan.stage}: the loss became {loss} in epoch {epoch + 1}, step {step}; "
            f"lower finetuning.learning_rate (it is {plan.learning_rate:g})"
        )


def _compiled(model: tf_keras.Model, plan: Plan, job: Job) -> Callable[[np.ndarray, np.ndarray], tf.Tensor]:
    """int32 [K, B] sample numbers, float32 [K] learning rates -> sum of the K losses; trains the model."""
    images, labels = tf.constant(dataset(job).train.images), tf.constant(dataset(job).train.labels, tf.int32)
    without = np.zeros((len(labels), 1), np.float32)
    teacher = tf.constant(without if plan.teacher is None else plan.teacher, tf.float32)
    # The legacy optimizer updates each variable by one fused kernel.
    optimizer = tf_keras.optimizers.legacy.Adam(plan.learning_rate)
    variables = model.trainable_variables
    optimizer._create_all_weights(variables)  # or the first call would trace `run` twice
    offset, scale = _affine()

    def run(order: tf.Tensor, rates: tf.Tensor) -> tf.Tensor:
        total = tf.constant(0.0)
        for i in tf.range(tf.shape(order)[0]):
            inputs = tf.cast(tf.gather(images, order[i]), tf.float32)[..., None] * scale + offset
            with tf.GradientTape() as tape:
                logits = model(inputs, training=True)
                loss = distill.loss(
                    logits, tf.gather(labels, order[i]), tf.gather(teacher, order[i]), plan.distillation
                )
            optimizer.learning_rate.assign(rates[i])
            gradients = zip(tape.gradient(loss, variables), variables, strict=True)
            # Aggregation (over devices: there is one) registers a gradient for ever, and with it this whole graph.
            optimizer.apply_gradients(gradients, experimental_aggregate_gradients=False)
            total += loss
        return total

    signature = [tf.TensorSpec((None, plan.rows(job)), tf.int32), tf.TensorSpec((None,), tf.float32)]
    compiled: Callable[[np.ndarray, np.ndarray], tf.Tensor] = tf.function(run, input_signature=signature)
    return compiled


def _affine() -> tuple[float, float]:
    """(offset, scale) of `normalized`, so that the images can stay uint8, a quarter of the memory."""
    black, white = normalized(np.array([0, 255], np.uint8).reshape(2, 1, 1), "NHWC").ravel()
    return float(black), float(white - black) / 255


@contextlib.contextmanager
def _bfloat16() -> Iterator[None]:
    """Matrix products and convolutions in bfloat16 where the CPU has it: LeNet-5 then trains 1.6 times as fast."""
    if not _has_bfloat16():
        yield
        return
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": False})


@functools.cache
def _has_bfloat16() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "avx512_bf16" in flags.read_text()
