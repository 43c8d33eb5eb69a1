"""What a narrowed network gets back without training: statistics, biases and weights fitted to a few batches.

The dense network says what each layer of the narrowed one should say; layers are fitted in the order in which they run,
each to inputs that come from the layers fitted before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trainers.pytorch.capture import Example
from trainers.pytorch.evaluate import evaluating
from trainers.pytorch.layers import layers_of

SAMPLES = 4096  # rows of each layer that are compared: positions of maps, steps of sequences
RIDGE = 1e-2  # relative to the mean square of the inputs: how far weights are held to what they are

Kept = Mapping[str, Sequence[int]]  # layer -> which of the dense layer's output channels are left


def reestimate(model: nn.Module, batches: Sequence[Example]) -> None:
    """Batch norm's running mean and variance anew from inputs by position, as plain averages over the batches."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad(), evaluating(model):  # dropout would be estimated too
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's way to say: a plain average
            norm.train()
        for inputs in batches:
            model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def correct_biases(model: nn.Module, dense: nn.Module, batches: Sequence[Example], kept: Kept | None = None) -> int:
    """Move the bias of every layer that has one so that its mean output is the dense layer's; returns how many.

    Nagel et al., arXiv:1906.04721, by data. `kept`: without it the layers have the same channels.
    """
    return _fit(model, dense, batches, kept or {}, _shift)


def least_squares(model: nn.Module, dense: nn.Module, batches: Sequence[Example], kept: Kept | None = None) -> int:
    """Weights and biases of every layer that say, from what is left of its inputs, what the dense layer says.

    He et al., arXiv:1707.06168, with a ridge that holds weights to what they are. Layers whose inputs cannot be laid
    out as rows (grouped or transposed convolutions, others than zeros around the edge) get their bias alone. Returns
    how many layers were fitted.
    """
    return _fit(model, dense, batches, kept or {}, _solve)


def _fit(model: nn.Module, dense: nn.Module, batches: Sequence[Example], kept: Kept, fit: Callable[..., bool]) -> int:
    wanted = dict(_outputs(dense, batches))
    fitted = 0
    layers = layers_of(model)
    for name, target in wanted.items():
        layer = layers.get(name)
        if layer is None:
            continue
        if name in kept:
            target = target[:, list(kept[name])]
        rows, made = _rows_of(model, layer, batches)
        if made.shape == target.shape:
            fitted += fit(layer, rows, target - made)
    return fitted


class _Reached(Exception):  # noqa: N818  not an error: the layer has run, what follows need not
    pass


def _outputs(model: nn.Module, batches: Sequence[Example]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each layer that runs once per batch, in their order, with a sample of its outputs, float [rows, channels]."""
    found: dict[str, list[torch.Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda layer, given, made: found.setdefault(name, []).append(_sampled(_rows(layer, made), len(batches)))

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers_of(model).items()]
    try:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                model(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    for name, parts in found.items():
        if len(parts) == len(batches):
            yield name, torch.cat(parts)


def _rows_of(
    model: nn.Module, layer: nn.Module, batches: Sequence[Example]
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The layer's inputs as float [rows, inputs] (None where that is not possible) and its outputs [rows, channels]."""
    given_parts: list[torch.Tensor | None] = []
    made_parts = []

    def watch(_: nn.Module, given: tuple[Any, ...], made: torch.Tensor) -> None:
        patches = _patches(layer, given[0])
        given_parts.append(None if patches is None else _sampled(patches, len(batches)))
        made_parts.append(_sampled(_rows(layer, made), len(batches)))
        raise _Reached

    hook = layer.register_forward_hook(watch)
    try:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                with contextlib.suppress(_Reached):
                    model(*batch)
    finally:
        hook.remove()
    parts = [part for part in given_parts if part is not None]
    return (torch.cat(parts) if len(parts) == len(given_parts) else None), torch.cat(made_parts)


def _rows(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Outputs with one row per position: [rows, channels]."""
    last = values if isinstance(layer, nn.Linear) else values.movedim(1, -1)
    return last.reshape(-1, last.shape[-1]).float()


def _patches(layer: nn.Module, values: torch.Tensor) -> torch.Tensor | None:
    """What each output position sees: [rows, inputs], in the order of the flattened weight."""
    if isinstance(layer, nn.Linear):
        return values.reshape(-1, values.shape[-1]).float()
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)) or layer.groups > 1 or layer.padding_mode != "zeros":
        return None
    if isinstance(layer.padding, str):
        return None
    sizes = [layer.kernel_size, layer.dilation, layer.padding, layer.stride]
    if isinstance(layer, nn.Conv1d):
        values, sizes = (
            values.unsqueeze(2),
            [(neutral, *size) for neutral, size in zip((1, 1, 0, 1), sizes, strict=True)],
        )
    unfolded = nn.functional.unfold(values.float(), *sizes)
    return unfolded.movedim(1, -1).reshape(-1, unfolded.shape[1])


def _sampled(rows: torch.Tensor, batches: int) -> torch.Tensor:
    """The same rows of every tensor with as many of them."""
    count = max(1, SAMPLES // batches)
    if len(rows) <= count:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return rows[chosen.to(rows.device)]


def _shift(layer: nn.Module, rows: torch.Tensor | None, missing: torch.Tensor) -> bool:
    if layer.bias is None:
        return False
    layer.bias.data += missing.mean(0).to(layer.bias.dtype)
    return True


def _solve(layer: nn.Module, rows: torch.Tensor | None, missing: torch.Tensor) -> bool:
    if rows is None:
        return _shift(layer, None, missing)
    inputs, outputs = rows, missing
    if layer.bias is not None:
        inputs, outputs = rows - rows.mean(0), missing - missing.mean(0)
    gram = (inputs.T @ inputs).double()
    gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()) + 1e-12)
    change = torch.linalg.solve(gram, (inputs.T @ outputs).double()).float()
    layer.weight.data += change.T.reshape(layer.weight.shape).to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias.data += (missing.mean(0) - rows.mean(0) @ change).to(layer.bias.dtype)
    return True
