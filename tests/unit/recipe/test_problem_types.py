"""What a recipe may combine with a problem type, and what is refused with the reason."""

from __future__ import annotations

import pytest

from rekd_edge.errors import RecipeError
from rekd_edge.recipe import find_recipe, load_recipe

KINDS = {"regression": "smoke/regression", "multi_label_classification": "smoke/multi-label"}


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        ("regression", {"a2i", "inter_rat", "a2r", "nir"}),
        ("multi_label_classification", {"a2i", "inter_rat"}),
    ],
)
def test_methods_that_need_one_class_are_refused(kind: str, methods: set[str]) -> None:
    for method in ("rekd", "rnp", "n2r", "mmi_n2r", "a2r", "nir", "a2i", "inter_rat"):
        overrides = ["task=extract", f"objective.method={method}"]
        if method not in methods:
            load_recipe(find_recipe(KINDS[kind]), overrides)
            continue
        with pytest.raises(
            RecipeError, match=rf"{method}' cannot train problem_type '{kind}'.*use"
        ):
            load_recipe(find_recipe(KINDS[kind]), overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.source=image-folder", "data.path=x"], "gives each example one class"),
        (["data.labels=[a, b]"], "data.labels: names classes; a regression's numbers are named"),
        (["data.label_column=[a, a]"], "data.label_column: names a column twice"),
        (["data.label_column=[]"], "data.label_column: names no column"),
        (
            ["student.train.warmup.selector=value_regression"],
            "student.train.warmup.selector: 'value_regression' finds signed values",
        ),
        (
            ["teacher.train.warmup.selector=value_regression"],
            "teacher.train.warmup.selector: 'value_regression' finds signed values",
        ),
        (
            [
                "ensemble.partner.selector.weights=[random:bert-tiny]",
                "ensemble.partner.predictor.weights=[random:bert-tiny]",
            ],
            "ensemble: has no meaning for problem_type 'regression'",
        ),
        (["problem_type=numbers"], "problem_type"),
        (
            ["problem_type=single_label_classification"],
            "problem_type: must be 'regression', not 'single_label_classification', for",
        ),
    ],
)
def test_contradictions_of_a_regression_are_named(overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(find_recipe("smoke/regression"), overrides)
    assert said in str(refused.value)


def test_several_columns_are_for_several_answers() -> None:
    two = "data.label_column=[a, b]"
    with pytest.raises(RecipeError, match="names several columns, but one class has one"):
        load_recipe(find_recipe("smoke/text"), [two])
    with pytest.raises(RecipeError, match="has no meaning where label_column names a column for"):
        load_recipe(find_recipe("smoke/multi-label"), [two, "data.labels=[a, b]"])
    recipe = load_recipe(find_recipe("smoke/regression"), [two])
    assert recipe.data.label_columns == ("a", "b")
