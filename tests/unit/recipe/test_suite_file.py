from __future__ import annotations

from pathlib import Path

import pytest

from rekd_edge.errors import RecipeError
from rekd_edge.recipe.suite_file import load_suite, row_recipes

WHOLE = """schema_version: 1
name: trial
recipe: smoke/text
overrides: [data.limit.train=32]
seeds: [0, 1]
columns:
  - {title: accuracy, value: distill.student.test.accuracy}
rows:
  - name: base
  - name: sharp
    overrides: [objective.kd_temperature=1.5]
    against: base
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def test_rows_are_overrides_over_the_suites_over_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    suite = load_suite(path)
    recipes = row_recipes(suite, tmp_path, ["seed=3"])
    assert list(recipes) == ["base", "sharp"]
    assert recipes["sharp"].objective.kd_temperature == 1.5
    assert recipes["base"].objective.kd_temperature == 2.0
    assert {recipe.data.limit.train for recipe in recipes.values()} == {32}
    assert {recipe.seed for recipe in recipes.values()} == {3}


def test_a_recipe_beside_the_suite_is_found(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("extends: smoke/text\nschema_version: 1\nname: own\n")
    path = write(tmp_path, WHOLE.replace("smoke/text", "own.yaml"))
    assert row_recipes(load_suite(path), tmp_path)["base"].name == "own"


def test_a_row_can_have_another_recipe(tmp_path: Path) -> None:
    text = WHOLE.replace("overrides: [objective", "recipe: smoke/image\n    overrides: [objective")
    recipes = row_recipes(load_suite(write(tmp_path, text)), tmp_path)
    assert [recipe.modality for recipe in recipes.values()] == ["text", "image"]
    assert {recipe.data.limit.train for recipe in recipes.values()} == {32}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: sharp", "name: base", "rows with one name: base"),
        ("against: base", "against: none", "no row"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "distinct"),
        ("seeds: [0, 1]", "seeds: []", "suite.yaml:5: seeds"),
        ("distill.student", "elsewhere.student", "suite.yaml:7: columns[0].value"),
        ("distill.student.test", "quality", "column 'accuracy' needs `judge`"),
        ("rows:", "judge: sharp\nrows:", "judge 'sharp' must be the first row, here 'base'"),
        ("distill.student.test", "simulability", "column 'accuracy' needs `simulated`"),
        ("rows:", "simulated: other\nrows:", "simulated 'other' is no row"),
        ("name: trial", "nme: trial", "Extra inputs"),
        ("schema_version: 1", "schema_version: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, WHOLE.replace(old, new, 1))
    with pytest.raises(RecipeError) as error:
        load_suite(path)
    assert message in str(error.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_suite(tmp_path / "none.yaml")


def test_what_is_simulated_is_a_classifier(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE.replace("rows:", "simulated: sharp\nrows:"))
    with pytest.raises(RecipeError, match="row sharp: what is simulated must be a classifier"):
        row_recipes(load_suite(path), tmp_path)
    path.write_text(path.read_text().replace("[objective.kd_temperature=1.5]", "[task=classify]"))
    assert row_recipes(load_suite(path), tmp_path)["sharp"].task == "classify"


def test_all_rows_without_a_valid_recipe_are_named(tmp_path: Path) -> None:
    text = WHOLE + "  - name: wrong\n    overrides: [objective.masking=blur]\n"
    text += "  - name: worse\n    overrides: [objective.lambda_select=1]\n"
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as error:
        row_recipes(load_suite(path), tmp_path)
    assert "row wrong: --set objective.masking=blur" in str(error.value)
    assert "row worse: " in str(error.value)
    assert "base" not in str(error.value)


SHIPPED = sorted(
    path
    for path in (Path(__file__).parents[3] / "benchmarks" / "suites").glob("*.yaml")
    if not path.stem.startswith("latency")
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_suite_is_valid_and_judged_rows_are_about_the_same_data(path: Path) -> None:
    suite = load_suite(path)
    recipes = row_recipes(suite, path.parent)
    assert suite.name == path.stem
    assert len(suite.seeds) >= 3
    if suite.judge is not None:
        assert recipes[suite.judge].student.train.warmup.predictor_epochs > 0
        assert {recipe.data == recipes[suite.judge].data for recipe in recipes.values()} == {True}
