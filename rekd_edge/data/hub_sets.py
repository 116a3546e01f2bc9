"""Data sets of the Hugging Face hub, or saved to disk by its ``datasets`` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from rekd_edge.data.labels import label_array, parse_label
from rekd_edge.data.own_data import Row, examples_of_rows
from rekd_edge.data.reachability import hub_obstacle
from rekd_edge.data.source import SourceData
from rekd_edge.data.split import EncodedImageSplit, Split
from rekd_edge.errors import BackendError, DataError, RecipeError
from rekd_edge.recipe.schema import DataSpec
from rekd_edge.types import Modality, ProblemType

_DEV_NAMES = ("validation", "dev", "valid", "val")


def read_huggingface(
    spec: DataSpec, modality: Modality, problem: ProblemType = "single_label_classification"
) -> SourceData:
    """``data.name`` from the hub, or ``data.path`` as written by ``Dataset.save_to_disk``.

    Its own validation and test splits are used where they are labelled.

    Raises:
        RecipeError: neither a name nor a path.
        BackendError: the hub cannot be reached (said at once), or has no such data set.
        DataError: no training split, a missing column, an unusable example.
    """
    if spec.path is None and spec.name is None:
        raise RecipeError(
            "source 'huggingface' needs data.name (on the hub) or data.path (saved to disk)"
        )
    parts = _load_from_disk(spec.path) if spec.path is not None else _load_from_hub(spec)
    title = spec.path or str(spec.name)
    if "train" not in parts:
        raise DataError(f"{title}: has no split 'train'; its splits are {', '.join(parts)}")
    dev_name = next((name for name in _DEV_NAMES if name in parts), None)
    chosen = {"train": "train", "test": "test" if "test" in parts else None, "dev": dev_name}
    label_names = spec.labels
    splits: dict[str, Split] = {}
    for part, name in chosen.items():
        if name is None or (part != "train" and _is_unlabelled(parts[name], spec)):
            continue
        splits[part], label_names = _read_part(
            parts[name], part, f"{title} ({name})", spec, modality, problem, label_names
        )
    facts = {"hub_name" if spec.path is None else "path": title}
    facts["fingerprint"] = str(getattr(parts["train"], "_fingerprint", ""))
    return SourceData(
        splits["train"], label_names or (), splits.get("test"), splits.get("dev"), facts
    )


def _load_from_disk(path: str) -> dict[str, Any]:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a saved data set: {error}") from error
    return (
        {str(name): part for name, part in loaded.items()}
        if isinstance(loaded, DatasetDict)
        else {"train": loaded}
    )


def _load_from_hub(spec: DataSpec) -> dict[str, Any]:
    obstacle = hub_obstacle()
    if obstacle is not None:
        raise BackendError(
            f"data set {spec.name!r} is on the Hugging Face hub, and {obstacle}",
            hint="save it where there is a network with Dataset.save_to_disk and set data.path",
        )
    from datasets import load_dataset

    try:
        loaded: Any = load_dataset(str(spec.name), spec.config_name)
    except Exception as error:  # network, missing data set, scripts, formats: all its own kinds
        raise BackendError(
            f"data set {spec.name!r} could not be loaded from the Hugging Face hub: "
            f"{type(error).__name__}: {error}"
        ) from error
    return {str(name): part for name, part in loaded.items()}


def _class_names(part: Any, label_column: str) -> list[str] | None:
    feature = part.features.get(label_column)
    feature = getattr(feature, "feature", feature)  # of a list of classes: that of its items
    return list(feature.names) if hasattr(feature, "names") else None


def _is_unlabelled(part: Any, spec: DataSpec) -> bool:
    """Published test splits often hide their labels as -1."""
    if not set(spec.label_columns) <= set(part.column_names):
        return True
    return all(value in (-1, None) for value in part[spec.label_columns[0]])


def _read_part(
    part: Any,
    name: str,
    title: str,
    spec: DataSpec,
    modality: Modality,
    problem: ProblemType,
    label_names: tuple[str, ...] | None,
) -> tuple[Split, tuple[str, ...]]:
    value_column = spec.text_column if modality == "text" else spec.image_column
    columns = spec.label_columns
    for column in (value_column, *columns):
        if column not in part.column_names:
            raise DataError(
                f"{title}: has no column {column!r}; its columns are "
                + ", ".join(repr(column) for column in part.column_names)
            )
    labels: list[Any] = list(zip(*(part[column] for column in columns), strict=True))
    if len(columns) == 1:
        labels = [label for (label,) in labels]
        names = None if problem == "regression" else _class_names(part, columns[0])
        if names is not None:
            label_names = label_names or tuple(names)
            labels = [_named(label, names) for label in labels]
    places = [f"{title}: row {number}" for number in range(1, len(labels) + 1)]
    if modality == "text":
        rows = [
            Row(value, label, place)
            for value, label, place in zip(part[value_column], labels, places, strict=True)
        ]
        return examples_of_rows(rows, Path(title), name, modality, problem, columns, label_names)
    from datasets import Image

    parsed = [parse_label(value, problem, columns) for value in labels]
    found, label_names = label_array(parsed, places, problem, columns, label_names)
    contents = _LazyImages(part.cast_column(value_column, Image(decode=False)), value_column)
    return EncodedImageSplit(name, found, contents, title), label_names


def _named(label: Any, names: Sequence[str]) -> Any:
    """A class number, or a list of them, as names; None for one that there is not."""
    if isinstance(label, list | tuple):
        return [_named(one, names) for one in label]
    return names[label] if label in range(len(names)) else None


class _LazyImages(Sequence[bytes]):
    """The encoded images of a column, read from disk when asked for."""

    def __init__(self, part: Any, column: str) -> None:
        self._part = part
        self._column = column

    def __len__(self) -> int:
        return len(self._part)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        stored = self._part[index][self._column]
        if stored.get("bytes"):
            return stored["bytes"]
        try:
            return Path(stored["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{stored['path']}: cannot be read: {error.strerror}") from error
