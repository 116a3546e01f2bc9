"""How much of an encoder's attention each content token gets, head by head.

Fused attention returns no probabilities, so they are computed here again from queries and keys.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rekd_edge.models.encoder import Encoder, TokenView, excluding
from rekd_edge.models.rationalist import Predictor


def head_count(encoder: Encoder) -> int:
    """Attention heads of all blocks."""
    tokens = encoder.embed_prefix(1)
    return sum(query.shape[1] for query, _ in encoder.queries_and_keys(tokens, None))


def pooled_attention(
    predictor: Predictor,
    view: TokenView,
    *,
    last_block: bool = False,
    form: Literal["probability", "logit"] = "probability",
) -> Tensor:
    """The attention that what is pooled pays to each content token, ``[batch, head, token]``.

    The heads are those of all blocks, first to last, or of the last one. The mean is over the
    queries that the predictor pools: the class token (``cls``), or it and all attended content
    (``mean``). A ``logit`` is q . k / sqrt(channel); the ``probability`` its softmax over all
    attended keys, of which the content gets a part. Not attended tokens get 0 (a logit of them says
    nothing).
    """
    encoder = predictor.encoder
    if not isinstance(encoder, Encoder):
        raise TypeError(f"a {type(encoder).__name__} has no attention")
    prefix = encoder.num_prefix_tokens
    tokens = torch.cat(
        [
            encoder.embed_prefix(view.content.shape[0]),
            encoder.embed_content(view.content, view.position),
        ],
        dim=1,
    )
    attended = F.pad(view.attended, (prefix, 0), value=True)
    pooled = torch.zeros(attended.shape, device=tokens.device)
    pooled[:, 0] = 1
    if predictor.pooling == "mean":
        pooled[:, prefix:] = view.attended.float()
    pooled = pooled / pooled.sum(dim=1, keepdim=True)
    blocks: list[Tensor] = []
    for query, key in encoder.queries_and_keys(tokens, attended):
        if last_block:
            blocks.clear()
        # Shares of a hundred tokens would tie in a lower precision.
        with torch.autocast(tokens.device.type, enabled=False):
            values = query.float() @ key.float().transpose(-2, -1) * query.shape[-1] ** -0.5
            if form == "probability":
                values = (values + excluding(attended)[:, None, None, :]).softmax(dim=-1)
            received = torch.einsum("bq,bhqk->bhk", pooled, values)
        blocks.append(received[..., prefix:] * view.attended.unsqueeze(1))
    return torch.cat(blocks, dim=1)
