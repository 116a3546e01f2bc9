"""The suite of estimators asks for recipes that exist, each different from the others."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from rekd_edge.recipe import load_recipe
from rekd_edge.recipe.document import parse
from rekd_edge.recipe.schema import ObjectiveSpec

SUITE = Path(__file__).parents[3] / "benchmarks" / "suites" / "estimators.yaml"


def test_every_row_is_a_recipe_of_its_own_and_every_estimator_has_one() -> None:
    text = SUITE.read_text(encoding="utf-8")
    tree, problems = parse(text, source=SUITE.name, folder=SUITE.parent)
    assert tree is not None
    assert problems == []
    suite = tree.plain()
    recipes = {
        row["name"]: load_recipe(suite["recipe"], [*suite["overrides"], *row["overrides"]])
        for row in suite["rows"]
    }
    assert len(recipes) == len(suite["rows"])
    student = [(recipe.student, recipe.objective) for recipe in recipes.values()]
    assert all(student.count(each) == 1 for each in student)
    assert len({repr(recipe.teacher) for recipe in recipes.values()}) == 1
    wanted = get_args(ObjectiveSpec.model_fields["estimator"].annotation)
    assert {recipe.objective.estimator for recipe in recipes.values()} == set(wanted)
