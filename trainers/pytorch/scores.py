"""Which weights matter: scores that unstructured pruning compares over all layers together.

Pure functions of weights and of what Adam remembers anyway, so a score costs nothing extra in a training step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

EXPONENT = 0.4  # of E g^2: 0.35 to 0.5 do equally well on LeNets, 0 (magnitude) clearly worse


def second_moments(optimizer: torch.optim.Optimizer, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """E g^2 of each parameter, float32 of its shape, as Adam estimates it (bias-corrected): the diagonal of the
    empirical Fisher information up to a factor. A parameter that has made no step yet has ones.

    `named`: name -> the very parameter that the optimizer holds. Kingma & Ba, arXiv:1412.6980.
    """
    decay = {id(p): group["betas"][1] for group in optimizer.param_groups for p in group["params"]}
    found = {}
    for name, parameter in named.items():
        state = optimizer.state.get(parameter, {})
        if not state:
            found[name] = torch.ones_like(parameter, dtype=torch.float32)
            continue
        corrected = 1.0 - decay[id(parameter)] ** float(state["step"])
        found[name] = state["exp_avg_sq"].detach().float() / corrected
    return found


def fisher_score(weight: torch.Tensor, moment: torch.Tensor, exponent: float = EXPONENT) -> torch.Tensor:
    """|w| * (E g^2)^exponent, of the weight's shape.

    With exponent 0.5 it is the square root of w^2 * E g^2, the loss that the weight's removal adds to second order
    (LeCun et al., Optimal Brain Damage, 1989) with the Fisher information in place of the Hessian; a little less
    trusts the noisy estimate a little less. Exponent 0 is the magnitude.
    """
    return weight.detach().abs().float() * moment.clamp_min(1e-30) ** exponent


def grouped(score: torch.Tensor, weight: torch.Tensor, exponent: float) -> torch.Tensor:
    """`score` * row norm^exponent * column norm^exponent: weights of units that are mostly gone go first.

    A row is what one output unit reads (dimension 0), a column what one input unit is read by (dimension 1, over all
    kernel positions). Norms are L2, relative to the tensor's mean row and column, so that layers stay comparable.
    Whole units then become dead sooner, which saves their positions in a packed file too. 0 changes nothing.
    """
    if exponent == 0.0 or weight.dim() < 2:
        return score
    squares = weight.detach().float() ** 2
    factors = []
    for kept in (0, 1):
        over = [d for d in range(weight.dim()) if d != kept]
        norm = squares.sum(over, keepdim=True).sqrt()
        factors.append((norm / norm.mean().clamp_min(1e-30)) ** exponent)
    return score * factors[0] * factors[1]
