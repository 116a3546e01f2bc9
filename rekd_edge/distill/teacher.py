"""The teacher as its student meets it: subsets come in and answers go out on the student's tokens.

Teacher and student may differ in tokenizer, patch size, resolution and architecture
(docs/adr/0007). Each reads its own form of the same example; what passes between them is carried
by area or by characters (:mod:`rekd_edge.distill.transfer`). Where both see the same tokens,
carrying is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from rekd_edge.distill import attribution
from rekd_edge.distill.explainer import Explainer
from rekd_edge.distill.targets import TeacherTargets, rationale_and_answer
from rekd_edge.distill.transfer import (
    Quantity,
    at_least_half,
    carry_by_area,
    carry_by_span,
    covered_by_span,
)
from rekd_edge.models.encoder import PatchGrid, TokenView
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.recipe.form import Masking
from rekd_edge.selection import unit_mean
from rekd_edge.types import Batch

_Given = ParamSpec("_Given")


def _answering(
    method: Callable[Concatenate[Teacher, _Given], Tensor],
) -> Callable[Concatenate[Teacher, _Given], Tensor]:
    """The method without gradients; its answer is an ordinary tensor, as losses need it."""

    @wraps(method)
    def answer(self: Teacher, /, *given: _Given.args, **named: _Given.kwargs) -> Tensor:
        with self._resting():
            found = method(self, *given, **named)
        return found.clone()

    return answer


class Teacher:
    """A frozen rationalist (or black box) and the student that learns from it.

    ``masking`` is how the teacher was trained to see a rationale, and how it is shown one. No
    ``nn.Module``: what an objective holds of it is neither trained nor saved.
    """

    def __init__(
        self,
        model: Rationalist,
        student: Rationalist,
        masking: Masking = "exclude",
        *,
        full_input: bool = False,
    ) -> None:
        self.masking: Masking = masking
        self.model = model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.student = student
        self.full_input = full_input or model.answers_from_whole_input
        """Whether targets hold the predictor's answer from the whole input."""

    def targets(self, batch: Batch) -> TeacherTargets:
        """The teacher's rationale on the student's tokens, in the student's units and budget, and
        its prediction from its own rationale, or from the whole input."""
        with self._resting():
            margin, keep, logits = self._targets(batch)
        return TeacherTargets(margin.clone(), keep.clone(), logits.clone())

    def _resting(self) -> AbstractContextManager[Any]:
        """Inference mode, but for what explains itself by gradients."""
        return torch.no_grad() if self.model.answers_from_whole_input else torch.inference_mode()

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        if self.full_input:
            scores = self.model.selector(self._inputs(batch))
            logits = self.whole_answer(batch)
        else:
            scores, _, logits = rationale_and_answer(self.model, self._inputs(batch), self.masking)
        mine = self._student_view(batch)
        score = self._carried_score(scores.score, batch, scores.view, mine)
        keep = self.student.choose(score, mine)
        return score - self.student.threshold(score, mine, keep), keep, logits

    @torch.no_grad()
    def whole_answer(self, batch: Batch) -> Tensor:
        """The teacher's logits from the whole input, ``[batch, class]``."""
        view = self._view(batch)
        if self.masking == "zero":
            return self.model.classify_zeroed(view, view.selectable.float())
        return self.model.classify_whole(view)

    @_answering
    def score(self, batch: Batch) -> Tensor:
        """Log-odds of keeping each of the student's tokens, ``[batch, token]``."""
        scores = self.model.selector(self._inputs(batch))
        return self._carried_score(scores.score, batch, scores.view, self._student_view(batch))

    @_answering
    def classify_subset(self, batch: Batch, keep: Tensor, slots: int | None = None) -> Tensor:
        """The teacher's logits from a subset of the student's tokens, bool ``[batch, token]``;
        ``slots`` as in :meth:`Rationalist.classify_subset`, counted in the student's tokens. A
        black box was never trained on subsets and answers from the whole input."""
        if self.model.answers_from_whole_input:
            return self.whole_answer(batch)
        theirs = self._view(batch)
        grids = self._grids()
        known = slots if grids is not None and grids[0] == grids[1] else None
        return self.model.classify_subset(theirs, self._carried_subset(keep, batch, theirs), known)

    @_answering
    def answer(self, batch: Batch, keep: Tensor, prefix_keep: Tensor | None = None) -> Tensor:
        """The teacher's logits from a subset of the student's tokens, shown as :attr:`masking`
        says; float ``[batch, token]``, and ``[batch, prefix]`` for ``[CLS]``. Tokens beyond the
        batch (counted padding) have no influence."""
        theirs, mine = self._view(batch), self._student_view(batch)
        carried = self._carried_subset(keep[:, : mine.content.shape[1]] > 0.5, batch, theirs)
        if self.masking == "zero":
            return self.model.classify_zeroed(theirs, carried.to(keep.dtype), prefix_keep)
        return self.model.classify_masked(theirs, carried & theirs.selectable)

    def mask_gradient(self, batch: Batch, explained: Tensor | None = None) -> Tensor:
        """First-order effect of removing each of the student's tokens on the teacher's answer;
        extensive, ``[batch, token]``. ``explained`` as in :func:`attribution.mask_gradient`."""
        theirs = self._view(batch)
        whole = self.model.whole(theirs)
        effect = attribution.mask_gradient(self.model.predictor, theirs, explained, whole)
        return self._to_student(effect, batch, theirs, self._student_view(batch), "extensive")

    def attribute(self, batch: Batch, explained: Tensor | None = None) -> Tensor:
        """What the teacher says of the student's tokens, ``[batch, token]``: the scores of a black
        box's explainer, or :meth:`mask_gradient`."""
        explainer = self.model.selector
        if not isinstance(explainer, Explainer):
            return self.mask_gradient(batch, explained)
        effect = self.carried(lambda theirs: explainer.effect(theirs, explained), batch)
        return explainer.score(effect, self._student_view(batch).selectable)

    def carried(self, effect: Callable[[TokenView], Tensor], batch: Batch) -> Tensor:
        """What ``effect`` finds the teacher's tokens to contribute, shared out among the student's;
        ``[batch, token]`` each."""
        theirs = self._view(batch)
        mine = self._student_view(batch)
        return self._to_student(effect(theirs), batch, theirs, mine, "extensive")

    def _inputs(self, batch: Batch) -> Mapping[str, Tensor]:
        return batch.inputs if batch.teacher is None else batch.teacher.inputs

    def _view(self, batch: Batch) -> TokenView:
        return self.model.predictor.encoder.view(self._inputs(batch))

    def _student_view(self, batch: Batch) -> TokenView:
        return self.student.predictor.encoder.view(batch.inputs)

    def _carried_score(
        self, score: Tensor, batch: Batch, theirs: TokenView, mine: TokenView
    ) -> Tensor:
        carried = self._to_student(score, batch, theirs, mine, "intensive")
        spans = _spans(batch, theirs, mine)
        if spans is None:
            return unit_mean(carried, mine.unit)
        # What the teacher did not read (it may cut texts earlier) it cannot have chosen.
        read = covered_by_span(*spans)
        lowest = carried.masked_fill(~read, torch.inf).amin(dim=1, keepdim=True)
        carried = torch.where(read, carried, lowest.nan_to_num(posinf=0.0))
        return unit_mean(carried, mine.unit)

    def _carried_subset(self, keep: Tensor, batch: Batch, theirs: TokenView) -> Tensor:
        grids = self._grids()
        if grids is not None:
            if grids[0] == grids[1]:
                return keep
            share = carry_by_area(keep.float(), grids[1], grids[0], "intensive")
            return at_least_half(share, theirs.selectable)
        spans = _spans(batch, theirs, self._student_view(batch))
        if spans is None:
            return keep
        share = carry_by_span(keep.float(), spans[1], spans[0], "intensive")
        # A token past the end of what the student read has no share of its own.
        return at_least_half(share * covered_by_span(spans[1], spans[0]), theirs.selectable)

    def _to_student(
        self, values: Tensor, batch: Batch, theirs: TokenView, mine: TokenView, quantity: Quantity
    ) -> Tensor:
        grids = self._grids()
        if grids is not None:
            return carry_by_area(values, *grids, quantity)
        spans = _spans(batch, theirs, mine)
        return values if spans is None else carry_by_span(values, *spans, quantity)

    def _grids(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Patch grids of teacher and student; None for text."""
        theirs, mine = self.model.predictor.encoder, self.student.predictor.encoder
        if isinstance(theirs, PatchGrid) and isinstance(mine, PatchGrid):
            return theirs.grid, mine.grid
        return None


def _spans(batch: Batch, theirs: TokenView, mine: TokenView) -> tuple[Tensor, Tensor] | None:
    """Characters of the selectable content tokens of teacher and student, int64
    ``[batch, token, 2]``; None where both have the same tokens."""
    side = batch.teacher
    if side is None or side.spans is None or side.student_spans is None:
        return None
    return _selectable_spans(side.spans, theirs), _selectable_spans(side.student_spans, mine)


def _selectable_spans(spans: Tensor, view: TokenView) -> Tensor:
    prefix = spans.shape[1] - view.content.shape[1]
    return spans[:, prefix:] * view.selectable.unsqueeze(2)
