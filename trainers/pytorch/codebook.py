"""Few distinct values per weight tensor, chosen with regard to how often each is used: for what has no grid."""

from __future__ import annotations

import torch

SAMPLE = 1 << 16  # weights from which a codebook is learned


def codebook(
    values: torch.Tensor, clusters: int, trade: float = 0.0, rounds: int = 20, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """float32 [up to `clusters`], ascending: values that stand for the nonzero ones of `values` with the least error.

    Lloyd's k-means in one dimension, from quantiles. `trade` > 0 makes it entropy-constrained (Chou, Lookabaugh & Gray,
    1989): each weight goes where squared error + `trade` * bits is least, bits by how often a value is used; values
    that end unused are dropped. `weights`: how much each error counts, of the shape of `values`. Zeros stay zeros and
    take no part.
    """
    chosen = values.detach().flatten().float()
    heavy = torch.ones_like(chosen) if weights is None else weights.detach().flatten().float()
    present = chosen != 0
    chosen, heavy = chosen[present], heavy[present]
    if not len(chosen):
        return torch.zeros(1)
    if len(chosen) > SAMPLE:
        drawn = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:SAMPLE]
        chosen, heavy = chosen[drawn], heavy[drawn]
    centres = torch.quantile(chosen, (torch.arange(clusters) + 0.5) / clusters).unique()
    bits = torch.zeros(len(centres))
    for _ in range(rounds):
        where = _nearest(chosen, heavy, centres, trade * bits)
        counts = torch.bincount(where, minlength=len(centres)).float()
        mass = torch.bincount(where, heavy, len(centres))
        sums = torch.bincount(where, heavy * chosen, len(centres))
        used = mass > 0
        centres = (sums[used] / mass[used]).float()
        bits = -torch.log2(counts[used] / counts.sum())
    return centres.unique()


def _nearest(values: torch.Tensor, heavy: torch.Tensor, centres: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    """int64 of the shape of `values`: the centre with the least weighted squared error + cost."""
    error = heavy[:, None] * (values[:, None] - centres) ** 2
    return (error + cost).argmin(1)


def on_codebook(values: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The nearest centre for each nonzero of `values`, of their shape; zeros stay zeros."""
    flat = values.detach().flatten().float()
    places = torch.bucketize(flat, (centres[1:] + centres[:-1]) / 2)
    found = torch.where(flat == 0, flat, centres.to(flat.device)[places])
    return found.reshape(values.shape).to(values.dtype)
