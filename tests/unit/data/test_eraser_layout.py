"""ERASER's layout, on small folders made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rekd_edge.data.load import load_source
from rekd_edge.data.split import Split
from rekd_edge.errors import DataError, RecipeError
from rekd_edge.recipe.schema import DataSpec

DOCUMENTS = {
    "good.txt": "A slow start .\nBut it ends  very well .\n\n",
    "bad.txt": "Dull , dull .\nNobody laughed .\n",
    "mixed.txt": "Some of it works .\n",
}


def annotation(
    name: str, label: str, *evidence: tuple[str, int, int], **more: Any
) -> dict[str, Any]:
    groups = [
        [
            {
                "docid": docid,
                "start_token": start,
                "end_token": end,
                "start_sentence": -1,
                "end_sentence": -1,
                "text": "",
            }
        ]
        for docid, start, end in evidence
    ]
    return {
        "annotation_id": name,
        "classification": label,
        "docids": None,
        "evidences": groups,
        "query": "What is the sentiment of this review?",
        "query_type": None,
        **more,
    }


TRAIN = [
    annotation("good.txt", "POS", ("good.txt", 7, 9)),
    annotation("bad.txt", "NEG", ("bad.txt", 0, 1), ("bad.txt", 4, 6)),
    annotation("mixed.txt", "NEG"),  # without evidence the annotation names its document
    annotation("good-again", "POS", ("good.txt", 0, 4)),
]


def folder(
    tmp_path: Path, train: list[dict[str, Any]] = TRAIN, **files: list[dict[str, Any]]
) -> Path:
    (tmp_path / "docs").mkdir(parents=True)
    for name, content in DOCUMENTS.items():
        (tmp_path / "docs" / name).write_text(content)
    for name, records in {"train": train, **files}.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return tmp_path


def read(path: Path, **options: Any) -> Any:
    from rekd_edge.data.own_data import read_own_data

    return read_own_data(DataSpec(source="eraser", path=str(path), **options), "text")


def marked(split: Split, index: int) -> list[str]:
    assert split.gold is not None
    spans = split.gold[index]
    assert isinstance(spans, tuple)
    return [str(split.raw(index))[start:end] for start, end in spans]


def test_texts_labels_and_evidence(tmp_path: Path) -> None:
    data = read(folder(tmp_path, val=TRAIN[:2], test=TRAIN[1:3]))
    assert data.label_names == ("NEG", "POS")
    assert data.train.labels.tolist() == [1, 0, 0, 1]
    assert data.train.raw(0) == "A slow start . But it ends very well ."
    assert marked(data.train, 0) == ["very well"]
    assert marked(data.train, 1) == ["Dull", "Nobody laughed"]
    assert marked(data.train, 2) == []
    assert (data.train.name, data.dev.name, data.test.name) == ("train", "dev", "test")
    assert (len(data.dev), len(data.test)) == (2, 2)
    assert len(data.facts["sha256"]) == 64


def test_a_query_that_differs_and_several_documents_come_together(tmp_path: Path) -> None:
    train = [
        annotation("1", "POS", ("good.txt", 8, 9), ("bad.txt", 0, 1), query="Is it good ?"),
        annotation("2", "NEG", ("bad.txt", 0, 1), query="Is it fun ?", docids=["mixed.txt"]),
    ]
    data = read(folder(tmp_path, train))
    assert data.train.raw(0) == (
        "Is it good ?\nDull , dull . Nobody laughed .\nA slow start . But it ends very well ."
    )
    assert marked(data.train, 0) == ["Dull", "well"]
    assert data.train.raw(1) == "Is it fun ?\nDull , dull . Nobody laughed .\nSome of it works ."
    assert marked(data.train, 1) == ["Dull"]


def test_documents_in_one_file(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for name in DOCUMENTS:
        (path / "docs" / name).unlink()
    (path / "docs").rmdir()
    lines = [json.dumps({"docid": name, "document": text}) for name, text in DOCUMENTS.items()]
    (path / "docs.jsonl").write_text("\n".join(lines))
    data = read(path)
    assert marked(data.train, 0) == ["very well"]
    (path / "docs.jsonl").write_text("\n".join(lines[:1]))
    with pytest.raises(
        DataError, match=r"has no document 'bad\.txt'.*has no document 'mixed\.txt'"
    ):
        read(path)


def test_missing_splits_are_cut_with_their_gold(tmp_path: Path) -> None:
    many = [
        annotation(f"{label}-{number}", label, (document, start, start + 1))
        for number in range(10)
        for label, document, start in (("POS", "good.txt", 8), ("NEG", "bad.txt", 0))
    ]
    spec = DataSpec(source="eraser", path=str(folder(tmp_path, many)))
    data = load_source(spec, "text")
    assert (len(data.train), len(data.dev), len(data.test)) == (14, 2, 4)
    for split in (data.train, data.dev, data.test):
        for index, label in enumerate(split.labels):
            assert marked(split, index) == [("Dull", "well")[label]]


@pytest.mark.parametrize(
    "docid", ["../secret.txt", "/etc/passwd", "docs/../../secret.txt", "a\\..\\b", "", "link.txt"]
)
def test_no_document_leads_out_of_the_folder(tmp_path: Path, docid: str) -> None:
    path = folder(tmp_path / "set", [annotation("1", "POS", (docid, 0, 1)), *TRAIN])
    (tmp_path / "secret.txt").write_text("secret words")
    (path / "secret.txt").write_text("secret words")
    (path / "docs" / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(DataError, match="outside the folder"):
        read(path)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (annotation("1", "POS", ("good.txt", 8, 99)), "8..99 lies outside"),
        (annotation("1", "POS", ("good.txt", 3, 3)), "3..3 lies outside"),
        (annotation("1", "POS", ("good.txt", -1, 3)), "-1..3 lies outside"),
        (annotation("1", "POS", ("none.txt", 0, 1)), "'none.txt' cannot be read"),
        ({"annotation_id": "1", "classification": "POS"}, "line 1: is no annotation.*evidences"),
        (annotation("1", ""), "classification are texts"),
        (annotation("1", "POS", ("good.txt", "0", 1)), "whole numbers"),  # type: ignore[arg-type]
        (["POS"], "line 1: is no annotation"),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, record: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read(folder(tmp_path, [record, *TRAIN]))
    assert caught.value.exit_code == 2


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"train\.jsonl: cannot be read"):
        read(tmp_path / "empty")
    path = folder(tmp_path / "set", test=[annotation("1", "MAYBE", ("good.txt", 0, 1))])
    with pytest.raises(DataError, match="label 'MAYBE'"):
        read(path)
    (path / "train.jsonl").write_text("{broken")
    with pytest.raises(DataError, match="line 1: is no annotation"):
        read(path)
    (path / "train.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no annotations"):
        read(path)
    with pytest.raises(RecipeError, match="modality: text"):
        load_source(DataSpec(source="eraser", path=str(path)), "image")
