"""What a reader of any source answers, before it is cut into splits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from rekd_edge.data.split import Split
from rekd_edge.errors import DataError


@dataclass(frozen=True, slots=True)
class SourceData:
    """All labelled examples of a source. ``test`` and ``dev`` are its own splits, if it has
    them; ``facts`` (name, version, sha256...) go into the run."""

    train: Split
    label_names: tuple[str, ...]
    test: Split | None = None
    dev: Split | None = None
    facts: dict[str, str] = field(default_factory=dict)


def normal_form(text: str) -> str:
    """Lower-case words only: texts that agree in it are the same text to a reader."""
    return " ".join(re.findall(r"\w+", text.lower()))


def unique_indices(
    texts: Sequence[str], labels: np.ndarray, *, beside: Sequence[str] = ()
) -> np.ndarray:
    """Indices that keep one of each set of equal texts (by :func:`normal_form`).

    The first one stays. Texts that appear with several labels, texts without a word, and texts
    that are also in ``beside`` (the test split) are left out altogether.
    """
    forms = [normal_form(text) for text in texts]
    seen_labels: dict[str, set[bytes]] = {}
    for form, label in zip(forms, np.asarray(labels), strict=True):
        seen_labels.setdefault(form, set()).add(label.tobytes())
    taken = {normal_form(text) for text in beside} | {""}
    kept: list[int] = []
    for index, form in enumerate(forms):
        if form not in taken and len(seen_labels[form]) == 1:
            taken.add(form)
            kept.append(index)
    return np.asarray(kept, dtype=np.int64)


def sha256_of_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def label_indices(
    values: Sequence[str], places: Sequence[str], label_names: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices, int64 ``[example]``, and class names in order.

    Without ``label_names`` the sorted names found are taken (numbers in numeric order).

    Raises:
        DataError: a value is not among ``label_names``; up to five places are named.
    """
    if label_names is None:
        label_names = sorted_names(set(values))
    index_of = {name: index for index, name in enumerate(label_names)}
    require_known(list(zip(values, places, strict=True)), label_names)
    return np.asarray([index_of[value] for value in values], dtype=np.int64), label_names


def sorted_names(found: Collection[str]) -> tuple[str, ...]:
    """In order, numbers in numeric order."""
    numeric = all(re.fullmatch(r"-?\d{1,18}", value) for value in found)
    return tuple(sorted(found, key=int) if numeric else sorted(found))


def require_known(named: Sequence[tuple[str, str]], label_names: Sequence[str]) -> None:
    """Refuses (name, place) whose name is not among ``label_names``.

    Raises:
        DataError: with up to five places.
    """
    known = set(label_names)
    unknown = [f"{place}: label {name!r}" for name, place in named if name not in known]
    if unknown:
        raise DataError(
            "labels that the recipe's `data.labels` does not name: " + summary(unknown),
            hint=f"data.labels is {', '.join(label_names)}",
        )


def summary(problems: Sequence[str], shown: int = 5) -> str:
    """The first problems and the number of the others, for one message."""
    more = f" (and {len(problems) - shown} more)" if len(problems) > shown else ""
    return "; ".join(problems[:shown]) + more
