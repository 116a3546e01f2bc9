"""How faithful rationales are: comprehensiveness, sufficiency and their AOPC (DeYoung et al. 2020).

    comprehensiveness = p(y | x) - p(y | x without r)      higher is better
    sufficiency       = p(y | x) - p(y | r)                lower is better

Of several labels p is the probability of the whole set that is predicted; of a regression the
differences are distances between values, in standard deviations of the training targets.

A select-predict model has no p(y | x) of its own: its predictor has only ever seen rationales. A
*judge* answers instead, a predictor as it was after training on random subsets, before it met any
selection. y is the class that the judge predicts on the whole input. The judge reads a subset by
gathering it, as the exported model does, so that what is left out cannot be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rekd_edge.evaluate.rationales import Rationales, padded
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.rationalist import Predictor
from rekd_edge.selection import (
    budget_fraction,
    gather_slots,
    gather_tokens,
    keep_top_k,
    rationale_budget,
)
from rekd_edge.types import Batch

AOPC_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of the tokens, best scores first, over which AOPC is the mean."""
JUDGE_BATCH = 64


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """Means over the examples of a split, of differences of probabilities (-1..1), or of values.

    ``random_*`` are those of one random rationale of the same size. ``by_share`` maps each of
    :data:`AOPC_SHARES` to (comprehensiveness, sufficiency). ``judge_accuracy`` is the judge's
    primary score on the whole input, of one class its accuracy.
    """

    comprehensiveness: float
    sufficiency: float
    aopc_comprehensiveness: float
    aopc_sufficiency: float
    random_comprehensiveness: float
    random_sufficiency: float
    by_share: dict[float, tuple[float, float]]
    judge_accuracy: float
    examples: int


@torch.no_grad()
def judge_rationales(
    judge: Predictor, loader: Iterable[Batch], rationales: Rationales, *, seed: int = 0
) -> Faithfulness:
    """Judges the rationales of the split that ``loader`` reads; ``seed`` draws the random ones.

    Raises:
        ValueError: the judge sees other tokens than the rationales are about.
    """
    device = next(judge.parameters()).device
    was_training = judge.training
    judge.eval()
    random = np.random.default_rng(seed)
    noise = [random.random(len(keep), dtype=np.float32) for keep in rationales.keep]
    columns = ["comprehensiveness", "sufficiency", "random_c", "random_s"]
    columns += [f"{kind}@{share}" for share in AOPC_SHARES for kind in ("c", "s")]
    totals = dict.fromkeys(columns, 0.0)
    problem = judge.problem
    answers: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    for batch in loader:
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        view = judge.encoder.view(inputs)
        rows = batch.index.tolist()
        width = view.selectable.shape[1]
        if any(len(rationales.keep[row]) > width for row in rows):
            raise ValueError("the judge sees other tokens than the rationales are about")
        keep = padded([rationales.keep[row] for row in rows], width).to(device)
        selectable = padded([rationales.selectable[row] for row in rows], width).to(device)
        if not torch.equal(selectable, view.selectable):
            raise ValueError("the judge sees other tokens than the rationales are about")
        score = padded([rationales.score[row] for row in rows], width).to(device)
        drawn = padded([noise[row] for row in rows], width).to(device)
        chance = keep_top_k(drawn, selectable, keep.sum(dim=1))
        subsets = [selectable & ~keep, keep, selectable & ~chance, chance]
        for share in AOPC_SHARES:
            budget = rationale_budget(selectable.sum(dim=1), *budget_fraction(share))
            best = keep_top_k(score, selectable, budget)
            subsets += [selectable & ~best, best]
        logits, drops = support_drops(judge, view, subsets)
        for name, drop in zip(columns, drops.double().sum(dim=1).tolist(), strict=True):
            totals[name] += drop
        answers.append(logits.cpu())
        labels.append(batch.labels)
        count += len(rows)
    judge.train(was_training)
    mean = {name: total / max(1, count) for name, total in totals.items()}
    by_share = {share: (mean[f"c@{share}"], mean[f"s@{share}"]) for share in AOPC_SHARES}
    return Faithfulness(
        comprehensiveness=mean["comprehensiveness"],
        sufficiency=mean["sufficiency"],
        aopc_comprehensiveness=float(np.mean([c for c, _ in by_share.values()])),
        aopc_sufficiency=float(np.mean([s for _, s in by_share.values()])),
        random_comprehensiveness=mean["random_c"],
        random_sufficiency=mean["random_s"],
        by_share=by_share,
        judge_accuracy=problem.score(torch.cat(answers), torch.cat(labels)) if count else 0.0,
        examples=count,
    )


def support_drops(
    judge: Predictor, view: TokenView, subsets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The judge's logits from the whole input, ``[batch, class]``, and by how much the support
    (:meth:`~rekd_edge.models.problem.Problem.support`) of what it decides there falls for each of
    ``subsets`` (bool ``[batch, token]``), ``[subset, batch]``.

    Subsets of one example that are equal are asked once, and subsets of like size together.
    """
    problem = judge.problem
    full = subset_logits(judge, view, view.selectable)
    decision = problem.decision(full)
    batch, width = view.selectable.shape
    asked = torch.stack(list(subsets), dim=1).reshape(-1, width)  # [batch * subset, token]
    example = torch.arange(batch, device=asked.device).repeat_interleave(len(subsets))
    named = torch.cat([example.unsqueeze(1), asked.long()], dim=1)
    unique, place = torch.unique(named, dim=0, return_inverse=True)
    row, keep = unique[:, 0], unique[:, 1:].bool()
    answer = torch.empty(len(row), device=asked.device)
    for chunk in keep.sum(dim=1).argsort().split(JUDGE_BATCH):
        at = row[chunk]
        own = TokenView(view.content[at], view.position[at], view.attended[at], view.selectable[at])
        answer[chunk] = problem.support(subset_logits(judge, own, keep[chunk]), decision[at])
    whole = problem.support(full, decision).unsqueeze(1)
    return full, (whole - answer[place].reshape(batch, len(subsets))).T


def subset_logits(judge: Predictor, view: TokenView, keep: Tensor) -> Tensor:
    """Logits ``[batch, class]`` from the tokens in ``keep``, bool ``[batch, token]``,
    and from nothing else; an empty subset leaves the class token alone."""
    slots = max(1, int(keep.sum(dim=1).max()))
    index, valid = gather_slots(keep, slots)
    content, position = gather_tokens(view.content, index), gather_tokens(view.position, index)
    return judge(content, position, valid).float()
