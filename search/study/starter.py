"""The text of a first study for a task of one's own: a search space that fits the kind of model, with comments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.base import ACCURACY, Metric
from trainers.base import Capabilities

Kind = Literal["convolutional", "transformer", "own", "keras", "onnx"]


@dataclass(frozen=True)
class Space:
    """What is worth searching for a kind of model. `bounds`: granularity -> sparsity."""

    granularities: tuple[str, ...]
    bounds: Mapping[str, str]
    schemes: tuple[str, ...]
    learning_rate: str
    dense: str
    why: str


SPACES: dict[Kind, Space] = {
    "convolutional": Space(
        ("none", "unstructured", "channel"),
        {"unstructured": "{low: 0.5, high: 0.9, step: 0.05}", "channel": "{low: 0.2, high: 0.7, step: 0.05}"},
        ("none", "static_int8", "qat_int8"),
        "{low: 3e-4, high: 3e-3, log: true}",
        "{epochs: 10, learning_rate: 2e-3, batch_size: 64}",
        "channels and int8 make it faster, single weights make the file smaller",
    ),
    "transformer": Space(
        ("none", "unstructured", "channel"),
        {"unstructured": "{low: 0.3, high: 0.8, step: 0.05}", "channel": "{low: 0.1, high: 0.5, step: 0.05}"},
        ("none", "dynamic_int8", "static_int8"),
        "{low: 2e-5, high: 3e-4, log: true}",
        "{epochs: 3, learning_rate: 1e-4, batch_size: 32}",
        "channels are those of the feed-forward layers and whole heads; dynamic int8 needs no calibration",
    ),
    "own": Space(
        ("none", "unstructured", "channel"),
        {"unstructured": "{low: 0.5, high: 0.9, step: 0.05}", "channel": "{low: 0.2, high: 0.6, step: 0.05}"},
        ("none", "dynamic_int8", "static_int8"),
        "{low: 3e-4, high: 3e-3, log: true}",
        "{epochs: 10, learning_rate: 2e-3, batch_size: 64}",
        "what a kind of layer does not allow is left out of a trial and said",
    ),
    "keras": Space(
        ("none", "unstructured"),
        {"unstructured": "{low: 0.4, high: 0.9, step: 0.05}"},
        ("none", "dynamic_int8", "static_int8", "qat_int8"),
        "{low: 3e-4, high: 3e-3, log: true}",
        "{epochs: 10, learning_rate: 1e-3, batch_size: 64}",
        "int8 makes it faster, single weights make the file smaller",
    ),
    "onnx": Space(
        ("none", "channel"),
        {"channel": "{low: 0.1, high: 0.5, step: 0.05}"},
        ("none", "float16", "dynamic_int8", "static_int8", "weight_only_int8"),
        "",
        "",
        "without training code: what calibration samples allow; channels by least squares",
    ),
}
TRIALS = 24
SMALL_METRIC = 0.02  # the loss of quality that a first study allows, of a metric that is a fraction


@dataclass(frozen=True)
class Starter:
    """What `search.new` was told, read. `task`: field -> value, as the study's `task` section has them."""

    name: str
    kind: Kind
    trainer: str
    runtime: str
    task: Mapping[str, Any]
    metrics: tuple[Metric, ...] | None
    folder: Path

    def text(self, able: Capabilities) -> str:
        """The study file. `able`: what the trainer can do; what it cannot is left out."""
        space = SPACES[self.kind]
        trains = self.kind != "onnx"
        granularities = [each for each in space.granularities if each in able.granularities]
        schemes = [each for each in space.schemes if each in able.schemes]
        lines = [*self._head(), *self._task()]
        if trains:
            lines.append(f"dense: {space.dense} # how the model is trained first, if it comes without weights")
        lines += [
            f"recipe: # {space.why}",
            f"  trainer: {self.trainer}",
            *_pruning(space, granularities),
            "  quantization:",
            f"    scheme: {_choices(schemes)}",
        ]
        if not trains:
            lines.append(f"    max_drop: {SMALL_METRIC:g} # of the answers: layers that cost more stay float")
        if trains:
            lines += _training(space)
        lines += ["references: # tried first", "  dense: {}", *_references(granularities, schemes)]
        lines += [
            "latency: {max_seconds: 2}",
            f"budget: {{trials: {TRIALS}}}",
            f"confirm: {{seeds: {3 if trains else 0}}}",
            "seed: 0",
        ]
        return "\n".join(lines) + "\n"

    def _head(self) -> list[str]:
        metric = self.metrics[0] if self.metrics else None
        objective = metric.name if metric else ACCURACY.name
        guessed = "" if metric else " # the task's own metric first: search.doctor says what it is called"
        share = metric is None or (metric.unit == "%" and metric.scale == 100)
        bound = f"{objective}_drop <= {SMALL_METRIC:g}"
        limit = f"constraints: [{bound}]" if share else f"# constraints: [{bound}]"
        return [
            f"# python -m search.run --config-dir {self.folder} study={self.name}",
            "# Written by search.new. What every setting means: python -m search.run --help",
            f"name: {self.name}",
            f"objectives: [{objective}, latency_ms, size_bytes]{guessed}",
            f"{limit} # the most that a model may lose against the dense one",
            f"runtime: {self.runtime}",
        ]

    def _task(self) -> list[str]:
        if set(self.task) == {"name"}:
            return [f"task: {_scalar(self.task['name'])}"]
        return ["task:", *(f"  {field}: {_scalar(value)}" for field, value in self.task.items())]


