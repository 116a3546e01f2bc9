"""Attributions, faithfulness and probes of several labels and of numbers, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rekd_edge.distill.attribution import mask_gradient, occlusion
from rekd_edge.distill.leakage import position_probe
from rekd_edge.evaluate.probe import probe_masks
from rekd_edge.evaluate.quality import support_drops
from rekd_edge.evaluate.rationales import Rationales
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.problem import MultiLabel, Problem, Regression
from rekd_edge.types import ProblemType

if TYPE_CHECKING:
    from rekd_edge.models.rationalist import Predictor

WEIGHT = torch.tensor([[1.0, -1.0, 2.0, 5.0], [0.0, 3.0, -1.0, 5.0]])
"""Of two outputs: what each word adds to it."""


class SumOfWords(nn.Module):
    """Each output is the sum of its weights over the words that are there."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(
        self, content: Tensor, position: Tensor, key_weight: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        return (WEIGHT[:, content] * key_weight.float()).sum(dim=2).T


def stub(problem: Problem) -> Predictor:
    return SumOfWords(problem)  # type: ignore[return-value]


def words() -> TokenView:
    """One text of three words and padding."""
    selectable = torch.tensor([[True, True, True, False]])
    return TokenView(
        torch.arange(4).unsqueeze(0), torch.arange(4).unsqueeze(0), selectable, selectable
    )


def in_unit(deviation: tuple[float, float]) -> Regression:
    problem = Regression(2)
    problem.deviation.copy_(torch.tensor(deviation))
    return problem


@pytest.mark.parametrize("attribute", [mask_gradient, occlusion])
def test_attributions_of_labels_and_numbers(attribute: Callable[..., Tensor]) -> None:
    labels = stub(MultiLabel())
    first = torch.tensor([[1.0, 0.0]])
    expected = WEIGHT[0, :3] - WEIGHT[1, :3]
    assert torch.allclose(attribute(labels, words(), first)[0, :3], expected)
    # Both sums are 2: both labels are predicted, and nothing is against them.
    both = WEIGHT[:, :3].mean(dim=0)
    assert torch.allclose(attribute(labels, words())[0, :3], both)
    found = attribute(stub(in_unit((2.0, 0.5))), words(), torch.zeros(1, 2))
    expected = WEIGHT[0, :3].abs() / 2 + WEIGHT[1, :3].abs() / 0.5
    assert torch.allclose(found[0, :3], expected)
    assert float(found[0, 3]) == 0.0


def test_faithfulness_of_labels_and_numbers() -> None:
    only = torch.tensor([[True, False, False, False]])

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    logits, drops = support_drops(stub(MultiLabel()), words(), [only, words().selectable])
    assert logits.tolist() == [[2.0, 2.0]]
    assert drops.flatten().tolist() == pytest.approx([sigmoid(2) ** 2 - sigmoid(1) * 0.5, 0.0])
    _, drops = support_drops(stub(in_unit((2.0, 0.5))), words(), [only, words().selectable])
    assert drops.flatten().tolist() == pytest.approx([(1 / 2 + 2 / 0.5) / 2, 0.0])


def masks(kind: ProblemType, count: int, seed: int, *, leaking: bool) -> Rationales:
    """Kept words lie early or late; of leaking ones that says the first of two labels."""
    rng = np.random.default_rng(seed)
    early = rng.random(count) < 0.5
    told = early if leaking else rng.random(count) < 0.5
    labels = np.stack([told, rng.random(count) < 0.3], axis=1).astype(np.float32)
    if kind == "regression":
        labels = labels[:, :1] * 10 + rng.normal(size=(count, 1)).astype(np.float32)
    keep = []
    for one in early:
        own = np.zeros(20, dtype=bool)
        own[rng.choice(10, 4, replace=False) + (0 if one else 10)] = True
        keep.append(own)
    every = [np.ones(20, dtype=bool)] * count
    score: Any = [np.zeros(20)] * count
    return Rationales(keep, score, every, labels, None, kind)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_probes_find_what_masks_say_and_nothing_else(kind: ProblemType) -> None:
    for leaking in (True, False):
        train, dev, test = (masks(kind, n, n, leaking=leaking) for n in (300, 100, 200))
        found = probe_masks(train, dev, test, "text")
        keep = torch.from_numpy(np.stack(test.keep))
        problem = Regression(1) if kind == "regression" else MultiLabel()
        labels = torch.from_numpy(test.labels)
        position = position_probe(keep, torch.ones_like(keep), labels, 2, problem)
        if leaking:
            assert found.excess_points > 15 * (1 if kind != "regression" else 5)
            assert position > 0.7
        else:
            assert found.excess_points < max(5.0, 3 * found.standard_error_points)
            assert position < 0.5
        assert 0 < found.standard_error_points < 20


def test_scores_of_rationales() -> None:
    sets = masks("multi_label_classification", 40, 0, leaking=True)
    right = sets.labels > 0.5
    exact = Rationales(sets.keep, sets.score, sets.selectable, sets.labels, right, sets.problem)
    assert exact.accuracy == 1.0
    assert list(exact.scores) == ["f1_micro", "f1_macro", "accuracy"]
    values = masks("regression", 40, 0, leaking=True)
    off = values.labels + 2
    shifted = Rationales(
        values.keep, values.score, values.selectable, values.labels, off, values.problem
    )
    assert shifted.scores["mean_absolute_error"] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="only the selector"):
        _ = values.accuracy
