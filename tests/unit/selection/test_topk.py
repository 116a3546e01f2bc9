from __future__ import annotations

import pytest
import torch

from rekd_edge.selection import (
    bernoulli_straight_through,
    budget_fraction,
    gather_slots,
    gather_tokens,
    gumbel_noise,
    keep_constant,
    keep_top_k,
    keep_with_margin,
    kept_positions,
    rationale_budget,
    selection_margin,
    selection_threshold,
    slot_count,
    straight_through_top_k,
)


def test_budget_is_the_clamped_ceiling() -> None:
    valid = torch.tensor([0, 1, 5, 6, 20, 21])
    assert rationale_budget(valid, *budget_fraction(0.2)).tolist() == [0, 1, 1, 2, 4, 5]


def test_budget_of_a_ratio_that_floats_cannot_hold_exactly() -> None:
    # 0.15 * 20 is 3.0000000000000004 in floats; its ceiling would be 4.
    assert budget_fraction(0.15) == (3, 20)
    assert rationale_budget(torch.tensor([20]), 3, 20).tolist() == [3]


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1])
def test_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="rationale_ratio"):
        budget_fraction(ratio)


def test_ties_go_to_the_lower_index() -> None:
    score = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]])
    selectable = torch.ones(1, 5, dtype=torch.bool)
    keep = keep_top_k(score, selectable, torch.tensor([3]))
    assert keep.tolist() == [[True, True, False, True, False]]


def test_padding_is_never_kept_even_with_the_best_score() -> None:
    score = torch.tensor([[0.0, 1.0, 9.0]])
    selectable = torch.tensor([[True, True, False]])
    assert keep_top_k(score, selectable, torch.tensor([2])).tolist() == [[True, True, False]]


def test_deployed_models_keep_what_training_keeps() -> None:
    torch.manual_seed(0)
    score = torch.randint(0, 4, (200, 12)).float()  # many are equal
    valid = torch.rand(200, 12) > 0.2
    valid[:, 0] = True
    budget = torch.minimum(torch.randint(1, 6, (200,)), valid.sum(dim=1))
    keep, _ = keep_with_margin(score, valid, budget.unsqueeze(1), slots=5)
    assert torch.equal(keep, keep_top_k(score, valid, budget))
    everything = torch.ones_like(valid)
    keep, _ = keep_constant(score, 5)
    assert torch.equal(keep, keep_top_k(score, everything, torch.full((200,), 5)))


def test_nothing_on_a_gpu_reads_a_size_that_onnx_runtime_keeps_on_the_processor() -> None:
    class Positions(torch.nn.Module):
        def forward(self, keep: torch.Tensor) -> torch.Tensor:
            return kept_positions(keep, keep.shape[1])

    keep = torch.rand(2, 7) > 0.5
    dynamic = {"keep": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    program = torch.onnx.export(
        Positions().eval(), (keep,), dynamo=True, dynamic_shapes=dynamic, verbose=False
    )
    assert program is not None
    graph = program.model_proto.graph
    made = {name: node for node in graph.node for name in node.output}
    sizes = {"Shape", "Size"}
    scalars = {"Cast", "Gather", "Slice", "Squeeze", "Unsqueeze", "Mul", "Add", "Sub", "Reshape"}

    def is_size(name: str) -> bool:
        node = made.get(name)
        if node is None:
            return False
        return node.op_type in sizes or (
            node.op_type in scalars and any(is_size(one) for one in node.input)
        )

    on_gpu = [node for node in graph.node if node.op_type in {"Sub", "Where"}]
    assert on_gpu
    for node in on_gpu:
        assert is_size(node.output[0]) or not any(is_size(name) for name in node.input), node


def test_slots_are_ascending_and_spare_ones_repeat_a_kept_position() -> None:
    keep = torch.tensor([[False, True, False, True, False], [False, False, False, False, True]])
    index, valid = gather_slots(keep, 3)
    assert index.tolist() == [[1, 3, 1], [4, 4, 4]]
    assert valid.tolist() == [[True, True, False], [True, False, False]]
    content = torch.arange(10).reshape(2, 5)
    assert gather_tokens(content, index).tolist() == [[1, 3, 1], [9, 9, 9]]


def test_slot_count_holds_the_largest_budget() -> None:
    for count in range(1, 200):
        numerator, denominator = budget_fraction(0.15)
        most = rationale_budget(torch.arange(1, count + 1), numerator, denominator).max()
        assert slot_count(count, numerator, denominator) >= most


def test_margin_and_threshold() -> None:
    score = torch.tensor([[3.0, 1.0, 2.0], [5.0, 4.0, 0.0]])
    selectable = torch.tensor([[True, True, True], [True, True, False]])
    keep = keep_top_k(score, selectable, torch.tensor([1, 2]))
    assert selection_margin(score, selectable, keep).tolist() == [1.0, float("inf")]
    # Nothing dropped in the second row: one below the worst kept score.
    assert selection_threshold(score, selectable, keep).tolist() == [[2.5], [3.0]]


def test_straight_through_is_hard_forward_and_sigmoid_backward() -> None:
    score = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    selectable = torch.ones(1, 3, dtype=torch.bool)
    weight, keep = straight_through_top_k(score, selectable, torch.tensor([1]), temperature=0.5)
    assert weight.tolist() == [[1.0, 0.0, 0.0]]
    assert keep.tolist() == [[True, False, False]]
    weight[0, 1].backward()
    # threshold (2 + 0) / 2 = 1; d sigmoid((0 - 1) / .5) / ds = p (1 - p) / .5, p = sigmoid(-2)
    p = 1 / (1 + torch.tensor(2.0).exp())
    assert score.grad is not None
    assert score.grad[0].tolist() == pytest.approx([0.0, float(p * (1 - p) / 0.5), 0.0])


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    torch.manual_seed(0)
    noise = gumbel_noise(torch.zeros(200_000))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 6, abs=0.05)


def test_bernoulli_draw_keeps_with_probability_sigmoid_of_the_margin() -> None:
    torch.manual_seed(0)
    logits = torch.zeros(1, 50_000, 2)
    logits[..., 1] = 1.2
    for temperature in (5.0, 0.1):
        keep, _ = bernoulli_straight_through(logits, temperature=temperature)
        expected = float(torch.sigmoid(torch.tensor(1.2)))
        assert float(keep.mean()) == pytest.approx(expected, abs=0.01)
