"""Folds: the trained model rewritten so that it costs less and answers the same.

Each is applied to a deploy model and compared with the model before it on example inputs, so that
the fuse report can say what was folded, how exactly, and what it saved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rekd_edge.models.encoder import BertEncoder
from rekd_edge.models.intervention import InterventionHead
from rekd_edge.models.rationalist import Selector
from rekd_edge.models.selectors import ConvolutionMixer, WordEmbedding
from rekd_edge.selection import LOWEST_SCORE
from rekd_edge.types import PixelScale

if TYPE_CHECKING:
    from rekd_edge.fuse.fused import DeployModel


VIT_ATTENTION = ("timm.layers.attention", "Attention")
BERT_ATTENTION = ("transformers.models.bert.modeling_bert", "BertSelfAttention")
TOLERANCE = 1e-4
"""Largest difference of logits, scores and margins that rounding explains (float32)."""


@dataclass(frozen=True, slots=True)
class Fold:
    """``max_difference`` is the largest absolute difference of logits, scores and margins before
    and after (infinite where there is no number any more), ``same_rationale`` whether the masks
    are equal but for near ties (:func:`nearly_tied`), whose logits are then not compared;
    ``weights`` and ``flops`` (one example) are what it saved."""

    name: str
    max_difference: float
    same_rationale: bool
    weights: int
    flops: int


def nearly_tied(score: Tensor, margin: Tensor) -> Tensor:
    """Which rationales rounding may change, bool ``[batch]``: the selection margin lies within
    :data:`TOLERANCE` of the scores' scale (``selection_score`` and ``selection_margin`` of a deploy
    model)."""
    real = torch.where(score > LOWEST_SCORE, score.abs(), 0.0)
    return margin <= TOLERANCE * real.amax(dim=1).clamp(min=1.0)


def _is_one(module: nn.Module, package: str, name: str) -> bool:
    """Whether ``module`` is a ``package.name``, without importing what nothing here was made of:
    an image model would wait seconds for BERT, a text model for timm."""
    loaded = sys.modules.get(package)
    return loaded is not None and isinstance(module, getattr(loaded, name))


def fold_word_table(module: nn.Module) -> bool:
    """The selector's projection is multiplied into its word table."""
    if not isinstance(module, WordEmbedding) or isinstance(module.projection, nn.Identity):
        return False
    module.words = nn.Embedding.from_pretrained(module.projection(module.words.weight))
    module.projection = nn.Identity()
    return True


def fold_selection_head(module: nn.Module) -> bool:
    """The logits (drop, keep) become their difference, which is all that top-k asks for."""
    if not isinstance(module, Selector) or module.head.out_features != 2:
        return False
    head = module.head
    head.weight = nn.Parameter(head.weight[1:] - head.weight[:1])
    head.bias = nn.Parameter(head.bias[1:] - head.bias[:1])
    head.out_features = 1
    return True


def fold_embeddings(module: nn.Module) -> bool:
    """BERT's token type goes into its table of positions, and ``[CLS]`` at position 0, which is the
    same for every text, becomes one vector."""
    if not isinstance(module, BertEncoder):
        return False
    embeddings: Any = module.backbone.embeddings
    if hasattr(embeddings, "prefix"):
        return False
    prefix = module.embed_prefix(1)
    table = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    embeddings.position_embeddings = nn.Embedding.from_pretrained(table)
    del embeddings.token_type_embeddings
    embeddings.prefix = nn.Parameter(prefix)
    return True


