"""Losses of the method, each a small pure function with its equation and source.

The whole: L = alpha * [CE + lambda_select * L_sel]
             + (1 - alpha) * [lambda_rationale * KL_R + tau^2 * KL_Y]      (arXiv 2601.22531)
and, where a recipe asks, lambda_contiguity * TV.

All KL terms are forward KL(teacher || student). See docs/adr/0005 for the direction, the
reduction, and where T^2 applies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def budget_penalty(keep: Tensor, valid: Tensor, rationale_ratio: float) -> Tensor:
    """L_sel = (batch mean of the selected count - ratio * mean valid count)^2.

    ``keep`` float ``[batch, position]``; ``valid`` bool ``[batch, position]`` says what counts.
    The published text code counts every position of the padded input.
    """
    return budget_penalty_of_counts(
        (keep * valid).sum(dim=1), valid.sum(dim=1).to(keep.dtype), rationale_ratio
    )


def budget_penalty_of_counts(kept: Tensor, counted: Tensor, rationale_ratio: float) -> Tensor:
    """L_sel from the kept and the counted positions of each example, float ``[batch]``."""
    return (kept.mean() - rationale_ratio * counted.mean()) ** 2


def rationale_kl_summed(
    teacher_log_probability: Tensor, student_log_probability: Tensor, valid: Tensor
) -> Tensor:
    """Published KL_R: KL(teacher || student) over {drop, keep}, summed over positions, divided
    by the batch size; no tau^2.

    Both inputs are log-softmax values ``[batch, position, 2]``; the published ones are
    Gumbel-noised, with independent noise for teacher and student.
    """
    divergence = teacher_log_probability.exp() * (teacher_log_probability - student_log_probability)
    return (divergence.sum(dim=-1) * valid).sum() / valid.shape[0]


def rationale_kl(
    teacher_margin: Tensor, student_margin: Tensor, valid: Tensor, *, temperature: float
) -> Tensor:
    """Noiseless KL_R of the default objective, the mean over valid tokens.

    ``*_margin`` ``[batch, token]`` are selection scores minus the example's own k-th threshold, so
    sigmoid(margin / temperature) is the chance of being kept under the budget. Bernoulli
    KL(teacher || student) = p_t * log(p_t / p_s) + (1 - p_t) * log((1 - p_t) / (1 - p_s)).

    Deviations from the published term: no noise (its KL has a floor of its own), centred on the
    threshold of exactly-k, and averaged over tokens so that its scale does not grow with length.
    """
    divergence = _bernoulli_kl(teacher_margin / temperature, student_margin / temperature)
    return (divergence * valid).sum() / valid.sum().clamp_min(1)


def _bernoulli_kl(teacher_logit: Tensor, student_logit: Tensor) -> Tensor:
    """KL(teacher || student) of each pair of log-odds."""
    probability = torch.sigmoid(teacher_logit)
    return probability * (F.logsigmoid(teacher_logit) - F.logsigmoid(student_logit)) + (
        1.0 - probability
    ) * (F.logsigmoid(-teacher_logit) - F.logsigmoid(-student_logit))


def prediction_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """KL_Y = KL(softmax(teacher / T) || softmax(student / T)), batch mean, *without* T^2.

    The caller multiplies by T^2 (Hinton et al. 2015), as the whole formula above shows.
    """
    return F.kl_div(
        F.log_softmax(student_logits / temperature, dim=-1),
        F.log_softmax(teacher_logits / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def bernoulli_prediction_kl(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float
) -> Tensor:
    """KL_Y of independent labels: KL(Bernoulli(sigmoid(teacher / T)) || Bernoulli(sigmoid(student /
    T))), the mean over labels and batch, *without* T^2; ``[batch, label]`` each.

    One against all, as in Yang et al. 2023 (Multi-Label Knowledge Distillation); the mean over
    labels is that of the task's binary cross-entropy, so that alpha weighs the two alike.
    """
    teacher, student = teacher_logits.float(), student_logits.float()
    return _bernoulli_kl(teacher / temperature, student / temperature).mean()


def contiguity(probability: Tensor, valid: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """TV: mean of |p_i - p_j| over neighbouring valid tokens (Lei et al. 2016; Chang et al. 2020).

    ``probability`` float and ``valid`` bool ``[batch, token]``. Neighbours follow each other, or,
    with ``grid`` (rows, columns), share an edge in the patch grid. Deviation: a mean over pairs
    instead of a sum over the sequence, so that its weight does not depend on length.
    """
    total, pairs = probability.new_zeros(()), probability.new_zeros(())
    for left, right, both in _neighbours(probability, valid, grid):
        change = (right - left).abs()
        total, pairs = total + (change * both).sum(), pairs + both.sum()
    return total / pairs.clamp_min(1)


def _neighbours(
    values: Tensor, valid: Tensor, grid: tuple[int, int] | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each direction the values of all pairs of neighbours and whether both are valid."""
    if grid is None:
        axes = [(values, valid, 1)]
    else:
        board, there = values.unflatten(1, grid), valid.unflatten(1, grid)
        axes = [(board, there, 1), (board, there, 2)]
    for line, present, axis in axes:
        count = line.shape[axis] - 1
        both = present.narrow(axis, 0, count) & present.narrow(axis, 1, count)
        yield line.narrow(axis, 0, count), line.narrow(axis, 1, count), both


