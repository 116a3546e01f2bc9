"""Attributions on a predictor whose answer is known in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rekd_edge.distill.attribution import (
    CachedAttributions,
    mask_gradient,
    normalise_attribution,
    occlusion,
)
from rekd_edge.distill.objectives import Progress, ValueRegression, shapley_subset
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.problem import SingleLabel
from rekd_edge.models.rationalist import Scores
from rekd_edge.types import Batch


class SumOfTokens(nn.Module):
    """Logits (sum of weight * content, 0): removing token i changes the margin by content i."""

    problem = SingleLabel()

    def forward(
        self, content: Tensor, position: Tensor, key_weight: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        total = (content.float() * key_weight.float()).sum(dim=1)
        return torch.stack([total, torch.zeros_like(total)], dim=1)


def view() -> TokenView:
    content = torch.tensor([[3, -1, 2, 9], [-4, 1, 5, -8]])
    selectable = torch.tensor([[True, True, True, False], [True, True, False, True]])
    return TokenView(content, torch.arange(4).expand(2, 4), selectable, selectable)


def test_both_attributions_find_the_contribution_to_the_predicted_class() -> None:
    # Row 0 sums to 4: class 0. Row 1 sums to -11: class 1, so contributions change sign.
    expected = [[3.0, -1.0, 2.0, 0.0], [4.0, -1.0, 0.0, 8.0]]
    predictor = SumOfTokens()
    assert mask_gradient(predictor, view()).tolist() == expected  # pyright: ignore[reportArgumentType]
    assert occlusion(predictor, view(), chunk=2).tolist() == expected  # pyright: ignore[reportArgumentType]


def test_the_evidence_of_a_given_class_has_the_opposite_sign() -> None:
    predictor = SumOfTokens()
    labels = torch.tensor([1, 1])  # the predictor says 0 and 1
    expected = [[-3.0, 1.0, -2.0, 0.0], [4.0, -1.0, 0.0, 8.0]]
    assert mask_gradient(predictor, view(), labels).tolist() == expected  # pyright: ignore[reportArgumentType]
    assert occlusion(predictor, view(), labels).tolist() == expected  # pyright: ignore[reportArgumentType]


def test_cached_attributions_are_those_of_one_fixed_pass() -> None:
    def batch(lengths: list[int], index: list[int]) -> Batch:
        ids = torch.ones(len(lengths), 1 + max(lengths), dtype=torch.long)
        return Batch({"input_ids": ids}, torch.zeros(len(index)), torch.tensor(index))

    passes = []

    def compute(each: Batch) -> Tensor:
        passes.append(each.index.tolist())
        return each.index.unsqueeze(1) + torch.arange(each.inputs["input_ids"].shape[1] - 1) / 10

    cached = CachedAttributions(compute, lambda: [batch([3, 3], [0, 1]), batch([5], [2])])
    wide = cached(batch([5, 3], [2, 0]))
    assert torch.allclose(wide, torch.tensor([[2.0, 2.1, 2.2, 2.3, 2.4], [0.0, 0.1, 0.2, 0, 0]]))
    assert torch.allclose(cached(batch([3], [1])), torch.tensor([[1.0, 1.1, 1.2]]))
    assert passes == [[0, 1], [2]]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 2**31))
def test_shapley_subsets_are_neither_empty_nor_full(counts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    selectable = torch.arange(9).unsqueeze(0) < torch.tensor(counts).unsqueeze(1)
    subset = shapley_subset(selectable)
    assert not (subset & ~selectable).any()
    for row, count in enumerate(counts):
        kept = int(subset[row].sum())
        assert 0 < kept < count if count > 1 else kept == count


def test_subset_sizes_follow_the_shapley_kernel() -> None:
    torch.manual_seed(0)
    sizes = shapley_subset(torch.ones(20_000, 5, dtype=torch.bool)).sum(dim=1)
    share = torch.bincount(sizes, minlength=6)[1:5] / len(sizes)
    # 1 / (k (5 - k)) for k = 1..4 is 1/4, 1/6, 1/6, 1/4
    assert torch.allclose(share, torch.tensor([0.3, 0.2, 0.2, 0.3]), atol=0.015)


def test_value_regression_finds_the_contributions() -> None:
    """The judge adds up its tokens, so the Shapley value of each is its own contribution."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(10))

        def forward(self, inputs: dict[str, Tensor]) -> Scores:
            content = inputs["input_ids"]
            valid = torch.ones_like(content, dtype=torch.bool)
            score = self.value[content]
            return Scores(
                score, torch.stack([0 * score, score], 2), TokenView(content, content, valid, valid)
            )

    torch.manual_seed(0)
    judge = SumOfTokens()
    object.__setattr__(judge, "encoder", SimpleNamespace(view=lambda inputs: Table()(inputs).view))
    model = SimpleNamespace(selector=Table(), predictor=judge)
    objective = ValueRegression(model, model, "label")  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.Adam(model.selector.parameters(), lr=0.3)
    for step in range(300):
        batch = Batch(
            {"input_ids": torch.randint(0, 10, (32, 6))},
            torch.zeros(32, dtype=torch.long),
            torch.arange(32),
        )
        loss = objective(batch, Progress(step, 300))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The margin of two classes is the difference of their logits: token t contributes t.
    assert torch.allclose(model.selector.value.detach(), torch.arange(10.0), atol=0.2)


def test_normalised_attributions_have_unit_root_mean_square() -> None:
    attribution = torch.tensor([[3.0, -4.0, 100.0], [0.0, 0.0, 0.0]])
    selectable = torch.tensor([[True, True, False], [True, True, True]])
    normalised = normalise_attribution(attribution, selectable)
    assert normalised[0, 2] == 0
    assert float(normalised[0, :2].pow(2).mean()) == 1.0
    assert normalised[1].tolist() == [0.0, 0.0, 0.0]