def fold_convolution(module: nn.Module) -> bool:
    """A convolution along the tokens becomes one over an image of one row, which ONNX Runtime lays
    out for its vector units."""
    if not isinstance(module, ConvolutionMixer) or not isinstance(module.convolution, nn.Conv1d):
        return False
    old = module.convolution
    kernel = old.kernel_size[0]
    new = nn.Conv2d(old.in_channels, old.out_channels, (1, kernel), padding=(0, kernel // 2))
    new.weight = nn.Parameter(old.weight.unsqueeze(2))
    new.bias = old.bias
    module.convolution = new
    return True


def fold_layer_scale(module: nn.Module) -> bool:
    """A vision transformer's LayerScale is multiplied into the projections before it."""
    if not _is_one(module, "timm.models.vision_transformer", "Block"):
        return False
    from timm.layers.layer_scale import LayerScale

    block: Any = module
    folded = False
    for name, projection in (("ls1", block.attn.proj), ("ls2", block.mlp.fc2)):
        scale = getattr(block, name)
        if isinstance(scale, LayerScale):
            projection.weight = nn.Parameter(projection.weight * scale.gamma.unsqueeze(1))
            if projection.bias is not None:
                projection.bias = nn.Parameter(projection.bias * scale.gamma)
            setattr(block, name, nn.Identity())
            folded = True
    return folded


def fold_attention(module: nn.Module) -> bool:
    """Attention as :func:`~rekd_edge.models.encoder.deployed_attention` writes it."""
    kinds = (VIT_ATTENTION, BERT_ATTENTION)
    if not any(_is_one(module, *kind) for kind in kinds) or hasattr(module, "deployed"):
        return False
    changed: Any = module
    changed.deployed = True
    return True


def unfold_attention(model: nn.Module) -> None:
    """Undoes :func:`fold_attention` in ``model``, in place: attention is PyTorch's own function, as
    anyone would run it where nothing is exported."""
    for module in model.modules():
        if hasattr(module, "deployed"):
            del module.deployed


def fold_projections(module: nn.Module) -> bool:
    """BERT's products for query, key and value become one."""
    if not _is_one(module, *BERT_ATTENTION) or hasattr(module, "qkv"):
        return False
    attention: Any = module
    parts = [attention.query, attention.key, attention.value]
    joined = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
    joined.weight = nn.Parameter(torch.cat([part.weight for part in parts]))
    joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]))
    attention.qkv = joined
    del attention.query, attention.key, attention.value
    return True


def fold_labels(module: nn.Module) -> bool:
    """What Inter_RAT's heads know of the labels becomes two tables."""
    if not isinstance(module, InterventionHead) or hasattr(module, "keys"):
        return False
    module.fold()
    return True


FOLDS: dict[str, Callable[[nn.Module], bool]] = {
    "word table": fold_word_table,
    "selection head": fold_selection_head,
    "embeddings": fold_embeddings,
    "convolution": fold_convolution,
    "layer scale": fold_layer_scale,
    "attention": fold_attention,
    "query, key and value": fold_projections,
    "labels": fold_labels,
}
PIXELS = "pixels"


@torch.no_grad()
def apply_folds(model: DeployModel, scale: PixelScale | None) -> tuple[Fold, ...]:
    """Everything that can be folded in ``model``, in place. ``scale`` is how the images of training
    are normalised: the model then reads 8-bit pixels. None leaves its input as it is."""
    inputs, pixels = model.example_inputs(), None
    others = inputs[1:]
    if scale is not None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, inputs[0].shape, generator=generator, dtype=torch.uint8)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (scale.mean, scale.std))
        inputs = ((pixels / 255 - mean) / std, *others)
    found = []
    before, cost = _run(model, inputs)
    for name, step in FOLDS.items():
        changed = [step(module) for module in list(model.modules())]
        if any(changed):
            after, now = _run(model, inputs)
            found.append(_compared(name, before, after, cost, now))
            before, cost = after, now
    if scale is not None and pixels is not None:
        model.read_pixels(scale)
        after, now = _run(model, (pixels, *others))
        found.append(_compared(PIXELS, before, after, cost, now))
    model.train(model.training)  # new modules start in training mode
    return tuple(found)


def _run(
    model: DeployModel, inputs: tuple[Tensor, ...]
) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Outputs by name, and weights and operations for one example."""
    with FlopCounterMode(display=False) as counter:
        outputs = model(*inputs)
    weights = sum(parameter.numel() for parameter in model.parameters())
    names = [spec.name for spec in model.io_spec().outputs]
    named = dict(zip(names, outputs, strict=False))
    return named, (weights, counter.get_total_flops() // len(inputs[0]))


def _compared(
    name: str,
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    cost: tuple[int, int],
    now: tuple[int, int],
) -> Fold:
    saved = (cost[0] - now[0], cost[1] - now[1])
    if "rationale_mask" not in before:
        return Fold(name, _largest(before["logits"], after["logits"]), True, *saved)
    same = (before["rationale_mask"] == after["rationale_mask"]).all(dim=1)
    tied = nearly_tied(before["selection_score"], before["selection_margin"])
    largest = max(
        _largest(before["logits"][same], after["logits"][same]),
        *(_largest(before[key], after[key]) for key in ("selection_score", "selection_margin")),
    )
    return Fold(name, largest, bool((same | tied).all()), *saved)


def _largest(before: Tensor, after: Tensor) -> float:
    real = before.isfinite() & (before > LOWEST_SCORE)
    difference = (before - after)[real].abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return float(difference.max()) if real.any() else 0.0
