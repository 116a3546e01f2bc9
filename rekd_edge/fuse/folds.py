"""Folds: the trained model rewritten so that it costs less and answers the same.

Each is applied to a deploy model and compared with the model before it on example inputs, so that
the fuse report can say what was folded, how exactly, and what it saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rekd_edge.models.rationalist import Selector
from rekd_edge.models.selectors import WordEmbedding
from rekd_edge.selection import LOWEST_SCORE
from rekd_edge.types import PixelScale

if TYPE_CHECKING:
    from rekd_edge.fuse.fused import DeployModel


@dataclass(frozen=True, slots=True)
class Fold:
    """``max_difference`` is the largest absolute difference of logits, scores and margins before
    and after (infinite where there is no number any more), ``same_rationale`` whether the masks
    are equal; ``weights`` and ``flops`` (one example) are what it saved."""

    name: str
    max_difference: float
    same_rationale: bool
    weights: int
    flops: int


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


def fold_layer_scale(module: nn.Module) -> bool:
    """A vision transformer's LayerScale is multiplied into the projections before it."""
    from timm.layers.layer_scale import LayerScale
    from timm.models.vision_transformer import Block

    if not isinstance(module, Block):
        return False
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


FOLDS: dict[str, Callable[[nn.Module], bool]] = {
    "word table": fold_word_table,
    "selection head": fold_selection_head,
    "layer scale": fold_layer_scale,
}
PIXELS = "pixels"


@torch.no_grad()
def apply_folds(model: DeployModel, scale: PixelScale | None) -> tuple[Fold, ...]:
    """Everything that can be folded in ``model``, in place. ``scale`` is how the images of training
    are normalised: the model then reads 8-bit pixels. None leaves its input as it is."""
    inputs, pixels = model.example_inputs(), None
    if scale is not None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, inputs[0].shape, generator=generator, dtype=torch.uint8)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (scale.mean, scale.std))
        inputs = ((pixels / 255 - mean) / std,)
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
        after, now = _run(model, (pixels,))
        found.append(_compared(PIXELS, before, after, cost, now))
    return tuple(found)


def _run(
    model: DeployModel, inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """Outputs, and weights and operations for one example."""
    with FlopCounterMode(display=False) as counter:
        outputs = model(*inputs)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return outputs, (weights, counter.get_total_flops() // len(inputs[0]))


def _compared(
    name: str,
    before: tuple[Tensor, ...],
    after: tuple[Tensor, ...],
    cost: tuple[int, int],
    now: tuple[int, int],
) -> Fold:
    largest, same = 0.0, True
    for old, new in zip(before, after, strict=True):
        if old.is_floating_point():
            real = old.isfinite() & (old > LOWEST_SCORE)
            difference = (old - new)[real].abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
            largest = max(largest, float(difference.max()) if real.any() else 0.0)
        else:
            same = same and torch.equal(old, new)
    return Fold(name, largest, same, cost[0] - now[0], cost[1] - now[1])
