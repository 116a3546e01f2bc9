"""The case table of interactive rationale extraction, against its published description."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rekd_edge.models.interactive import CASES, count_cases, exchange

CLASSES = 3


def logits(labels: list[int], peaks: Tensor) -> Tensor:
    """``[example, class]``: a peak of the given height at the label."""
    return F.one_hot(torch.tensor(labels), CLASSES) * peaks.unsqueeze(1)


def published(y1: int, y2: int, y1_shown: int, y2_shown: int, surer: bool) -> tuple[bool, int]:
    """Dai 2023, algorithm 1, line by line: whether the first answers, and the case."""
    if y1 == y2:
        return True, 0
    if y1 == y2_shown and y2 != y1_shown:
        return True, 1
    if y1 != y2_shown and y2 == y1_shown:
        return False, 2
    return surer, 3


def test_every_combination_of_labels_is_decided_as_published() -> None:
    labels = range(CLASSES)
    rows = list(itertools.product(labels, labels, labels, labels, (True, False)))
    y1, y2, y1_shown, y2_shown, surer = (list(column) for column in zip(*rows, strict=True))
    high = torch.tensor([2.0 if first else 1.0 for first in surer])
    own, partner = logits(y1, high), logits(y2, 3.0 - high)
    shown = [logits(labels, torch.ones(len(rows))) for labels in (y1_shown, y2_shown)]
    verdict = exchange(own, partner, *shown)
    expected = [published(*row) for row in rows]
    assert verdict.by_first.tolist() == [first for first, _ in expected]
    assert verdict.case.tolist() == [case for _, case in expected]
    assert set(verdict.case.tolist()) == set(range(len(CASES)))
    answers = torch.where(verdict.by_first.unsqueeze(1), own, partner)
    assert torch.equal(verdict.logits, answers)


def test_equal_confidence_goes_to_the_first() -> None:
    own, partner = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    verdict = exchange(own, partner, own, partner)
    assert verdict.case.tolist() == [3]
    assert verdict.by_first.tolist() == [True]


def test_cases_are_counted_with_their_accuracy() -> None:
    counts = count_cases(np.array([0, 0, 3, 1]), np.array([True, False, True, True]))
    assert [count.name for count in counts] == list(CASES)
    assert [(count.examples, count.share, count.accuracy) for count in counts] == [
        (2, 0.5, 0.5),
        (1, 0.25, 1.0),
        (0, 0.0, None),
        (1, 0.25, 1.0),
    ]
