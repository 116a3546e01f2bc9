"""Two older ways to draw a mask token by token: a relaxed draw and a draw scored by its chance.

Both read the score s of a token, the log-odds of keeping it in the deployed selection, so that the
k best scores are the k tokens most likely to be kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

STRETCH = (-0.1, 1.1)
"""Support of the stretched Kumaraswamy variable, clipped to [0, 1] (Bastings et al. 2019)."""
_SHAPE_RANGE = (1e-6, 100.0)
_SMALLEST_UNIFORM = 1e-3


def kuma_shapes(score: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes a = softplus(s) and b = softplus(-s) of the Kumaraswamy variable of each token.

    The published gate has two free shapes; with one the chance of z > 0 rises with the score, so
    that the deployed top-k keeps the tokens that are most likely to be kept.
    """
    values = score.float()
    low, high = _SHAPE_RANGE
    return F.softplus(values).clamp(low, high), F.softplus(-values).clamp(low, high)


def hard_kuma(score: Tensor) -> Tensor:
    """A draw in [0, 1] for each token, with mass at both ends and a pathwise gradient.

    k = (1 - (1 - u)^(1/b))^(1/a) with u uniform, stretched to (-0.1, 1.1), clipped to [0, 1].
    """
    first, second = kuma_shapes(score)
    uniform = torch.rand_like(first) * (1 - 2 * _SMALLEST_UNIFORM) + _SMALLEST_UNIFORM
    kuma = (1 - (1 - uniform) ** (1 / second)) ** (1 / first)
    low, high = STRETCH
    return (low + (high - low) * kuma).clamp(0.0, 1.0).to(score.dtype)


def hard_kuma_kept_chance(score: Tensor) -> Tensor:
    """P(z > 0) = (1 - x^a)^b at x = 0.1 / 1.2, the place of 0 in the stretched support."""
    first, second = kuma_shapes(score)
    low, high = STRETCH
    return (1 - (-low / (high - low)) ** first) ** second


def scored_draw(score: Tensor, selectable: Tensor) -> tuple[Tensor, Tensor]:
    """A {drop, keep} draw of each selectable token with chance sigmoid(s): float ``[batch, token]``
    without gradient, and the log-probability of the whole draw, ``[batch]``, with one (REINFORCE,
    Williams 1992; Lei et al. 2016)."""
    values = score.float()
    uniform = torch.rand(values.shape, device=values.device)
    kept = (uniform < torch.sigmoid(values.detach())) & selectable
    log_chance = torch.where(kept, F.logsigmoid(values), F.logsigmoid(-values))
    return kept.to(score.dtype), (log_chance * selectable).sum(dim=1)
