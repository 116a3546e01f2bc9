"""Rows of a suite share a warmed-up predictor only where they would have made the same one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.schema import Recipe
from rekd_edge.suite import with_predictor_of

RUN = Path("runs") / "first" / "seed-0"


def recipe(*overrides: str) -> Recipe:
    return load_recipe(find_recipe("methods/movie-review-snippets"), overrides)


def shared(other: Recipe) -> str | None:
    return with_predictor_of(other, recipe(), RUN).student.train.warmup.predictor_run


@pytest.mark.parametrize(
    "change",
    [
        "objective.method=n2r",
        "objective.lambda_coherence=3",
        "objective.selection=reinforce",
        "student.selector.width=32",
        "student.train.epochs=9",
        "student.train.selector_learning_rate=1.0e-5",
        "student.train.gather=true",
        "student.train.warmup.selector=mask_gradient",
        "student.train.warmup.selector_epochs=3",
    ],
)
def test_what_comes_after_the_warmup_does_not_matter(change: str) -> None:
    assert shared(recipe(change)) == str(RUN.absolute())


@pytest.mark.parametrize(
    "change",
    [
        "objective.method=inter_rat",  # its predictor has a head of its own
        "task=classify",
        "rationale_ratio=0.3",
        "rationale_unit=word objective.selection=exactly_k",
        "data.max_length=48",
        "data.limit.train=100",
        "data.split.seed=1",
        "student.predictor.depth=2",
        "student.predictor.dropout=0.1",
        "student.train.batch_size=16",
        "student.train.learning_rate=3.0e-4",
        "student.train.precision=bf16",
        "student.train.warmup.predictor_epochs=1",
        "student.train.warmup.predictor_learning_rate=1.0e-3",
        "student.train.warmup.predictor_run=runs/other",
    ],
)
def test_another_warmup_is_made_anew(change: str) -> None:
    changed = recipe(*change.split(" "))
    assert with_predictor_of(changed, recipe(), RUN) == changed


def test_a_student_that_is_taught_warms_up_by_itself() -> None:
    taught = load_recipe(find_recipe("text/movie-review-snippets"), ())
    assert with_predictor_of(taught, taught, RUN) == taught


def test_nothing_is_shared_where_nothing_is_warmed_up() -> None:
    cold = recipe("student.train.warmup.predictor_epochs=0")
    assert with_predictor_of(cold, cold, RUN) == cold
