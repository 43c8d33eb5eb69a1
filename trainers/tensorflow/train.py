"""Training a Keras model: plain, pruned, clustered or fake-quantized, with or without a teacher.

One compiled function takes several batches per call from arrays that stay where the model is, or one batch that was
fetched ahead. `fit` with the same arrays spends its time between batches, and has no place for a teacher's outputs but
a second model.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from trainers import samples
from trainers.base import Teacher, TrainingError
from trainers.samples import mapped
from trainers.tensorflow.course import Course, Split
from trainers.tensorflow.distill import TrainingLoss
from trainers.tensorflow.layout import by_name, call, to_model, to_task
from trainers.tensorflow.program import Tensors

# Batches per call of the compiled function: what `job.pause` waits for at most. One by one costs 50 % more time
# on the smallest models, more than 8 gains nothing.
BATCHES_PER_CALL = 8
WARM_UP = 0.05  # of all steps

# (batches, learning rates float32 [K], number of the first step) -> sum of the K losses; trains the model
Run = Callable[[Any, np.ndarray, np.ndarray], tf.Tensor]


@dataclass(frozen=True)
class Plan:
    """One stage of training. `epochs` may be a fraction: the schedule is complete in so many steps.

    `teacher`: whose outputs on the training split were computed; `live`: one that runs in every step. `trained`:
    whether a variable, by its name, is trained.
    """

    stage: str
    epochs: float
    learning_rate: float
    batch_size: int
    seed: int
    loss: TrainingLoss
    teacher: Teacher | None = None
    live: tf_keras.Model | None = None
    weight_decay: float = 0.0
    trained: Callable[[str], bool] = lambda name: True

    def rows(self, split: Split) -> int:
        """Samples per batch: never more than there are."""
        return min(self.batch_size, len(split))

    def steps(self, split: Split) -> int:
        """Optimizer steps in all: at least one, unless there are no epochs."""
        return max(1, round(self.epochs * (len(split) // self.rows(split)))) if self.epochs else 0

    @property
    def cached(self) -> bool:
        """Whether the teacher spoke of the samples as they are: then nothing is augmented."""
        return self.teacher is not None and self.teacher.outputs is not None


def train(
    model: tf_keras.Model, plan: Plan, course: Course, callbacks: tuple[tf_keras.callbacks.Callback, ...] = ()
) -> list[dict[str, float]]:
    """Train `model` in place: `epochs`, loss and the task's metrics on validation, one dict per epoch.

    Of the callbacks `on_train_begin` and `on_epoch_end` are called. Raises TrainingError when the loss is not finite.
    """
    split = course.split("train")
    course.note(f"training data: {split.note}")
    steps, rows = plan.steps(split), plan.rows(split)
    rates = cosine(steps, plan.learning_rate)
    run, feed = _prepared(model, plan, course, split)
    for callback in callbacks:
        callback.set_model(model)
        callback.on_train_begin()
    curve: list[dict[str, float]] = []
    done, epoch = 0, 0
    while done < steps:
        losses, first = [], done
        batches = _batches(split, rows, (plan.seed, epoch))[: steps - done]
        for given, count in feed(batches, None if plan.cached else epoch):
            with _bfloat16():
                total = run(given, rates[done : done + count], np.array(done, np.int32))
            losses.append(float(total) / count)
            done += count
            _check(losses[-1], plan, epoch, done)
            course.job.progress(plan.stage, done / steps)
        for callback in callbacks:
            callback.on_epoch_end(epoch)
        share = (done - first) / (len(split) // rows)
        curve.append({"epochs": share, "loss": float(np.mean(losses)), **course.metrics(model)})
        epoch += 1
    return curve


def _batches(split: Split, rows: int, seed: tuple[int, int]) -> list[np.ndarray]:
    """int64 [rows] each: sample numbers in random order; what does not fill a batch is left out."""
    draw = np.random.default_rng(seed)
    lengths = getattr(split.dataset, "lengths", None)
    found = samples.by_length(draw.permutation(len(split)), lengths, rows, draw.permutation)
    return [each for each in found if len(each) == rows]


def cosine(steps: int, peak: float) -> np.ndarray:
    """float32 [steps]: linear warm-up to `peak` over the first 5 %, then a half cosine towards 0."""
    step = np.arange(steps)
    warm_up = max(1, math.ceil(WARM_UP * steps))
    falling = 0.5 * (1 + np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up)))
    return (peak * np.where(step < warm_up, (step + 1) / warm_up, falling)).astype(np.float32)


def _check(loss: float, plan: Plan, epoch: int, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"{plan.stage}: the loss became {loss} in epoch {epoch + 1}, step {step}; "
            f"lower finetuning.learning_rate (it is {plan.learning_rate:g})"
        )


Feed = Callable[[list[np.ndarray], int | None], Iterator[tuple[Any, int]]]


def _prepared(model: tf_keras.Model, plan: Plan, course: Course, split: Split) -> tuple[Run, Feed]:
    """The compiled function, and what gives it (batches, how many) from lists of row numbers."""
    step = _step(model, plan, course)
    if split.inputs is not None:
        return _resident(step, plan, split), functools.partial(_several, course)
    return _streamed(step), functools.partial(_one_by_one, plan, course, split)


def _several(course: Course, batches: list[np.ndarray], epoch: int | None) -> Iterator[tuple[np.ndarray, int]]:
    for start in range(0, len(batches), BATCHES_PER_CALL):
        course.job.pause()
        chosen = np.stack(batches[start : start + BATCHES_PER_CALL]).astype(np.int32)
        yield chosen, len(chosen)


def _one_by_one(
    plan: Plan, course: Course, split: Split, batches: list[np.ndarray], epoch: int | None
) -> Iterator[tuple[Any, int]]:
    outputs = plan.teacher.outputs if plan.teacher is not None else None

    def fetch(rows: np.ndarray) -> Any:
        batch = split.dataset.batch(rows, epoch)
        said = None if outputs is None else {name: np.asarray(array[rows]) for name, array in outputs.items()}
        return to_model(batch.inputs, course.info.inputs), mapped(samples.plain, batch.targets), said

    for given in samples.fetched_ahead(batches, fetch, course.job.threads, course.job.pause):
        yield given, 1


# (inputs, targets, what the teacher said, learning rate, number of the step) -> loss; one step of training
Step = Callable[[Tensors, Any, Any, tf.Tensor, tf.Tensor], tf.Tensor]


def _step(model: tf_keras.Model, plan: Plan, course: Course) -> Step:
    info, loss_of = course.info, plan.loss
    # The legacy optimizer updates each variable by one fused kernel.
    optimizer = tf_keras.optimizers.legacy.Adam(plan.learning_rate)
    variables = [each for each in model.trainable_variables if plan.trained(each.name)]
    optimizer._create_all_weights(variables)  # or the first call would trace `run` twice
    augment = None if plan.cached else getattr(course.program, "augment", None)

    def step(inputs: Tensors, targets: Any, said: Any, rate: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        if augment is not None:
            inputs = augment(inputs, number + plan.seed)
        if plan.live is not None:
            said = to_task(by_name(call(plan.live, inputs, info.inputs, training=False), info.outputs), info.outputs)
        with tf.GradientTape() as tape:
            outputs = by_name(call(model, inputs, info.inputs, training=True), info.outputs)
            loss = loss_of(outputs, inputs, targets, said)
            if model.losses:
                loss += tf.add_n(model.losses)
        optimizer.learning_rate.assign(rate)
        gradients = zip(tape.gradient(loss, variables), variables, strict=True)
        # Aggregation (over devices: there is one) registers a gradient for ever, and with it this whole graph.
        optimizer.apply_gradients(
            [(each, variable) for each, variable in gradients if each is not None],
            experimental_aggregate_gradients=False,
        )
        if plan.weight_decay:
            for variable in variables:
                if len(variable.shape) > 1:
                    variable.assign_sub(rate * plan.weight_decay * variable)
        return loss

    return step


def _resident(step: Step, plan: Plan, split: Split) -> Run:
    """int32 [K, B] sample numbers -> K steps on arrays that stay where the model is."""
    assert split.inputs is not None
    inputs = {name: tf.constant(array) for name, array in split.inputs.items()}
    targets = mapped(tf.constant, split.targets)
    outputs = plan.teacher.outputs if plan.teacher is not None else None
    said = None if outputs is None else {name: tf.constant(array) for name, array in outputs.items()}

    def run(order: tf.Tensor, rates: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        total = tf.constant(0.0)
        for i in tf.range(tf.shape(order)[0]):
            rows = order[i]
            total += step(
                {name: tf.gather(array, rows) for name, array in inputs.items()},
                mapped(lambda leaf: tf.gather(leaf, rows), targets),  # noqa: B023 - used at once
                None if said is None else {name: tf.gather(array, rows) for name, array in said.items()},
                rates[i],
                first + i,
            )
        return total

    signature = [
        tf.TensorSpec((None, plan.rows(split)), tf.int32),
        tf.TensorSpec((None,), tf.float32),
        tf.TensorSpec((), tf.int32),
    ]
    compiled: Run = tf.function(run, input_signature=signature)
    return compiled


def _streamed(step: Step) -> Run:
    """One batch of (inputs, targets, what the teacher said) -> one step."""

    def run(given: Any, rates: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        inputs, targets, said = given
        return step(inputs, targets, said, rates[0], first)

    compiled: Callable[..., tf.Tensor] = tf.function(run, reduce_retracing=True)

    def fed(given: Any, rates: np.ndarray, first: np.ndarray) -> tf.Tensor:
        tensors = tf.nest.map_structure(lambda each: None if each is None else tf.constant(each), given)
        return compiled(tensors, tf.constant(rates), tf.constant(first))

    return fed


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
