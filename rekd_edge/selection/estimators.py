"""Gradients through an exactly-k selection: four surrogates behind one function.

The forward selection is :func:`keep_top_k` of the scores tried, whatever the estimator: ties,
selectability and padding are those of the exported graph. Only the gradient differs, and it is
that of a soft selection:

- ``sigmoid``: w = sigmoid((s - t) / T), t the detached midpoint of the k-th and (k+1)-th score; the
  sum of w is about k.
- ``soft_top_k``: the same with t solved so that w sums to k (Amos et al. 2019, arXiv 1906.08707).
- ``subset_softmax``: k successive softmaxes; sums to k (Xie & Ermon 2019, arXiv 1901.10517).
- ``perturbed``: the mean top-k under Gaussian noise of deviation T; sums to k (Berthet et al. 2020,
  arXiv 2002.08676; Cordonnier et al. 2021, arXiv 2104.03059).

T is the ``temperature``; ``noise_scale`` is the scale, in units of the scores, of the noise that
is added before anything else and that decides which tokens are tried: logistic for ``sigmoid`` and
``soft_top_k``, Gumbel for ``subset_softmax``, Gaussian for ``perturbed``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from rekd_edge.selection.gumbel import gumbel_noise
from rekd_edge.selection.topk import keep_top_k, straight_through_top_k
from rekd_edge.selection.units import keep_units, of_unit, within_budget

Estimator = Literal["sigmoid", "soft_top_k", "subset_softmax", "perturbed"]

PERTURBED_SAMPLES = 64
"""Draws of ``perturbed`` for each example and step, unless told otherwise."""

_SMALLEST_REST = 1e-12
"""Least share that a softmax may leave to the other tokens (in float64)."""


def select_top_k(
    estimator: Estimator,
    score: Tensor,
    selectable: Tensor,
    budget: Tensor,
    *,
    temperature: float,
    noise_scale: float = 0.0,
    samples: int = PERTURBED_SAMPLES,
    unit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A hard selection of ``budget`` tokens that carries the gradient of ``estimator``.

    ``score`` float ``[batch, token]``, ``selectable`` bool ``[batch, token]``, ``budget`` int64
    ``[batch]``. Returns the weight, float ``[batch, token]``: 0 or 1 (``sigmoid``: to rounding)
    with the gradient of the soft selection; and ``keep`` bool ``[batch, token]``. With ``unit``
    (:mod:`rekd_edge.selection.units`) the selection is that of :func:`keep_units`, the noise is one
    draw a unit, and the soft selection is one of units: of as many as are kept.
    """
    tried = score
    if noise_scale > 0:
        tried = score + noise_scale * _NOISE[estimator](score)
    if unit is not None:
        return _select_units(
            estimator,
            of_unit(tried, unit),
            selectable,
            budget,
            unit,
            temperature=temperature,
            samples=samples,
        )
    if estimator == "sigmoid":
        return straight_through_top_k(tried, selectable, budget, temperature=temperature)
    keep = keep_top_k(tried.detach(), selectable, budget)
    hard = keep.to(score.dtype)
    if not tried.requires_grad:
        return hard, keep
    soft = soft_selection(
        estimator, tried, selectable, budget, temperature=temperature, samples=samples
    )
    return hard + (soft - soft.detach()), keep


def _select_units(
    estimator: Estimator,
    score: Tensor,
    selectable: Tensor,
    budget: Tensor,
    unit: Tensor,
    *,
    temperature: float,
    samples: int,
) -> tuple[Tensor, Tensor]:
    """The first tokens stand for their units: the best of them, as many as there are units kept."""
    keep = keep_units(score.detach(), selectable, budget, unit)
    first = selectable & (unit == torch.arange(unit.shape[1], device=unit.device))
    weight, _ = select_top_k(
        estimator,
        score,
        first,
        (keep & first).sum(dim=1),
        temperature=temperature,
        samples=samples,
    )
    return of_unit(weight, unit) * within_budget(unit, selectable, budget), keep


def soft_selection(
    estimator: Literal["soft_top_k", "subset_softmax", "perturbed"],
    score: Tensor,
    selectable: Tensor,
    budget: Tensor,
    *,
    temperature: float,
    samples: int = PERTURBED_SAMPLES,
) -> Tensor:
    """The differentiable selection alone: float ``[batch, token]``, rows that sum to the budget (at
    most the number of selectable tokens), zero with zero gradient where not selectable."""
    budget = torch.minimum(budget, selectable.sum(dim=1))
    if estimator == "soft_top_k":
        return _soft_top_k(score, selectable, budget, temperature=temperature)
    if estimator == "subset_softmax":
        return _subset_softmax(score, selectable, budget, temperature=temperature)
    return _perturbed_top_k(score, selectable, budget, deviation=temperature, samples=samples)


