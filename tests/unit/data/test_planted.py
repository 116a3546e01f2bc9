"""Planted evidence: gold spans are the evidence, and no sentence is in two splits."""

from __future__ import annotations

import numpy as np
import pytest

from rekd_edge.data.load import TaskData, load_source
from rekd_edge.data.split import Split
from rekd_edge.data.text_sets import rated_snippets
from rekd_edge.errors import DataError
from rekd_edge.recipe.schema import DataSpec


def load(**options: object) -> TaskData:
    return load_source(DataSpec(source="planted-evidence", **options), "text")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data() -> TaskData:
    return load()


def evidence(split: Split) -> list[str]:
    assert split.gold is not None
    found = []
    for index, spans in enumerate(split.gold):
        assert isinstance(spans, tuple)
        ((start, end),) = spans
        found.append(str(split.raw(index))[start:end])
    return found


def rest(split: Split) -> list[str]:
    return [str(split.raw(index)).replace(own, "\0") for index, own in enumerate(evidence(split))]


def test_the_gold_is_a_clear_sentence_with_the_sign_of_the_label(data: TaskData) -> None:
    texts, ratings = rated_snippets()
    rating = {text.strip(): value for text, value in zip(texts, ratings, strict=True)}
    for split in (data.train, data.dev, data.test):
        for own, label in zip(evidence(split), split.labels, strict=True):
            assert abs(rating[own]) >= 2
            assert (rating[own] > 0) == label
    assert (len(data.train), len(data.dev), len(data.test)) == (3052, 339, 847)
    assert data.source["texts_shared_between_splits"] == "0"


def test_no_sentence_is_in_two_splits(data: TaskData) -> None:
    texts, ratings = rated_snippets()
    undecided = [text.strip() for text in np.asarray(texts)[np.abs(ratings) < 0.3]]
    used: list[set[str]] = []
    for split in (data.train, data.dev, data.test):
        documents = rest(split)
        whole = "\n".join(documents)
        distractors = {text for text in undecided if text in whole}
        # Three distractors in each document, and nothing else beside the evidence.
        for document in documents[:50]:
            left = document
            for text in sorted(distractors, key=len, reverse=True):
                left = left.replace(text, "")
            assert left.replace("\0", "").strip() == ""
        used.append(set(evidence(split)) | distractors)
    assert not used[0] & used[1]
    assert not used[0] & used[2]
    assert not used[1] & used[2]


def test_the_place_of_the_evidence_says_nothing(data: TaskData) -> None:
    assert data.train.gold is not None
    starts = np.asarray([spans[0][0] for spans in data.train.gold])
    first = (starts == 0).mean()
    assert 0.2 < first < 0.3
    assert abs((starts == 0)[data.train.labels == 1].mean() - first) < 0.05


def test_the_split_seed_decides_everything(data: TaskData) -> None:
    again, other = load(), load(split={"seed": 1})
    assert [again.test.raw(i) for i in range(20)] == [data.test.raw(i) for i in range(20)]
    assert again.test.gold == data.test.gold
    assert set(evidence(other.test)) != set(evidence(data.test))


def test_limits_carry_the_gold_along(data: TaskData) -> None:
    small = load(limit={"test": 10})
    assert len(small.test) == len(evidence(small.test)) == 10
    assert set(evidence(small.test)) <= set(evidence(data.test))


def test_a_part_without_enough_distractors_is_refused() -> None:
    with pytest.raises(DataError, match="has 1 distractors, a document needs 3"):
        load(split={"dev": 0.003})
    with pytest.raises(DataError, match="the dev split is empty"):
        load(split={"dev": 0})
