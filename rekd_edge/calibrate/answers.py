"""What a file answers to a split, one example at a time, as on a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rekd_edge.check.inputs import LabelledBatch, single
from rekd_edge.errors import DataError
from rekd_edge.problem import answers
from rekd_edge.types import Outputs, ProblemType


class Answering(Protocol):
    """An open runner."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Outputs: ...


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one split: ``logits`` float32 ``[example, label]``, ``margin`` float64 ``[example]``,
    ``labels`` as in :mod:`rekd_edge.problem`, and the kept positions of each example."""

    logits: np.ndarray
    margin: np.ndarray
    labels: np.ndarray
    kept: tuple[tuple[int, ...], ...]
    problem: ProblemType = "single_label_classification"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        """bool ``[example]``: of several labels, whether all are right."""
        found = answers(self.logits, self.problem)
        return found == self.labels if found.ndim == 1 else (found == self.has).all(axis=1)

    @property
    def has(self) -> np.ndarray:
        """Several labels: which an example has, bool ``[example, label]``."""
        return self.labels > 0.5

    def other_rationale(self, reference: Answers) -> np.ndarray:
        """Where another rationale was kept than by ``reference``: bool ``[example]``."""
        pairs = zip(self.kept, reference.kept, strict=True)
        return np.asarray([mine != theirs for mine, theirs in pairs], dtype=bool)


def answers_of(
    runner: Answering,
    batches: Iterable[LabelledBatch],
    problem: ProblemType = "single_label_classification",
) -> Answers:
    """Each example goes through ``runner`` alone and without padding: int8 takes its ranges from
    the whole batch, and a device has batches of one.

    Raises :class:`DataError` for an empty split and for an answer that is not finite.
    """
    logits, margins, labels, kept = [], [], [], []
    for batch in batches:
        for row, label in enumerate(batch.labels):
            found = runner.run(single(batch.inputs, row))
            logits.append(found.logits[0])
            margins.append(found.selection_margin[0])
            labels.append(label)
            kept.append(tuple(np.flatnonzero(found.rationale_mask[0]).tolist()))
    if not labels:
        raise DataError("the split is empty: there is nothing to calibrate on")
    given = Answers(
        np.asarray(logits),
        np.asarray(margins, dtype=np.float64),
        np.asarray(labels),
        tuple(kept),
        problem,
    )
    if not np.isfinite(given.logits).all() or np.isnan(given.margin).any():
        raise DataError("the file answers with numbers that are not finite")
    return given