def _soft_top_k(score: Tensor, selectable: Tensor, budget: Tensor, *, temperature: float) -> Tensor:
    """w = sigmoid((s - t) / T) with t such that each row of w sums to its budget.

    The minimiser of -<s, w> - T * H(w) over 0 <= w <= 1, sum w = k, H the sum of binary entropies
    (Amos et al. 2019); t by bisection, its gradient by the implicit function theorem. Where
    everything is kept, w = 1 without gradient.
    """
    values = score.double()
    with torch.no_grad():
        threshold = _threshold_for_sum(values, selectable, budget, temperature)
        soft = torch.sigmoid((values - threshold) / temperature) * selectable
        slope = soft * (1 - soft)
        share = slope / slope.sum(dim=1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    moved = (share * (values - values.detach())).sum(dim=1, keepdim=True)  # zero, with dt/ds
    soft = torch.sigmoid((values - threshold - moved) / temperature)
    everything = (budget >= selectable.sum(dim=1)).unsqueeze(1)
    full = selectable.to(soft.dtype)
    return torch.where(everything, full, soft * full).to(score.dtype)


def _threshold_for_sum(
    values: Tensor, selectable: Tensor, budget: Tensor, temperature: float
) -> Tensor:
    """t with sum_i sigmoid((s_i - t) / T) = k over the selectable tokens; float64 ``[batch, 1]``.

    At s_max - T logit(k / n) the sum is at most k, at s_min - T logit(k / n) at least: 60 halvings
    of that interval exhaust float64.
    """
    count = selectable.sum(dim=1, keepdim=True).clamp_min(1)
    share = (budget.unsqueeze(1) / count.double()).clamp(1e-9, 1 - 1e-9)
    low = values.masked_fill(~selectable, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~selectable, -torch.inf).amax(dim=1, keepdim=True)
    low = torch.nan_to_num(low, posinf=0.0) - temperature * torch.logit(share)
    high = torch.nan_to_num(high, neginf=0.0) - temperature * torch.logit(share)
    for _ in range(60):
        middle = (low + high) / 2
        total = (torch.sigmoid((values - middle) / temperature) * selectable).sum(1, keepdim=True)
        above = total > budget.unsqueeze(1)
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


def _subset_softmax(
    score: Tensor, selectable: Tensor, budget: Tensor, *, temperature: float
) -> Tensor:
    """The sum of k successive softmaxes, each of which takes from the scores what it gave out:
    a_1 = s, p_j = softmax(a_j / T), a_(j+1) = a_j + log(1 - p_j) (Xie & Ermon 2019).

    With Gumbel noise in the scores this is their relaxed sample of k tokens without replacement.
    A row stops adding after its own budget. The recursion runs in float64: log(1 - p) near p = 1.
    A single weight can exceed 1 where T is large.
    """
    lowest = torch.finfo(torch.float64).min / 4
    left = score.double().masked_fill(~selectable, 0.0)
    total = 0.0 * left  # also where every budget is 0: no weight, and a gradient of zeros
    for taken in range(int(budget.max()) if len(budget) else 0):
        share = torch.softmax((left / temperature).masked_fill(~selectable, lowest), dim=1)
        share = share * selectable
        total = total + torch.where((budget > taken).unsqueeze(1), share, torch.zeros_like(share))
        left = left + (1 - share).clamp_min(_SMALLEST_REST).log()
    return total.to(score.dtype)


def _perturbed_top_k(
    score: Tensor,
    selectable: Tensor,
    budget: Tensor,
    *,
    deviation: float,
    samples: int = PERTURBED_SAMPLES,
) -> Tensor:
    """The mean of ``samples`` top-k selections of scores with Gaussian noise of ``deviation``.

    Its gradient is not that of the forward mean (which is flat) but an unbiased estimate of the
    exact gradient of its expectation, from the score function of the noise: dE[y]/ds =
    Cov(y, Z) / deviation (Berthet et al. 2020, proposition 3.1, with the sample mean subtracted).
    Needs at least two samples.
    """
    if samples < 2:
        raise ValueError(f"the perturbed estimator needs at least 2 samples, got {samples}")
    mean: Tensor = _PerturbedTopK.apply(score, selectable, budget, deviation, samples)  # pyright: ignore[reportAssignmentType]
    return mean


class _PerturbedTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        score: Tensor,
        selectable: Tensor,
        budget: Tensor,
        deviation: float,
        samples: int,
    ) -> Tensor:
        noise = torch.randn((samples, *score.shape), device=score.device) * selectable
        noised = (score.float() + deviation * noise).masked_fill(~selectable, -torch.inf)
        # Ties have no chance here, so the rule for them is not needed and sorting will do.
        most = max(1, int(budget.max())) if len(budget) else 1
        best = noised.topk(most, dim=2).indices
        within = torch.arange(most, device=score.device) < budget.unsqueeze(1)
        chosen = torch.zeros_like(noise).scatter_(2, best, within.to(noise.dtype).expand_as(best))
        mean = chosen.mean(dim=0)
        ctx.save_for_backward(noise, chosen - mean)
        ctx.deviation = deviation
        return mean.to(score.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        noise, deviation_of_choice = ctx.saved_tensors
        upstream = gradients[0].to(noise.dtype)
        effect = (deviation_of_choice * upstream).sum(dim=2, keepdim=True)
        own = (effect * noise).sum(dim=0) / ((len(noise) - 1) * ctx.deviation)
        return own.to(gradients[0].dtype), None, None, None, None


def _logistic_noise(reference: Tensor) -> Tensor:
    return gumbel_noise(reference) - gumbel_noise(reference)


_NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": _logistic_noise,
    "soft_top_k": _logistic_noise,
    "subset_softmax": gumbel_noise,
    "perturbed": torch.randn_like,
}
