"""A peer from its description: with a given strength, or as strong as a share of the plain
classifier's operations asks for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.peers.bert import PowerBert, Truncated
from benchmarks.peers.peer import Peer
from benchmarks.peers.shallow import Shallow
from benchmarks.peers.vit import DynamicVit, EVit, ToMe
from rekd_edge.errors import UsageError
from rekd_edge.fuse.fused import DeployModel, PlainClassifier
from rekd_edge.fuse.report import model_flops
from rekd_edge.models.encoder import BertEncoder, Encoder, VitEncoder
from rekd_edge.models.rationalist import Predictor
from rekd_edge.recipe.latency_file import STAGED_PEERS, PeerSpec

KINDS = {
    "image": ("evit", "tome", "dynamicvit", "shallow"),
    "text": ("power", "truncate", "shallow"),
}
PERCENT = tuple(step / 100 for step in range(100, 0, -1))


@dataclass(frozen=True, slots=True)
class BuiltPeer:
    """A peer with weights of its own, in evaluation mode. ``flops_share`` is its share of the plain
    classifier's operations on one example."""

    model: Peer
    strength: float
    flops_share: float


def build_peer(
    predictor: Predictor,
    spec: PeerSpec,
    *,
    label_names: tuple[str, ...],
    max_length: int | None,
    tokens: int,
) -> BuiltPeer:
    """``predictor`` is a trained plain classifier's and is copied. ``tokens`` is the length of a
    text on which operations are counted; without meaning for images.

    Raises:
        UsageError: this peer is not for this backbone or has not so many blocks.
    """
    encoder = predictor.encoder
    if not isinstance(encoder, BertEncoder | VitEncoder):
        raise UsageError(
            f"token reduction needs a transformer; the plain classifier is {type(encoder).__name__}"
        )
    if spec.kind not in KINDS[encoder.modality]:
        raise UsageError(
            f"peer {spec.kind} is not for {encoder.modality} backbones",
            hint=f"take one of {', '.join(KINDS[encoder.modality])}",
        )
    blocks = chosen_blocks(spec, encoder.num_blocks)
    source = copy.deepcopy(predictor).cpu().float().eval()

    def make(strength: float) -> Peer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # fresh parts start alike each time
            return _peer(source, spec, strength, blocks, label_names, max_length).eval()

    plain = PlainClassifier(source, label_names=label_names, max_length=max_length).eval()
    whole = model_flops(plain, tokens)
    strength = spec.strength
    if strength is None:
        assert spec.share is not None
        strength = strength_for(
            make, ladder(spec, encoder), wanted=spec.share * whole, tokens=tokens
        )
    model = make(strength)
    return BuiltPeer(model, strength, model_flops(model, tokens) / whole)


def chosen_blocks(spec: PeerSpec, count: int) -> tuple[int, ...]:
    """The blocks that reduce: of 12, the 4th, 7th and 10th, as EViT and DynamicViT have it."""
    if spec.kind not in STAGED_PEERS:
        return ()
    blocks = spec.blocks
    if blocks is None:
        blocks = tuple(sorted({count * quarter // 4 for quarter in (1, 2, 3)}))
    if max(blocks) >= count:
        raise UsageError(f"peer {spec.kind}: there is no block {max(blocks)} of {count}")
    return blocks


def ladder(spec: PeerSpec, encoder: Encoder) -> Sequence[float]:
    """All strengths, from the dearest to the cheapest."""
    if spec.kind == "shallow":
        return tuple(range(encoder.num_blocks, 0, -1))
    if spec.kind == "tome":
        assert isinstance(encoder, VitEncoder)
        return tuple(range(encoder.grid[0] * encoder.grid[1] // 2 + 1))
    return PERCENT


def strength_for(
    make: Callable[[float], DeployModel], strengths: Sequence[float], *, wanted: float, tokens: int
) -> float:
    """Of ``strengths``, whose cost falls from the first to the last, the one whose operations are
    nearest to ``wanted``; the dearer of equals."""
    cost: dict[int, int] = {}

    def at(index: int) -> int:
        if index not in cost:
            cost[index] = model_flops(make(strengths[index]), tokens)
        return cost[index]

    low, high = 0, len(strengths) - 1
    while low < high:  # the first that costs no more than wanted
        middle = (low + high) // 2
        if at(middle) > wanted:
            low = middle + 1
        else:
            high = middle
    near = [index for index in (low - 1, low) if index >= 0]
    best = min(near, key=lambda index: (abs(at(index) - wanted), index))
    return strengths[best]


def _peer(
    predictor: Predictor,
    spec: PeerSpec,
    strength: float,
    blocks: tuple[int, ...],
    label_names: tuple[str, ...],
    max_length: int | None,
) -> Peer:
    if spec.kind == "evit":
        return EVit(predictor, keep=strength, blocks=blocks, label_names=label_names)
    if spec.kind == "tome":
        return ToMe(predictor, merges=int(strength), label_names=label_names)
    if spec.kind == "dynamicvit":
        return DynamicVit(predictor, keep=strength, blocks=blocks, label_names=label_names)
    if spec.kind == "truncate":
        return Truncated(predictor, keep=strength, label_names=label_names, max_length=max_length)
    if spec.kind == "power":
        assert isinstance(predictor.encoder, BertEncoder)
        shares = [strength ** (block + 1) for block in range(predictor.encoder.num_blocks)]
        return PowerBert(predictor, shares=shares, label_names=label_names, max_length=max_length)
    return Shallow(predictor, depth=int(strength), label_names=label_names, max_length=max_length)
