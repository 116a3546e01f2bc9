"""Models of the shipped architectures with random weights, of any length, size and depth: what a
query costs does not depend on what was learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rekd_edge.types import Modality

if TYPE_CHECKING:
    from rekd_edge.fuse import FusedRationalist, PlainClassifier
    from rekd_edge.models.encoder import BertEncoder, VitEncoder

Axis = Literal["ratio", "tokens", "image_size", "batch", "depth"]
LABELS = ("no", "yes")
SELECTOR_LAYERS = 2


@dataclass(frozen=True, slots=True)
class Scale:
    """The predictor's transformer and the convolutional selector. ``patch_size`` in pixels
    (images); ``vocabulary`` in tokens (text)."""

    width: int
    heads: int
    selector_width: int
    patch_size: int
    vocabulary: int


FULL = Scale(width=384, heads=12, selector_width=128, patch_size=14, vocabulary=30522)
"""MiniLM's width and vocabulary, and that of ViT-S/14 (which has 6 heads), with the selector of the
shipped text recipe."""
TINY = Scale(width=32, heads=2, selector_width=16, patch_size=14, vocabulary=500)


@dataclass(frozen=True, slots=True)
class CostPoint:
    """One set of sizes. ``tokens`` counts ``[CLS]`` and ``[SEP]`` (text, else 0); ``image_size``
    is in pixels (images, else 0); ``depth`` counts the predictor's blocks."""

    modality: Modality
    ratio: float
    tokens: int
    image_size: int
    batch: int
    depth: int

    @property
    def name(self) -> str:
        size = f"{self.tokens}tokens" if self.modality == "text" else f"{self.image_size}px"
        return f"{self.modality}-{size}-ratio{self.ratio:g}-batch{self.batch}-depth{self.depth}"

    @property
    def model(self) -> tuple[object, ...]:
        """Points with the same are measured with the same files."""
        return (self.modality, self.ratio, self.image_size, self.depth)


def build_forms(
    point: CostPoint, scale: Scale, max_tokens: int
) -> tuple[FusedRationalist, PlainClassifier]:
    """The fused rationalist and the plain classifier of the same predictor. ``max_tokens`` is the
    number of position embeddings (text)."""
    import torch

    from rekd_edge.fuse import PlainClassifier, fuse
    from rekd_edge.models.rationalist import Predictor, Rationalist
    from rekd_edge.models.selectors import (
        ConvolutionMixer,
        Embedding,
        LightSelector,
        PixelEmbedding,
        WordEmbedding,
    )

    torch.manual_seed(0)
    width = scale.selector_width
    grid: tuple[int, int] | None = None
    encoder: BertEncoder | VitEncoder
    embedding: Embedding
    if point.modality == "text":
        encoder = _bert(point, scale, max_tokens)
        embedding = WordEmbedding(encoder, width)
    else:
        encoder = _vit(point, scale)
        grid = encoder.grid
        embedding = PixelEmbedding(grid, encoder.patch_size, width)
    predictor = Predictor(encoder, len(LABELS))
    mixers = [ConvolutionMixer(width, 5, grid) for _ in range(SELECTOR_LAYERS)]
    selector = LightSelector(embedding, [*mixers])
    torch.nn.init.normal_(selector.head.weight)  # so that scores differ
    max_length = max_tokens if point.modality == "text" else None
    fused = fuse(
        Rationalist(selector, predictor, point.ratio), label_names=LABELS, max_length=max_length
    )
    plain = PlainClassifier(fused.predictor, label_names=LABELS, max_length=max_length)
    return fused, plain.eval()


def _bert(point: CostPoint, scale: Scale, max_tokens: int) -> BertEncoder:
    from transformers import BertConfig, BertModel

    from rekd_edge.models.encoder import BertEncoder

    config = BertConfig(
        vocab_size=scale.vocabulary,
        hidden_size=scale.width,
        num_hidden_layers=point.depth,
        num_attention_heads=scale.heads,
        intermediate_size=4 * scale.width,
        max_position_embeddings=max_tokens,
    )
    return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=0, sep_id=1)


def _vit(point: CostPoint, scale: Scale) -> VitEncoder:
    from timm.models.vision_transformer import VisionTransformer

    from rekd_edge.models.encoder import VitEncoder

    return VitEncoder(
        VisionTransformer(
            img_size=point.image_size,
            patch_size=scale.patch_size,
            embed_dim=scale.width,
            depth=point.depth,
            num_heads=max(1, scale.heads // 2),
            num_classes=0,
        )
    )


def example(point: CostPoint, scale: Scale) -> dict[str, np.ndarray]:
    """One batch without padding; the same for the same point."""
    rng = np.random.default_rng(0)
    if point.modality == "image":
        shape = (point.batch, 3, point.image_size, point.image_size)
        return {"pixel_values": rng.standard_normal(shape, dtype=np.float32)}
    ids = rng.integers(2, scale.vocabulary, (point.batch, point.tokens))
    ids[:, 0], ids[:, -1] = 0, 1
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
