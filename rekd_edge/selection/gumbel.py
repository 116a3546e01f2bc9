"""Gumbel noise and the published Bernoulli selection (Jang et al. 2017; arXiv 2601.22531)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gumbel_noise(reference: Tensor) -> Tensor:
    """Standard Gumbel noise, -log(-log U), in the shape, type and device of ``reference``."""
    uniform = torch.rand_like(reference, dtype=torch.float32).clamp(1e-10, 1.0 - 1e-7)
    return (-torch.log(-torch.log(uniform))).to(reference.dtype)


def bernoulli_straight_through(
    selection_logits: Tensor, *, temperature: float, noise: bool = True
) -> tuple[Tensor, Tensor]:
    """A {drop, keep} draw per token: hard forward, softmax gradient.

    ``selection_logits`` ``[batch, token, 2]`` (0 drop, 1 keep). Returns ``keep`` float
    ``[batch, token]`` in {0, 1} carrying the gradient of softmax((logits + g) / temperature), and
    the noised log-probabilities ``[batch, token, 2]`` that the published KL_R compares.
    """
    noised = selection_logits
    if noise:
        noised = selection_logits + gumbel_noise(selection_logits)
    log_probability = F.log_softmax(noised / temperature, dim=-1)
    soft = log_probability.exp()[..., 1]
    hard = (noised[..., 1] > noised[..., 0]).to(soft.dtype)
    return hard + soft - soft.detach(), log_probability
