"""How faithful rationales are: comprehensiveness, sufficiency and their AOPC (DeYoung et al. 2020).

    comprehensiveness = p(y | x) - p(y | x without r)      higher is better
    sufficiency       = p(y | x) - p(y | r)                lower is better

A select-predict model has no p(y | x) of its own: its predictor has only ever seen rationales. A
*judge* answers instead, a predictor as it was after training on random subsets, before it met any
selection. y is the class that the judge predicts on the whole input. The judge reads a subset by
gathering it, as the exported model does, so that what is left out cannot be seen.
"""

from __future__ import annotations

from collections.abc import Iterable
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


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """Means over the examples of a split, of differences of probabilities (-1..1).

    ``random_*`` are those of one random rationale of the same size. ``by_share`` maps each of
    :data:`AOPC_SHARES` to (comprehensiveness, sufficiency). ``judge_accuracy`` is the judge's on
    the whole input.
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
    columns: list[str] = ["comprehensiveness", "sufficiency", "random_c", "random_s"]
    columns += [f"{kind}@{share}" for share in AOPC_SHARES for kind in ("c", "s")]
    totals = dict.fromkeys(columns, 0.0)
    correct, count = 0, 0
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
        judged = _Judged(judge, view)
        chance = keep_top_k(drawn, selectable, keep.sum(dim=1))
        totals["comprehensiveness"] += judged.drop(selectable & ~keep)
        totals["sufficiency"] += judged.drop(keep)
        totals["random_c"] += judged.drop(selectable & ~chance)
        totals["random_s"] += judged.drop(chance)
        for share in AOPC_SHARES:
            budget = rationale_budget(selectable.sum(dim=1), *budget_fraction(share))
            best = keep_top_k(score, selectable, budget)
            totals[f"c@{share}"] += judged.drop(selectable & ~best)
            totals[f"s@{share}"] += judged.drop(best)
        correct += int((judged.predicted.cpu() == batch.labels).sum())
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
        judge_accuracy=correct / max(1, count),
        examples=count,
    )


class _Judged:
    """A batch with the judge's answer to the whole input; equal subsets are asked once."""

    def __init__(self, judge: Predictor, view: TokenView) -> None:
        self.judge = judge
        self.view = view
        probability = subset_probability(judge, view, view.selectable)
        self.predicted = probability.argmax(dim=1)
        self.full = probability.gather(1, self.predicted.unsqueeze(1)).squeeze(1)
        self._known: list[tuple[Tensor, float]] = []

    def drop(self, subset: Tensor) -> float:
        """Sum over the batch of p(y | x) - p(y | subset)."""
        for asked, answer in self._known:
            if torch.equal(asked, subset):
                return answer
        probability = subset_probability(self.judge, self.view, subset)
        own = probability.gather(1, self.predicted.unsqueeze(1)).squeeze(1)
        answer = float((self.full - own).double().sum())
        self._known.append((subset, answer))
        return answer


def subset_probability(judge: Predictor, view: TokenView, keep: Tensor) -> Tensor:
    """Class probabilities ``[batch, class]`` from the tokens in ``keep``, bool ``[batch, token]``,
    and from nothing else; an empty subset leaves the class token alone."""
    slots = max(1, int(keep.sum(dim=1).max()))
    index, valid = gather_slots(keep, slots)
    content, position = gather_tokens(view.content, index), gather_tokens(view.position, index)
    return judge(content, position, valid).float().softmax(dim=1)
