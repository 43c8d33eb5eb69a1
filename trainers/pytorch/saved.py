"""A compressed network on disk as anyone can read it: no pickle, and no code of ours or of the network's author.

`weights.safetensors`, `widths.json` (what pruning made of each module: sizes, heads) and `program.pt2`, the exported
program, which torch alone loads and runs. With the author's code at hand, `restore` makes the network itself again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from tasks.base import Port
from trainers.pytorch.capture import CaptureError, Example, capture
from trainers.pytorch.checkpoint import network_state, restore_network
from trainers.pytorch.layers import plain_layers

WEIGHTS, WIDTHS, PROGRAM = "weights.safetensors", "widths.json", "program.pt2"


def save(model: nn.Module, folder: Path, example: Example, inputs: Sequence[Port] = ()) -> None:
    """Write the network, in eval mode on the CPU, into `folder`. Raises CaptureError where it cannot be captured."""
    state = network_state(model)
    program = capture(model, example, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    # Tied weights are stored under each of their names: whoever reads the file need not know of them.
    weights = {name: tensor.contiguous().clone() for name, tensor in state["weights"].items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS)
    (folder / WIDTHS).write_text(json.dumps(state["sizes"], indent=1, sort_keys=True) + "\n")
    torch.export.save(program, folder / PROGRAM)


def saved_or_why(model: nn.Module, folder: Path, example: Example, inputs: Sequence[Port] = ()) -> list[str]:
    """As `save`; of a network that cannot be captured nothing is written, and the reason is given."""
    try:
        save(model, folder, example, inputs)
    except CaptureError as problem:
        return [f"not saved as a program of torch: {problem.message}"]
    return []


def restore(model: nn.Module, folder: Path) -> nn.Module:
    """Give a freshly built network of the same kind the widths and weights that `save` wrote, in place; returns it."""
    plain_layers(model)
    sizes = json.loads((folder / WIDTHS).read_text())
    for attributes in sizes.values():
        for name, value in attributes.items():
            attributes[name] = tuple(value) if isinstance(value, list) else value
    restore_network(model, {"weights": safetensors.torch.load_file(folder / WEIGHTS), "sizes": sizes})
    return model


def program_of(folder: Path) -> torch.nn.Module:
    """The saved network as a module, without the code that it was written in."""
    return torch.export.load(folder / PROGRAM).module()
