"""Two fused students in one model: interactive rationale extraction as it is deployed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rekd_edge.errors import UsageError
from rekd_edge.fuse.fused import FusedRationalist, frozen
from rekd_edge.models.encoder import PatchGrid
from rekd_edge.models.interactive import exchange
from rekd_edge.problem import PROBLEM_TITLES
from rekd_edge.types import EXCHANGE_NAMES, PAIR_OUTPUTS, AxisSpec, IoSpec, TensorSpec


class FusedPair(FusedRationalist):
    """The first student with a ``partner``; label and logits by algorithm 1
    (:func:`~rekd_edge.models.interactive.exchange`).

    Returns the outputs of :class:`FusedRationalist`: ``rationale_mask`` holds the positions that
    either student kept, which is all that the answer depends on (docs/adr/0030),
    ``selection_score`` is the first's, and the partner's where it alone kept a position,
    ``selection_margin`` the smaller of the two. Then ``answer_mask`` bool ``[batch, token]``, the
    rationale of the student that answers, and ``case`` int64 ``[batch]``; then ``rationale_index``
    and ``rationale_valid`` ``[batch, 2 * slot]`` (the first's slots, then the partner's) and
    :data:`~rekd_edge.types.EXCHANGE_NAMES`.

    In torch all four answers are computed. A file computes those from the other's rationale only
    where a batch needs them (:mod:`rekd_edge.convert.branch`).
    """

    output_names = (*FusedRationalist.output_names, *PAIR_OUTPUTS)
    hidden_names = (*FusedRationalist.hidden_names, *EXCHANGE_NAMES)

    def __init__(self, first: FusedRationalist, partner: FusedRationalist) -> None:
        super().__init__(
            first.selector,
            first.predictor,
            rationale_ratio=first.rationale_ratio,
            rationale_ratio_fraction=first.rationale_ratio_fraction,
            label_names=first.label_names,
            max_length=first.max_length,
        )
        self.partner = partner
        self.reads_pixels = first.reads_pixels
        self.folds = first.folds + partner.folds

    def alone(self) -> FusedRationalist:
        """The first student without its partner."""
        model = FusedRationalist(
            self.selector,
            self.predictor,
            rationale_ratio=self.rationale_ratio,
            rationale_ratio_fraction=self.rationale_ratio_fraction,
            label_names=self.label_names,
            max_length=self.max_length,
        )
        model.reads_pixels = self.reads_pixels
        return frozen(model)

    def io_spec(self) -> IoSpec:
        alone = super().io_spec()
        mask = next(tensor for tensor in alone.outputs if tensor.name == "rationale_mask")
        case = TensorSpec("case", "int64", (AxisSpec("batch", None),))
        answer = TensorSpec("answer_mask", mask.dtype, mask.axes)
        return IoSpec(alone.inputs, (*alone.outputs, answer, case))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = self.named_inputs(inputs)
        mine, theirs = self._select(named), self.partner._select(named)
        slots = zip(self._slots(mine), self.partner._slots(theirs), strict=True)
        index, valid = (torch.cat(both, dim=1) for both in slots)
        answers = self._four_answers(named, index, valid)
        verdict = exchange(*answers)
        (keep, score, margin), (their_keep, their_score, their_margin) = (
            mine.outputs,
            theirs.outputs,
        )
        own, partner, *_ = answers
        by_first = verdict.by_first.unsqueeze(1)
        return (
            verdict.logits,
            keep | their_keep,
            torch.where(their_keep & ~keep, their_score, score),
            torch.minimum(margin, their_margin),
            (by_first & keep) | (~by_first & their_keep),
            verdict.case,
            index,
            valid,
            (own.argmax(dim=1) != partner.argmax(dim=1)).any(),
            *answers,
        )

    def _predict(self, inputs: Mapping[str, Tensor], index: Tensor, valid: Tensor) -> Tensor:
        return exchange(*self._four_answers(inputs, index, valid)).logits

    def _four_answers(
        self, inputs: Mapping[str, Tensor], index: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The arguments of :func:`exchange`, from both rationales and nothing else."""
        slots = index.shape[1] // 2
        content = self._read(inputs, index)
        mine = (content[:, :slots], index[:, :slots], valid[:, :slots])
        theirs = (content[:, slots:], index[:, slots:], valid[:, slots:])
        return (
            self._answer(*mine),
            self.partner._answer(*theirs),
            self._answer(*theirs),
            self.partner._answer(*mine),
        )


def fuse_pair(first: FusedRationalist, partner: FusedRationalist) -> FusedPair:
    """Both students in one model.

    Raises :class:`UsageError` where they cannot read each other's rationale.
    """
    if _patches(first) != _patches(partner):
        raise UsageError(
            "the two students of the ensemble cut their images into other patches",
            hint="choose backbones of one patch size",
        )
    if first.problem_type != "single_label_classification":
        raise UsageError(
            f"an ensemble of two students is not for a {PROBLEM_TITLES[first.problem_type]}: what "
            "decides between them is whether one brings the other to its one label",
            hint="train with ensemble: null",
        )
    same = ("problem_type", "modality", "label_names", "rationale_ratio_fraction", "reads_pixels")
    same += ("rationale_unit", "region_size")
    for name in same:
        if getattr(first, name) != getattr(partner, name):
            raise UsageError(f"the two students of the ensemble differ in {name}")
    return frozen(FusedPair(first, partner))


def _patches(model: FusedRationalist) -> tuple[tuple[int, int], tuple[int, int]] | None:
    encoder = model.predictor.encoder
    return (encoder.grid, encoder.patch_size) if isinstance(encoder, PatchGrid) else None
