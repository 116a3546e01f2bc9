"""The folder layout in which ERASER publishes its data sets (DeYoung et al. 2020).

FOLDER/docs/DOCID, or FOLDER/docs.jsonl ({"docid", "document"}): one sentence a line, tokens
separated by spaces. FOLDER/{train,val,test}.jsonl, one annotation a line: ``annotation_id``,
``query``, ``classification`` and ``evidences``, a list of groups of {docid, start_token,
end_token, ...}. Tokens are counted through the whole document; the end is exclusive. ``val`` and
``test`` may be missing; they are then cut from ``train``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rekd_edge.data.source import SourceData, label_indices, summary
from rekd_edge.data.split import ArraySplit
from rekd_edge.errors import DataError, RecipeError
from rekd_edge.recipe.schema import DataSpec
from rekd_edge.types import Modality

_FILES = {"train": "train.jsonl", "dev": "val.jsonl", "test": "test.jsonl"}


@dataclass(frozen=True, slots=True)
class _Annotation:
    place: str
    query: str
    label: str
    docids: tuple[str, ...]
    evidence: tuple[tuple[str, int, int], ...]
    """(docid, first token, token after the last) of every evidence."""


def read_eraser(path: Path, spec: DataSpec, modality: Modality) -> SourceData:
    """Texts, labels and evidence of a folder in ERASER's layout.

    A text is the query, where it is not the same in every example, and the documents of the
    annotation, a line each; tokens are joined by single spaces. The gold rationale is the union of
    all evidences.

    Raises:
        RecipeError: for images.
        DataError: a file is missing or malformed, a document leads out of the folder, or an
            evidence lies outside its document; up to five problems are named.
    """
    if modality != "text":
        raise RecipeError("data.source 'eraser' needs modality: text")
    if not path.is_dir():
        raise DataError(f"{path}: " + ("is a file" if path.exists() else "no such folder"))
    digest = hashlib.sha256()
    parts = {
        name: _annotations(path / file, digest)
        for name, file in _FILES.items()
        if name == "train" or (path / file).is_file()
    }
    documents = _documents(path, parts, digest)
    queries = {annotation.query for part in parts.values() for annotation in part}
    with_query = len(queries) > 1
    label_names = spec.labels
    splits: dict[str, ArraySplit] = {}
    # The training split names the classes; the others must not bring new ones.
    for name, part in parts.items():
        texts, gold, problems = [], [], []
        for annotation in part:
            try:
                text, spans = _text(annotation, documents, with_query)
            except DataError as error:
                problems.append(error.message)
                continue
            texts.append(text)
            gold.append(spans)
        if problems:
            raise DataError(summary(problems))
        labels, label_names = label_indices(
            [annotation.label for annotation in part],
            [annotation.place for annotation in part],
            label_names,
        )
        splits[name] = ArraySplit(name, labels, texts, gold)
    return SourceData(
        splits["train"],
        label_names or (),
        splits.get("test"),
        splits.get("dev"),
        {"path": str(path), "sha256": digest.hexdigest()},
    )


def _annotations(file: Path, digest: Any) -> list[_Annotation]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read: {error.strerror or error}",
            hint="data.path is the folder that holds docs and train.jsonl",
        ) from error
    digest.update(content)
    found: list[_Annotation] = []
    problems: list[str] = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{file}: line {number}"
        try:
            found.append(_annotation(json.loads(line), place))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{place}: is no annotation of ERASER: {error!r}")
    if problems:
        raise DataError(summary(problems))
    if not found:
        raise DataError(f"{file}: holds no annotations")
    return found


def _annotation(record: Mapping[str, Any], place: str) -> _Annotation:
    evidence: list[tuple[str, int, int]] = []
    for group in record["evidences"]:
        for item in group:
            start, end = item["start_token"], item["end_token"]
            if type(start) is not int or type(end) is not int:
                raise ValueError("start_token and end_token are whole numbers")
            evidence.append((str(item["docid"]), start, end))
    stated = [str(docid) for docid in record.get("docids") or ()]
    docids = [*stated, *(docid for docid, _, _ in evidence)] or [str(record["annotation_id"])]
    query, label = record.get("query") or "", record["classification"]
    if not isinstance(query, str) or not isinstance(label, str) or not label.strip():
        raise ValueError("query and classification are texts")
    return _Annotation(place, query, label, tuple(sorted(set(docids))), tuple(evidence))


def _documents(
    path: Path, parts: Mapping[str, list[_Annotation]], digest: Any
) -> dict[str, list[list[str]]]:
    """Tokens of each sentence of every document that is needed, by docid."""
    needed = sorted({d for part in parts.values() for a in part for d in a.docids})
    table = path / "docs.jsonl"
    folder = path / "docs"
    contents: dict[str, str] = {}
    problems: list[str] = []
    if table.is_file():
        for number, line in enumerate(table.read_bytes().splitlines(), start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                    contents[str(record["docid"])] = str(record["document"])
                except (ValueError, KeyError, TypeError) as error:
                    problems.append(f"{table}: line {number}: {error!r}")
        problems += [f"{table}: has no document {d!r}" for d in needed if d not in contents]
    else:
        for docid in needed:
            try:
                contents[docid] = _document_file(folder, docid).read_text(encoding="utf-8")
            except DataError as error:
                problems.append(error.message)
            except (OSError, ValueError) as error:
                problems.append(f"{folder}: the document {docid!r} cannot be read: {error}")
    if problems:
        raise DataError(summary(problems))
    for docid in needed:
        digest.update(f"{docid}\0{contents[docid]}\0".encode())
    sentences = {docid: contents[docid].split("\n") for docid in needed}
    return {
        docid: [tokens for line in lines if (tokens := line.split())]
        for docid, lines in sentences.items()
    }


def _document_file(folder: Path, docid: str) -> Path:
    """``folder/docid``, which must lie in ``folder``, links followed."""
    pure = PurePosixPath(docid)
    if not docid or "\0" in docid or pure.is_absolute() or ".." in pure.parts or "\\" in docid:
        raise DataError(f"{folder}: the document {docid!r} would lie outside the folder")
    file = folder / pure
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder}: the document {docid!r} lies outside the folder")
    return file


def _text(
    annotation: _Annotation, documents: Mapping[str, list[list[str]]], with_query: bool
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text and the character spans of its evidence."""
    pieces: list[str] = []
    length = 0
    if with_query and annotation.query.strip():
        pieces.append(annotation.query.strip())
        length = len(pieces[0]) + 1
    places: dict[str, list[tuple[int, int]]] = {}
    for docid in annotation.docids:
        tokens = [token for sentence in documents[docid] for token in sentence]
        spans: list[tuple[int, int]] = []
        for token in tokens:
            spans.append((length, length + len(token)))
            length += len(token) + 1
        pieces.append(" ".join(tokens))
        places[docid] = spans
        if not tokens:
            length += 1
    gold: list[tuple[int, int]] = []
    for docid, start, end in annotation.evidence:
        spans = places[docid]
        if not 0 <= start < end <= len(spans):
            raise DataError(
                f"{annotation.place}: the evidence {start}..{end} lies outside the document "
                f"{docid!r} of {len(spans)} tokens"
            )
        gold.append((spans[start][0], spans[end - 1][1]))
    text = "\n".join(pieces)
    if not text.strip():
        raise DataError(f"{annotation.place}: the text is empty")
    return text, tuple(sorted(set(gold)))
