"""Encoders that can run on a chosen subset of tokens.

One interface over transformers' BERT and timm's ViT. A model input is viewed as *content*
tokens (word pieces after ``[CLS]``, or raw pixel patches) and *prefix* tokens that belong to the
model (``[CLS]``, class and register tokens). Content is gathered before it is embedded, so what
was not selected never enters the network; position embeddings are those of the original
positions.

The submodules stay those of transformers and timm: weights load and save under their names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rekd_edge.errors import UsageError
from rekd_edge.models.units import region_of_patch

if TYPE_CHECKING:
    from transformers import BertModel

    from rekd_edge.models.units import TextUnits
    from rekd_edge.types import Modality, PixelScale

MAX_RELATIVE_LOGIT = 10.0
"""Cap on how far an excluded key's attention logit may exceed those of the kept ones, so that its
exponential is finite; beyond it the key would take all attention anyway."""


@dataclass(frozen=True, slots=True)
class TokenView:
    """A model input as content tokens.

    ``content`` is int64 ``[batch, token]`` (word pieces) or ``[batch, token, pixel]``
    (flattened patches, float, or uint8 in deployed models); ``position`` int64
    ``[batch, token]`` indexes position embeddings; ``attended`` bool ``[batch, token]`` is False
    at padding; ``selectable`` bool ``[batch, token]`` is False at padding and at special tokens;
    ``unit`` int64 ``[batch, token]`` is the first token of each token's unit, None where tokens are
    kept or dropped one by one (:mod:`rekd_edge.selection.units`).
    """

    content: Tensor
    position: Tensor
    attended: Tensor
    selectable: Tensor
    unit: Tensor | None = None


def text_view(
    inputs: Mapping[str, Tensor], *, cls_id: int, sep_id: int, units: TextUnits | None = None
) -> TokenView:
    """Word pieces: content is everything after ``[CLS]``."""
    content = inputs["input_ids"][:, 1:]
    attended = inputs["attention_mask"][:, 1:] > 0
    position = torch.arange(1, content.shape[1] + 1, device=content.device)
    selectable = attended & ~((content == sep_id) | (content == cls_id))
    unit = None if units is None else units(content, selectable)
    return TokenView(content, position.unsqueeze(0).expand_as(content), attended, selectable, unit)


def weighted_attention(query: Tensor, key: Tensor, value: Tensor, key_weight: Tensor) -> Tensor:
    """Attention in which key j counts ``key_weight[b, j]`` times.

    ``query``, ``key``, ``value`` ``[batch, head, token, channel]``; ``key_weight`` float
    ``[batch, token]``. With weights 0/1 it equals attention with those keys excluded; unlike a
    boolean mask it has a gradient with respect to the weight of an excluded key. That is no
    derivative, which for a key that would take most of the attention is thousands of times what
    including it can change, but the step that the answer makes if the key counts once instead of
    not at all (docs/adr/0035). Weights above 0 have their derivative. A compiler gets
    the formula and fuses it; otherwise the backward pass is written by hand.
    """
    if torch.compiler.is_compiling():
        return weighted_formula(query, key, value, key_weight)
    attended: Tensor = _WeightedAttention.apply(query, key, value, key_weight)
    return attended


def weighted_formula(query: Tensor, key: Tensor, value: Tensor, key_weight: Tensor) -> Tensor:
    """:func:`weighted_attention` in plain operations."""
    logit = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    excluded = (key_weight <= 0)[:, None, None, :]
    highest = logit.detach().masked_fill(excluded, -torch.inf).amax(dim=-1, keepdim=True)
    odds = (logit - highest).clamp_max(MAX_RELATIVE_LOGIT).exp()
    key_weight = key_weight[:, None, None, :]
    with torch.no_grad():
        total = (odds * key_weight).sum(dim=-1, keepdim=True)
        step = torch.where(excluded, total / (total + odds), 1.0)
    weight = odds * step * key_weight
    return (weight / weight.sum(dim=-1, keepdim=True)) @ value


class _WeightedAttention(Function):
    """:func:`weighted_attention` with half the passes over ``[batch, head, token, token]``.

    With e_ij = exp(l_ij - max_kept l_i), s_i = sum_k w_k e_ik, r_ij = e_ij / s_i and p = r * w, and
    for the gradient g of the answer o: d_ij = r_ij (<g_i, v_j> - <g_i, o_i>) is, summed over heads
    and queries, the gradient of w_j, and w_j d_ij that of the logit l_ij. Where w_j = 0, r_ij is
    e_ij / (s_i + e_ij): o moves by that times v_j - o_i when w_j becomes 1. It is no function that
    can be differentiated twice.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, key_weight: Tensor) -> Tensor:
        scale = query.shape[-1] ** -0.5
        scaled = query * scale
        logit = scaled @ key.transpose(-2, -1)
        weight = key_weight[:, None, None, :].to(torch.promote_types(logit.dtype, torch.float32))
        share = logit.to(weight.dtype)
        excluded = torch.zeros_like(weight).masked_fill_(weight <= 0, -torch.inf)
        highest = (share + excluded).amax(dim=-1, keepdim=True)
        share = share.sub_(highest).clamp_max_(MAX_RELATIVE_LOGIT).exp_()
        counted = share * weight
        total = counted.sum(dim=-1, keepdim=True)
        share.div_(torch.addcmul(total, share, (weight <= 0).to(share.dtype)))
        attended = counted.div_(total).to(value.dtype) @ value
        # Autocast does not reach the backward pass; norms of queries and keys answer in float32.
        scaled, key = scaled.to(value.dtype), key.to(value.dtype)
        ctx.save_for_backward(scaled, key, value, weight, share, attended)
        ctx.scale, ctx.weight_type = scale, key_weight.dtype
        return attended

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        scaled, key, value, weight, share, attended = ctx.saved_tensors
        gradient = grad_outputs[0].to(value.dtype)
        of_value = (share * weight).to(value.dtype).transpose(-2, -1) @ gradient
        own = (gradient * attended).sum(dim=-1, keepdim=True, dtype=share.dtype)
        moved = (gradient @ value.transpose(-2, -1)).to(share.dtype).sub_(own).mul_(share)
        of_weight = None
        if ctx.needs_input_grad[3]:
            of_weight = moved.sum(dim=(1, 2)).to(ctx.weight_type)
        of_logit = moved.mul_(weight).to(value.dtype)
        of_query = (of_logit @ key) * ctx.scale
        return of_query, of_logit.transpose(-2, -1) @ scaled, of_value, of_weight


