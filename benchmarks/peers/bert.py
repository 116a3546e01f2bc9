"""Token reduction in BERT: fewer word vectors from block to block, and shorter inputs.

Counts derive from each text's own length, so an answer does not depend on what it is padded to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.peer import Peer, attention
from rekd_edge.errors import UsageError
from rekd_edge.models.encoder import BertEncoder, excluding, query_key_value
from rekd_edge.models.rationalist import Predictor
from rekd_edge.selection import gather_tokens, rationale_budget, slot_count

DENOMINATOR = 10_000


class BertPeer(Peer):
    def __init__(
        self, predictor: Predictor, *, label_names: tuple[str, ...], max_length: int | None
    ) -> None:
        super().__init__(predictor, label_names=label_names, max_length=max_length)
        if not isinstance(predictor.encoder, BertEncoder):
            raise UsageError("this token reduction needs a BERT model")

    @property
    def encoder(self) -> BertEncoder:
        assert isinstance(self.predictor.encoder, BertEncoder)
        return self.predictor.encoder

    @property
    def layers(self) -> list[Any]:
        return list(self.encoder.backbone.encoder.layer)


class Truncated(BertPeer):
    """A shorter input: the first ceil(``keep`` * n) of a text's n word pieces, and its special
    tokens."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        keep: float,
        label_names: tuple[str, ...],
        max_length: int | None = None,
    ) -> None:
        super().__init__(predictor, label_names=label_names, max_length=max_length)
        self.keep = (round(keep * DENOMINATOR), DENOMINATOR)

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        view = self.encoder.view(inputs)
        count = rationale_budget(view.selectable.sum(dim=1), *self.keep).unsqueeze(1)
        slots = slot_count(view.content.shape[1] - 1, *self.keep) + 1  # `[SEP]` is one of them
        place = view.position[:, :slots] - 1
        content = torch.where(place == count, self.encoder.sep_id, view.content[:, :slots])
        return self.predictor(content, view.position[:, :slots], place <= count)


class PowerBert(BertPeer):
    """In the manner of PoWER-BERT (Goyal et al. 2020). Between attention and feed-forward layer of
    block l the ceil(``shares[l]`` * n) of a text's n tokens stay that received most attention,
    summed over heads and queries; ``[CLS]`` always stays. ``shares`` must not rise."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        shares: Sequence[float],
        label_names: tuple[str, ...],
        max_length: int | None = None,
    ) -> None:
        super().__init__(predictor, label_names=label_names, max_length=max_length)
        if len(shares) != self.encoder.num_blocks:
            raise UsageError(
                f"{len(shares)} shares for {self.encoder.num_blocks} blocks", hint="one a block"
            )
        if any(later > earlier for earlier, later in pairwise(shares)):
            raise UsageError("a dropped word vector does not come back: shares must not rise")
        self.shares = tuple(round(share * DENOMINATOR) for share in shares)

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        view = self.encoder.view(inputs)
        content = self.encoder.embed_content(view.content, view.position)
        tokens = torch.cat([self.encoder.embed_prefix(content.shape[0]), content], dim=1)
        valid, length = view.attended, view.attended.sum(dim=1)
        before = DENOMINATOR
        for layer, share in zip(self.layers, self.shares, strict=True):
            always = torch.ones_like(valid[:, :1])
            everyone = torch.cat([always, valid], dim=1)
            attended, weight = _self_attention(layer, tokens, everyone)
            if share < before:
                # Padding asks too; what it attends to says nothing.
                received = (weight * everyone[:, None, :, None]).sum(dim=(1, 2))[:, 1:]
                slots = slot_count(view.content.shape[1], share, DENOMINATOR)
                budget = rationale_budget(length, share, DENOMINATOR)
                content, valid = most_attended(attended[:, 1:], received, valid, budget, slots)
                attended = torch.cat([attended[:, :1], content], dim=1)
            before = share
            tokens = layer.output(layer.intermediate(attended), attended)
        return self.classify(tokens[:, 0], tokens[:, 1:], valid.to(tokens.dtype))


def most_attended(
    content: Tensor, received: Tensor, valid: Tensor, budget: Tensor, slots: int
) -> tuple[Tensor, Tensor]:
    """The ``budget`` int64 ``[batch]`` valid tokens of each text that ``received`` most, in
    ``slots`` slots, and which slots are in use; ``[batch, slot, channel]``, bool
    ``[batch, slot]``."""
    best = received.masked_fill(~valid, -1.0).topk(slots, dim=1).indices
    used = torch.arange(slots, device=content.device).unsqueeze(0) < budget.unsqueeze(1)
    return gather_tokens(content, best), used


def _self_attention(layer: Any, tokens: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The first half of a ``BertLayer``, and its attention ``[batch, head, query, key]``."""
    attended, weight = attention(
        *query_key_value(layer.attention.self, tokens), excluding(valid)[:, None, None, :]
    )
    return layer.attention.output(attended.transpose(1, 2).flatten(2), tokens), weight
