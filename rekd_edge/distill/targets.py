"""The frozen teacher's answers: computed once where nothing is augmented, per batch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rekd_edge.distill.attribution import RowTable, content_width
from rekd_edge.models.rationalist import Rationalist, Scores
from rekd_edge.recipe.form import Masking
from rekd_edge.types import Batch


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """On the student's tokens. ``margin`` float ``[batch, token]``: the teacher's score minus its
    k-th threshold; ``keep`` bool ``[batch, token]``: its rationale; ``logits`` float
    ``[batch, class]``: its prediction from its own rationale alone, or from the whole input."""

    margin: Tensor
    keep: Tensor
    logits: Tensor


TargetSource = Callable[[Batch], TeacherTargets]


@torch.no_grad()
def rationale_and_answer(
    model: Rationalist, inputs: Mapping[str, Tensor], masking: Masking = "exclude"
) -> tuple[Scores, Tensor, Tensor]:
    """A model's scores, its deterministic rationale bool ``[batch, token]``, and its logits from
    that (its own mask, as in the paper's figure; the official code feeds the student's mask to the
    teacher). A model that was trained on zeroed embeddings is shown its rationale so."""
    scores = model.selector(inputs)
    keep = model.keep(scores)
    if masking == "zero":
        return scores, keep, model.classify_zeroed(scores.view, keep.to(scores.score.dtype))
    return scores, keep, model.classify_slots(scores.view, keep, model.slots(scores.view))


class CachedTargets:
    """Teacher targets of a whole split, looked up by example index.

    The cache is filled in one fixed order before training, so a resumed run sees the same
    numbers as an uninterrupted one.
    """

    def __init__(self, source: TargetSource, loader: Iterable[Batch]) -> None:
        self._margin, self._keep, self._logits = RowTable(), RowTable(), RowTable()
        for batch in loader:
            targets = source(batch)
            self._margin.add(batch.index, targets.margin)
            self._keep.add(batch.index, targets.keep)
            self._logits.add(batch.index, targets.logits)

    def __call__(self, batch: Batch) -> TeacherTargets:
        width = content_width(batch)
        return TeacherTargets(
            self._margin.rows(batch.index, width),
            self._keep.rows(batch.index, width),
            self._logits.rows(batch.index, None),
        )
