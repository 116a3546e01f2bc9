"""What each problem type makes of logits, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor, nn

from rekd_edge.models.problem import (
    MultiLabel,
    Problem,
    Regression,
    SingleLabel,
    class_margin,
    label_set_margin,
    make_problem,
    take_unit,
)
from rekd_edge.models.rationalist import Predictor
from rekd_edge.problem import PRIMARY, scores


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def bernoulli_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def regression(mean: list[float], deviation: list[float]) -> Regression:
    problem = Regression(len(mean))
    problem.mean.copy_(torch.tensor(mean))
    problem.deviation.copy_(torch.tensor(deviation))
    return problem


def test_losses_of_several_labels_by_hand() -> None:
    problem = MultiLabel()
    logits, labels = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    first = -(math.log(sigmoid(1)) + math.log(1 - sigmoid(-2))) / 2
    second = -(math.log(1 - sigmoid(0.5)) + math.log(1 - sigmoid(3))) / 2
    assert problem.loss_of_each(logits, labels).tolist() == pytest.approx([first, second])
    assert float(problem.task_loss(logits, labels)) == pytest.approx((first + second) / 2)
    teacher = torch.tensor([[2.0, 0.0], [-1.0, 4.0]])
    expected = [
        bernoulli_kl(sigmoid(t / 2), sigmoid(s / 2))
        for t, s in zip(teacher.flatten().tolist(), logits.flatten().tolist(), strict=True)
    ]
    found = problem.prediction_loss(teacher, logits, temperature=2.0)
    assert float(found) == pytest.approx(sum(expected) / 4)
    assert problem.prediction_weight(2.0) == 4.0
    assert float(problem.prediction_loss(teacher, teacher, temperature=2.0)) == pytest.approx(0.0)


def test_the_divergence_of_labels_is_that_of_each_pair() -> None:
    first, second = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 0.5]])

    def entropy_gap(p: float, q: float) -> float:
        middle = (p + q) / 2
        return (bernoulli_kl(p, middle) + bernoulli_kl(q, middle)) / 2

    expected = (entropy_gap(sigmoid(1), 0.5) + entropy_gap(sigmoid(-2), sigmoid(0.5))) / 2
    assert float(MultiLabel().divergence(first, second)) == pytest.approx(expected, rel=1e-5)


def test_losses_of_numbers_are_in_deviations() -> None:
    problem = regression([10.0, 0.0], [2.0, 0.5])
    logits, labels = torch.tensor([[11.0, 0.0]]), torch.tensor([[9.0, 1.0]])
    assert float(problem.task_loss(logits, labels)) == pytest.approx(((-1.0) ** 2 + 2.0**2) / 2)
    teacher = torch.tensor([[15.0, 0.25]])
    expected = (2.0**2 + 0.5**2) / 2
    assert float(problem.prediction_loss(teacher, logits, temperature=7.0)) == pytest.approx(
        expected
    )
    assert problem.prediction_weight(7.0) == 1.0


def test_margins_of_label_sets() -> None:
    logits = torch.tensor([[3.0, -1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    explained = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    assert label_set_margin(logits, explained).tolist() == [2.5 + 1.0, -2.0, 2.0]
    one = torch.eye(3, dtype=torch.bool)
    assert torch.allclose(label_set_margin(logits, one), class_margin(logits, torch.arange(3)))


def test_both_signs_count_for_numbers_alone() -> None:
    effects = [torch.tensor([[1.0, -3.0]]), torch.tensor([[-2.0, 0.5]])]
    assert regression([0.0, 0.0], [1.0, 1.0]).contribution(effects).tolist() == [[3.0, 3.5]]
    assert MultiLabel().contribution(effects[:1]).tolist() == [[1.0, -3.0]]


def test_support_is_what_a_decision_rests_on() -> None:
    logits = torch.tensor([[1.0, -2.0]])
    labels = MultiLabel()
    expected = sigmoid(1) * sigmoid(2)
    assert float(labels.support(logits, labels.decision(logits))) == pytest.approx(expected)
    numbers = regression([0.0, 0.0], [2.0, 1.0])
    assert float(numbers.support(logits, logits)) == 0.0
    moved = torch.tensor([[2.0, 1.0]])
    assert float(numbers.support(moved, logits)) == pytest.approx(-(0.5 + 3.0) / 2)


def test_agreement_names_what_it_is() -> None:
    teacher, student = (
        torch.tensor([[1.0, -1.0], [2.0, 2.0]]),
        torch.tensor([[3.0, -2.0], [1.0, -1.0]]),
    )
    assert MultiLabel().agreement(teacher, student) == {"label_agreement": 0.5}
    assert SingleLabel().agreement(teacher, student) == {"label_agreement": 1.0}
    values = torch.tensor([[1.0], [2.0], [3.0]])
    found = Regression(1).agreement(values, values + 1)
    assert found == pytest.approx({"value_r2": 1 - 3 / 2, "value_correlation": 1.0})


def test_constant_answers_and_chance() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    problem = MultiLabel()
    # 3 of 4 have the first: F1 6/10 with it alone, 10/14 with the first two, 12/18 with all.
    assert problem.constant(labels).tolist() == [[1.0, 1.0, -1.0]]
    shares = (0.75, 0.5, 0.25)
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in shares]
    assert problem.chance_loss(labels, 3) == pytest.approx(sum(entropy) / 3)
    assert SingleLabel().constant(torch.tensor([2, 0, 2])).argmax() == 2
    numbers = torch.tensor([[1.0], [3.0]])
    assert Regression(1).constant(numbers).tolist() == [[2.0]]
    assert regression([0.0], [2.0]).chance_loss(numbers, 1) == pytest.approx(0.25)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_scores_are_those_of_scikit_learn(kind: str) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 4)).astype(np.float32)
    if kind == "regression":
        labels = (logits + rng.normal(size=logits.shape)).astype(np.float32)
        found = scores(logits, labels, "regression")
        assert found["r2"] == pytest.approx(metrics.r2_score(labels, logits))
        error = metrics.mean_absolute_error(labels, logits)
        assert found["mean_absolute_error"] == pytest.approx(error)
    else:
        labels = (rng.random(logits.shape) < 0.3).astype(np.float32)
        found = scores(logits, labels, "multi_label_classification")
        for average in ("micro", "macro"):
            expected = metrics.f1_score(labels, logits > 0, average=average)
            assert found[f"f1_{average}"] == pytest.approx(expected)
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, logits > 0))
    problem = make_problem(kind, 4)  # type: ignore[arg-type]
    assert (
        problem.score(torch.from_numpy(logits), torch.from_numpy(labels))
        == found[PRIMARY[problem.kind]]
    )


class Mean(nn.Module):
    """Content ``[batch, token, channel]``, averaged: an encoder without parameters."""

    embed_dim = 3

    def pooled_features(self, content: Tensor, *rest: object) -> Tensor:
        return content.mean(dim=1)


def predictor(problem: Problem, outputs: int) -> Predictor:
    torch.manual_seed(0)
    return Predictor(Mean(), outputs, problem=problem)  # type: ignore[arg-type]


def trained(labels: Tensor) -> Predictor:
    """A few steps of Adam from the same start."""
    model = predictor(Regression(1), 1)
    take_unit(model, labels.numpy())
    content = torch.randn(16, 2, 3, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model.problem.task_loss(model(content, content), labels).backward()
        optimizer.step()
    return model


def test_training_does_not_depend_on_the_unit_of_the_targets() -> None:
    labels = torch.randn(16, 1, generator=torch.Generator().manual_seed(2))
    plain, scaled = trained(labels), trained(labels * 1000 + 5000)
    assert torch.allclose(plain.head.weight, scaled.head.weight, atol=1e-4)
    content = torch.randn(4, 2, 3)
    ours, theirs = plain(content, content), scaled(content, content)
    assert torch.allclose(ours * 1000 + 5000, theirs, rtol=1e-4)


def test_a_folded_head_answers_in_the_unit_by_itself() -> None:
    model = predictor(regression([5.0, -1.0], [3.0, 0.1]), 2)
    content = torch.randn(4, 2, 3)
    before = model(content, content)
    model.fold_unit()
    assert torch.allclose(model(content, content), before, atol=1e-5)
    assert torch.allclose(model.head(content.mean(dim=1)), before, atol=1e-5)
    model.fold_unit()  # once is enough
    assert torch.allclose(model(content, content), before, atol=1e-5)


def test_only_numbers_have_a_state() -> None:
    assert not make_problem("single_label_classification", 3).state_dict()
    assert not make_problem("multi_label_classification", 3).state_dict()
    assert set(make_problem("regression", 2).state_dict()) == {"mean", "deviation"}
