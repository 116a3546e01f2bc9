"""Stochastic evaluation, and the losses by which an epoch is kept."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import BertConfig, BertModel

from rekd_edge.distill.loop import DevResult
from rekd_edge.evaluate import (
    Predictions,
    SelectionMode,
    classification_loss,
    evaluate_rationalist,
    rationale_extraction_loss,
)
from rekd_edge.models.candidates import Positions
from rekd_edge.models.encoder import BertEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
from rekd_edge.pipeline import evaluation_mode
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.types import Batch

CLS, SEP = 101, 102


@pytest.fixture
def model() -> Rationalist:
    def encoder() -> BertEncoder:
        config = BertConfig(
            vocab_size=200,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=0.4,
        )
        return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=CLS, sep_id=SEP)

    torch.manual_seed(0)
    return Rationalist(BlockSelector(encoder()), Predictor(encoder(), 2, pooling="cls"), 0.25)


@pytest.fixture
def loader() -> Callable[[], list[Batch]]:
    """Two batches of three texts, in another order than the split's."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(110, 200, (6, 8), generator=generator)
    ids[:, 0], ids[:, -1] = CLS, SEP
    order = torch.tensor([3, 4, 5, 0, 1, 2])

    def batches() -> list[Batch]:
        return [
            Batch(
                {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids[rows])},
                rows % 2,
                rows,
            )
            for rows in order.split(3)
        ]

    return batches


PUBLISHED: SelectionMode = "sampled_bernoulli_zeroed"


def test_draws_differ_between_seeds_and_repeat_for_one(
    model: Rationalist, loader: Callable[[], list[Batch]]
) -> None:
    positions = Positions(special=True, padded_length=12)

    def run(seed: int) -> Predictions:
        return evaluate_rationalist(model, loader(), PUBLISHED, positions=positions, seed=seed)

    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, again, other = run(0), run(0), run(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.kept, again.kept)
    assert not torch.equal(first.kept, other.kept)
    assert not torch.equal(first.logits, other.logits)
    assert first.counted.tolist() == [12] * 6
    assert first.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_the_share_of_draws_is_the_selectors_own_chance(
    model: Rationalist, loader: Callable[[], list[Batch]]
) -> None:
    """At any temperature a hard draw keeps with probability sigmoid(l1 - l0)."""
    with torch.no_grad():
        scores = [model.eval().selector(batch.inputs) for batch in loader()]
    chances = [
        1 / (1 + math.exp(-score))
        for answer in scores
        for score in answer.score[answer.view.selectable].tolist()
    ]
    draws = 200
    kept = [
        float(evaluate_rationalist(model, loader(), "sampled_bernoulli", seed=seed).kept.sum())
        for seed in range(draws)
    ]
    error = math.sqrt(sum(p * (1 - p) for p in chances) / draws)
    assert sum(kept) / draws == pytest.approx(sum(chances), abs=4 * error)


def test_exactly_k_can_be_sampled_with_zeroed_embeddings(
    model: Rationalist, loader: Callable[[], list[Batch]]
) -> None:
    zeroed = evaluate_rationalist(model, loader(), "sampled_top_k_zeroed", seed=3)
    excluded = evaluate_rationalist(model, loader(), "sampled_top_k", seed=3)
    assert zeroed.kept.tolist() == excluded.kept.tolist() == [2] * 6  # ceil(.25 * 6)
    assert not torch.allclose(zeroed.logits, excluded.logits, atol=1e-4)


def predictions() -> Predictions:
    margins = [2.0, -1.0, 0.5, 0.0, 3.0]
    logits = torch.tensor([[margin, 0.0] for margin in margins])
    return Predictions(
        logits,
        torch.tensor([0, 0, 1, 1, 1]),
        kept=torch.tensor([1, 4, 2, 0, 5]),
        counted=torch.full((5,), 10),
    )


def entropies() -> list[float]:
    chances = [
        1 / (1 + math.exp(-2)),
        1 / (1 + math.exp(1)),
        1 - 1 / (1 + math.exp(-0.5)),
        0.5,
        1 - 1 / (1 + math.exp(-3)),
    ]
    return [-math.log(chance) for chance in chances]


def test_the_rationale_extraction_loss_is_a_mean_over_batches_of_three_decimals() -> None:
    ce = entropies()
    batches = [
        (ce[0] + ce[1]) / 2 + 0.01 * (2.5 - 3) ** 2,
        (ce[2] + ce[3]) / 2 + 0.01 * (1.0 - 3) ** 2,
        ce[4] + 0.01 * (5.0 - 3) ** 2,
    ]
    found = rationale_extraction_loss(
        predictions(), batch_size=2, rationale_ratio=0.3, lambda_select=0.01
    )
    assert found == round(sum(batches) / 3, 3)
    whole = rationale_extraction_loss(
        predictions(), batch_size=5, rationale_ratio=0.3, lambda_select=0.01
    )
    assert whole == round(sum(ce) / 5 + 0.01 * (2.4 - 3) ** 2, 3)


def test_the_classifiers_loss_is_not_rounded() -> None:
    ce = entropies()
    expected = ((ce[0] + ce[1]) / 2 + (ce[2] + ce[3]) / 2 + ce[4]) / 3
    assert classification_loss(predictions(), batch_size=2) == pytest.approx(expected, rel=1e-6)


def test_the_epoch_of_least_loss_is_kept_and_the_later_of_equals() -> None:
    worse_accuracy = DevResult(accuracy=0.6, loss=0.9, criterion=0.412)
    better_accuracy = DevResult(accuracy=0.9, loss=0.1, criterion=0.413)
    assert worse_accuracy.better_than(better_accuracy)
    assert not better_accuracy.better_than(worse_accuracy)
    assert DevResult(0.1, 9.0, 0.412).better_than(worse_accuracy)
    assert worse_accuracy.better_than(None)


def test_without_a_criterion_accuracy_decides_and_then_loss() -> None:
    assert DevResult(0.9, 0.5).better_than(DevResult(0.8, 0.1))
    assert DevResult(0.9, 0.4).better_than(DevResult(0.9, 0.5))
    assert not DevResult(0.9, 0.5).better_than(DevResult(0.9, 0.5))
    assert DevResult(0.9, 0.5).values() == {"accuracy": 0.9, "loss": 0.5}


@pytest.mark.parametrize(
    ("keys", "mode"),
    [
        ({"name": "paper"}, "sampled_bernoulli_zeroed"),
        ({"name": "paper", "masking": "exclude"}, "sampled_bernoulli"),
        ({"name": "paper", "selection": "exactly_k"}, "sampled_top_k_zeroed"),
        ({"name": "paper", "evaluation": "top_k"}, "top_k_zeroed"),
        ({"name": "deploy"}, "top_k_gathered"),
        ({"name": "deploy", "evaluation": "sampled"}, "sampled_top_k"),
        ({"name": "deploy", "masking": "zero"}, "top_k_zeroed"),
    ],
)
def test_the_evaluation_follows_the_objective(keys: dict[str, str], mode: str) -> None:
    assert evaluation_mode(ObjectiveSpec.model_validate(keys)) == mode
