"""Lists of labels and numbers in the user's own files, and how they are cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rekd_edge.data.catalogue import BUNDLED_SETS
from rekd_edge.data.load import TaskData, class_counts, load_source, target_ranges
from rekd_edge.data.split import JoinedSplit, strata, stratified_limit, stratified_split
from rekd_edge.errors import DataError, RecipeError
from rekd_edge.recipe.problem import BUNDLED_PROBLEMS
from rekd_edge.recipe.schema import DataSpec
from rekd_edge.types import ProblemType

SETS = [["a"], ["a", "b"], [], ["c"], ["b", "c"]]
MULTI: ProblemType = "multi_label_classification"


def records(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"text": f"text number {n}", "label": SETS[n % 5], "rating": n / 2, "mood": -float(n)}
        for n in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = [",".join(rows[0])]
        for row in rows:
            cells = ("|".join(v) if isinstance(v, list) else str(v) for v in row.values())
            lines.append(",".join(cells))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(path: Path, problem: ProblemType, **options: Any) -> TaskData:
    spec = DataSpec(source=path.suffix[1:], path=str(path), **options)
    return load_source(spec, "text", problem)


def by_text(data: TaskData) -> dict[str, list[float]]:
    return {
        str(split.raw(row)): split.labels[row].tolist()
        for split in (data.train, data.dev, data.test)
        for row in range(len(split))
    }


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_sets_of_labels(suffix: str, tmp_path: Path) -> None:
    data = load(write(tmp_path / f"set.{suffix}", records()), MULTI)
    assert data.label_names == ("a", "b", "c")
    assert data.train.labels.dtype == np.float32
    found = by_text(data)
    assert len(found) == 40
    for n in range(40):
        expected = [float(name in SETS[n % 5]) for name in "abc"]
        assert found[f"text number {n}"] == expected
    for split in (data.train, data.dev, data.test):
        counts = class_counts(split, data.label_names)
        assert all(abs(count - 0.4 * len(split)) <= 2 for count in counts.values())


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_numbers_of_one_and_of_several_columns(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"set.{suffix}", records())
    one = load(path, "regression", label_column="rating")
    assert one.label_names == ("rating",)
    assert by_text(one)["text number 7"] == [3.5]
    two = load(path, "regression", label_column=["rating", "mood"])
    assert two.label_names == ("rating", "mood")
    assert by_text(two)["text number 7"] == [3.5, -7.0]
    assert target_ranges(two.train, two.label_names)["mood"]["max"] <= 0
    # Every split has its share of low and of high numbers.
    for split in (one.train, one.dev, one.test):
        assert abs(float(split.labels.mean()) - 9.75) < 2


def test_a_column_of_marks_for_each_label(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "a": n % 2, "b": int(n % 3 == 0)} for n in range(30)]
    for name in ("set.csv", "set.jsonl", "set.parquet"):
        data = load(write(tmp_path / name, rows), MULTI, label_column=["a", "b"])
        assert data.label_names == ("a", "b")
        assert by_text(data)["text 9"] == [1.0, 1.0]
        assert by_text(data)["text 4"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("problem", "column", "bad", "said"),
    [
        ("regression", "rating", "much", "line 4: column 'rating' holds a number, not 'much'"),
        ("regression", "rating", float("nan"), "column 'rating' holds a finite number, not nan"),
        ("regression", "rating", float("inf"), "holds a finite number, not inf"),
        ("regression", "rating", True, "holds a finite number, not True"),
        ("regression", "rating", [1.0], "column 'rating' holds a number, not [1.0]"),
        ("regression", "rating", None, "the number in column 'rating' is missing"),
        ("regression", "rating", 1e39, "is too large"),
        (MULTI, "label", None, "the labels are missing"),
        (MULTI, "label", ["a", "a"], "label 'a' is there twice"),
        (MULTI, "label", ["a", ""], "the label is missing"),
        (MULTI, "label", "a||b", "has an empty label beside a '|'"),
        (MULTI, "label", 1.5, "labels are a list, or a string with '|' between them, not 1.5"),
        (MULTI, ["rating", "mood"], 2, "column 'rating' holds 0 or 1, not"),
    ],
)
def test_unusable_cells_are_named_by_line(
    problem: ProblemType, column: Any, bad: Any, said: str, tmp_path: Path
) -> None:
    rows = records()
    rows[3]["rating" if isinstance(column, list) else column] = bad
    path = write(tmp_path / "set.jsonl", rows)
    with pytest.raises(DataError) as refused:
        load(path, problem, label_column=column)
    assert said in refused.value.message
    assert f"{path}: line" in refused.value.message


def test_a_label_that_the_recipe_does_not_name(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", records())
    with pytest.raises(DataError, match=r"does not name: .*line 4: label 'c'.*and .* more"):
        load(path, MULTI, labels=["a", "b"])
    assert load(path, MULTI, labels=["c", "b", "a"]).label_names == ("c", "b", "a")


def test_what_cannot_be_learned_is_refused(tmp_path: Path) -> None:
    rows = records()
    for row in rows:
        row["rating"] = 3
    path = write(tmp_path / "set.csv", rows)
    with pytest.raises(DataError, match="'rating' is always 3"):
        load(path, "regression", label_column="rating")
    rows[0]["label"] = ["rare"]
    path = write(tmp_path / "set.jsonl", rows)
    with pytest.raises(DataError, match=r"every class needs at least 3 examples.*'rare' has 1"):
        load(path, MULTI)


def test_a_bundled_set_has_its_own_problem() -> None:
    with pytest.raises(RecipeError, match="is for problem_type 'regression'"):
        load_source(DataSpec(source="movie-review-ratings"), "text")
    with pytest.raises(RecipeError, match="is for problem_type 'single_label_classification'"):
        load_source(DataSpec(source="movie-review-snippets"), "text", MULTI)
    assert set(BUNDLED_PROBLEMS) <= set(BUNDLED_SETS)
    assert BUNDLED_SETS["cifar10-objects"].problem == MULTI


def test_rated_sentences() -> None:
    data = load_source(DataSpec(source="movie-review-ratings"), "text", "regression")
    assert (len(data.train), len(data.dev), len(data.test)) == (7631, 850, 2120)
    assert data.label_names == ("rating",)
    for split in (data.train, data.dev, data.test):
        assert abs(float(split.labels.mean())) < 0.02
        assert abs(float(split.labels.std()) - 1.92) < 0.03
        assert float(np.abs(split.labels).max()) <= 4


def test_strata_of_labels_and_numbers() -> None:
    classes = np.asarray([0, 3, 3])
    assert strata(classes, least=2) is classes
    labels = np.asarray([[1, 0], [1, 0], [0, 1], [0, 1], [1, 1], [0, 0]], dtype=np.float32)
    found = strata(labels, least=2)
    assert found[0] == found[1] != found[2] == found[3]
    assert len({int(found[4]), int(found[5])} | {int(found[0]), int(found[2])}) == 3
    numbers = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)
    bins = strata(numbers, least=3)
    assert np.bincount(bins).tolist() == [4] * 10
    assert numbers[bins == 0].max() <= numbers[bins == 9].min()
    assert len(np.unique(strata(numbers, least=20))) == 2


@pytest.mark.parametrize("labels", [2, 9])
def test_cuts_and_limits_of_sets_keep_their_shares(labels: int) -> None:
    rng = np.random.default_rng(labels)
    sets = (rng.random((300, labels)) < 0.3).astype(np.float32)
    parts = stratified_split(sets, {"test": 0.2, "dev": 0.1}, rest="train", seed=0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(300))
    assert abs(len(parts["test"]) - 60) <= 25
    for part in parts.values():
        assert np.abs(sets[part].mean(axis=0) - sets.mean(axis=0)).max() < 0.15
    chosen = stratified_limit(sets, 50, seed=0)
    assert len(chosen) == 50
    assert np.abs(sets[chosen].mean(axis=0) - sets.mean(axis=0)).max() < 0.15


def test_joined_splits_take_labels_of_their_own(tmp_path: Path) -> None:
    train = load(write(tmp_path / "set.jsonl", records()), MULTI).train
    other = np.zeros((2 * len(train), 3), dtype=np.float32)
    joined = JoinedSplit("train", [train, train], other)
    assert joined.take(np.asarray([0, len(train)])).labels.shape == (2, 3)
    assert not joined.labels.any()


def test_lists_of_classes_of_a_saved_data_set(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["x", "y"])
    features = datasets.Features({"text": datasets.Value("string"), "label": [names]})
    rows = {"text": [f"text {n}" for n in range(30)], "label": [[0], [1], [0, 1]] * 10}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": part}).save_to_disk(str(tmp_path / "saved"))
    spec = DataSpec(source="huggingface", path=str(tmp_path / "saved"))
    data = load_source(spec, "text", MULTI)
    assert data.label_names == ("x", "y")
    assert by_text(data)["text 2"] == [1.0, 1.0]