def deployed_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    """Attention to the keys that are ``allowed``, bool ``[batch, token]``, in few operations.

    The exporter of PyTorch's own function writes a mask for every block, and a way out for rows
    without any key; here one mask does for all, and such a row attends to all keys alike.
    """
    logit = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if allowed is not None:
        logit = logit + excluding(allowed)[:, None, None, :].to(logit.dtype)
    return logit.softmax(dim=-1) @ value


def excluding(allowed: Tensor) -> Tensor:
    """What is added to the logits of keys: 0 where ``allowed``, else the lowest float32, whose
    exponential is exactly 0 beside any other; same shape."""
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)


def split_heads(projected: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value ``[batch, head, token, channel]`` out of their joint projection
    ``[batch, token, 3 * head * channel]``."""
    query, key, value = projected.unflatten(2, (3 * heads, -1)).transpose(1, 2).chunk(3, dim=1)
    return query, key, value


def query_key_value(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projections of a ``BertSelfAttention``, by three products or by the one that
    :func:`rekd_edge.fuse.folds.fold_projections` makes of them; ``[batch, head, token, channel]``
    each."""
    heads, channel = attention.num_attention_heads, attention.attention_head_size
    if hasattr(attention, "qkv"):
        return split_heads(attention.qkv(tokens), heads)

    def split(projected: Tensor) -> Tensor:
        return projected.unflatten(2, (heads, channel)).transpose(1, 2)

    return (
        split(attention.query(tokens)),
        split(attention.key(tokens)),
        split(attention.value(tokens)),
    )


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_weight: Tensor | None,
    dropout: float,
    *,
    deployed: bool = False,
) -> Tensor:
    if key_weight is not None and key_weight.dtype != torch.bool:
        return weighted_attention(query, key, value, key_weight)
    if deployed:
        return deployed_attention(query, key, value, key_weight)
    allowed = None if key_weight is None else key_weight[:, None, None, :]
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        # PyTorch 2.15's fused attention for the CPU has a backward pass that is several times
        # slower in bfloat16 than in float32 (benchmarks/results/attention.md).
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(
                query.float(), key.float(), value.float(), attn_mask=allowed, dropout_p=dropout
            )
        return attended.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)


