"""Sparsemax against values by hand, and as what it is: a projection on the simplex."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rekd_edge.selection import sparsemax

scores = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=9)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        # Two are kept: tau = (1 + 0.5 - 1) / 2.
        ([1.0, 0.5, -1.0], [0.75, 0.25, 0.0]),
        # tau = (2 - 1) / 1, because 1 + 2 * 0.5 is not above 2.5.
        ([0.5, 2.0], [0.0, 1.0]),
        ([0.2, 0.2, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]),
        ([-3.0], [1.0]),
    ],
)
def test_by_hand(score: list[float], expected: list[float]) -> None:
    assert sparsemax(torch.tensor(score)).tolist() == pytest.approx(expected)
    stacked = torch.tensor([score, score])
    assert sparsemax(stacked).shape == stacked.shape


@given(scores)
def test_it_is_the_nearest_point_of_the_simplex(values: list[float]) -> None:
    score = torch.tensor(values, dtype=torch.float64)
    found = sparsemax(score)
    assert (found >= 0).all()
    assert float(found.sum()) == pytest.approx(1)
    # <z - p, q - p> <= 0 for every corner q of the simplex says that p is the nearest point.
    rest = score - found
    assert float(rest.max()) <= float(rest @ found) + 1e-9


@given(scores, st.floats(-3, 3))
def test_only_differences_matter(values: list[float], shift: float) -> None:
    score = torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(sparsemax(score), sparsemax(score + shift), atol=1e-9)


def test_the_gradient_stays_on_the_support() -> None:
    score = torch.tensor([0.9, 0.6, -1.0, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, (score,))
    jacobian = torch.autograd.functional.jacobian(sparsemax, score.detach())
    assert isinstance(jacobian, torch.Tensor)
    # Support {0, 1}: diag(s) - s s^T / 2.
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[:2, :2] = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    assert torch.allclose(jacobian, expected)
