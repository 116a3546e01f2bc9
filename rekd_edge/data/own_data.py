"""The user's own data: an image folder, or a table in CSV, JSONL or Parquet.

Every problem of a file is named with its row (data rows count from 1, text files by line), up to
five in one message; nothing is skipped silently.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekd_edge.data.images import IMAGE_SUFFIXES, require_image_header
from rekd_edge.data.labels import label_array, parse_label
from rekd_edge.data.source import SourceData, label_indices, summary
from rekd_edge.data.split import ArraySplit, EncodedImageSplit, FileSplit, Split
from rekd_edge.data.storage import sha256_of
from rekd_edge.errors import BackendError, DataError, RecipeError
from rekd_edge.recipe.schema import DataSpec
from rekd_edge.types import Modality, ProblemType

_FIELD_LIMIT = 1 << 24
_TRAIN_FOLDERS = ("train", "training")
_DEV_FOLDERS = ("dev", "val", "valid", "validation")
_TEST_FOLDERS = ("test", "testing")


@dataclass(frozen=True, slots=True)
class Row:
    """One example of a table, unchecked: ``value`` is a text, an image path or image bytes,
    ``label`` the cell of the label column, or a list of those of several."""

    value: Any
    label: Any
    place: str


def read_own_data(
    spec: DataSpec, modality: Modality, problem: ProblemType = "single_label_classification"
) -> SourceData:
    """Read ``spec.path`` (and ``spec.test_path``) as ``spec.source`` says.

    Raises:
        RecipeError: no path, an image folder for text, or a source of single labels for another
            ``problem``.
        DataError: a file, column, row, label or image that cannot be used.
        BackendError: Parquet without pyarrow.
    """
    if spec.path is None:
        raise RecipeError(f"data.path is needed for source {spec.source!r}")
    path = Path(spec.path)
    if spec.source in {"eraser", "image-folder"} and problem != "single_label_classification":
        raise RecipeError(
            f"data.source {spec.source!r} gives each example one class; problem_type is {problem!r}"
        )
    if spec.source == "eraser":
        from rekd_edge.data.eraser_layout import read_eraser

        return read_eraser(path, spec, modality)
    test_path = None if spec.test_path is None else Path(spec.test_path)
    if spec.source == "image-folder":
        if modality != "image":
            raise RecipeError("an image-folder needs modality: image")
        return _read_image_folders(path, test_path, spec)
    train, label_names = _read_table(path, "train", spec, modality, problem, spec.labels)
    test = None
    if test_path is not None:
        test, _ = _read_table(test_path, "test", spec, modality, problem, label_names)
    facts = {"path": str(path), "sha256": sha256_of(path)}
    if test_path is not None:
        facts |= {"test_path": str(test_path), "test_sha256": sha256_of(test_path)}
    return SourceData(train, label_names, test=test, facts=facts)


# --- tables -------------------------------------------------------------------------------


def _read_table(
    path: Path,
    name: str,
    spec: DataSpec,
    modality: Modality,
    problem: ProblemType,
    label_names: tuple[str, ...] | None,
) -> tuple[Split, tuple[str, ...]]:
    if not path.is_file():
        raise DataError(f"{path}: " + ("is a folder" if path.is_dir() else "no such file"))
    value_column = spec.text_column if modality == "text" else spec.image_column
    readers = {"csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}
    rows = readers[spec.source](path, value_column, spec.label_columns)
    if not rows:
        raise DataError(f"{path}: holds no examples")
    return examples_of_rows(rows, path, name, modality, problem, spec.label_columns, label_names)


def examples_of_rows(
    rows: Sequence[Row],
    path: Path,
    name: str,
    modality: Modality,
    problem: ProblemType,
    label_columns: tuple[str, ...],
    label_names: tuple[str, ...] | None,
) -> tuple[Split, tuple[str, ...]]:
    """Check all rows and make a split of them, with the names of its labels in order.

    Raises:
        DataError: empty texts, unusable labels, unreadable images: up to five are named.
    """
    problems: list[str] = []
    labels: list[Any] = []
    values: list[Any] = []
    for row in rows:
        try:
            labels.append(parse_label(row.label, problem, label_columns))
            values.append(_checked_value(row.value, path.parent, modality))
        except DataError as error:
            problems.append(f"{row.place}: {error.message}")
    if problems:
        raise DataError(summary(problems))
    places = [row.place for row in rows]
    found, label_names = label_array(labels, places, problem, label_columns, label_names)
    if modality == "text":
        return ArraySplit(name, found, values), label_names
    if isinstance(values[0], Path):
        return FileSplit(name, found, values), label_names
    return EncodedImageSplit(name, found, values, str(path)), label_names


def _checked_value(value: Any, folder: Path, modality: Modality) -> str | Path | bytes:
    if modality == "text":
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError("the text is empty")
        if not isinstance(value, str):
            raise DataError(f"the text is not a string: {str(value)[:40]!r}")
        return value
    if isinstance(value, dict):  # how Hugging Face `datasets` stores images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, str) and value.strip():
        path = folder / value
        require_image_header(path)
        return path
    raise DataError("the image is missing")


def _require_columns(path: Path, found: Sequence[str], wanted: Iterable[str]) -> None:
    for column in wanted:
        if column in found:
            if list(found).count(column) > 1:
                raise DataError(f"{path}: there are several columns {column!r}")
            continue
        close = difflib.get_close_matches(column, found, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        raise DataError(
            f"{path}: has no column {column!r}{guess}; its columns are "
            + ", ".join(repr(name) for name in found),
            hint="name the columns with data.text_column, data.image_column, data.label_column",
        )


def _label_of(cells: Sequence[Any]) -> Any:
    return cells[0] if len(cells) == 1 else list(cells)


def _csv_rows(path: Path, value_column: str, label_columns: tuple[str, ...]) -> list[Row]:
    csv.field_size_limit(_FIELD_LIMIT)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if not header:
                raise DataError(f"{path}: is empty; its first line names the columns")
            _require_columns(path, header, (value_column, *label_columns))
            value_index = header.index(value_column)
            label_index = [header.index(column) for column in label_columns]
            for fields in reader:
                if not fields:
                    continue
                place = f"{path}: line {reader.line_num}"
                if len(fields) != len(header):
                    raise DataError(
                        f"{place}: has {len(fields)} fields, the header has {len(header)}",
                        hint="quote texts that hold the separator or a line break",
                    )
                label = _label_of([fields[index] for index in label_index])
                rows.append(Row(fields[value_index], label, place))
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: is not UTF-8 (after line {reader.line_num})",
                hint="save it as UTF-8",
            ) from error
    return rows


def _jsonl_rows(path: Path, value_column: str, label_columns: tuple[str, ...]) -> list[Row]:
    rows: list[Row] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}: line {number}"
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                raise DataError(f"{place}: is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{place}: is not an object but {type(record).__name__}")
            try:
                _require_columns(path, list(record), (value_column, *label_columns))
            except DataError as error:
                message = error.message.replace(f"{path}:", f"{place}:", 1)
                raise DataError(message, hint=error.hint) from error
            label = _label_of([record[column] for column in label_columns])
            rows.append(Row(record[value_column], label, place))
    return rows


def _parquet_rows(path: Path, value_column: str, label_columns: tuple[str, ...]) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BackendError("Parquet needs `pyarrow`", hint="pip install pyarrow") from error
    try:
        names = pyarrow.parquet.read_schema(path).names
        _require_columns(path, names, (value_column, *label_columns))
        wanted = list(dict.fromkeys((value_column, *label_columns)))
        table = pyarrow.parquet.read_table(path, columns=wanted)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: is not a readable Parquet file: {error}") from error
    values = table.column(value_column).to_pylist()
    labels = zip(*(table.column(column).to_pylist() for column in label_columns), strict=True)
    return [
        Row(value, _label_of(cells), f"{path}: row {number}")
        for number, (value, cells) in enumerate(zip(values, labels, strict=True), start=1)
    ]


# --- image folders ------------------------------------------------------------------------


def _read_image_folders(path: Path, test_path: Path | None, spec: DataSpec) -> SourceData:
    folders = _class_folders(path)
    parts: dict[str, Path] = {"train": path}
    names = {folder.name.lower(): folder for folder in folders}
    if any(name in names for name in _TRAIN_FOLDERS):
        known = {*_TRAIN_FOLDERS, *_DEV_FOLDERS, *_TEST_FOLDERS}
        if set(names) <= known:
            for part, aliases in (
                ("train", _TRAIN_FOLDERS),
                ("dev", _DEV_FOLDERS),
                ("test", _TEST_FOLDERS),
            ):
                for alias in aliases:
                    if alias in names:
                        parts[part] = names[alias]
    if test_path is not None:
        parts["test"] = test_path
    label_names = spec.labels
    splits: dict[str, Split] = {}
    listing = hashlib.sha256()
    for part in ("train", "dev", "test"):
        if part in parts:
            files, classes = _image_files(parts[part], listing)
            places = [str(file) for file in files]
            labels, label_names = label_indices(classes, places, label_names)
            splits[part] = FileSplit(part, labels, files)
    facts = {"path": str(path), "listing_sha256": listing.hexdigest()}
    return SourceData(
        splits["train"], label_names or (), splits.get("test"), splits.get("dev"), facts
    )


def _class_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"{path}: " + ("is a file" if path.exists() else "no such folder"))
    folders = sorted(
        entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not folders:
        raise DataError(
            f"{path}: has no class folders",
            hint="put the images of each class into a folder of its name",
        )
    return folders


def _image_files(path: Path, listing: Any) -> tuple[list[Path], list[str]]:
    """Image files below each class folder and their class names; ``listing`` takes in the
    relative names and sizes."""
    files: list[Path] = []
    classes: list[str] = []
    problems: list[str] = []
    for folder in _class_folders(path):
        found = sorted(
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        )
        if not found:
            problems.append(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
        for file in found:
            try:
                require_image_header(file)
            except DataError as error:
                problems.append(error.message)
                continue
            listing.update(f"{file.relative_to(path)}\0{file.stat().st_size}\n".encode())
            files.append(file)
            classes.append(folder.name)
    if problems:
        raise DataError(summary(problems))
    return files, classes
