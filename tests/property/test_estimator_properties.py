"""Laws of every exactly-k estimator, over scores with ties, padding and any budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rekd_edge.selection import Estimator, keep_top_k, select_top_k, soft_selection

ALL: tuple[Estimator, ...] = ("sigmoid", "soft_top_k", "subset_softmax", "perturbed")


@st.composite
def selections(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two examples of one width: scores, selectable tokens, and a budget of 0 to all of them."""
    count = draw(st.integers(1, 12))
    scores, selectable, budgets = [], [], []
    for _ in range(2):
        whole = st.integers(-3, 3) | st.sampled_from([-40, 40])
        scores.append(draw(st.lists(whole, min_size=count, max_size=count)))
        selectable.append(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
        available = sum(selectable[-1])
        budgets.append(draw(st.integers(min(1, available), available)))
    return torch.tensor(scores).float(), torch.tensor(selectable), torch.tensor(budgets)


NOTHING_TO_KEEP = (torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.bool), torch.zeros(2).long())


@example(NOTHING_TO_KEEP, "subset_softmax", 0.05)
@given(selections(), st.sampled_from(ALL), st.sampled_from([0.05, 0.5, 5.0]))
@settings(deadline=None, max_examples=150)
def test_forward_is_the_exported_selection_and_gradients_stay_finite_and_off_the_padding(
    selection: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    estimator: Estimator,
    temperature: float,
) -> None:
    score, selectable, budget = selection
    score = score.clone().requires_grad_(True)
    weight, keep = select_top_k(estimator, score, selectable, budget, temperature=temperature)
    assert torch.equal(keep, keep_top_k(score.detach(), selectable, budget))
    assert keep.sum(dim=1).tolist() == budget.tolist()
    tolerance = 1e-6 if estimator == "sigmoid" else 0.0
    assert torch.allclose(weight, keep.float(), rtol=0, atol=tolerance)
    assert bool((weight[~selectable] == 0).all())

    upstream = torch.linspace(-3, 5, weight.numel()).reshape(weight.shape)
    (gradient,) = torch.autograd.grad((weight * upstream).sum(), score)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[~selectable] == 0).all())


@given(
    selections(),
    st.sampled_from(["soft_top_k", "subset_softmax", "perturbed"]),
    st.sampled_from([0.05, 0.5, 5.0]),
)
@settings(deadline=None, max_examples=150)
def test_soft_weights_sum_to_the_budget(
    selection: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    estimator: str,
    temperature: float,
) -> None:
    score, selectable, budget = selection
    soft = soft_selection(
        estimator,  # pyright: ignore[reportArgumentType]
        score,
        selectable,
        budget,
        temperature=temperature,
        samples=8,
    )
    assert soft.sum(dim=1).tolist() == pytest.approx(budget.tolist(), abs=1e-4)
    assert bool((soft >= 0).all())
    assert bool((soft[~selectable] == 0).all())
    if estimator != "subset_softmax":
        assert bool((soft <= 1 + 1e-6).all())


@given(selections(), st.sampled_from(ALL), st.integers(0, 2**16))
@settings(deadline=None, max_examples=100)
def test_noise_changes_which_tokens_are_tried_never_how_many(
    selection: tuple[torch.Tensor, torch.Tensor, torch.Tensor], estimator: Estimator, seed: int
) -> None:
    score, selectable, budget = selection
    torch.manual_seed(seed)
    weight, keep = select_top_k(
        estimator, score, selectable, budget, temperature=1.0, noise_scale=2.0
    )
    assert keep.sum(dim=1).tolist() == budget.tolist()
    assert not bool((keep & ~selectable).any())
    assert torch.allclose(weight, keep.float(), atol=1e-6)
