"""A latency suite: files of several models, timed together, with the accuracy of each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rekd_edge.recipe.schema import Probability, Ratio, Spec

TRAINED_PEERS = ("dynamicvit", "shallow")
"""Peers that the weights of a plain classifier are not enough for."""
STAGED_PEERS = ("evit", "dynamicvit")

PeerKind = Literal["evit", "tome", "dynamicvit", "power", "truncate", "shallow"]


class FineTuneSpec(Spec):
    """Training of a peer from the plain classifier's weights: L = alpha * CE + (1 - alpha) * T^2 *
    KL(teacher || peer), with the plain run's other settings."""

    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    """Null takes the one that the plain classifier was trained with."""
    fresh_learning_rate: float = Field(default=1e-3, gt=0)
    """Of modules that the plain classifier does not have (the scorers of `dynamicvit`)."""
    alpha: Probability = 0.5
    temperature: float = Field(default=2.0, gt=0)
    teacher: str | None = None
    """A row of task `distill`, whose teacher answers from the whole input; null: the plain
    classifier itself teaches."""


class PeerSpec(Spec):
    """Another way to make the same plain classifier cheaper (`benchmarks/peers`)."""

    kind: PeerKind
    """Images: `evit`, `tome`, `dynamicvit`. Texts: `power`, `truncate`. Both: `shallow`, the first
    blocks alone."""
    share: Ratio | None = None
    """Wanted share of the plain classifier's operations; the nearest strength is taken."""
    strength: float | None = Field(default=None, gt=0)
    """Instead of `share`: `tome`: pairs merged in each block; `shallow`: blocks; `power`: share of
    word vectors that each block leaves of those before it; the others: share kept at a stage."""
    blocks: tuple[int, ...] | None = None
    """`evit` and `dynamicvit`: the blocks that reduce, counted from 0; null: those that follow a
    quarter, a half and three quarters of all."""
    fine_tune: FineTuneSpec | None = None
    """Null: the plain classifier's weights as they are."""

    @model_validator(mode="after")
    def _consistent(self) -> PeerSpec:
        if (self.share is None) == (self.strength is None):
            raise ValueError("state either `share` or `strength`")
        if self.kind in TRAINED_PEERS and self.fine_tune is None:
            raise ValueError(f"{self.kind} needs `fine_tune`: untrained it has no accuracy")
        if self.blocks is not None and self.kind not in STAGED_PEERS:
            raise ValueError(f"{self.kind} reduces in no chosen `blocks`")
        if self.blocks is not None and (
            not self.blocks or min(self.blocks) < 0 or len(set(self.blocks)) < len(self.blocks)
        ):
            raise ValueError("blocks must be distinct and not negative")
        if self.strength is not None:
            whole = self.kind in {"tome", "shallow"}
            if whole and self.strength != int(self.strength):
                raise ValueError(f"the strength of {self.kind} is a whole number")
            if not whole and self.strength > 1:
                raise ValueError(f"the strength of {self.kind} is a share")
        return self
