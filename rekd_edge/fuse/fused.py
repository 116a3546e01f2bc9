"""The models that go to a device.

With margin d = l1 - l0 a hard Gumbel draw keeps a token with probability sigmoid(d) at any
temperature; top-k on d is therefore the most probable rationale of size k, but it is another
function than sampling or d > 0 (docs/adr/0001). The fuse report measures the difference.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from rekd_edge.models.encoder import BertEncoder, PatchGrid
from rekd_edge.models.rationalist import Classifier, Predictor, Rationalist, Scores, Selector
from rekd_edge.selection import (
    LOWEST_SCORE,
    gather_slots,
    gather_tokens,
    keep_top_k,
    rationale_budget,
    selection_margin,
    slot_count,
)
from rekd_edge.types import AxisSpec, IoSpec, Modality, PixelScale, TensorSpec, input_names

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
        encoder = predictor.encoder
        self.modality: Modality = encoder.modality
        self.max_length = max_length if self.modality == "text" else None
        self.image_size: int | None = None
        self.patch_size: int | None = None
        self.grid: tuple[int, int] | None = None
        if isinstance(encoder, PatchGrid):
            self.grid = encoder.grid
            self.patch_size = encoder.patch_size[0]
            self.image_size = encoder.grid[0] * encoder.patch_size[0]

    def read_pixels(self, scale: PixelScale | None) -> None:
        """From here on the images are 8-bit pixels instead of normalised ones, by other weights of
        the first projections; None (texts) changes nothing."""
        if scale is None:
            return
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


class _SelectingModel(DeployModel):
    """A deploy model with a selector: adds the rationale outputs."""

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

    def _select(self, inputs: Mapping[str, Tensor]) -> tuple[Scores, Tensor]:
        scores = self.selector(inputs)
        selectable = scores.view.selectable
        budget = rationale_budget(selectable.sum(dim=1), *self.rationale_ratio_fraction)
        slots = slot_count(selectable.shape[1], *self.rationale_ratio_fraction)
        return scores, keep_top_k(scores.score, selectable, budget, slots=slots)

    def _rationale_outputs(self, scores: Scores, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        selectable = scores.view.selectable
        margin = selection_margin(scores.score, selectable, keep)
        # Said outright: OpenVINO's largest value of nothing is the lowest float, not -inf.
        margin = torch.where((selectable & ~keep).any(dim=1), margin, torch.inf)
        score = torch.where(selectable, scores.score, LOWEST_SCORE)
        if self.token_offset:
            keep = torch.cat([torch.zeros_like(keep[:, :1]), keep], dim=1)
            score = torch.cat([torch.full_like(score[:, :1], LOWEST_SCORE), score], dim=1)
        return keep, score, margin


class FusedRationalist(_SelectingModel):
    """Deterministic top-k; the predictor runs on the gathered tokens only.

    Returns ``logits``, ``rationale_mask``, ``selection_score``, ``selection_margin`` as in
    ``types.OUTPUTS``, then ``rationale_index`` int64 ``[batch, slot]`` (positions on the token
    axis, ascending; unused slots repeat the first) and ``rationale_valid`` bool ``[batch, slot]``.
    Everything behind the last two depends on the input at those positions only.
    """

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = self.named_inputs(inputs)
        scores, keep = self._select(named)
        slots = slot_count(scores.view.content.shape[1], *self.rationale_ratio_fraction)
        index, valid = gather_slots(keep, slots)
        index = index + self.token_offset
        logits = self._predict(named, index, valid)
        return (logits, *self._rationale_outputs(scores, keep), index, valid)

    def predict_from(self, *tensors: Tensor) -> Tensor:
        """Logits from a held rationale: the inputs, then ``rationale_index`` and
        ``rationale_valid``."""
        *inputs, index, valid = tensors
        return self._predict(self.named_inputs(tuple(inputs)), index, valid)

    def _predict(self, inputs: Mapping[str, Tensor], index: Tensor, valid: Tensor) -> Tensor:
        if self.modality == "text":
            content = torch.gather(inputs["input_ids"], 1, index)
        else:
            content = gather_tokens(self.predictor.encoder.view(inputs).content, index)
        return self.predictor(content, index, valid)


class MaskedRationalist(_SelectingModel):
    """The published form: two full passes, dropped embeddings multiplied by zero.

    For comparison only; its mask is the same top-k.
    """

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        scores, keep = self._select(self.named_inputs(inputs))
        view = scores.view
        weight = view.attended if self.modality == "text" else None
        logits = self.predictor(view.content, view.position, weight, keep.to(scores.score.dtype))
        return (logits, *self._rationale_outputs(scores, keep))


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
    source.selector.fold()
    fused = FusedRationalist(
        source.selector,
        source.predictor,
        rationale_ratio=source.rationale_ratio,
        rationale_ratio_fraction=source.ratio_fraction,
        label_names=label_names,
        max_length=max_length,
    )
    fused.read_pixels(pixel_scale)
    return _frozen(fused)


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
    return _frozen(model)


def plain_form(
    classifier: Classifier,
    *,
    label_names: tuple[str, ...],
    max_length: int | None,
    pixel_scale: PixelScale | None = None,
) -> PlainClassifier:
    """A trained plain classifier as a deploy model; ``pixel_scale`` as in :func:`fuse`."""
    source = copy.deepcopy(classifier).cpu().float()
    model = PlainClassifier(source.predictor, label_names=label_names, max_length=max_length)
    model.read_pixels(pixel_scale)
    return _frozen(model)


def _frozen(model: ModelT) -> ModelT:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()
