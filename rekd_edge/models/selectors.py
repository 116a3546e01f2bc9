"""Selectors that cost a fraction of a backbone.

The selector reads the whole input, so it decides the latency of the deployed model. All of these
answer with the :class:`Scores` of the block selector in `rationalist.py`, and all see the same
content tokens as the predictor.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekd_edge.models.encoder import (
    BertEncoder,
    Encoder,
    PatchGrid,
    TokenReader,
    TokenView,
    fold_into,
    key_mask,
    text_view,
)
from rekd_edge.models.rationalist import BlockSelector, Scores, Selector, selection_head
from rekd_edge.types import PixelScale

DROPOUT = 0.1


class Embedding(nn.Module, ABC):
    """Content tokens of width ``width`` without any context."""

    width: int

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[TokenView, Tensor]:
        """The view, and hidden states ``[batch, token, width]``."""


class WordEmbedding(Embedding):
    """The word embeddings of a pretrained BERT, projected to ``width`` and normalised.

    Position embeddings are left out: a convolution sees the order, and what a word says hardly
    depends on where it stands.
    """

    def __init__(self, encoder: BertEncoder, width: int) -> None:
        super().__init__()
        self.width = width
        self.cls_id, self.sep_id, self.units = encoder.cls_id, encoder.sep_id, encoder.units
        self.words = encoder.backbone.embeddings.word_embeddings
        self.projection: nn.Module = nn.Linear(encoder.embed_dim, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[TokenView, Tensor]:
        view = text_view(inputs, cls_id=self.cls_id, sep_id=self.sep_id, units=self.units)
        return view, self.norm(self.projection(self.words(view.content)))


class PixelEmbedding(PatchGrid, Embedding):
    """Patches at a reduced resolution: two strided convolutions and a position embedding.

    Each patch is first cut into 2 x 2 cells where its side is even.
    """

    def __init__(self, grid: tuple[int, int], patch_size: tuple[int, int], width: int) -> None:
        super().__init__()
        self.width, self.grid, self.patch_size = width, grid, patch_size
        cells = 2 if patch_size[0] % 2 == 0 and patch_size[1] % 2 == 0 else 1
        cell = (patch_size[0] // cells, patch_size[1] // cells)
        self.cells = nn.Conv2d(3, width, kernel_size=cell, stride=cell)
        self.join = nn.Conv2d(width, width, kernel_size=cells, stride=cells)
        self.position = nn.Parameter(torch.zeros(1, grid[0] * grid[1], width))
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[TokenView, Tensor]:
        pixels = inputs["pixel_values"].to(self.cells.weight.dtype)
        hidden = self.join(F.gelu(self.cells(pixels)))
        return self.view(inputs), self.norm(hidden.flatten(2).transpose(1, 2) + self.position)

    def fold_pixels(self, scale: PixelScale) -> None:
        fold_into(self.cells, scale)


class ConvolutionMixer(nn.Module):
    """A residual convolution along the tokens, or over the patch grid."""

    def __init__(self, width: int, kernel: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid = grid
        convolution = nn.Conv1d if grid is None else nn.Conv2d
        self.convolution = convolution(width, width, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        if self.grid is None:
            # Padding is zeroed before every convolution, so it cannot be told from the border.
            channels_first = (hidden * attended.unsqueeze(2)).transpose(1, 2)
            if isinstance(self.convolution, nn.Conv2d):
                channels_first = channels_first.unsqueeze(2)
        else:
            channels_first = hidden.transpose(1, 2).unflatten(2, self.grid)
        mixed = self.convolution(channels_first).flatten(2).transpose(1, 2)
        return hidden + self.dropout(F.gelu(self.norm(mixed)))


class AttentionMixer(nn.Module):
    """A narrow transformer block (transformers' ``BertLayer``)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertLayer

        self.layer = BertLayer(
            BertConfig(
                hidden_size=width,
                num_attention_heads=max(1, width // 32),
                intermediate_size=4 * width,
                hidden_dropout_prob=DROPOUT,
                attention_probs_dropout_prob=0.0,
            )
        )

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        return BertEncoder.run_block(self.layer, hidden, attended)


class LightSelector(Selector):
    """Embeddings, a few narrow mixing layers, and a score for each token."""

    def __init__(self, embedding: Embedding, mixers: list[nn.Module]) -> None:
        super().__init__()
        self.embedding = embedding
        self.mixers = nn.ModuleList(mixers)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = selection_head(embedding.width)

    def forward(self, inputs: Mapping[str, Tensor]) -> Scores:
        view, hidden = self.embedding(inputs)
        hidden = self.dropout(hidden)
        for mixer in self.mixers:
            hidden = mixer(hidden, view.attended)
        return Scores.from_logits(self.score_hidden(hidden), view, hidden)


class LowResolutionSelector(PatchGrid, BlockSelector):
    """A backbone on a smaller image; its scores are resized to the predictor's patch grid."""

    def __init__(
        self,
        encoder: TokenReader,
        grid: tuple[int, int],
        patch_size: tuple[int, int],
        head: nn.Linear | None = None,
    ) -> None:
        super().__init__(encoder, head)
        assert isinstance(encoder, PatchGrid)
        self.coarse_grid = encoder.grid
        self.grid, self.patch_size = grid, patch_size
        (rows, columns), (height, width) = encoder.grid, encoder.patch_size
        self.coarse_size = (rows * height, columns * width)

    def forward(self, inputs: Mapping[str, Tensor]) -> Scores:
        view = self.view(inputs)
        small = F.interpolate(
            inputs["pixel_values"].float(),
            size=self.coarse_size,
            mode="bilinear",
            align_corners=False,
        )
        coarse = super().forward({"pixel_values": small}).logits.transpose(1, 2)
        logits = F.interpolate(
            coarse.unflatten(2, self.coarse_grid),
            size=self.grid,
            mode="bilinear",
            align_corners=False,
        )
        return Scores.from_logits(logits.flatten(2).transpose(1, 2), view)


class SharedSelector(Selector):
    """The predictor's own first ``depth`` blocks, with a norm and a head of its own.

    The weights are shared, the hidden states are not: the predictor still starts from the kept
    content alone. As in folded rationalization (FR, Liu et al. 2022), half the weights ship.
    """

    def __init__(self, encoder: Encoder, depth: int | None) -> None:
        super().__init__()
        # Held outside the module tree: its parameters are the predictor's.
        self._shared = (encoder,)
        self.depth = depth
        self.norm = nn.LayerNorm(encoder.embed_dim)
        self.head = selection_head(encoder.embed_dim)

    def untie(self) -> None:
        """Takes a copy of the shared blocks: training the predictor changes no score any more."""
        self.own = copy.deepcopy(self._shared[0])
        self._shared = (self.own,)

    def forward(self, inputs: Mapping[str, Tensor]) -> Scores:
        encoder = self._shared[0]
        view = encoder.view(inputs)
        attended = key_mask(view, view.attended)
        hidden = encoder(view.content, view.position, attended, depth=self.depth)
        normed = self.norm(hidden[:, encoder.num_prefix_tokens :])
        return Scores.from_logits(self.score_hidden(normed), view, normed)
