"""Exclusion from outside: a runner that cannot be cut is asked again with other content.

The shipped file is cut at the rationale, which is then held (:mod:`rekd_edge.check.exclusion`).
What is compiled from the same model (an engine, a package) answers as a whole: there, unselected
content is replaced, and of the answers those count in which the selector still picks the same
positions. Their logits must be the same to the last bit. As a control, replacing selected content
must change them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from rekd_edge.check.exclusion import largest_difference, replace_content, same_bits
from rekd_edge.check.inputs import Inputs
from rekd_edge.types import Outputs

SHARES = (1.0, 0.5, 0.2, 0.0)
"""Of the positions that may be replaced, in one question; at least one. The fewer, the more often
the rationale stays."""


class Answering(Protocol):
    def run(self, inputs: Inputs) -> Outputs: ...


@dataclass(frozen=True, slots=True)
class HeldExclusion:
    """``held`` of ``examples`` kept their rationale in at least one question; ``changed_examples``
    of those answered otherwise in any bit. ``control_held`` and ``control_changed`` are the same
    for selected content, the latter as a share."""

    examples: int
    held: int
    replaced_positions: int
    changed_examples: int
    max_change: float
    control_held: int
    control_changed: float

    @property
    def metrics(self) -> dict[str, float]:
        """Under the names of the gates; empty where no rationale was held."""
        if not self.held or not self.control_held:
            return {}
        return {
            "exclusion_max_change": self.max_change,
            "exclusion_changed": float(self.changed_examples),
            "exclusion_control": self.control_changed,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def held_exclusion(
    runner: Answering, batches: Iterable[Inputs], *, seed: int = 0, trials: int = 4
) -> HeldExclusion:
    """Asks ``trials`` times for each of :data:`SHARES`; see the module's description."""
    rng = np.random.default_rng(seed)
    examples = held = replaced = changed = control_held = control_changed = 0
    max_change = 0.0
    for inputs in batches:
        before = runner.run(inputs)
        keep = before.rationale_mask
        rows = len(keep)
        seen, differs, control_seen, control_differs = (
            np.zeros(rows, dtype=bool) for _ in range(4)
        )
        for share in np.repeat(SHARES, trials):
            where = some_of(~keep, float(share), rng)
            after, same = _asked_again(runner, inputs, where, keep, rng)
            seen |= same
            differs |= same & ~same_bits(before.logits, after.logits)
            replaced += int(where[same].sum())
            if same.any():
                change = largest_difference(before.logits[same], after.logits[same])
                max_change = max(max_change, change)
            after, same = _asked_again(runner, inputs, some_of(keep, float(share), rng), keep, rng)
            control_seen |= same
            control_differs |= same & ~same_bits(before.logits, after.logits)
        examples += rows
        held += int(seen.sum())
        changed += int(differs.sum())
        control_held += int(control_seen.sum())
        control_changed += int(control_differs.sum())
    return HeldExclusion(
        examples=examples,
        held=held,
        replaced_positions=replaced,
        changed_examples=changed,
        max_change=max_change,
        control_held=control_held,
        control_changed=control_changed / control_held if control_held else 0.0,
    )


def _asked_again(
    runner: Answering,
    inputs: Inputs,
    where: np.ndarray,
    keep: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Outputs, np.ndarray]:
    """The answers with other content at ``where``, and which examples kept their rationale. The
    lengths of texts stay: they decide how much is selected."""
    other = replace_content(inputs, where, rng)
    if "attention_mask" in inputs:
        other["attention_mask"] = inputs["attention_mask"]
    after = runner.run(other)
    return after, (after.rationale_mask == keep).all(axis=1)


def some_of(where: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A random ``share`` of the true positions of each row, bool ``[batch, token]``, at least one
    where there is one."""
    draw = np.where(where, rng.random(where.shape), 2.0)
    rank = draw.argsort(axis=1).argsort(axis=1)
    count = np.maximum(np.ceil(where.sum(axis=1) * share), 1)
    return where & (rank < count[:, None])
