"""Token reduction in vision transformers: EViT, ToMe and DynamicViT, each from its paper.

All token counts are constants of the graph. The class token and register tokens are never touched.
Content tokens carry a ``size``, the number of patches that they stand for, which weighs them in the
predictor's mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.peer import Peer, attention, kept
from rekd_edge.errors import UsageError
from rekd_edge.models.encoder import MAX_RELATIVE_LOGIT, VitEncoder
from rekd_edge.models.rationalist import Predictor
from rekd_edge.selection import gather_tokens


class VitPeer(Peer):
    def __init__(self, predictor: Predictor, *, label_names: tuple[str, ...]) -> None:
        super().__init__(predictor, label_names=label_names)
        if not isinstance(predictor.encoder, VitEncoder):
            raise UsageError("this token reduction needs a vision transformer")
        self.prefix = predictor.encoder.num_prefix_tokens
        grid = predictor.encoder.grid
        self.patches = grid[0] * grid[1]

    @property
    def encoder(self) -> VitEncoder:
        assert isinstance(self.predictor.encoder, VitEncoder)
        return self.predictor.encoder

    @property
    def blocks(self) -> list[Any]:
        return list(self.encoder.backbone.blocks)

    def start(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Tokens ``[batch, prefix + patch, channel]`` and sizes ``[batch, patch]``, all 1."""
        view = self.encoder.view(inputs)
        content = self.encoder.embed_content(view.content, view.position)
        prefix = self.encoder.embed_prefix(content.shape[0])
        tokens = self.encoder.backbone.norm_pre(torch.cat([prefix, content], dim=1))
        return tokens, torch.ones_like(content[:, :, 0])

    def finish(self, tokens: Tensor, weight: Tensor) -> Tensor:
        hidden = self.encoder.backbone.norm(tokens)
        return self.classify(hidden[:, 0], hidden[:, self.prefix :], weight)

    def with_prefix(self, value: Tensor, weight: Tensor) -> Tensor:
        """``weight`` ``[batch, token]`` of content with ``value`` for each prefix token before."""
        return torch.cat([value.expand(weight.shape[0], self.prefix), weight], dim=1)