def _scalar(value: Any) -> str:
    """A value in YAML; text in quotes where it could be read otherwise."""
    text = str(value)
    if isinstance(value, int) or (text.replace("_", "").replace(".", "").isalnum() and not text[0].isdigit()):
        return text
    return json.dumps(text, ensure_ascii=False)


def _choices(values: Sequence[str]) -> str:
    return f"{{choices: [{', '.join(values)}]}}" if len(values) > 1 else values[0]


def _pruning(space: Space, granularities: Sequence[str]) -> list[str]:
    if len(granularities) < 2:
        return []
    bounds = [f"      {each}: {space.bounds[each]}" for each in granularities if each in space.bounds]
    return [
        "  pruning:",
        f"    granularity: {_choices(granularities)}",
        "    sparsity: # the share that is removed",
        *bounds,
        "    schedule: one_shot",
    ]


def _training(space: Space) -> list[str]:
    batch = space.dense.rpartition(" ")[2].rstrip("}")
    return [
        "  distillation: # the dense model teaches the smaller one",
        "    kind: {choices: [none, soft]}",
        "    temperature: {low: 2.0, high: 6.0, log: true}",
        "    alpha: 0.7",
        "  finetuning:",
        "    epochs: 2",
        f"    learning_rate: {space.learning_rate}",
        f"    batch_size: {batch}",
    ]


def _references(granularities: Sequence[str], schemes: Sequence[str]) -> list[str]:
    scheme = next((each for each in ("static_int8", "dynamic_int8") if each in schemes), "")
    int8 = f"quantization: {{scheme: {scheme}}}"
    half = "pruning: {granularity: channel, sparsity: 0.5}"
    made = {"int8": int8 if scheme else "", "channel_50": half if "channel" in granularities else ""}
    made["channel_50_int8"] = f"{half}, {int8}" if all(made.values()) else ""
    return [f"  {name}: {{{recipe}}}" for name, recipe in made.items() if recipe]


FILE = '''\
"""The task of study {name}: what is compressed. Every function here is yours to change.

Tensors are given to loss(), NumPy arrays to metric(). Optional functions and names:
    METRICS = {{"miou": "maximize"}}      what metric() returns, and which way is better
    TRAINED = True                      model() comes with trained weights (found out by itself if left out)
    keep = ["head"]                     layers that are neither pruned nor quantized
    def augment(inputs, generator)      batches as training sees them
    def preprocess(inputs)              what a request goes through before the model, as the data does here
    def distill(student, teacher, how)  how far the student's outputs are from the teacher's
"""

import numpy as np
import torch
from torch import nn


def model():
    """The network, with its weights loaded if there are any."""
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))


def data(split):
    """Samples for "train", "validation" or "test"; None where there is no such split: it is then made.

    A dataset with __len__ and __getitem__ that gives (inputs, target), (inputs, targets) arrays, a DataLoader, or an
    iterable of (inputs, target). Inputs may be a tuple or a mapping, for a model with several.
    """
    rng = np.random.default_rng({{"train": 0, "validation": 1, "test": 2}}[split])
    inputs = rng.normal(size=(600, 16)).astype(np.float32)
    return inputs, inputs[:, :3].argmax(1)


def loss(outputs, batch):
    """One number to be minimized, the mean over the batch; left out, the targets decide (cross-entropy, or MSE)."""
    inputs, targets = batch
    return nn.functional.cross_entropy(outputs, targets)


METRICS = {{"accuracy": "maximize"}}


def metric(outputs, targets):
    """The figure of quality over a whole split; leave it out, and write `metric: f1` in the study, for a known one."""
    return (outputs.argmax(1) == targets).mean()
'''
