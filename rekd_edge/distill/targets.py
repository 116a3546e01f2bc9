"""The frozen teacher's answers: computed once where nothing is augmented, per batch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rekd_edge.distill.attribution import content_width, pad_rows
from rekd_edge.models.rationalist import Rationalist, Scores
from rekd_edge.recipe.form import Masking
from rekd_edge.selection import gather_slots
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
    index, valid = gather_slots(keep, model.slots(scores.view))
    return scores, keep, model.classify_gathered(scores.view, index, valid)


class CachedTargets:
    """Teacher targets of a whole split, looked up by example index.

    The cache is filled in one fixed order before training, so a resumed run sees the same
    numbers as an uninterrupted one.
    """

    def __init__(self, source: TargetSource, loader: Iterable[Batch]) -> None:
        self._rows: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for batch in loader:
            targets = source(batch)
            for row, index in enumerate(batch.index.tolist()):
                self._rows[index] = (targets.margin[row], targets.keep[row], targets.logits[row])

    def __call__(self, batch: Batch) -> TeacherTargets:
        rows = [self._rows[index] for index in batch.index.tolist()]
        width = content_width(batch)
        return TeacherTargets(
            pad_rows([margin for margin, _, _ in rows], width),
            pad_rows([keep for _, keep, _ in rows], width),
            torch.stack([logits for _, _, logits in rows]),
        )