class TokenReader(nn.Module, ABC):
    """What selector and predictor ask of a backbone: features of each content token, and one
    vector of any subset of them."""

    modality: Modality
    token_dim: int
    """Channels of :meth:`token_features`."""
    embed_dim: int
    """Channels of :meth:`pooled_features`."""

    @abstractmethod
    def view(self, inputs: Mapping[str, Tensor]) -> TokenView:
        """Splits a model input into content tokens."""

    @abstractmethod
    def token_features(self, view: TokenView) -> Tensor:
        """``[batch, token, channel]``: each content token, seen in the whole input."""

    @abstractmethod
    def pooled_features(
        self,
        content: Tensor,
        position: Tensor,
        key_weight: Tensor | None,
        scale: Tensor | None,
        pooling: str,
        prefix_scale: Tensor | None = None,
    ) -> Tensor:
        """``[batch, channel]`` from the given content and nothing else. ``key_weight``, ``scale``
        and ``prefix_scale`` as in :meth:`Encoder.forward`; ``pooling`` is ``cls`` or ``mean``."""

    @abstractmethod
    def embedding_parameters(self) -> list[nn.Parameter]:
        """Parameters that ``train_embeddings: false`` freezes."""


class PatchGrid:
    """Images as flattened raw patches of ``patch_size`` pixels on ``grid`` (rows, columns)."""

    grid: tuple[int, int]
    patch_size: tuple[int, int]
    region_size: int | None = None
    """Patches on each side of a region; None: each patch is kept or dropped by itself."""

    def view(self, inputs: Mapping[str, Tensor]) -> TokenView:
        pixels = inputs["pixel_values"]
        rows, columns = self.grid
        height, width = self.patch_size
        patches = pixels.reshape(-1, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        content = patches.reshape(-1, rows * columns, 3 * height * width)
        position = torch.arange(rows * columns, device=pixels.device)
        position = position.unsqueeze(0).expand(content.shape[0], -1)
        valid = torch.ones_like(position, dtype=torch.bool)
        if self.region_size is None:
            return TokenView(content, position, valid, valid)
        region = region_of_patch(self.grid, self.region_size, pixels.device)
        return TokenView(content, position, valid, valid, region.expand_as(position))

    def fold_pixels(self, scale: PixelScale) -> None:
        """From here on 8-bit pixels are read instead of normalised ones, by other weights in the
        first projection. What holds no projection of its own has nothing to do."""


@torch.no_grad()
def fold_into(projection: nn.Conv2d, scale: PixelScale) -> None:
    """Multiplies normalisation into a projection of pixels. Exact up to rounding, because the
    projection pads nothing: W ((x / 255 - m) / s) + b = (W / 255 s) x + (b - W m / s)."""
    if any(projection.padding):
        raise ValueError("a padded projection sees zeros that are no pixels")
    weight = projection.weight.double()
    mean, std = (weight.new_tensor(values).view(1, 3, 1, 1) for values in (scale.mean, scale.std))
    bias = -(weight * mean / std).sum(dim=(1, 2, 3))
    if projection.bias is not None:
        bias = bias + projection.bias.double()
    dtype = projection.weight.dtype
    projection.weight = nn.Parameter((weight / (255 * std)).to(dtype))
    projection.bias = nn.Parameter(bias.to(dtype))


def key_mask(view: TokenView, mask: Tensor) -> Tensor | None:
    """``mask`` bool ``[batch, token]`` of ``view``; None for images on a CUDA device, none of whose
    patches is padding: its fastest attention takes no mask."""
    return None if view.content.is_cuda and view.content.dim() == 3 else mask


def patch_grid(reader: TokenReader) -> tuple[int, int] | None:
    """Rows and columns of the patches that images are read in; None for texts."""
    return reader.grid if isinstance(reader, PatchGrid) else None


def region_area(reader: TokenReader) -> int | None:
    """Patches of a region; None where there are none."""
    size = reader.region_size if isinstance(reader, PatchGrid) else None
    return None if size is None else size * size


class Encoder(TokenReader):
    """A transformer that encodes prefix tokens and any subset of content tokens."""

    num_prefix_tokens: int

    @property
    @abstractmethod
    def num_blocks(self) -> int: ...

    @abstractmethod
    def embed_content(
        self, content: Tensor, position: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        """``[batch, token, ...]`` and int64 ``[batch, token]`` to ``[batch, token, channel]``.

        ``scale`` float ``[batch, token]`` multiplies what stands for the token itself, before
        its position is added (the published zero-masking).
        """

    @abstractmethod
    def embed_prefix(self, batch_size: int, scale: Tensor | None = None) -> Tensor:
        """The model's own tokens, ``[batch, prefix, channel]``; ``scale`` ``[batch, prefix]`` as
        in :meth:`embed_content`, for text only."""

    @abstractmethod
    def run_blocks(
        self, tokens: Tensor, key_weight: Tensor | None, depth: int | None = None
    ) -> Tensor:
        """All blocks, or the first ``depth``, and the final norm; ``key_weight`` as in
        :meth:`forward`."""

    @abstractmethod
    def queries_and_keys(
        self, tokens: Tensor, key_weight: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What each block's attention compares, block by block: queries and keys
        ``[batch, head, token, channel]``; arguments as in :meth:`run_blocks`."""

    def token_features(self, view: TokenView) -> Tensor:
        hidden = self(view.content, view.position, key_mask(view, view.attended))
        return hidden[:, self.num_prefix_tokens :]

    def pooled_features(
        self,
        content: Tensor,
        position: Tensor,
        key_weight: Tensor | None,
        scale: Tensor | None,
        pooling: str,
        prefix_scale: Tensor | None = None,
    ) -> Tensor:
        hidden = self(content, position, key_weight, scale, prefix_scale)
        class_token, content = hidden[:, 0], hidden[:, self.num_prefix_tokens :]
        if pooling == "cls":
            return class_token
        if key_weight is None:
            if self.num_prefix_tokens > 1:
                hidden = torch.cat([class_token.unsqueeze(1), content], dim=1)
            return hidden.mean(dim=1)
        weight = key_weight.to(hidden.dtype).unsqueeze(2)
        total = class_token + (content * weight).sum(dim=1)
        return total / (1.0 + weight.sum(dim=1))

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        key_weight: Tensor | None = None,
        scale: Tensor | None = None,
        prefix_scale: Tensor | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """Hidden states of prefix and content, ``[batch, prefix + token, channel]``.

        ``key_weight`` ``[batch, token]``: bool excludes keys, float weighs them
        (:func:`weighted_attention`), None attends to all. ``scale`` float ``[batch, token]`` and
        ``prefix_scale`` ``[batch, prefix]``: see :meth:`embed_content`. ``depth`` stops after that
        many blocks.
        """
        embedded = self.embed_content(content, position, scale)
        tokens = torch.cat([self.embed_prefix(content.shape[0], prefix_scale), embedded], dim=1)
        if key_weight is not None:
            key_weight = F.pad(key_weight, (self.num_prefix_tokens, 0), value=1)
        return self.run_blocks(tokens, key_weight, depth)


class BertEncoder(Encoder):
    """transformers ``BertModel`` without its pooler. Content is everything after ``[CLS]``."""

    modality = "text"
    num_prefix_tokens = 1

    def __init__(self, backbone: BertModel, *, cls_id: int, sep_id: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.cls_id = cls_id
        self.sep_id = sep_id
        self.units: TextUnits | None = None
        self.token_dim = self.embed_dim = int(backbone.config.hidden_size)
        self.max_positions = int(backbone.config.max_position_embeddings)

    @property
    def num_blocks(self) -> int:
        return len(self.backbone.encoder.layer)

    def view(self, inputs: Mapping[str, Tensor]) -> TokenView:
        return text_view(inputs, cls_id=self.cls_id, sep_id=self.sep_id, units=self.units)

    def embed_content(
        self, content: Tensor, position: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        embeddings = self.backbone.embeddings
        word = embeddings.word_embeddings(content)
        if scale is not None:
            word = word * scale.unsqueeze(2)
        if hasattr(embeddings, "token_type_embeddings"):
            word = word + embeddings.token_type_embeddings.weight[0]
        embedded = word + embeddings.position_embeddings(position)
        return embeddings.dropout(embeddings.LayerNorm(embedded))

    def embed_prefix(self, batch_size: int, scale: Tensor | None = None) -> Tensor:
        embeddings: Any = self.backbone.embeddings
        if scale is None and hasattr(embeddings, "prefix"):
            return embeddings.prefix.expand(batch_size, -1, -1)
        weight = embeddings.word_embeddings.weight
        content = torch.full((batch_size, 1), self.cls_id, device=weight.device)
        return self.embed_content(content, torch.zeros_like(content), scale)

    def run_blocks(
        self, tokens: Tensor, key_weight: Tensor | None, depth: int | None = None
    ) -> Tensor:
        for layer in self.backbone.encoder.layer[:depth]:
            tokens = self.run_block(layer, tokens, key_weight)
        return tokens

    def queries_and_keys(
        self, tokens: Tensor, key_weight: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for layer in self.backbone.encoder.layer:
            attention: Any = layer.attention
            query, key, _ = query_key_value(attention.self, tokens)
            yield query, key
            tokens = self.run_block(layer, tokens, key_weight)

    @staticmethod
    def run_block(layer: Any, tokens: Tensor, key_weight: Tensor | None) -> Tensor:
        """One transformers ``BertLayer`` on ``[batch, token, channel]``."""
        attention = layer.attention.self
        attended = _attend(
            *query_key_value(attention, tokens),
            key_weight,
            attention.dropout.p if attention.training else 0.0,
            deployed=hasattr(attention, "deployed"),
        )
        attended = layer.attention.output(attended.transpose(1, 2).flatten(2), tokens)
        return layer.output(layer.intermediate(attended), attended)

    def embedding_parameters(self) -> list[nn.Parameter]:
        return list(self.backbone.embeddings.word_embeddings.parameters())


class VitEncoder(PatchGrid, Encoder):
    """timm ``VisionTransformer``. Content is the raw pixels of each patch."""

    modality = "image"

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        reason = _unsupported_vit(backbone)
        if reason is not None:
            raise UsageError(
                f"this timm backbone cannot run on a subset of its patches: {reason}",
                hint="use a plain ViT with absolute position embeddings, such as vit_*_patch16_224",
            )
        self.backbone = backbone
        self.token_dim = self.embed_dim = int(backbone.embed_dim)
        self.num_prefix_tokens = int(backbone.num_prefix_tokens)
        self.grid = tuple(backbone.patch_embed.grid_size)
        self.patch_size = tuple(backbone.patch_embed.patch_size)

    @property
    def num_blocks(self) -> int:
        return len(self.backbone.blocks)

    def embed_content(
        self, content: Tensor, position: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        projection = self.backbone.patch_embed.proj
        content = content.to(projection.weight.dtype)
        embedded = F.linear(content, projection.weight.flatten(1), projection.bias)
        embedded = self.backbone.patch_embed.norm(embedded)
        if scale is not None:
            embedded = embedded * scale.unsqueeze(2)
        table = self.backbone.pos_embed[0]
        if not self.backbone.no_embed_class:
            table = table[self.num_prefix_tokens :]
        return self.backbone.pos_drop(embedded + F.embedding(position, table))

    def fold_pixels(self, scale: PixelScale) -> None:
        fold_into(self.backbone.patch_embed.proj, scale)

    def embed_prefix(self, batch_size: int, scale: Tensor | None = None) -> Tensor:
        if scale is not None:
            raise ValueError("the class token of an image is never masked")
        backbone = self.backbone
        tokens = [t[0] for t in (backbone.cls_token, backbone.reg_token) if t is not None]
        prefix = torch.cat(tokens, dim=0)
        if not backbone.no_embed_class:
            prefix = prefix + backbone.pos_embed[0, : self.num_prefix_tokens]
        return backbone.pos_drop(prefix).unsqueeze(0).expand(batch_size, -1, -1)

    def run_blocks(
        self, tokens: Tensor, key_weight: Tensor | None, depth: int | None = None
    ) -> Tensor:
        tokens = self.backbone.norm_pre(tokens)
        for block in self.backbone.blocks[:depth]:
            tokens = self._run_block(block, tokens, key_weight)
        return self.backbone.norm(tokens)

    def queries_and_keys(
        self, tokens: Tensor, key_weight: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        tokens = self.backbone.norm_pre(tokens)
        for block in self.backbone.blocks:
            query, key, _ = self._query_key_value(block.attn, block.norm1(tokens))
            yield query, key
            tokens = self._run_block(block, tokens, key_weight)

    @classmethod
    def _run_block(cls, block: Any, tokens: Tensor, key_weight: Tensor | None) -> Tensor:
        attended = cls._attention(block.attn, block.norm1(tokens), key_weight)
        tokens = tokens + block.drop_path1(block.ls1(attended))
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))

    @staticmethod
    def _query_key_value(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = split_heads(attention.qkv(tokens), attention.num_heads)
        return attention.q_norm(query), attention.k_norm(key), value

    @classmethod
    def _attention(cls, attention: Any, tokens: Tensor, key_weight: Tensor | None) -> Tensor:
        attended = _attend(
            *cls._query_key_value(attention, tokens),
            key_weight,
            attention.attn_drop.p if attention.training else 0.0,
            deployed=hasattr(attention, "deployed"),
        )
        attended = attention.norm(attended.transpose(1, 2).flatten(2))
        return attention.proj_drop(attention.proj(attended))

    def embedding_parameters(self) -> list[nn.Parameter]:
        return list(self.backbone.patch_embed.parameters())


def _unsupported_vit(backbone: Any) -> str | None:
    """Why a timm model cannot be used here, or None."""
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(backbone, VisionTransformer):
        return f"{type(backbone).__name__} is no VisionTransformer"
    if backbone.pos_embed is None:
        return "it has no absolute position embedding"
    if backbone.num_prefix_tokens < 1:
        return "it has no class token"
    blocks: Sequence[Any] = list(backbone.blocks)
    if not all(type(block) is Block for block in blocks):
        return f"its blocks are {type(blocks[0]).__name__}, not timm's plain Block"
    if not all(isinstance(b.attn, Attention) and b.attn.gate is None for b in blocks):
        return "its attention is gated or not timm's plain Attention"
    return None