def coherence_of_each(keep: Tensor, valid: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """:func:`contiguity` of each example's own pairs, float ``[batch]``."""
    return _mean_of_each(
        ((right - left).abs(), both) for left, right, both in _neighbours(keep, valid, grid)
    )


def expected_transitions(
    kept_chance: Tensor, valid: Tensor, grid: tuple[int, int] | None = None
) -> Tensor:
    """The share of neighbouring pairs of which one is kept and the other is not, expected under
    independent draws with the chances ``kept_chance`` ``[batch, token]``; the mean over examples
    (the fused lasso of Bastings et al. 2019). p (1 - q) + (1 - p) q."""
    pairs = _neighbours(kept_chance, valid, grid)
    return _mean_of_each((p * (1 - q) + (1 - p) * q, both) for p, q, both in pairs).mean()


def _mean_of_each(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean of values over the pairs that are there, of each example: ``[batch]``."""
    totals = [
        ((value * there).flatten(1).sum(1), there.flatten(1).sum(1)) for value, there in parts
    ]
    value, count = (torch.stack(column).sum(dim=0) for column in zip(*totals, strict=True))
    return value / count.clamp_min(1)


def share_penalty(keep: Tensor, valid: Tensor, rationale_ratio: float) -> Tensor:
    """| sum of the mask over the batch / valid tokens of the batch - ratio |, the count penalty of
    RNP as the official codes of FR, N2R and A2I have it. ``keep`` float, ``valid`` bool
    ``[batch, token]``."""
    return ((keep * valid).sum() / valid.sum().clamp_min(1) - rationale_ratio).abs()


def share_penalty_of_each(keep: Tensor, valid: Tensor, rationale_ratio: float) -> Tensor:
    """:func:`share_penalty` of each example by itself, float ``[batch]``."""
    share = (keep * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)
    return (share - rationale_ratio).abs()


def norm_utilisation(representation: Tensor) -> Tensor:
    """-log ||v||_2, the mean over the batch (Liu et al. 2025, N2R, where v is the representation
    Enc(Z)); ``[batch, channel]``. The official code adds 1e-6 to the norm."""
    return -(torch.linalg.vector_norm(representation, dim=1) + 1e-6).log().mean()


def jensen_shannon(first_logits: Tensor, second_logits: Tensor) -> Tensor:
    """JS(p, q) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, the mean over the batch;
    logits ``[batch, class]``. Natural logarithm: between 0 and log 2."""
    first, second = (F.log_softmax(one, dim=-1) for one in (first_logits, second_logits))
    middle = torch.logaddexp(first, second) - math.log(2)
    divergences = [(one.exp() * (one - middle)).sum(dim=-1) for one in (first, second)]
    return (divergences[0] + divergences[1]).mean() / 2


def doubt(logits: Tensor, labels: Tensor) -> Tensor:
    """- min(CE(logits, labels), log C), the mean over the batch: falls while the wrong ``labels``
    lose probability, down to that of chance, and no further (A2I, Liu et al. 2025). The official
    code is for two classes, where log C is log 2."""
    chance = math.log(logits.shape[-1])
    return -F.cross_entropy(logits, labels, reduction="none").clamp_max(chance).mean()


def attribution_cross_entropy(
    selection_score: Tensor, attribution: Tensor, valid: Tensor, *, temperature: float
) -> Tensor:
    """Listwise amortisation: cross-entropy of softmax(score) against softmax(attribution / T)
    over each example's valid tokens, batch mean (ListNet, Cao et al. 2007)."""
    lowest = torch.finfo(selection_score.dtype).min
    target = torch.softmax((attribution / temperature).masked_fill(~valid, lowest), dim=1)
    log_probability = torch.log_softmax(selection_score.masked_fill(~valid, lowest), dim=1)
    return -(target * log_probability.masked_fill(~valid, 0.0)).sum(dim=1).mean()
