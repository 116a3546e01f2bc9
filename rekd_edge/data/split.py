"""Splits: labelled examples behind one interface, and cutting them by class.

A split gives its labels at once and its raw examples one at a time, so that a folder of images
is as good as an array in memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rekd_edge.data.images import rgb_from_bytes, rgb_from_file
from rekd_edge.errors import DataError

BINS = 10
"""Strata of a regression, of equal size."""

RawExample = str | np.ndarray
"""A text, or an image: uint8 ``[height, width, 3]`` (RGB)."""

Gold = tuple[tuple[int, int], ...] | np.ndarray
"""The evidence in one example: character spans (start, end) of a text, or a mask, bool
``[height, width]``, of an image. No batch carries it: only evaluation reads it."""


class Split(ABC):
    """Labelled examples. Compared and hashed by identity.

    ``labels`` is int64 ``[example]``, or float32 ``[example, label]``: 0 and 1 of a multi-label
    classification, the values of a regression. ``name`` is ``train``, ``dev`` or ``test``;
    ``gold`` is the evidence of each example, where the source knows it.
    """

    gold: Sequence[Gold] | None = None

    def __init__(self, name: str, labels: np.ndarray) -> None:
        self.name = name
        several = np.ndim(labels) == 2
        self.labels = np.asarray(labels, dtype=np.float32 if several else np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def raw(self, index: int) -> RawExample:
        """Example ``index`` as it is in the source.

        Raises:
            DataError: an image cannot be read; the message names it.
        """

    @abstractmethod
    def take(self, indices: np.ndarray, name: str | None = None) -> Split:
        """The examples at ``indices``, int64 ``[example]``, in that order."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, examples={len(self)})"


class ArraySplit(Split):
    """Texts, or images of one size (uint8 ``[example, height, width, 3]``), in memory."""

    def __init__(
        self,
        name: str,
        labels: np.ndarray,
        examples: Sequence[str] | np.ndarray,
        gold: Sequence[Gold] | None = None,
    ) -> None:
        super().__init__(name, labels)
        if len(examples) != len(self.labels):
            raise ValueError(f"{len(examples)} examples and {len(self.labels)} labels")
        if gold is not None and len(gold) != len(self.labels):
            raise ValueError(f"{len(gold)} gold rationales and {len(self.labels)} labels")
        self.examples = examples
        self.gold = gold

    def raw(self, index: int) -> RawExample:
        return self.examples[index]

    def take(self, indices: np.ndarray, name: str | None = None) -> ArraySplit:
        if isinstance(self.examples, np.ndarray):
            examples = self.examples[indices]
        else:
            examples = [self.examples[int(index)] for index in indices]
        gold = None if self.gold is None else [self.gold[int(index)] for index in indices]
        return ArraySplit(name or self.name, self.labels[indices], examples, gold)


class FileSplit(Split):
    """Image files, read when asked for."""

    def __init__(self, name: str, labels: np.ndarray, paths: Sequence[Path]) -> None:
        super().__init__(name, labels)
        if len(paths) != len(self.labels):
            raise ValueError(f"{len(paths)} paths and {len(self.labels)} labels")
        self.paths = tuple(paths)

    def raw(self, index: int) -> np.ndarray:
        return rgb_from_file(self.paths[index])

    def take(self, indices: np.ndarray, name: str | None = None) -> FileSplit:
        paths = [self.paths[int(index)] for index in indices]
        return FileSplit(name or self.name, self.labels[indices], paths)


class EncodedImageSplit(Split):
    """Images kept as file contents (PNG, JPEG...), decoded when asked for.

    ``contents`` may be lazy; example i is ``contents[rows[i]]``. ``place`` and the row's number
    (from 1) name it in messages.
    """

    def __init__(
        self,
        name: str,
        labels: np.ndarray,
        contents: Sequence[bytes],
        place: str,
        rows: np.ndarray | None = None,
    ) -> None:
        super().__init__(name, labels)
        self.contents = contents
        self.place = place
        self.rows = np.arange(len(contents)) if rows is None else rows
        if len(self.rows) != len(self.labels):
            raise ValueError(f"{len(self.rows)} images and {len(self.labels)} labels")

    def raw(self, index: int) -> np.ndarray:
        row = int(self.rows[index])
        return rgb_from_bytes(self.contents[row], f"{self.place}: row {row + 1}")

    def take(self, indices: np.ndarray, name: str | None = None) -> EncodedImageSplit:
        return EncodedImageSplit(
            name or self.name, self.labels[indices], self.contents, self.place, self.rows[indices]
        )


class JoinedSplit(Split):
    """Splits one after another under one name. ``labels``, of each example, replaces theirs."""

    def __init__(self, name: str, parts: Sequence[Split], labels: np.ndarray | None = None) -> None:
        examples = sum(len(part) for part in parts)
        if labels is None:
            labels = np.concatenate([part.labels for part in parts])
        if len(labels) != examples:
            raise ValueError(f"{examples} examples and {len(labels)} labels")
        super().__init__(name, labels)
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def raw(self, index: int) -> RawExample:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[place].raw(index - int(self._starts[place]))

    def take(self, indices: np.ndarray, name: str | None = None) -> JoinedSplit:
        place = np.searchsorted(self._starts, indices, side="right") - 1
        # Runs of one part stay together, so that the order is that of ``indices``.
        cuts = np.flatnonzero(np.diff(place)) + 1
        runs = np.split(np.arange(len(indices)), cuts)
        parts = [
            self.parts[place[run[0]]].take(indices[run] - self._starts[place[run[0]]])
            for run in runs
            if len(run)
        ]
        return JoinedSplit(name or self.name, parts, self.labels[indices])


