"""How many tokens a rationale keeps.

k = clamp(ceil(ratio * n_valid), 1, n_valid). The ratio is an exact fraction and the ceiling is
integer arithmetic, so that every runtime computes the same k (``math.ceil`` of a traced size is
baked in as a constant by one exporter, and floats round differently between runtimes).
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor


def budget_fraction(rationale_ratio: float) -> tuple[int, int]:
    """The ratio as written in decimal, e.g. 0.15 -> (3, 20)."""
    if not 0.0 < rationale_ratio <= 1.0:
        raise ValueError(f"rationale_ratio must be in (0, 1], got {rationale_ratio}")
    fraction = Fraction(repr(float(rationale_ratio)))
    return fraction.numerator, fraction.denominator


def rationale_budget(valid_count: Tensor, numerator: int, denominator: int) -> Tensor:
    """k for each example: int64 ``[batch]`` from int64 ``[batch]``; 0 only where nothing is
    valid."""
    wanted = torch.div(
        valid_count * numerator + (denominator - 1), denominator, rounding_mode="floor"
    )
    return torch.minimum(wanted.clamp_min(1), valid_count)


def slot_count(token_count: int, numerator: int, denominator: int) -> int:
    """Slots that hold any rationale of a sequence with ``token_count`` selectable positions.

    Works on traced sizes too (integer arithmetic only); at least 1.
    """
    return (token_count * numerator + denominator - 1) // denominator
