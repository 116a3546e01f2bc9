"""Planted evidence: gold spans are the evidence, and no sentence is in two splits."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rekd_edge.data.load import TaskData, load_source
from rekd_edge.data.split import Split
from rekd_edge.data.text_sets import plot_summaries, rated_snippets
from rekd_edge.errors import DataError
from rekd_edge.recipe.schema import DataSpec


def load(source: str = "planted-evidence", **options: object) -> TaskData:
    return load_source(DataSpec(source=source, **options), "text")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data() -> TaskData:
    return load()


@pytest.fixture(scope="module")
def plots() -> TaskData:
    return load("planted-evidence-plots")


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


@pytest.mark.parametrize("source", ["data", "plots"])
def test_the_gold_is_a_clear_sentence_with_the_sign_of_the_label(
    source: str, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(source)
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


def test_distractors_are_whole_sentences_of_plots_and_no_film_is_in_two_splits(
    plots: TaskData,
) -> None:
    summaries = [" ".join(text.split()) for text in plot_summaries()]
    films: list[set[int]] = []
    for split in (plots.train, plots.dev, plots.test):
        used: set[int] = set()
        for index, own in enumerate(evidence(split)[:30]):
            document = str(split.raw(index))
            before, _, after = document.partition(own)
            for part in (before.strip(), after.strip()):
                # A sentence at a time: each is somewhere in one summary.
                for sentence in re.split(r"(?<=[.!?]) (?=[A-Z\"'])", part) if part else []:
                    homes = [n for n, text in enumerate(summaries) if sentence in text]
                    assert homes, sentence
                    if len(homes) == 1:
                        used.add(homes[0])
        films.append(used)
    assert not films[0] & films[1]
    assert not films[0] & films[2]
    assert not films[1] & films[2]


@pytest.mark.parametrize("source", ["data", "plots"])
def test_the_place_of_the_evidence_says_nothing(
    source: str, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(source)
    assert data.train.gold is not None
    starts = np.asarray([spans[0][0] for spans in data.train.gold])
    first = (starts == 0).mean()
    assert 0.2 < first < 0.3
    assert abs((starts == 0)[data.train.labels == 1].mean() - first) < 0.05


@pytest.mark.parametrize("source", ["planted-evidence", "planted-evidence-plots"])
def test_the_split_seed_decides_everything(source: str) -> None:
    data, again, other = load(source), load(source), load(source, split={"seed": 1})
    assert [again.test.raw(i) for i in range(20)] == [data.test.raw(i) for i in range(20)]
    assert again.test.gold == data.test.gold
    assert set(evidence(other.test)) != set(evidence(data.test))


def test_limits_carry_the_gold_along(data: TaskData) -> None:
    small = load(limit={"test": 10})
    assert len(small.test) == len(evidence(small.test)) == 10
    assert set(evidence(small.test)) <= set(evidence(data.test))


def test_a_part_without_enough_distractors_is_refused() -> None:
    with pytest.raises(DataError, match="planted-evidence: the dev split has 1 distractors, a "):
        load(split={"dev": 0.003})
    with pytest.raises(DataError, match="the dev split is empty"):
        load(split={"dev": 0})
