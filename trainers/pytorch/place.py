"""Which layers of a network are integer: within the loss that the recipe allows, and never slower than float."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.base import digest_of
from trainers.placement import fastest, remembered, within
from trainers.pytorch import quantize
from trainers.pytorch.capture import Example, outputs_of
from trainers.pytorch.checkpoint import network_state
from trainers.pytorch.course import Course
from trainers.pytorch.export import export, relative_error
from trainers.pytorch.layers import CONVOLUTIONS
from trainers.pytorch.sensitivity import drops
from trainers.recipe import Recipe

SAMPLES = 256  # by which layers are judged
GROUP = 16  # bytes of a vector register: with 8 channels integers took 1.10 times the time of float (LOG.md)
COLOURS = 4


@dataclass(frozen=True)
class Placed:
    """`keep_float`: names of modules whose operators stay float; without `integer` all do, and weights are int8."""

    keep_float: tuple[str, ...] = ()
    integer: bool = True
    notes: tuple[str, ...] = ()


def placed(
    recipe: Recipe, course: Course, model: nn.Module, dense: Callable[[], nn.Module], calibration: Sequence[Example]
) -> Placed:
    """What of `model`, pruned and trained already, is integer. `dense`: makes the dense network with its weights.

    Layers are judged in the dense network, once for a model and a `max_drop`, so that all trials agree on them; time in
    the network as it is, once for its widths and the target.
    """
    job, max_drop = course.job, recipe.quantization.max_drop
    keep, notes = (), ()
    if max_drop:
        about = {"model": recipe.model, "task": course.info.data_digest, "max_drop": max_drop, "code": 1}
        network = dense()
        key = {**about, "weights": _mean(network)}
        found = remembered(job.decisions, key, lambda: _accurate(course, network, calibration, max_drop))
        keep, notes = tuple(found["keep_float"]), tuple(found["notes"])
    if job.timer is None or job.format != "onnx":
        return Placed(keep, True, notes)
    about = {"model": recipe.model, "target": job.timer.target, "code": 2}
    key = {**about, "sizes": digest_of(_shapes(model)), "keep_float": keep}
    found = remembered(job.decisions, key, lambda: _fast(course, model, calibration, keep))
    return Placed(tuple(found["keep_float"]), found["integer"], (*notes, *found["notes"]))


def _shapes(model: nn.Module) -> list[Any]:
    return [[name, list(tensor.shape)] for name, tensor in network_state(model)["weights"].items()]


def _mean(model: nn.Module) -> float:
    """By which two trainings of one network are told apart."""
    return round(float(sum(each.detach().abs().mean() for each in model.parameters())), 6)


def _accurate(course: Course, model: nn.Module, calibration: Sequence[Example], max_drop: float) -> dict[str, Any]:
    """The layers that stay float so that at most `max_drop` of the answers change."""
    samples, ports = tuple(each[:SAMPLES] for each in calibration[0]), course.info.outputs
    exact = _answers(model.eval(), samples)

    def prepared(kept: tuple[str, ...]) -> nn.Module:
        return quantize.prepare(model, calibration, 8, course.info.inputs, kept)

    def lost(kept: tuple[str, ...]) -> float:
        said = _answers(prepared(kept), samples)
        pairs = [{port.name: each for port, each in zip(ports, all_, strict=True)} for all_ in (said, exact)]
        return 1.0 - course.job.task.agreement(*pairs)

    def score(network: nn.Module) -> float:
        return -max(relative_error(one, other) for one, other in zip(_answers(network, samples), exact, strict=True))

    if lost(()) <= max_drop:
        return {"keep_float": [], "notes": []}
    costs = drops(quantize.prepare(model, calibration, 8, course.info.inputs), score)
    *_, (kept, left) = within(costs, lost, max_drop)
    noted = f"stays float, within max_drop {max_drop:g}: {', '.join(kept)}"
    if left > max_drop:
        noted = f"all layers that can be integer stay float: {left:.1%} of the answers change even so"
    return {"keep_float": list(kept), "notes": [noted]}


def _answers(model: nn.Module, samples: Example) -> list[np.ndarray]:
    with torch.no_grad():
        return [each.float().cpu().numpy() for each in outputs_of(model(*samples))]


def _fast(course: Course, model: nn.Module, calibration: Sequence[Example], keep: tuple[str, ...]) -> dict[str, Any]:
    """All layers but `keep` integer, or without those that integers suit least, or none.

    The fastest; of equally fast ones that with the most integers.
    """
    assert course.job.timer is not None
    choices, whose = [keep], [""]
    for unsuited, names in (("depthwise convolutions", _depthwise(model)), ("narrow convolutions", _narrow(model))):
        if names:
            choices.append((*keep, *(name for name in names if name not in keep)))
            whose.append(unsuited)
    example = tuple(each[:2] for each in calibration[0])
    info, device = course.info, next(iter(calibration[0])).device
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{index}.onnx") for index in range(len(choices) + 1)]
        for kept, file in zip(choices, files, strict=False):
            course.job.pause()
            integer = quantize.convert(quantize.prepare(model, calibration, 8, info.inputs, kept).cpu())
            export(integer, example, file, {}, info.inputs, info.outputs)
        export(model.cpu().eval(), example, files[-1], {}, info.inputs, info.outputs)
        model.to(device)
        seconds = course.job.timer(files)
    taken, target = fastest(seconds), course.job.timer.target
    ratio = f"{seconds[0] / seconds[-1]:.2f} times the time of float on {target}"
    if taken == len(choices):
        note = f"float arithmetic, weights int8: integer operators take {ratio}"
        return {"keep_float": [], "integer": False, "notes": [note]}
    notes = [f"{whose[taken]} stay float: with them integers take {ratio}"] if taken else []
    return {"keep_float": list(choices[taken]), "integer": True, "notes": notes}


def _depthwise(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, CONVOLUTIONS) and layer.groups > 1]


def _narrow(model: nn.Module) -> list[str]:
    """Convolutions from or to fewer channels than integer kernels work on at once; an image's colours are none."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, CONVOLUTIONS)]
    return [name for name, each in layers if each.out_channels < GROUP or COLOURS < each.in_channels < GROUP]
