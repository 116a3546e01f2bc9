"""The predictor of joint training with a backward pass through kept tokens alone.

Excluding the other keys by a weight of 0 leaves their hidden states without any influence on the
answer, so no gradient flows back through them; what the selector learns from is how the answer
would change if one of them counted. For that their keys and values are needed, and nothing
else. So all tokens are read as before, but of those outside the rationale nothing is remembered,
and the backward pass, twice the cost of the forward pass, has as many tokens as the rationale
(docs/adr/0029). Answer and gradients are those of ``Rationalist.classify_masked`` up to rounding,
where nothing is dropped at random.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rekd_edge.models.encoder import (
    BertEncoder,
    Encoder,
    TokenView,
    VitEncoder,
    query_key_value,
    split_heads,
    weighted_attention,
)
from rekd_edge.models.rationalist import Predictor
from rekd_edge.selection import gather_tokens, kept_positions

RUN_KEPT = "run_kept"
"""Attribute of an encoder under which a compiled :func:`run_kept` of its own may stand."""


def can_classify_kept(predictor: Predictor) -> bool:
    """Whether :func:`classify_kept` knows the predictor's backbone."""
    return isinstance(predictor.encoder, BertEncoder | VitEncoder)


def classify_kept(
    predictor: Predictor, view: TokenView, keep: Tensor, slots: int, *, filled: bool = False
) -> Tensor:
    """Logits ``[batch, class]`` under key exclusion; arguments as in :func:`represent_kept`."""
    return predictor.answer(represent_kept(predictor, view, keep, slots, filled=filled))


def represent_kept(
    predictor: Predictor, view: TokenView, keep: Tensor, slots: int, *, filled: bool = False
) -> Tensor:
    """What the predictor's head reads under key exclusion, ``[batch, channel]``; ``keep`` float
    ``[batch, token]`` is 0 or 1, at most ``slots`` ones in a row, and may carry a gradient.
    ``filled``: every row has as many ones as that, so that attention needs no mask."""
    encoder = predictor.encoder
    assert isinstance(encoder, Encoder)
    order = kept_positions(keep.detach() > 0.5, keep.shape[1])
    weight = gather_tokens(keep, order)
    run = encoder.__dict__.get(RUN_KEPT) or partial(run_kept, encoder)
    front, rest = run(
        gather_tokens(view.content, order),
        gather_tokens(view.position, order),
        weight,
        slots,
        filled=filled,
    )
    return _pool(predictor, front, rest, weight)


def _pool(predictor: Predictor, front: Tensor, rest: Tensor, weight: Tensor) -> Tensor:
    class_token = front[:, 0]
    if predictor.pooling == "cls":
        return class_token
    prefix = front.shape[1] + rest.shape[1] - weight.shape[1]
    content = torch.cat([front[:, prefix:], rest], dim=1)
    share = weight.to(content.dtype).unsqueeze(2)
    return (class_token + (content * share).sum(dim=1)) / (1.0 + share.sum(dim=1))


def run_kept(
    encoder: Encoder,
    content: Tensor,
    position: Tensor,
    weight: Tensor,
    slots: int,
    *,
    filled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Hidden states of prefix and the first ``slots`` tokens, which everybody attends to, and of
    the rest, which carry no gradient; all kept tokens are among the first."""
    count = encoder.num_prefix_tokens
    # In every step the tokens with a gradient come first: autocast keeps the weights that it
    # converts, and those converted without gradients would serve both.
    prefix = encoder.embed_prefix(len(content))
    front = torch.cat([prefix, encoder.embed_content(content[:, :slots], position[:, :slots])], 1)
    with torch.no_grad():
        rest = encoder.embed_content(content[:, slots:], position[:, slots:])
    weight = F.pad(weight, (count, 0), value=1)
    seen = None if filled else (weight[:, : slots + count] > 0)[:, None, None, :]
    if isinstance(encoder, VitEncoder):
        front, rest = _both(encoder.backbone.norm_pre, front, rest)
        for block in encoder.backbone.blocks:
            front, rest = _vit_block(block, front, rest, weight, seen)
        return _both(encoder.backbone.norm, front, rest)
    assert isinstance(encoder, BertEncoder)
    for layer in encoder.backbone.encoder.layer:
        front, rest = _bert_block(layer, front, rest, weight, seen)
    return front, rest


def _both(module: Any, front: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    front = module(front)
    with torch.no_grad():
        return front, module(rest)


Heads = tuple[Tensor, Tensor, Tensor]


def _attend(own: Heads, other: Heads, weight: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both groups attend to the kept keys; the first also says how it would to the others."""
    keys = torch.cat([own[1], other[1]], dim=2)
    values = torch.cat([own[2], other[2]], dim=2)
    front = weighted_attention(own[0], keys, values, weight)
    with torch.no_grad():
        rest = F.scaled_dot_product_attention(other[0], own[1], own[2], attn_mask=seen)
    return front.transpose(1, 2).flatten(2), rest.transpose(1, 2).flatten(2)


def _vit_block(
    block: Any, front: Tensor, rest: Tensor, weight: Tensor, seen: Tensor | None
) -> tuple[Tensor, Tensor]:
    attention = block.attn

    def heads(tokens: Tensor) -> Heads:
        query, key, value = split_heads(attention.qkv(block.norm1(tokens)), attention.num_heads)
        return attention.q_norm(query), attention.k_norm(key), value

    def finish(tokens: Tensor, attended: Tensor) -> Tensor:
        attended = attention.proj_drop(attention.proj(attention.norm(attended)))
        tokens = tokens + block.drop_path1(block.ls1(attended))
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))

    own = heads(front)
    with torch.no_grad():
        other = heads(rest)
    attended, attended_rest = _attend(own, other, weight, seen)
    front = finish(front, attended)
    with torch.no_grad():
        return front, finish(rest, attended_rest)


def _bert_block(
    layer: Any, front: Tensor, rest: Tensor, weight: Tensor, seen: Tensor | None
) -> tuple[Tensor, Tensor]:
    attention = layer.attention

    def finish(tokens: Tensor, attended: Tensor) -> Tensor:
        attended = attention.output(attended, tokens)
        return layer.output(layer.intermediate(attended), attended)

    own = query_key_value(attention.self, front)
    with torch.no_grad():
        other = query_key_value(attention.self, rest)
    attended, attended_rest = _attend(own, other, weight, seen)
    front = finish(front, attended)
    with torch.no_grad():
        return front, finish(rest, attended_rest)
