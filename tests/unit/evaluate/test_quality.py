"""Faithfulness: on a judge whose answers are known in closed form, and on a real predictor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rekd_edge.evaluate.quality import AOPC_SHARES, judge_rationales, support_drops
from rekd_edge.evaluate.rationales import Rationales, collect_rationales
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.problem import SingleLabel
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.types import Batch

if TYPE_CHECKING:
    from rekd_edge.check import LabelledBatch
    from rekd_edge.fuse import FusedRationalist


class SumOfTokens(nn.Module):
    """Logits (sum of the given content, 0)."""

    problem = SingleLabel()

    def forward(self, content: Tensor, position: Tensor, key_weight: Tensor) -> Tensor:
        total = (content.float() * key_weight.float()).sum(dim=1)
        return torch.stack([total, torch.zeros_like(total)], dim=1)


def test_drops_in_closed_form() -> None:
    content = torch.tensor([[3, -1, 2, 9], [-4, 1, 5, -8]])
    selectable = torch.tensor([[True, True, True, False], [True, True, False, True]])
    view = TokenView(content, torch.arange(4).expand(2, 4), selectable, selectable)
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    first = torch.tensor([[True, False, False, False], [True, False, False, False]])
    logits, drops = support_drops(
        SumOfTokens(),  # pyright: ignore[reportArgumentType]
        view,
        [first, nothing, selectable, first],
    )
    # Row 0 sums to 4: class 0. Row 1 sums to -11: class 1, whose probability is sigmoid(11).
    assert logits.argmax(dim=1).tolist() == [0, 1]

    def sigmoid(value: float) -> float:
        return float(torch.sigmoid(torch.tensor(value)))

    full = [sigmoid(4.0), sigmoid(11.0)]
    expected = [
        [full[0] - sigmoid(3.0), full[1] - sigmoid(4.0)],
        [full[0] - 0.5, full[1] - 0.5],
        [0.0, 0.0],
    ]
    np.testing.assert_allclose(drops[:3], expected, atol=1e-6)
    assert torch.equal(drops[0], drops[3])


@pytest.fixture
def batches(text_batches: list[LabelledBatch]) -> list[Batch]:
    """The first two batches as training sees them; examples are numbered through."""
    made, start = [], 0
    for batch in text_batches[:2]:
        count = len(batch.labels)
        inputs = {name: torch.from_numpy(value) for name, value in batch.inputs.items()}
        index = torch.arange(start, start + count)
        made.append(Batch(inputs, torch.from_numpy(batch.labels), index))
        start += count
    return made


@pytest.fixture
def rationalist(tiny_text: FusedRationalist) -> Rationalist:
    model = Rationalist(tiny_text.selector, tiny_text.predictor, tiny_text.rationale_ratio)
    return model.eval()


def test_scores_of_a_real_predictor_are_those_of_key_exclusion(
    rationalist: Rationalist, batches: list[Batch]
) -> None:
    """The judge gathers; excluding keys is another way to the same numbers."""
    found = collect_rationales(rationalist, batches)
    scores = judge_rationales(rationalist.predictor, batches, found)
    total = {"comprehensiveness": 0.0, "sufficiency": 0.0, "half": 0.0}
    with torch.no_grad():
        for batch in batches:
            answer = rationalist.selector(batch.inputs)
            view, keep = answer.view, rationalist.keep(answer)
            ranked = answer.score.masked_fill(~view.selectable, -torch.inf)
            half = torch.zeros_like(keep)
            for row, count in enumerate(view.selectable.sum(dim=1).tolist()):
                half[row, ranked[row].argsort(descending=True)[: -(-count // 2)]] = True

            def probability(subset: Tensor, view: TokenView = view) -> Tensor:
                return rationalist.classify_masked(view, subset).softmax(dim=1)

            full = probability(view.selectable)
            own = full.argmax(dim=1, keepdim=True)
            for name, subset in (
                ("comprehensiveness", view.selectable & ~keep),
                ("sufficiency", keep),
                ("half", half),
            ):
                total[name] += float((full - probability(subset)).gather(1, own).sum())
    count = len(found)
    assert scores.examples == count == 16
    assert scores.comprehensiveness == pytest.approx(total["comprehensiveness"] / count, abs=1e-5)
    assert scores.sufficiency == pytest.approx(total["sufficiency"] / count, abs=1e-5)
    assert scores.by_share[0.5][1] == pytest.approx(total["half"] / count, abs=1e-5)
    assert scores.aopc_sufficiency == pytest.approx(
        np.mean([scores.by_share[share][1] for share in AOPC_SHARES])
    )
    assert scores.comprehensiveness != scores.random_comprehensiveness


def test_everything_as_the_rationale_is_sufficient(
    rationalist: Rationalist, batches: list[Batch]
) -> None:
    found = collect_rationales(rationalist, batches)
    everything = Rationales(
        found.selectable, found.score, found.selectable, found.labels, found.predicted
    )
    scores = judge_rationales(rationalist.predictor, batches, everything)
    assert scores.sufficiency == pytest.approx(0, abs=1e-6)
    assert scores.random_sufficiency == pytest.approx(0, abs=1e-6)
    assert scores.comprehensiveness == pytest.approx(scores.random_comprehensiveness)
    assert abs(scores.comprehensiveness) > 1e-3


def test_rationales_do_not_depend_on_padding(
    rationalist: Rationalist, batches: list[Batch]
) -> None:
    together = collect_rationales(rationalist, batches)
    assert together.accuracy == pytest.approx(
        np.mean(together.predicted == np.concatenate([b.labels.numpy() for b in batches]))
    )
    for batch in batches:
        for row, example in enumerate(batch.index.tolist()):
            length = int(batch.inputs["attention_mask"][row].sum())
            alone = {name: value[row : row + 1, :length] for name, value in batch.inputs.items()}
            single = Batch(alone, batch.labels[row : row + 1], torch.tensor([0]))
            one = collect_rationales(rationalist, [single])
            np.testing.assert_array_equal(one.keep[0], together.keep[example])
            assert len(together.keep[example]) == length - 1


def test_a_judge_of_other_tokens_is_refused(rationalist: Rationalist, batches: list[Batch]) -> None:
    found = collect_rationales(rationalist, batches)
    other = Rationales(
        [own[:-1] for own in found.keep],
        [own[:-1] for own in found.score],
        [own[:-1] for own in found.selectable],
        found.labels,
        found.predicted,
    )
    # One token less is the [SEP] that nobody selects; two less is a word.
    judge_rationales(rationalist.predictor, batches, other)
    shorter = Rationales(
        [own[:-2] for own in found.keep],
        [own[:-2] for own in found.score],
        [own[:-2] for own in found.selectable],
        found.labels,
        found.predicted,
    )
    with pytest.raises(ValueError, match="other tokens"):
        judge_rationales(rationalist.predictor, batches, shorter)


def test_noise_is_drawn_from_its_seed_and_leaves_the_random_state_alone(
    rationalist: Rationalist, batches: list[Batch]
) -> None:
    state = torch.get_rng_state()
    draws = [collect_rationales(rationalist, batches, noise_seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    kept = [np.concatenate(draw.keep) for draw in draws]
    np.testing.assert_array_equal(kept[0], kept[1])
    assert not np.array_equal(kept[0], kept[2])
    assert kept[0].sum() == kept[2].sum()
