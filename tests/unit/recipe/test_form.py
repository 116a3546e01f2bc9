"""Presets and keys of the objective, what is refused, and the table of deviations."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rekd_edge.errors import RecipeError
from rekd_edge.recipe import load_recipe
from rekd_edge.recipe.deviations import (
    DEVIATIONS,
    NOT_MEASURED,
    WHOLE,
    deviations_table,
    with_table,
)
from rekd_edge.recipe.form import PRESETS, ObjectiveForm
from rekd_edge.recipe.schema import ObjectiveSpec, Recipe
from rekd_edge.recipe.suite_file import load_suite, row_recipes

ROOT = Path(__file__).parents[3]
SUITES = [
    ROOT / "benchmarks" / "suites" / f"{name}.yaml" for name in ("deviations", "deviations-images")
]
PAGE = ROOT / "docs" / "deviations.md"
RESULT = ROOT / "benchmarks" / "results" / "deviations.json"


def test_a_name_fills_what_is_not_stated() -> None:
    assert ObjectiveSpec(name="paper").form == PRESETS["paper"]
    assert ObjectiveSpec().form == PRESETS["deploy"]
    mixed = ObjectiveSpec(name="paper", masking="exclude", select_special=False).form
    assert (mixed.masking, mixed.select_special) == ("exclude", False)
    assert mixed.selection == "bernoulli"


@pytest.mark.parametrize("name", ["paper/imdb", "paper/cifar10", "paper/movie-review-snippets"])
def test_published_recipes_use_the_whole_preset(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.teacher is not None
    for objective in (recipe.objective, recipe.teacher.objective):
        assert objective.form == PRESETS["paper"]
        assert objective.lambda_select > 0
    for model in (recipe.student, recipe.teacher):
        assert model.train.warmup.predictor_epochs == model.train.warmup.selector_epochs == 0
        assert model.train.lr_schedule == "constant"
        assert model.train.gradient_clip is None


@pytest.mark.parametrize("name", ["paper/imdb", "paper/cifar10"])
def test_published_settings(name: str) -> None:
    recipe = load_recipe(name)
    text = name == "paper/imdb"
    train = recipe.student.train
    assert train.classifier_epochs == 20
    assert train.weight_decay == (0.0 if text else 1e-3)
    assert recipe.data.split.dev == 0.2
    for part in (recipe.student.selector, recipe.student.predictor):
        assert (part.dropout, part.head_dropout) == ((0.1, 0.5) if text else (0.0, 0.1))
        assert part.head_init == "xavier"
    if text:
        assert recipe.data.max_length == 256
        assert recipe.student.selector.head_width == 256
        assert not recipe.student.selector.train_embeddings
        assert not train.bucket_by_length
    else:
        assert recipe.data.augment.crop_padding == 4
        assert recipe.data.augment.flip
        assert not recipe.student.predictor.final_norm
        assert recipe.data.normalisation == "imagenet"
        assert train.decay_all


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("paper/imdb", ["objective.selection=exactly_k"], "objective.lambda_select: is a penalty"),
        ("paper/imdb", ["objective.selection=exactly_k"], "set count_padding: false"),
        ("paper/imdb", ["objective.masking=exclude"], "set select_special: false"),
        ("smoke/text", ["objective.lambda_select=1"], "set it to 0"),
        ("smoke/text", ["objective.count_padding=true"], "needs selection: bernoulli"),
        (
            "paper/imdb",
            ["teacher.objective.masking=exclude"],
            "teacher.objective.select_special: needs masking: zero",
        ),
        ("paper/cifar10", ["objective.count_padding=true"], "is for text"),
        ("paper/imdb", ["student.predictor.final_norm=false"], "is for images"),
        (
            "paper/movie-review-snippets",
            ["student.selector.kind=shared"],
            "needs selectors of kind: blocks",
        ),
        (
            "smoke/text",
            ["student.selector.kind=shared", "student.selector.head_width=8"],
            "student.selector.head_width: is for kind: blocks",
        ),
    ],
)
def test_contradictions_are_refused(recipe: str, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(recipe, overrides)


def test_images_may_switch_one_key_alone() -> None:
    for key in ("objective.masking=exclude", "teacher.objective.masking=exclude"):
        assert isinstance(load_recipe("paper/cifar10", [key]), Recipe)
    changes = ["objective.selection=exactly_k", "objective.lambda_select=0"]
    assert load_recipe("paper/cifar10", changes).objective.form.selection == "exactly_k"


def test_every_key_of_the_form_is_a_deviation_with_its_values() -> None:
    stated = {item.key.removeprefix("objective."): item for item in DEVIATIONS}
    for key in ObjectiveForm.__slots__:
        values = [
            str(getattr(PRESETS[name], key)).removeprefix("_") for name in ("paper", "deploy")
        ]
        values = [{"True": "true", "False": "false"}.get(value, value) for value in values]
        assert [stated[key].paper, stated[key].deploy] == values


def test_every_key_of_a_deviation_is_a_recipe_key() -> None:
    recipe = load_recipe("paper/movie-review-snippets")
    for item in DEVIATIONS:
        section: object = recipe
        for part in item.key.split("."):
            assert hasattr(section, part), item.key
            section = getattr(section, part)


def test_the_suites_have_a_row_for_each_deviation() -> None:
    recipes, base = {}, {}
    for file in SUITES:
        suite = load_suite(file)
        rows = row_recipes(suite, file.parent)
        assert not recipes.keys() & rows.keys()
        recipes |= rows
        base |= dict.fromkeys(rows, rows[suite.rows[0].name])
    assert recipes["paper"].objective.form == PRESETS["paper"]
    assert recipes[WHOLE].objective.form == PRESETS["deploy"]
    for item in DEVIATIONS:
        assert item.row is not None
        section, default = recipes[item.row], base[item.row]
        for part in item.key.split("."):
            section, default = getattr(section, part), getattr(default, part)
        assert section != default, item.row


def test_the_page_holds_the_table_of_the_recorded_result() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else None
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, result) == page, "run `make docs`"
    with pytest.raises(ValueError, match="lacks the marks"):
        with_table("no table here", result)


def test_effects_come_from_the_result_alone() -> None:
    assert deviations_table(None).count(NOT_MEASURED) == len(DEVIATIONS) + 1
    summary = {"mean": -0.0123, "spread": 0.004, "per_seed": {}}
    row = {
        "name": "kl-noiseless",
        "against": "paper",
        "differences": {"own": summary, "exported": {**summary, "spread": None}, "more": summary},
    }
    table = deviations_table({"rows": [row]})
    assert "own -0.012 ± 0.004, exported -0.012 (to `paper`)" in table
    assert table == deviations_table({"tables": [{"rows": []}, {"rows": [row]}]})
    assert table.count(NOT_MEASURED) == len(DEVIATIONS)
