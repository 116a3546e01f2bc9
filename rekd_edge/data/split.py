"""Splits: labelled examples behind one interface, and cutting them by class.

A split gives its labels at once and its raw examples one at a time, so that a folder of images
is as good as an array in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rekd_edge.data.images import rgb_from_bytes, rgb_from_file
from rekd_edge.errors import DataError

RawExample = str | np.ndarray
"""A text, or an image: uint8 ``[height, width, 3]`` (RGB)."""

Gold = tuple[tuple[int, int], ...] | np.ndarray
"""The evidence in one example: character spans (start, end) of a text, or a mask, bool
``[height, width]``, of an image. No batch carries it: only evaluation reads it."""


class Split(ABC):
    """Labelled examples. Compared and hashed by identity.

    ``labels`` is int64 ``[example]``; ``name`` is ``train``, ``dev`` or ``test``; ``gold`` is the
    evidence of each example, where the source knows it.
    """

    gold: Sequence[Gold] | None = None

    def __init__(self, name: str, labels: np.ndarray) -> None:
        self.name = name
        self.labels = np.asarray(labels, dtype=np.int64)

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
    """Splits one after another under one name. ``labels``, int64 ``[example]``, replaces theirs."""

    def __init__(self, name: str, parts: Sequence[Split], labels: np.ndarray | None = None) -> None:
        joined = np.concatenate([part.labels for part in parts])
        if labels is not None and len(labels) != len(joined):
            raise ValueError(f"{len(joined)} examples and {len(labels)} labels")
        super().__init__(name, joined if labels is None else labels)
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


def stratified_split(
    labels: np.ndarray, shares: Mapping[str, float], *, rest: str, seed: int
) -> dict[str, np.ndarray]:
    """Cut ``labels`` (int64 ``[example]``) into disjoint index arrays, class by class.

    Each part of ``shares`` (name -> share of all examples) gets that share of every class,
    to within one example but at least one where the share is above 0; ``rest`` gets what
    remains, at least one as well. The cut depends on the labels and ``seed`` alone; indices are
    ascending.

    Raises:
        DataError: a class has too few examples to be in every part. The message numbers the
            class; callers that know names check with :func:`require_examples` first.
    """
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
    """Refuse classes with fewer than ``needed`` examples, naming all of them at once.

    Raises:
        DataError: with every such class and its count.
    """
    counts = np.bincount(labels, minlength=len(label_names))
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
