"""The bundled sets, read for real from their archives (downloaded on the first run)."""

from __future__ import annotations

import numpy as np
import pytest

from rekd_edge.data.catalogue import BUNDLED_SETS
from rekd_edge.data.load import TaskData, class_counts, load_source
from rekd_edge.data.source import normal_form, unique_indices
from rekd_edge.errors import RecipeError
from rekd_edge.recipe.schema import DataSpec


def load(name: str, **options: object) -> TaskData:
    return load_source(DataSpec(source=name, **options), BUNDLED_SETS[name].modality)  # type: ignore[arg-type]


def totals(data: TaskData) -> dict[str, int]:
    counts = [class_counts(s, data.label_names) for s in (data.train, data.dev, data.test)]
    return {name: sum(count[name] for count in counts) for name in data.label_names}


def forms(data: TaskData) -> list[set[str]]:
    return [
        {normal_form(str(split.raw(index))) for index in range(len(split))}
        for split in (data.train, data.dev, data.test)
    ]


def test_movie_review_snippets() -> None:
    data = load("movie-review-snippets")
    assert totals(data) == {"negative": 5325, "positive": 5241}
    assert (len(data.train), len(data.dev), len(data.test)) == (7608, 845, 2113)
    assert data.source["package"] == "vaderSentiment"
    assert data.source["texts_shared_between_splits"] == "0"
    train, dev, test = forms(data)
    assert not train & test
    assert not train & dev
    assert not dev & test
    assert sum(map(len, (train, dev, test))) == 5325 + 5241
    labels = {
        str(split.raw(index)): int(split.labels[index])
        for split in (data.train, data.dev, data.test)
        for index in range(len(split))
    }
    assert labels["Effective but too tepid biopic"] == 0
    assert labels["Thoroughly enjoyable."] == 1


def test_the_cut_does_not_depend_on_the_run() -> None:
    first, again = load("movie-review-snippets"), load("movie-review-snippets")
    other = load("movie-review-snippets", split={"seed": 1})
    assert [first.test.raw(i) for i in range(50)] == [again.test.raw(i) for i in range(50)]
    assert [first.test.raw(i) for i in range(50)] != [other.test.raw(i) for i in range(50)]
    assert totals(first) == totals(other)


def test_rotten_tomatoes() -> None:
    data = load("rotten-tomatoes")
    assert totals(data) == {"rotten": 5382, "fresh": 7367}
    assert data.source["texts_shared_between_splits"] == "0"


def test_long_reviews() -> None:
    data = load("long-reviews")
    assert totals(data) == {"negative": 748, "positive": 750}
    words = [len(str(data.train.raw(index)).split()) for index in range(len(data.train))]
    assert 700 < np.mean(words) < 800


def test_twenty_newsgroups() -> None:
    data = load("20-newsgroups")
    assert len(data.label_names) == 20
    assert (len(data.train), len(data.dev), len(data.test)) == (10136, 1126, 7521)
    assert data.source["texts_shared_between_splits"] == "0"


def test_cifar10() -> None:
    data = load("cifar10", limit={"train": 2000})
    assert class_counts(data.train, data.label_names) == dict.fromkeys(data.label_names, 200)
    assert class_counts(data.dev, data.label_names) == dict.fromkeys(data.label_names, 500)
    assert class_counts(data.test, data.label_names) == dict.fromkeys(data.label_names, 1000)
    assert np.asarray(data.test.raw(0)).shape == (32, 32, 3)
    # The first test images of CIFAR-10 are a cat, two ships and an airplane.
    names = [data.label_names[label] for label in data.test.labels[:4]]
    assert names == ["cat", "ship", "ship", "airplane"]
    test = np.stack([np.asarray(data.test.raw(index)) for index in range(10000)])
    np.testing.assert_allclose(test.mean(axis=(0, 1, 2)) / 255, [0.4942, 0.4851, 0.4504], atol=1e-3)


def test_unknown_source_and_wrong_modality_are_named() -> None:
    with pytest.raises(
        RecipeError, match=r"unknown source 'cifar-10' \(did you mean 'cifar10'\?\)"
    ):
        load_source(DataSpec(source="cifar-10"), "image")
    with pytest.raises(RecipeError, match="holds image data"):
        load_source(DataSpec(source="cifar10"), "text")
    with pytest.raises(RecipeError, match="brings its own class names"):
        load_source(DataSpec(source="movie-review-snippets", labels=("a", "b")), "text")


def test_unique_indices() -> None:
    texts = ["Good film!", "good film", "bad", "BAD.", "odd", "...", "seen"]
    labels = np.array([1, 1, 0, 1, 0, 0, 1])
    # One of each; "bad" has two labels, "..." no word, "seen" is in the other split.
    assert unique_indices(texts, labels, beside=["Seen?"]).tolist() == [0, 4]
