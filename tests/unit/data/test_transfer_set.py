"""The transfer set: unlabelled examples, none of which is in the recipe's own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rekd_edge.data.load import load_data
from rekd_edge.data.source import normal_form
from rekd_edge.data.split import ArraySplit, JoinedSplit
from rekd_edge.data.transfer_set import load_transfer
from rekd_edge.errors import DataError
from rekd_edge.recipe import load_recipe
from rekd_edge.recipe.schema import Recipe, TransferSpec

TEXTS = [(f"{'good' if n % 2 else 'bad'} film number {n}", n % 2) for n in range(40)]


def recipe_with(tmp_path: Path, transfer: str) -> Recipe:
    rows = "".join(f"{text},{label}\n" for text, label in TEXTS)
    (tmp_path / "own.csv").write_text(f"text,label\n{rows}")
    changes = ["data.source=csv", f"data.path={tmp_path / 'own.csv'}", "data.limit={}"]
    return load_recipe("smoke/text", [*changes, f"transfer={transfer}"])


def test_known_and_repeated_texts_are_left_out_and_labels_are_not_needed(tmp_path: Path) -> None:
    lines = ["Good film, NUMBER 3!", "a new one", "A new one.", "another", "third"]
    (tmp_path / "more.csv").write_text("text\n" + "".join(f'"{line}"\n' for line in lines))
    recipe = recipe_with(tmp_path, f"{{source: csv, path: {tmp_path / 'more.csv'}}}")
    assert recipe.transfer is not None
    found = load_transfer(recipe, recipe.transfer, load_data(recipe))
    texts = [found.examples.raw(index) for index in range(len(found.examples))]
    assert texts == ["a new one", "another", "third"]
    assert (found.known, found.repeated) == (1, 1)

    limited = recipe.transfer.model_copy(update={"limit": 2})
    draws = [load_transfer(recipe, limited, load_data(recipe)).examples for _ in range(2)]
    drawn = [[part.raw(index) for index in range(len(part))] for part in draws]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2
    assert set(map(str, drawn[0])) < set(map(str, texts))


def test_nothing_new_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("text\ngood film number 3\n")
    recipe = recipe_with(tmp_path, f"{{source: csv, path: {tmp_path / 'more.csv'}}}")
    assert recipe.transfer is not None
    with pytest.raises(DataError, match="no example that is not in the recipe's data"):
        load_transfer(recipe, recipe.transfer, load_data(recipe))


def test_images_are_known_by_their_pixels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for folder, rows in (("own", range(8)), ("more", range(6, 12))):
        for row in rows:
            place = tmp_path / folder / ("ab"[row % 2] if folder == "own" else "unknown")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(place / f"{row:02}.png")
    changes = ["data.source=image-folder", f"data.path={tmp_path / 'own'}", "data.limit={}"]
    changes += ["data.split={dev: 0.25, test: 0.25, seed: 0}"]
    recipe = load_recipe("smoke/image", changes)
    spec = TransferSpec(source="image-folder", path=str(tmp_path / "more"))
    found = load_transfer(recipe, spec, load_data(recipe))
    assert found.known == 2
    assert [np.array_equal(found.examples.raw(i), pixels[8 + i]) for i in range(4)] == [True] * 4


def test_the_test_split_of_a_source_is_never_used() -> None:
    recipe = load_recipe("smoke/text", ["transfer={source: movie-review-snippets}"])
    assert recipe.transfer is not None
    data = load_data(recipe)
    found = load_transfer(recipe, recipe.transfer, data)
    theirs = {normal_form(str(found.examples.raw(i))) for i in range(len(found.examples))}
    for split in (data.train, data.dev, data.test):
        assert theirs.isdisjoint(normal_form(str(split.raw(i))) for i in range(len(split)))


def test_joined_splits_answer_as_one() -> None:
    first = ArraySplit("train", np.array([0, 1]), ["a", "b"])
    second = ArraySplit("train", np.array([9, 9, 9]), ["c", "d", "e"])
    joined = JoinedSplit("train", [first, second], np.array([0, 1, 1, 0, 1]))
    assert [joined.raw(index) for index in range(5)] == list("abcde")
    taken = joined.take(np.array([4, 0, 1, 3]), "dev")
    assert [taken.raw(index) for index in range(4)] == ["e", "a", "b", "d"]
    assert taken.labels.tolist() == [1, 0, 1, 0]
    assert (taken.name, len(joined.take(np.array([2])))) == ("dev", 1)
    with pytest.raises(ValueError, match="5 examples and 2 labels"):
        JoinedSplit("train", [first, second], np.array([0, 1]))
