"""The model that says, for a class that it is asked about, what speaks for it and how far it goes.

It is a rationalist like the one that answers, with one input more: the candidate class. That picks
the scores by which tokens are selected and reaches nothing else, so every proof of a rationalist is
one of each class: what it says of class c depends on the rationale for c alone, and the predictor,
which is the answer's own, does not know which class was asked for (docs/adr/0034).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from rekd_edge.fuse.folds import apply_folds
from rekd_edge.fuse.fused import FusedRationalist, frozen
from rekd_edge.models.class_wise import ClassHead
from rekd_edge.models.rationalist import Rationalist, Scores
from rekd_edge.types import (
    CANDIDATE_INPUT,
    AxisSpec,
    IoSpec,
    PixelScale,
    TensorSpec,
    input_names,
)


class FusedClassWise(FusedRationalist):
    """The outputs of :class:`FusedRationalist`, of the rationale for ``candidate_class`` int64
    ``[batch]``, the last input."""

    def __init__(
        self,
        student: Rationalist,
        class_head: ClassHead,
        *,
        label_names: tuple[str, ...],
        max_length: int | None,
    ) -> None:
        super().__init__(
            student.selector,
            student.predictor,
            rationale_ratio=student.rationale_ratio,
            rationale_ratio_fraction=student.ratio_fraction,
            label_names=label_names,
            max_length=max_length,
        )
        self.class_head = class_head

    def named_inputs(self, inputs: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        names = (*input_names(self.modality), CANDIDATE_INPUT)
        return dict(zip(names, inputs, strict=True))

    def io_spec(self) -> IoSpec:
        base = super().io_spec()
        candidate = TensorSpec(CANDIDATE_INPUT, "int64", (AxisSpec("batch", None),))
        return IoSpec((*base.inputs, candidate), base.outputs)

    def example_inputs(self, batch: int = 2, tokens: int = 16) -> tuple[Tensor, ...]:
        candidate = torch.arange(batch) % len(self.label_names)
        return (*super().example_inputs(batch, tokens), candidate)

    def _scores(self, inputs: Mapping[str, Tensor]) -> Scores:
        return self.class_head.scores(self.selector(inputs), inputs[CANDIDATE_INPUT])


def fuse_class_wise(
    model: Rationalist,
    class_head: ClassHead,
    *,
    label_names: tuple[str, ...],
    max_length: int | None,
    pixel_scale: PixelScale | None = None,
) -> FusedClassWise:
    """The class-wise model beside :func:`~rekd_edge.fuse.fuse`; the weights are copied."""
    source, head = copy.deepcopy(model).cpu().float(), copy.deepcopy(class_head).cpu().float()
    fused = FusedClassWise(source, head, label_names=label_names, max_length=max_length)
    fused.folds = apply_folds(fused.eval(), pixel_scale)
    return frozen(fused)
