"""The matrix of networks, every cell: the quickest here, all others in the slow suite."""

from __future__ import annotations

import pytest
import torch

from benchmarks.networks import COLUMNS, row
from benchmarks.zoo import NETWORKS

torch.set_num_threads(1)
SMALL = ("two_heads", "conv3d", "m5", "ncf", "branching", "by_numpy")
UNREAD = "torch.export cannot capture the network at `largest = float(made.detach().numpy().max())`"
# (network, column) -> how the reason begins that stands there in place of `ok`.
REASONS = {
    ("lstm", "channel"): "channels: 0 of 1 layers narrower",
    ("gru", "channel"): "channels: 0 of 1 layers narrower",
    # 0.22 off with fresh weights, where 0.2 is taken for rounding: 80 layers in integers, each rounding tips the next.
    ("efficientnet_b0", "static int8"): "export: the file's output",
    ("efficientnet_b0", "QAT"): "export: the file's output",
    ("branching", "channel"): "channels: 0 of 1 layers narrower",
    ("branching", "QAT"): "export: the network decides by the values of its data: `return made if made.sum() > 0",
    ("by_numpy", "channel"): "channels: 0 of 1 layers narrower",
    **{("by_numpy", column): f"export: {UNREAD}" for column in COLUMNS if column not in ("channel", "mask")},
}


def check(name: str) -> None:
    for column, cell in row(name).items():
        assert cell.startswith(REASONS.get((name, column), "ok")), f"{column}: {cell}"


@pytest.mark.parametrize("name", SMALL)
def test_everything_goes_through_small_networks(name: str) -> None:
    check(name)


@pytest.mark.cluster
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in SMALL])
def test_every_cell_of_the_matrix_works_or_names_its_reason(name: str) -> None:
    check(name)
