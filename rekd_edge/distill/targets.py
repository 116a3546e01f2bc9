"""The frozen teacher's answers: computed once where nothing is augmented, per batch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rekd_edge.models.rationalist import Rationalist
from rekd_edge.recipe.form import Masking
from rekd_edge.selection import gather_slots, selection_threshold
from rekd_edge.types import Batch


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """``margin`` float ``[batch, token]``: the teacher's score minus its own k-th threshold;
    ``keep`` bool ``[batch, token]``: its rationale; ``logits`` float ``[batch, class]`` from that
    rationale alone."""

    margin: Tensor
    keep: Tensor
    logits: Tensor


TargetSource = Callable[[Batch], TeacherTargets]


@torch.no_grad()
def teacher_targets(
    teacher: Rationalist, batch: Batch, masking: Masking = "exclude"
) -> TeacherTargets:
    """The teacher's deterministic rationale and its prediction from it (its own mask, as in the
    paper's figure; the official code feeds the student's mask to the teacher). A teacher that was
    trained on zeroed embeddings is shown its rationale so: ``masking`` zero."""
    scores = teacher.selector(batch.inputs)
    keep = teacher.keep(scores)
    if masking == "zero":
        logits = teacher.classify_zeroed(scores.view, keep.to(scores.score.dtype))
    else:
        index, valid = gather_slots(keep, teacher.slots(scores.view))
        logits = teacher.classify_gathered(scores.view, index, valid)
    threshold = selection_threshold(scores.score, scores.view.selectable, keep)
    return TeacherTargets(scores.score - threshold, keep, logits)


class CachedTargets:
    """Teacher targets of a whole split, looked up by example index.

    The cache is filled in one fixed order before training, so a resumed run sees the same
    numbers as an uninterrupted one.
    """

    def __init__(
        self, teacher: Rationalist, loader: Iterable[Batch], masking: Masking = "exclude"
    ) -> None:
        self._rows: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for batch in loader:
            targets = teacher_targets(teacher, batch, masking)
            for row, index in enumerate(batch.index.tolist()):
                self._rows[index] = (targets.margin[row], targets.keep[row], targets.logits[row])

    def __call__(self, batch: Batch) -> TeacherTargets:
        rows = [self._rows[index] for index in batch.index.tolist()]
        # Content tokens of text: everything after [CLS]. Images have one width throughout.
        inputs = batch.inputs
        width = inputs["input_ids"].shape[1] - 1 if "input_ids" in inputs else rows[0][0].shape[0]
        first = rows[0][0]
        margin = first.new_zeros((len(rows), width))
        keep = torch.zeros((len(rows), width), dtype=torch.bool, device=first.device)
        for row, (own_margin, own_keep, _) in enumerate(rows):
            count = min(width, own_margin.shape[0])
            margin[row, :count] = own_margin[:count]
            keep[row, :count] = own_keep[:count]
        return TeacherTargets(margin, keep, torch.stack([logits for _, _, logits in rows]))
