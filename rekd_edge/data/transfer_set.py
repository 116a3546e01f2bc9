"""Unlabelled examples for a student: a teacher can answer for what nobody has annotated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from rekd_edge.data.load import TaskData, read_source
from rekd_edge.data.source import normal_form
from rekd_edge.data.split import JoinedSplit, RawExample, Split
from rekd_edge.errors import DataError
from rekd_edge.recipe.schema import DataSpec, Recipe, TransferSpec


@dataclass(frozen=True, slots=True)
class TransferSet:
    """``examples`` carries no meaning in its labels; ``known`` and ``repeated`` count what was
    left out because it is in the recipe's data, or came a second time."""

    examples: Split
    known: int
    repeated: int


def load_transfer(recipe: Recipe, spec: TransferSpec, data: TaskData) -> TransferSet:
    """The recipe's transfer set: nothing that is in ``data``, nothing twice.

    Texts are equal if their words are (case and punctuation apart), images if their pixels are.

    Raises:
        RecipeError, DataError, BackendError, IntegrityError: as :func:`~rekd_edge.data.load_data`;
            also where no example is left.
    """
    source = read_source(
        DataSpec(
            source=spec.source,
            path=spec.path,
            text_column=spec.text_column,
            image_column=spec.image_column,
            # A table without labels is fine: any column does for a label that is not used.
            label_column=spec.text_column if recipe.modality == "text" else spec.image_column,
        ),
        recipe.modality,
    )
    parts = [part for part in (source.train, source.dev) if part is not None]
    found: Split = parts[0] if len(parts) == 1 else JoinedSplit("train", parts)
    taken = {
        _fingerprint(split.raw(index))
        for split in (data.train, data.dev, data.test)
        for index in range(len(split))
    }
    fresh, known, repeated = [], 0, 0
    seen: set[str] = set()
    for index in range(len(found)):
        mark = _fingerprint(found.raw(index))
        if mark in taken:
            known += 1
        elif mark in seen:
            repeated += 1
        else:
            seen.add(mark)
            fresh.append(index)
    if not fresh:
        raise DataError(
            f"transfer.source {spec.source!r} has no example that is not in the recipe's data",
            hint="name another source, or remove the `transfer` section",
        )
    chosen = np.asarray(fresh, dtype=np.int64)
    if spec.limit is not None and spec.limit < len(chosen):
        random = np.random.default_rng((recipe.data.split.seed, len(chosen)))
        chosen = np.sort(random.permutation(chosen)[: spec.limit])
    return TransferSet(found.take(chosen, "train"), known, repeated)


def _fingerprint(example: RawExample) -> str:
    if isinstance(example, str):
        return normal_form(example)
    return hashlib.sha256(str(example.shape).encode() + example.tobytes()).hexdigest()