def strata(labels: np.ndarray, *, least: int) -> np.ndarray:
    """What each example is drawn by, int64 ``[example]``: its class, which is ``labels`` itself;
    its combination of labels; or the bin of its values.

    Combinations of fewer than ``least`` examples are joined by their rarest label, and what is
    still rare in one stratum. Values (standardised; of several targets their mean) are cut into
    :data:`BINS` bins of equal size, or fewer of at least ``least`` examples.
    """
    if labels.ndim == 1:
        return labels
    if np.isin(labels, (0.0, 1.0)).all():
        return _by_combination(labels > 0.5, least)
    deviation = labels.std(axis=0)
    standard = (labels - labels.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    rank = standard.mean(axis=1).argsort(kind="stable").argsort(kind="stable")
    bins = max(1, min(BINS, len(labels) // max(1, least)))
    return rank * bins // max(1, len(labels))


def _by_combination(labels: np.ndarray, least: int) -> np.ndarray:
    frequency = np.where(labels, labels.sum(axis=0), len(labels) + 1)
    rarest = np.where(labels.any(axis=1), frequency.argmin(axis=1), labels.shape[1])
    combination = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    found = np.zeros(len(labels), dtype=np.int64)
    rest = np.ones(len(labels), dtype=bool)
    for keys in (combination, rarest):
        for key in np.unique(keys[rest]):
            members = rest & (keys == key)
            if members.sum() >= least:
                found[members] = found.max() + 1
                rest &= ~members
    if 0 < rest.sum() < least and not rest.all():
        found[rest] = np.bincount(found[~rest]).argmax()
    return found


def stratified_split(
    labels: np.ndarray, shares: Mapping[str, float], *, rest: str, seed: int
) -> dict[str, np.ndarray]:
    """Cut ``labels`` into disjoint index arrays, class by class (:func:`strata`).

    Each part of ``shares`` (name -> share of all examples) gets that share of every class,
    to within one example but at least one where the share is above 0; ``rest`` gets what
    remains, at least one as well. The cut depends on the labels and ``seed`` alone; indices are
    ascending.

    Raises:
        DataError: a class has too few examples to be in every part. The message numbers the
            class; callers that know names check with :func:`require_examples` first.
    """
    # Strata so large that each part's share of one is an example, or parts would outgrow theirs.
    wanted = [share for share in shares.values() if share > 0]
    labels = strata(labels, least=max([1 + len(wanted), *(math.ceil(1 / s) for s in wanted)]))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*shares, rest)}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng((seed, int(label))).permutation(members)
        exact = {name: share * len(members) for name, share in shares.items()}
        counts = {name: max(round(size), 1) if size > 0 else 0 for name, size in exact.items()}
        while sum(counts.values()) >= len(members):
            most = max(counts, key=lambda name: (counts[name] > 1, counts[name] - exact[name]))
            if counts[most] <= 1:
                raise DataError(
                    f"class {int(label)} has {len(members)} examples, too few for a part of "
                    f"each of {', '.join((*shares, rest))}"
                )
            counts[most] -= 1
        start = 0
        for name, count in counts.items():
            parts[name].append(order[start : start + count])
            start += count
        parts[rest].append(order[start:])
    return {
        name: np.sort(np.concatenate(pieces)) if pieces else np.empty(0, dtype=np.int64)
        for name, pieces in parts.items()
    }


def stratified_limit(labels: np.ndarray, limit: int, *, seed: int) -> np.ndarray:
    """Ascending indices of ``limit`` examples whose class shares are those of ``labels``.

    Shares are kept to within one example (largest remainder), with at least one of each class.

    Raises:
        DataError: there are more classes than ``limit``.
    """
    if limit >= len(labels):
        return np.arange(len(labels))
    labels = strata(labels, least=-(-2 * len(labels) // limit))
    classes, counts = np.unique(labels, return_counts=True)
    if limit < len(classes):
        raise DataError(f"a limit of {limit} examples cannot hold {len(classes)} classes")
    exact = counts * (limit / len(labels))
    quota = np.maximum(np.floor(exact).astype(np.int64), 1)
    while quota.sum() < limit:
        quota[np.argmax(np.where(quota < counts, exact - quota, -np.inf))] += 1
    while quota.sum() > limit:
        quota[np.argmax(np.where(quota > 1, quota - exact, -np.inf))] -= 1
    chosen = [
        np.random.default_rng((seed, int(label))).permutation(np.flatnonzero(labels == label))[:n]
        for label, n in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def require_examples(
    labels: np.ndarray, label_names: Sequence[str], needed: int, *, place: str, reason: str
) -> None:
    """Refuse classes (or labels of 0 and 1, ``[example, label]``) with fewer than ``needed``
    examples, naming all of them at once.

    Raises:
        DataError: with every such class and its count.
    """
    several = labels.ndim == 2
    counts = (
        labels.sum(axis=0).astype(int)
        if several
        else np.bincount(labels, minlength=len(label_names))
    )
    rare = [
        f"{name!r} has {count}"
        for name, count in zip(label_names, counts, strict=True)
        if count < needed
    ]
    if rare:
        raise DataError(
            f"{place}: every class needs at least {needed} examples ({reason}); "
            f"class {', class '.join(rare)}",
            hint="add examples of it, or take it out of the data",
        )
    if len(label_names) < 2:
        raise DataError(
            f"{place}: a classifier needs two classes, found {len(label_names)}"
            + (f" ({label_names[0]!r})" if label_names else "")
        )
