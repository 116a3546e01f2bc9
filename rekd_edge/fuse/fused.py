"""The models that go to a device.

With margin d = l1 - l0 a hard Gumbel draw keeps a token with probability sigmoid(d) at any
temperature; top-k on d is therefore the most probable rationale of size k, but it is another
function than sampling or d > 0 (docs/adr/0001). The fuse report measures the difference.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekd_edge.fuse.folds import Fold, apply_folds
from rekd_edge.models.encoder import BertEncoder, PatchGrid, TokenView, region_area
from rekd_edge.models.rationalist import Classifier, Predictor, Rationalist, Scores, Selector
from rekd_edge.models.units import region_of_patch
from rekd_edge.selection import (
    LOWEST_SCORE,
    gather_tokens,
    keep_constant,
    keep_units,
    keep_with_margin,
    kept_positions,
    rationale_budget,
    slot_count,
    unit_margin,
)
from rekd_edge.types import (
    CUT_NAMES,
    OUTPUTS,
    AxisSpec,
    IoSpec,
    Modality,
    PixelScale,
    ProblemType,
    RationaleUnit,
    TensorSpec,
    input_names,
)

ModelT = TypeVar("ModelT", bound=nn.Module)


class DeployModel(nn.Module):
    """Base of the exportable models: positional tensors in, a tuple of tensors out."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        label_names: tuple[str, ...],
        max_length: int | None,
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.reads_pixels = False
        self.label_names = label_names
        self.problem_type: ProblemType = predictor.problem.kind
        encoder = predictor.encoder
        self.modality: Modality = encoder.modality
        self.max_length = max_length if self.modality == "text" else None
        self.image_size: int | None = None
        self.patch_size: int | None = None
        self.grid: tuple[int, int] | None = None
        self.region_size: int | None = None
        if isinstance(encoder, PatchGrid):
            self.grid = encoder.grid
            self.region_size = encoder.region_size
            self.patch_size = encoder.patch_size[0]
            self.image_size = encoder.grid[0] * encoder.patch_size[0]

    def read_pixels(self, scale: PixelScale) -> None:
        """From here on the images are 8-bit pixels instead of normalised ones, by other weights of
        the first projections."""
        for module in self.modules():
            if isinstance(module, PatchGrid):
                module.fold_pixels(scale)
        self.reads_pixels = True

    def named_inputs(self, inputs: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        return dict(zip(input_names(self.modality), inputs, strict=True))

    def io_spec(self) -> IoSpec:
        """Names, types and axes, for the exporter and the runners."""
        batch = AxisSpec("batch", None)
        classes = AxisSpec("class", len(self.label_names))
        return IoSpec(
            self._input_specs(batch), (TensorSpec("logits", "float32", (batch, classes)),)
        )

    def _input_specs(self, batch: AxisSpec) -> tuple[TensorSpec, ...]:
        names = input_names(self.modality)
        if self.modality == "text":
            axes = (batch, AxisSpec("token", None))
            return tuple(TensorSpec(name, "int64", axes) for name in names)
        size = self.image_size
        axes = (batch, AxisSpec("channel", 3), AxisSpec("height", size), AxisSpec("width", size))
        dtype = "uint8" if self.reads_pixels else "float32"
        return tuple(TensorSpec(name, dtype, axes) for name in names)

    def example_inputs(self, batch: int = 2, tokens: int = 16) -> tuple[Tensor, ...]:
        """Valid inputs of the given size, for tracing; deterministic."""
        generator = torch.Generator().manual_seed(0)
        encoder = self.predictor.encoder
        if isinstance(encoder, BertEncoder):
            vocabulary = int(encoder.backbone.config.vocab_size)
            ids = torch.randint(
                min(1000, vocabulary // 2), vocabulary, (batch, tokens), generator=generator
            )
            ids[:, 0] = encoder.cls_id
            ids[:, -1] = encoder.sep_id
            return ids, torch.ones_like(ids)
        assert self.image_size is not None
        shape = (batch, 3, self.image_size, self.image_size)
        if self.reads_pixels:
            return (torch.randint(256, shape, generator=generator, dtype=torch.uint8),)
        return (torch.randn(shape, generator=generator),)


@dataclass(frozen=True, slots=True)
class _Selection:
    """``keep`` bool ``[batch, token]``; ``count`` int64 ``[batch, 1]``, how many of them, None
    where it is ``slots`` for all; and ``rationale_mask``, ``selection_score`` and
    ``selection_margin`` as in ``types.OUTPUTS``."""

    view: TokenView
    keep: Tensor
    slots: int
    count: Tensor | None
    outputs: tuple[Tensor, Tensor, Tensor]


class _SelectingModel(DeployModel):
    """A deploy model with a selector: adds the rationale outputs."""

    budgets: Tensor
    """Texts: the budget by the number of selectable tokens, int64 ``[token + 1, 1]``."""
    regions: Tensor
    """Images of which regions are kept: the region of each patch, int64 ``[patch]``..."""
    region_patches: Tensor
    """... and one patch of each, int64 ``[region]``."""

    def __init__(
        self,
        selector: Selector,
        predictor: Predictor,
        *,
        rationale_ratio: float,
        rationale_ratio_fraction: tuple[int, int],
        label_names: tuple[str, ...],
        max_length: int | None,
    ) -> None:
        super().__init__(predictor, label_names=label_names, max_length=max_length)
        self.selector = selector
        self.rationale_ratio = rationale_ratio
        self.rationale_ratio_fraction = rationale_ratio_fraction
        # Text outputs count [CLS] as token 0; content starts after it.
        self.token_offset = 1 if self.modality == "text" else 0
        encoder = predictor.encoder
        if isinstance(encoder, BertEncoder):
            counts = torch.arange(encoder.max_positions + 1).unsqueeze(1)
            budgets = rationale_budget(counts, *rationale_ratio_fraction)
            self.register_buffer("budgets", budgets, persistent=False)
        if self.grid is not None and self.region_size is not None:
            first = region_of_patch(self.grid, self.region_size, torch.device("cpu"))
            patches, regions = first.unique(return_inverse=True)
            self.register_buffer("regions", regions, persistent=False)
            self.register_buffer("region_patches", patches, persistent=False)

    @property
    def rationale_unit(self) -> RationaleUnit:
        """What is kept or dropped as a whole."""
        if self.region_size is not None:
            return "region"
        units = getattr(self.predictor.encoder, "units", None)
        return "token" if units is None else units.name

    def io_spec(self) -> IoSpec:
        base = super().io_spec()
        batch = AxisSpec("batch", None)
        patches = None if self.grid is None else self.grid[0] * self.grid[1]
        tokens = (batch, AxisSpec("token", patches))
        rationale = (
            TensorSpec("rationale_mask", "bool", tokens),
            TensorSpec("selection_score", "float32", tokens),
            TensorSpec("selection_margin", "float32", (batch,)),
        )
        return IoSpec(base.inputs, base.outputs + rationale)

    def _scores(self, inputs: Mapping[str, Tensor]) -> Scores:
        return self.selector(inputs)

    def _select(self, inputs: Mapping[str, Tensor]) -> _Selection:
        scores = self._scores(inputs)
        if scores.score.dtype != torch.float32:  # products in fp16, whose range is too small
            scores = replace(scores, score=scores.score.float())
        slots = slot_count(scores.score.shape[1], *self.rationale_ratio_fraction)
        if self.modality == "image":
            keep, margin, slots = self._keep_patches(scores.score, slots)
            return _Selection(scores.view, keep, slots, None, (keep, scores.score, margin))
        selectable = scores.view.selectable
        keep, margin, count = self._keep_words(scores, slots)
        score = torch.where(selectable, scores.score, LOWEST_SCORE)
        outputs = (
            F.pad(keep, (self.token_offset, 0), value=False),
            F.pad(score, (self.token_offset, 0), value=LOWEST_SCORE),
            margin,
        )
        return _Selection(scores.view, keep, slots, count, outputs)

    def _keep_patches(self, score: Tensor, slots: int) -> tuple[Tensor, Tensor, int]:
        """What is kept, its margin, and how much that is."""
        area = region_area(self.predictor.encoder)
        if area is None:
            return *keep_constant(score, slots), slots
        keep, margin = keep_constant(score.index_select(1, self.region_patches), slots // area)
        return keep.index_select(1, self.regions), margin, slots // area * area

    def _keep_words(self, scores: Scores, slots: int) -> tuple[Tensor, Tensor, Tensor]:
        """What is kept, its margin, and how much that is, int64 ``[batch, 1]``."""
        selectable, unit = scores.view.selectable, scores.view.unit
        budget = F.embedding(selectable.sum(dim=1), self.budgets)
        if unit is None:
            return *keep_with_margin(scores.score, selectable, budget, slots=slots), budget
        budget = budget.squeeze(1)
        keep = keep_units(scores.score, selectable, budget, unit)
        margin = unit_margin(scores.score, selectable, budget, unit, keep)
        return keep, margin, keep.sum(dim=1, keepdim=True)


class FusedRationalist(_SelectingModel):
    """Deterministic top-k, of tokens or of whole units; the predictor runs on the gathered tokens
    only.

    Returns ``logits``, ``rationale_mask``, ``selection_score``, ``selection_margin`` as in
    ``types.OUTPUTS``, then ``rationale_index`` int64 ``[batch, slot]`` (positions on the token
    axis, ascending; unused slots repeat the first) and ``rationale_valid`` bool ``[batch, slot]``.
    Everything behind the last two depends on the input at those positions only.
    """

    folds: tuple[Fold, ...] = ()
    """What :func:`fuse` folded."""

    output_names: tuple[str, ...] = OUTPUTS
    hidden_names: tuple[str, ...] = CUT_NAMES
    """What :meth:`forward` answers: first ``output_names``, those of :meth:`io_spec`."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = self.named_inputs(inputs)
        selection = self._select(named)
        index, valid = self._slots(selection)
        logits = self._predict(named, index, valid)
        return (logits, *selection.outputs, index, valid)

    def predict_from(self, *tensors: Tensor) -> Tensor:
        """Logits from a held rationale: the inputs, then ``rationale_index`` and
        ``rationale_valid``."""
        *inputs, index, valid = tensors
        return self._predict(self.named_inputs(tuple(inputs)), index, valid)

    def _slots(self, selection: _Selection) -> tuple[Tensor, Tensor]:
        """``rationale_index`` and ``rationale_valid``."""
        index = kept_positions(selection.keep, selection.slots)
        if selection.count is None:
            return index, index >= 0
        slot = torch.arange(selection.slots, device=index.device)
        valid = slot.unsqueeze(0) < selection.count
        return torch.where(valid, index, index[:, :1]) + self.token_offset, valid

    def _predict(self, inputs: Mapping[str, Tensor], index: Tensor, valid: Tensor) -> Tensor:
        return self._answer(self._read(inputs, index), index, valid)

    def _read(self, inputs: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """The content at ``index``: word pieces ``[batch, slot]`` or patches
        ``[batch, slot, pixel]``."""
        if self.modality == "text":
            return torch.gather(inputs["input_ids"], 1, index)
        return gather_tokens(self.predictor.encoder.view(inputs).content, index)

    def _answer(self, content: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        return self.predictor(content, index, valid if self.modality == "text" else None)


class MaskedRationalist(_SelectingModel):
    """The published form: two full passes, dropped embeddings multiplied by zero.

    For comparison only; its mask is the same top-k.
    """

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        selection = self._select(self.named_inputs(inputs))
        view = selection.view
        weight = view.attended if self.modality == "text" else None
        scale = selection.keep.to(selection.outputs[1].dtype)
        return (self.predictor(view.content, view.position, weight, scale), *selection.outputs)


class PlainClassifier(DeployModel):
    """The same backbone on all tokens; ``logits`` only."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        view = self.predictor.encoder.view(self.named_inputs(inputs))
        weight = view.attended if self.modality == "text" else None
        return (self.predictor(view.content, view.position, weight),)


def fuse(
    model: Rationalist,
    *,
    label_names: tuple[str, ...],
    max_length: int | None,
    pixel_scale: PixelScale | None = None,
) -> FusedRationalist:
    """The deterministic, gathered form of a trained rationalist, on the CPU, in float32.

    ``pixel_scale`` is how the images of training are normalised: the fused model then reads 8-bit
    pixels, of which only the selected ones are ever turned into numbers of the predictor. None
    leaves normalised input. The weights are copied: training may go on with ``model``.
    """
    source = copy.deepcopy(model).cpu().float()
    source.predictor.fold_unit()
    fused = FusedRationalist(
        source.selector,
        source.predictor,
        rationale_ratio=source.rationale_ratio,
        rationale_ratio_fraction=source.ratio_fraction,
        label_names=label_names,
        max_length=max_length,
    )
    fused.folds = apply_folds(fused.eval(), pixel_scale)
    return frozen(fused)


def masked_form(fused: FusedRationalist) -> MaskedRationalist:
    """The published two-pass form with the weights of ``fused``."""
    model = MaskedRationalist(
        fused.selector,
        fused.predictor,
        rationale_ratio=fused.rationale_ratio,
        rationale_ratio_fraction=fused.rationale_ratio_fraction,
        label_names=fused.label_names,
        max_length=fused.max_length,
    )
    model.reads_pixels = fused.reads_pixels
    return frozen(model)


def plain_form(
    classifier: Classifier,
    *,
    label_names: tuple[str, ...],
    max_length: int | None,
    pixel_scale: PixelScale | None = None,
) -> PlainClassifier:
    """A trained plain classifier as a deploy model; ``pixel_scale`` as in :func:`fuse`."""
    source = copy.deepcopy(classifier).cpu().float()
    source.predictor.fold_unit()
    model = PlainClassifier(source.predictor, label_names=label_names, max_length=max_length)
    apply_folds(model.eval(), pixel_scale)
    return frozen(model)


def frozen(model: ModelT) -> ModelT:
    """``model`` in evaluation mode, its weights held."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()
