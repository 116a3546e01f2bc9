"""The suites of methods compare every method on recipes that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekd_edge.recipe.methods import METHODS
from rekd_edge.recipe.suite_file import load_suite, row_recipes

SUITES = Path(__file__).parents[3] / "benchmarks" / "suites"


@pytest.mark.parametrize("name", ["methods", "methods-snippets", "methods-images"])
def test_a_suite_has_every_method_from_the_same_start(name: str) -> None:
    suite = load_suite(SUITES / f"{name}.yaml")
    recipes = row_recipes(suite, SUITES)
    objectives = {row: recipe.objective for row, recipe in recipes.items()}
    assert {objective.method for objective in objectives.values()} == set(METHODS)
    drawn = {objective.form.selection for objective in objectives.values()}
    units = {recipe.rationale_unit for recipe in recipes.values()}
    assert drawn == {"exactly_k", "hard_kuma", "reinforce"} | (
        {"bernoulli"} if units == {"token"} else set()  # which cannot keep whole sentences
    )
    assert suite.shared_warmup
    assert len(suite.seeds) >= 3
    own = {row: recipe for row, recipe in recipes.items() if row != suite.judge}
    tasks = {row: recipe.task for row, recipe in recipes.items()}
    assert tasks.pop(str(suite.simulated)) == "classify"
    assert set(tasks.values()) == {"extract"}
    assert {recipe.student.train.warmup.selector for recipe in own.values()} == {"none"}
    assert len({repr(recipe.student.train) for recipe in own.values()}) == 1
    assert len({repr(recipe.student.predictor) for recipe in recipes.values()}) == 1
    assert len({repr(recipe.data) for recipe in recipes.values()}) == 1