def project(layer: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of timm's ``Attention``, ``[batch, head, token, channel]``."""
    projected = layer.qkv(tokens).unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = projected.unbind(0)
    return layer.q_norm(query), layer.k_norm(key), value


def add_attended(block: Any, tokens: Tensor, attended: Tensor) -> Tensor:
    """The first half of a timm ``Block``, from attention's ``[batch, head, token, channel]``."""
    layer = block.attn
    projected = layer.proj(layer.norm(attended.transpose(1, 2).flatten(2)))
    return tokens + block.drop_path1(block.ls1(layer.proj_drop(projected)))


def add_hidden(block: Any, tokens: Tensor) -> Tensor:
    """The second half of a timm ``Block``."""
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


class EVit(VitPeer):
    """Liang et al. 2022. Between attention and MLP of some blocks the ceil(``keep`` * n) patches
    stay that the class token attends to most (mean over heads); the others become one token, their
    average weighted by that attention."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        keep: float,
        blocks: Sequence[int],
        label_names: tuple[str, ...],
    ) -> None:
        super().__init__(predictor, label_names=label_names)
        self.keep = keep
        self.reduced = frozenset(blocks)

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens, size = self.start(inputs)
        for index, block in enumerate(self.blocks):
            attended, weight = attention(*project(block.attn, block.norm1(tokens)))
            tokens = add_attended(block, tokens, attended)
            count = tokens.shape[1] - self.prefix
            stay = kept(self.keep, count)
            if index in self.reduced and stay + 1 < count:
                prefix, content = tokens[:, : self.prefix], tokens[:, self.prefix :]
                score = weight[:, :, 0, self.prefix :].mean(dim=1)
                content, size = keep_and_fuse(content, size, score, stay)
                tokens = torch.cat([prefix, content], dim=1)
            tokens = add_hidden(block, tokens)
        return self.finish(tokens, size)


def keep_and_fuse(
    content: Tensor, size: Tensor, score: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The ``count`` tokens of highest ``score`` (positive, ``[batch, token]``), best first, and
    behind them the others' average weighted by score; their sizes are summed."""
    order = score.topk(score.shape[1], dim=1).indices
    stay, leave = order[:, :count], order[:, count:]
    weight = torch.gather(score, 1, leave)
    weight = weight / weight.sum(dim=1, keepdim=True)
    fused = (gather_tokens(content, leave) * weight.unsqueeze(2)).sum(dim=1, keepdim=True)
    fused_size = torch.gather(size, 1, leave).sum(dim=1, keepdim=True)
    return (
        torch.cat([gather_tokens(content, stay), fused], dim=1),
        torch.cat([torch.gather(size, 1, stay), fused_size], dim=1),
    )


class ToMe(VitPeer):
    """Bolya et al. 2023. Between attention and MLP of every block ``merges`` pairs of alike patches
    become one (:func:`match`, :func:`merge`); attention counts a token as often as it has patches
    (log of its size added to the logits)."""

    def __init__(self, predictor: Predictor, *, merges: int, label_names: tuple[str, ...]) -> None:
        super().__init__(predictor, label_names=label_names)
        self.merges = merges

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens, size = self.start(inputs)
        for block in self.blocks:
            query, key, value = project(block.attn, block.norm1(tokens))
            bias = None
            if tokens.shape[1] < self.prefix + self.patches:
                bias = self.with_prefix(size.new_zeros(1, 1), size.log())[:, None, None, :]
            attended, _ = attention(query, key, value, bias)
            tokens = add_attended(block, tokens, attended)
            merges = min(self.merges, (tokens.shape[1] - self.prefix) // 2)
            if merges > 0:
                found = match(key[:, :, self.prefix :].mean(dim=1), merges)
                prefix, content = tokens[:, : self.prefix], tokens[:, self.prefix :]
                content, size = merge(content, size, found)
                tokens = torch.cat([prefix, content], dim=1)
            tokens = add_hidden(block, tokens)
        return self.finish(tokens, size)


@dataclass(frozen=True, slots=True)
class Matching:
    """Of the tokens at even places, which stay and which are merged, and into which of those at odd
    places; int64 ``[batch, stay]``, ``[batch, merge]``, ``[batch, merge]``, each counted within
    its half."""

    stay: Tensor
    leave: Tensor
    into: Tensor


def match(key: Tensor, merges: int) -> Matching:
    """Bipartite soft matching: each token at an even place proposes its most similar one at an odd
    place (cosine of ``key`` ``[batch, token, channel]``); the ``merges`` best pairs are taken."""
    key = F.normalize(key, dim=2)
    similarity = key[:, 0::2] @ key[:, 1::2].transpose(1, 2)
    best, partner = similarity.max(dim=2)
    order = best.topk(best.shape[1], dim=1).indices
    leave = order[:, :merges]
    return Matching(order[:, merges:], leave, torch.gather(partner, 1, leave))


def merge(content: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Averages of ``content`` ``[batch, token, channel]`` weighted by ``size`` ``[batch, token]``,
    and their sizes, even places that stay before all odd ones.

    A product with a one-hot matrix, so that the graph has no scatter.
    """
    even, odd = content[:, 0::2], content[:, 1::2]
    even_size, odd_size = size[:, 0::2], size[:, 1::2]
    places = torch.arange(odd.shape[1], device=content.device)
    one_hot = (matching.into.unsqueeze(1) == places.view(1, -1, 1)).to(content.dtype)
    leave_size = torch.gather(even_size, 1, matching.leave)
    leaving = gather_tokens(even, matching.leave) * leave_size.unsqueeze(2)
    joined_size = odd_size + (one_hot @ leave_size.unsqueeze(2)).squeeze(2)
    joined = (odd * odd_size.unsqueeze(2) + one_hot @ leaving) / joined_size.unsqueeze(2)
    return (
        torch.cat([gather_tokens(even, matching.stay), joined], dim=1),
        torch.cat([torch.gather(even_size, 1, matching.stay), joined_size], dim=1),
    )


class TokenScorer(nn.Module):
    """DynamicViT's prediction module: log-probabilities of keeping and of dropping each token,
    ``[batch, token, 2]``, from half of its own features and the other half's mean over all tokens
    that are left."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.own_channels = channels // 2
        self.own = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU())
        self.join = nn.Sequential(
            nn.Linear(channels, channels // 2),
            nn.GELU(),
            nn.Linear(channels // 2, channels // 4),
            nn.GELU(),
            nn.Linear(channels // 4, 2),
        )

    def forward(self, content: Tensor, left: Tensor) -> Tensor:
        """``left`` float ``[batch, token]`` is 0 where a token was dropped before."""
        features = self.own(content)
        own, shared = features[..., : self.own_channels], features[..., self.own_channels :]
        weight = (left / left.sum(dim=1, keepdim=True)).unsqueeze(2)
        everywhere = (shared * weight).sum(dim=1, keepdim=True).expand_as(shared)
        return F.log_softmax(self.join(torch.cat([own, everywhere], dim=2)), dim=2)


def policy_attention(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Attention in which key j counts ``weight[b, j]`` times, with the derivatives that DynamicViT
    trains with, also of dropped keys (:func:`rekd_edge.models.encoder.weighted_attention` has
    others). Logits above all kept ones are capped, so that exponentials are finite."""
    logit = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    counts = weight[:, None, None, :]
    highest = logit.detach().masked_fill(counts <= 0, -torch.inf).amax(dim=-1, keepdim=True)
    counted = (logit - highest).clamp_max(MAX_RELATIVE_LOGIT).exp() * counts
    return (counted / counted.sum(dim=-1, keepdim=True)) @ value


class DynamicVit(VitPeer):
    """Rao et al. 2021. Before some blocks a small module scores the patches that are left; of N
    patches the best ceil(``keep`` ** s * N) go on from stage s = 1, 2, ... In training the choice
    is a hard Gumbel draw that excludes keys, and the penalty is the squared distance of each
    stage's kept share from ``keep`` ** s."""

    needs_training = True

    def __init__(
        self,
        predictor: Predictor,
        *,
        keep: float,
        blocks: Sequence[int],
        label_names: tuple[str, ...],
    ) -> None:
        super().__init__(predictor, label_names=label_names)
        self.stages = {block: keep ** (stage + 1) for stage, block in enumerate(sorted(blocks))}
        self.scorers = nn.ModuleDict(
            {str(block): TokenScorer(self.encoder.embed_dim) for block in self.stages}
        )

    def fresh_parts(self) -> list[nn.Module]:
        return [self.scorers]

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens, left = self.start(inputs)
        for index, block in enumerate(self.blocks):
            if index in self.stages:
                prefix, content = tokens[:, : self.prefix], tokens[:, self.prefix :]
                count = min(kept(self.stages[index], self.patches), content.shape[1])
                if count < content.shape[1]:
                    choice = self.scorers[str(index)](content, left)
                    best = (choice[..., 0] - choice[..., 1]).topk(count, dim=1).indices
                    tokens = torch.cat([prefix, gather_tokens(content, best)], dim=1)
                    left = left[:, :count]
            attended, _ = attention(*project(block.attn, block.norm1(tokens)))
            tokens = add_hidden(block, add_attended(block, tokens, attended))
        return self.finish(tokens, left)

    def training_answer(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        tokens, left = self.start(inputs)
        penalties = []
        for index, block in enumerate(self.blocks):
            if index in self.stages:
                choice = self.scorers[str(index)](tokens[:, self.prefix :], left)
                left = left * F.gumbel_softmax(choice.float(), hard=True, dim=2)[..., 0]
                penalties.append((self.stages[index] - left.mean(dim=1)).square().mean())
            query, key, value = project(block.attn, block.norm1(tokens))
            weight = self.with_prefix(left.new_ones(1, 1), left)
            attended = policy_attention(query, key, value, weight).to(value.dtype)
            tokens = add_hidden(block, add_attended(block, tokens, attended))
        return self.finish(tokens, left), torch.stack(penalties).mean() if penalties else None
