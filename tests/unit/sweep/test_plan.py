"""Every point is checked before anything trains."""

from __future__ import annotations

import pytest

from rekd_edge.errors import RecipeError, UsageError
from rekd_edge.sweep.plan import make_plan, open_points
from rekd_edge.sweep.space import parse_space


def test_a_bad_point_is_named_with_its_problem() -> None:
    space = parse_space(["rationale_ratio=0.2,1.5", "student.train.epochs=1,2"], [])
    with pytest.raises(RecipeError) as refused:
        make_plan("smoke/text", space)
    title, *lines = str(refused.value).splitlines()
    assert title == "points without a valid recipe:"
    assert len(lines) == 1  # once, though two points have it
    assert "rationale_ratio=1.5 student.train.epochs=1 (and 1 more)" in lines[0]
    assert "rationale_ratio: input should be less than or equal to 1" in lines[0]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("data.limit.test=8,16", "its examples are others"),
        ("data.split.seed=0,1", "its examples are others"),
        ("task=distill,classify", "task is classify"),
        ("rationale_ration=0.1", "did you mean 'rationale_ratio'"),
    ],
)
def test_points_must_be_comparable_rationalists(grid: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_plan("smoke/text", parse_space([grid], []))


def test_inputs_may_be_prepared_otherwise() -> None:
    plan = make_plan("smoke/text", parse_space(["data.max_length=16,32"], []))
    assert plan.recipe_of(("data.max_length=16",)).data.max_length == 16
    assert (plan.sampler, plan.trials) == ("grid", 2)


@pytest.mark.parametrize(
    ("grid", "search", "sampler", "trials", "message"),
    [
        ("seed=1,2", "rationale_ratio=0.1..0.5", "grid", None, "a grid has no ranges"),
        ("seed=1,2", None, None, 3, "every combination"),
        ("seed=1,2", "rationale_ratio=0.1..0.5", None, None, "tpe needs a number of trials"),
        ("seed=1,2", None, "random", 0, "random needs a number of trials"),
        ("seed=1,2", None, "annealing", 3, "no sampler 'annealing'"),
    ],
)
def test_sampler_ranges_and_trials_must_fit(
    grid: str, search: str | None, sampler: str | None, trials: int | None, message: str
) -> None:
    space = parse_space([grid], [] if search is None else [search])
    with pytest.raises(UsageError, match=message):
        make_plan("smoke/text", space, sampler=sampler, trials=trials)


def test_a_space_has_a_largest_size() -> None:
    hundred = ",".join(map(str, range(1, 102)))
    space = parse_space([f"seed={hundred}", f"student.train.epochs={hundred}"], [])
    with pytest.raises(UsageError, match="10,201 points are too many"):
        make_plan("smoke/text", space)


def test_corners_of_ranges_are_checked() -> None:
    space = parse_space([], ["rationale_ratio=0.5..1.5"])
    with pytest.raises(RecipeError, match=r"rationale_ratio=1\.5"):
        make_plan("smoke/text", space, trials=3)


def test_weights_are_opened_once_for_points_that_differ_in_training_alone() -> None:
    space = parse_space(["student.train.learning_rate=1e-4,1e-3", "rationale_ratio=.2,.3"], [])
    plan = make_plan("smoke/text", space)
    assert len(list(open_points(plan))) == 1


def test_a_point_whose_model_cannot_be_built_is_named() -> None:
    plan = make_plan("smoke/text", parse_space(["student.predictor.depth=99"], []))
    with pytest.raises(UsageError, match=r"^student\.predictor\.depth=99: depth 99"):
        list(open_points(plan))
