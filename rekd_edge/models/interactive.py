"""Two rationalists that exchange rationales where they disagree: interactive rationale extraction
(Dai 2023, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CASES = ("agree", "first_convinces", "partner_convinces", "confidence")
"""What decided, by number: the two agree; only the first's rationale brings the other to its label;
only the partner's does; both or neither do, and the more confident of the two answers."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``logits`` float ``[batch, class]`` of the student that answers, from its own rationale;
    ``case`` int64 ``[batch]`` counts :data:`CASES`; ``by_first`` bool ``[batch]`` is whose they
    are."""

    logits: Tensor
    case: Tensor
    by_first: Tensor


def exchange(own: Tensor, partner: Tensor, own_shown: Tensor, partner_shown: Tensor) -> Verdict:
    """Algorithm 1 from four answers, ``[batch, class]`` each: of either student from its own
    rationale (``own``, ``partner``) and from the other's (``own_shown``, ``partner_shown``).

    With y1, y2, y1', y2' their labels: y1 = y2, or y1 = y2' and y2 != y1': the first answers.
    y1 != y2' and y2 = y1': the partner. Otherwise the higher softmax; a tie goes to the first.
    Where the two agree, the answers from the other's rationale do not matter.
    """
    first_label, second_label = own.argmax(dim=1), partner.argmax(dim=1)
    agree = first_label == second_label
    first_convinces = partner_shown.argmax(dim=1) == first_label
    partner_convinces = own_shown.argmax(dim=1) == second_label
    surer = own.softmax(dim=1).amax(dim=1) >= partner.softmax(dim=1).amax(dim=1)
    undecided = first_convinces == partner_convinces
    # No `where` between booleans: ONNX Runtime has none.
    by_first = agree | (undecided & surer) | (first_convinces & ~partner_convinces)
    case = torch.where(undecided, 3, torch.where(first_convinces, 1, 2))
    case = torch.where(agree, 0, case)
    return Verdict(torch.where(by_first.unsqueeze(1), own, partner), case, by_first)


@dataclass(frozen=True, slots=True)
class CaseCount:
    """One of :data:`CASES` over a split: its ``share`` of all examples and the ``accuracy`` of the
    answers in it (0..1), None where it did not happen."""

    name: str
    examples: int
    share: float
    accuracy: float | None


def count_cases(case: np.ndarray, right: np.ndarray) -> tuple[CaseCount, ...]:
    """``case`` int64 ``[example]``, ``right`` bool ``[example]``: whether the pair's answer is."""
    total = max(len(case), 1)
    found = [(name, case == number) for number, name in enumerate(CASES)]
    return tuple(
        CaseCount(name, int(at.sum()), float(at.sum()) / total, share_right(right[at]))
        for name, at in found
    )


def share_right(values: np.ndarray) -> float | None:
    """Of bool ``[example]``; None without any."""
    return float(values.mean()) if len(values) else None
