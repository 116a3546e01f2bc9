"""Labels of own data, from the cells of a table to arrays.

A cell of a classification names a class. Of a multi-label one it is a list of names or a string of
them with ``|`` between; with several label columns each holds 0 or 1. A cell of a regression is a
number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rekd_edge.data.source import label_indices, require_known, sorted_names
from rekd_edge.errors import DataError
from rekd_edge.types import ProblemType

SEPARATOR = "|"


def parse_label(value: Any, problem: ProblemType, columns: Sequence[str]) -> Any:
    """What a row's label says: a class name; a tuple of names, perhaps empty; or one of numbers.

    ``value`` is the cell of the one column, or a sequence of the cells of several.

    Raises:
        DataError: it says nothing of the kind; the message has no place yet.
    """
    if problem == "single_label_classification":
        return label_text(value)
    cells = [value] if len(columns) == 1 else list(value)
    if problem == "regression":
        return tuple(_number(cell, column) for cell, column in zip(cells, columns, strict=True))
    if len(columns) > 1:
        marks = zip(cells, columns, strict=True)
        return tuple(column for cell, column in marks if _mark(cell, column))
    return _names(value)


def label_array(
    parsed: Sequence[Any],
    places: Sequence[str],
    problem: ProblemType,
    columns: Sequence[str],
    label_names: tuple[str, ...] | None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as :class:`~rekd_edge.data.split.Split` holds them, and their names in order.

    Without ``label_names`` these are the names found, or the columns of several, or of numbers.

    Raises:
        DataError: a name that is not among ``label_names``; up to five places are named.
    """
    if problem == "single_label_classification":
        return label_indices(parsed, places, label_names)
    if problem == "regression":
        return np.asarray(parsed, dtype=np.float32).reshape(len(parsed), -1), tuple(columns)
    if label_names is None:
        found = {name for names in parsed for name in names}
        label_names = tuple(columns) if len(columns) > 1 else sorted_names(found)
    index_of = {name: index for index, name in enumerate(label_names)}
    require_known(
        [(name, place) for names, place in zip(parsed, places, strict=True) for name in names],
        label_names,
    )
    labels = np.zeros((len(parsed), len(label_names)), dtype=np.float32)
    for row, names in enumerate(parsed):
        labels[row, [index_of[name] for name in names]] = 1.0
    return labels, label_names


def label_text(value: Any) -> str:
    """A class name from a cell: a non-empty string, a whole number or a truth value.

    Raises:
        DataError: anything else.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if value is None or isinstance(value, str):
        raise DataError("the label is missing")
    raise DataError(f"a label is a string or a whole number, not {value!r}")


def _names(value: Any) -> tuple[str, ...]:
    if value is None:
        raise DataError("the labels are missing (an empty list or string says that there is none)")
    if isinstance(value, str):
        pieces: list[Any] = value.split(SEPARATOR) if value.strip() else []
        if any(not piece.strip() for piece in pieces):
            raise DataError(f"{value!r} has an empty label beside a {SEPARATOR!r}")
    elif isinstance(value, list | tuple):
        pieces = list(value)
    else:
        raise DataError(
            f"labels are a list, or a string with {SEPARATOR!r} between them, not {value!r}"
        )
    names = tuple(label_text(piece) for piece in pieces)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"label {twice[0]!r} is there twice")
    return names


def _mark(cell: Any, column: str) -> bool:
    text = str(cell).strip().lower()
    if text in {"1", "1.0", "true"}:
        return True
    if text in {"0", "0.0", "false"}:
        return False
    raise DataError(f"column {column!r} holds 0 or 1, not {cell!r}")


def _number(cell: Any, column: str) -> float:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise DataError(f"the number in column {column!r} is missing")
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"column {column!r} holds a number, not {cell!r}") from None
    if not math.isfinite(number):
        raise DataError(f"column {column!r} holds a finite number, not {cell!r}")
    if abs(number) > float(np.finfo(np.float32).max):
        raise DataError(f"column {column!r}: {cell!r} is too large (float32)")
    return number
