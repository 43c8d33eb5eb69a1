"""Attention heads as units, in the ways that timm, torchvision and transformers write attention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from trainers.pytorch.importance import Importance
from trainers.pytorch.units import Network

SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"))
OUTPUTS = ("proj", "c_proj", "out_proj", "out_lin", "o_proj", "o")
COUNTS = ("num_heads", "num_attention_heads", "n_heads")
WIDTHS = ("all_head_size", "attn_dim", "inner_dim", "split_size")


@dataclass
class AttentionHeads:
    """The heads of the attention module `name`. `inputs`: its layers of queries, keys and values, or the fused one.

    `parts`: how many times the rows of all heads follow each other in each of them: 3 for a fused layer, else 1.
    """

    network: Network
    name: str
    inputs: tuple[str, ...]
    output: str
    parts: int
    kind = "heads"
    step = blocks = 1
    exact = True

    def layers(self) -> dict[str, int]:
        """Layer -> its number of output features now, of every layer that becomes narrower."""
        return {name: self._linear(name).out_features for name in self.inputs}

    def width(self) -> int:
        """Heads now."""
        attention = self._attention()
        return int(next(getattr(attention, name) for name in COUNTS if hasattr(attention, name)))

    def scores(self, importance: Importance) -> torch.Tensor:
        """float [heads]."""
        heads = self.width()
        found = []
        for head in range(heads):
            given = sum(importance.rows(self._linear(name), 0, self._rows([head], heads)) for name in self.inputs)
            found.append(given + importance.rows(self._linear(self.output), 1, self._columns([head], heads)))
        return torch.tensor(found)

    @contextlib.contextmanager
    def removed(self, positions: list[int]) -> Iterator[None]:
        """What the output layer takes from the heads at `positions` is zero, for a while."""
        weight = self._linear(self.output).weight.data
        original = weight.clone()
        weight[:, self._columns(positions, self.width())] = 0.0
        try:
            yield
        finally:
            weight.copy_(original)

    def remove(self, positions: list[int]) -> dict[str, list[int]]:
        """Remove the heads at `positions` and write the new number where the module keeps it."""
        heads, attention = self.width(), self._attention()
        gone = dict.fromkeys(self.inputs, self._rows(positions, heads))
        kept = [head for head in range(heads) if head not in set(positions)]
        width = self._linear(self.output).in_features
        for name in self.inputs:
            layer = self._linear(name)
            layer.weight = _chosen(layer.weight, 0, self._rows(kept, heads))
            if layer.bias is not None:
                layer.bias = _chosen(layer.bias, 0, self._rows(kept, heads))
            layer.out_features = len(layer.weight)
        output = self._linear(self.output)
        output.weight = _chosen(output.weight, 1, self._columns(kept, heads))
        output.in_features = output.weight.shape[1]
        for name, parameter in list(attention.named_parameters(recurse=False)):
            axes = [axis for axis, size in enumerate(parameter.shape) if size == heads]
            if len(axes) == 1:  # such as a table of biases by relative position, one column per head
                setattr(attention, name, _chosen(parameter, axes[0], kept))
        for names, before, after in ((COUNTS, heads, len(kept)), (WIDTHS, width, output.in_features)):
            for name in names:
                if getattr(attention, name, None) == before:
                    setattr(attention, name, after)
        return gone

    def _attention(self) -> nn.Module:
        return self.network.model.get_submodule(self.name)

    def _linear(self, name: str) -> nn.Linear:
        found = self.network.model.get_submodule(name)
        assert isinstance(found, nn.Linear)
        return found

    def _rows(self, heads: list[int], of: int) -> list[int]:
        columns = self._columns(heads, of)
        return [part * self._linear(self.output).in_features + row for part in range(self.parts) for row in columns]

    def _columns(self, heads: list[int], of: int) -> list[int]:
        size = self._linear(self.output).in_features // of
        return [head * size + i for head in heads for i in range(size)]


def _chosen(parameter: nn.Parameter, axis: int, positions: list[int]) -> nn.Parameter:
    chosen = parameter.detach().index_select(axis, torch.tensor(positions, device=parameter.device))
    return nn.Parameter(chosen, requires_grad=parameter.requires_grad)


def attention_heads(network: Network) -> list[AttentionHeads]:
    """The heads of every attention module whose layers are recognized, in the order of the modules."""
    found = []
    for name, module in network.model.named_modules():
        inputs, parts = _inputs(module)
        output = _output(network.model, name, module)
        count = next((getattr(module, each) for each in COUNTS if hasattr(module, each)), None)
        if not inputs or output is None or not isinstance(count, int) or count < 2:
            continue
        width = network.model.get_submodule(output).in_features
        layers = [module.get_submodule(each) for each in inputs]
        if width % count == 0 and all(layer.out_features == parts * width for layer in layers):
            prefix = f"{name}." if name else ""
            found.append(AttentionHeads(network, name, tuple(prefix + each for each in inputs), output, parts))
    return found


def _inputs(module: nn.Module) -> tuple[tuple[str, ...], int]:
    """Names of the layers that make queries, keys and values, and how many of these one layer makes; () without."""
    children = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    for fused in ("qkv", "c_attn"):
        if fused in children:
            return (fused,), 3
    return next(((names, 1) for names in SEPARATE if all(name in children for name in names)), ((), 1))


def _output(model: nn.Module, name: str, module: nn.Module) -> str | None:
    """The name of the linear layer that takes what the heads say: in the module, or beside it as in BERT."""
    prefix = f"{name}." if name else ""
    for each in OUTPUTS:
        if isinstance(getattr(module, each, None), nn.Linear):
            return prefix + each
    beside = f"{name.rpartition('.')[0]}.output.dense".lstrip(".")
    try:
        return beside if isinstance(model.get_submodule(beside), nn.Linear) else None
    except AttributeError:
        return None
