"""Sparsemax: a softmax that can be exactly 0 (Martins & Astudillo 2016)."""

from __future__ import annotations

import torch
from torch import Tensor


def sparsemax(score: Tensor) -> Tensor:
    """The Euclidean projection of ``score`` ``[..., choice]`` on the probability simplex.

    p_i = max(0, z_i - tau), with tau such that p sums to 1. The support is the largest k for which
    1 + k * z_(k) > z_(1) + ... + z_(k), in descending order; the gradient flows through tau.
    """
    ordered = score.sort(dim=-1, descending=True).values
    total = ordered.cumsum(dim=-1)
    rank = torch.arange(1, score.shape[-1] + 1, device=score.device)
    support = (1 + rank * ordered > total).sum(dim=-1, keepdim=True)
    threshold = (total.gather(-1, support - 1) - 1) / support
    return (score - threshold).clamp_min(0)
