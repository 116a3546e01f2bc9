"""The user's own files: each kind reads, and each flaw is named with its file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from rekd_edge.data.load import TaskData, class_counts, load_source
from rekd_edge.errors import DataError, RecipeError
from rekd_edge.recipe.schema import DataSpec

TEXTS = [(f"good film number {n}", "good") for n in range(10)] + [
    (f"bad film number {n}", "bad") for n in range(10)
]


def write_csv(path: Path, rows: list[tuple[str, ...]], header: str = "text,label") -> Path:
    lines = [header, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def load(path: Path, source: str = "csv", modality: Any = "text", **options: Any) -> TaskData:
    return load_source(DataSpec(source=source, path=str(path), **options), modality)


def all_texts(data: TaskData) -> list[str]:
    return [
        str(split.raw(index))
        for split in (data.train, data.dev, data.test)
        for index in range(len(split))
    ]


def read_all(data: TaskData) -> None:
    for split in (data.train, data.dev, data.test):
        for index in range(len(split)):
            split.raw(index)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six images of different sizes and formats for each of two classes."""
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name / "more").mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 255, (8 + number, 10, 3), dtype=np.uint8)
            place = folder / name / ("more" if number > 3 else "")
            Image.fromarray(pixels).save(place / f"{number}.{'png' if number % 2 else 'JPG'}")
    (folder / ".hidden").mkdir()
    (folder / "cat" / "notes.txt").write_text("not an image, and not taken for one")
    return folder


# --- tables -------------------------------------------------------------------------------


def test_csv_is_cut_into_three_disjoint_splits(tmp_path: Path) -> None:
    data = load(write_csv(tmp_path / "data.csv", TEXTS))
    assert data.label_names == ("bad", "good")
    assert [len(data.train), len(data.dev), len(data.test)] == [14, 2, 4]
    assert sorted(all_texts(data)) == sorted(text for text, _ in TEXTS)
    assert class_counts(data.test, data.label_names) == {"bad": 2, "good": 2}
    assert data.source["texts_shared_between_splits"] == "0"
    assert len(data.source["sha256"]) == 64
    for split in (data.train, data.dev, data.test):
        for index, label in enumerate(split.labels):
            assert str(split.raw(index)).startswith(data.label_names[label])


def test_quoted_multiline_bom_and_tabs(tmp_path: Path) -> None:
    rows = [("a, quoted text\nof two lines".replace('"', '""'), "x")] * 4 + [("plain", "y")] * 4
    body = "text,label\r\n" + "".join(f'"{text}",{label}\r\n' for text, label in rows)
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbf" + body.encode())
    assert sum("of two lines" in text for text in all_texts(load(path))) == 4
    table = tmp_path / "data.tsv"
    table.write_text("label\ttext\n" + "a\tone, two\nb\tthree\n" * 5)
    assert set(all_texts(load(table))) == {"one, two", "three"}


def test_missing_column_names_those_found_and_the_nearest(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "data.csv", TEXTS, header="texts,label")
    with pytest.raises(DataError, match=r"no column 'text' \(did you mean 'texts'\?\)") as caught:
        load(path)
    assert "'texts', 'label'" in caught.value.message
    assert caught.value.exit_code == 2
    assert all_texts(load(path, text_column="texts"))


def test_doubled_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,text,label\na,b,c\n")
    with pytest.raises(DataError, match="several columns 'text'"):
        load(path)


def test_empty_texts_and_missing_labels_are_all_named(tmp_path: Path) -> None:
    rows = [*TEXTS, ("", "good"), ("fine", ""), ("   ", "bad")]
    with pytest.raises(DataError) as caught:
        load(write_csv(tmp_path / "data.csv", rows))
    message = caught.value.message
    assert "data.csv: line 22: the text is empty" in message
    assert "data.csv: line 23: the label is missing" in message
    assert "data.csv: line 24: the text is empty" in message


def test_many_problems_are_summed_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(and 4 more\)"):
        load(write_csv(tmp_path / "data.csv", [("", "a")] * 9))


def test_class_with_one_example_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class 'odd' has 1") as caught:
        load(write_csv(tmp_path / "data.csv", [*TEXTS, ("strange", "odd")]))
    assert "at least 3 examples (one each for train, test, dev)" in caught.value.message


def test_single_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two classes, found 1"):
        load(write_csv(tmp_path / "data.csv", TEXTS[:10]))


def test_row_of_another_length_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "data.csv", [*TEXTS, ("one", "two", "three")])
    with pytest.raises(DataError, match="line 22: has 3 fields, the header has 2"):
        load(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path)
    empty = tmp_path / "empty.csv"
    empty.touch()
    with pytest.raises(DataError, match="is empty"):
        load(empty)
    with pytest.raises(DataError, match="holds no examples"):
        load(write_csv(tmp_path / "header.csv", []))
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\nstraße,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        load(latin)
    unclosed = tmp_path / "unclosed.csv"
    unclosed.write_text('text,label\n"never closed,a\n')
    with pytest.raises(DataError, match="unexpected end of data"):
        load(unclosed)
    with pytest.raises(RecipeError, match=r"data\.path is needed"):
        load_source(DataSpec(source="csv"), "text")


def test_separate_test_file(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", TEXTS)
    test = write_csv(tmp_path / "test.csv", [("very good", "good"), ("very bad", "bad")])
    data = load(train, test_path=str(test))
    assert all_texts(data)[-2:] == ["very good", "very bad"]
    assert len(data.train) + len(data.dev) == 20
    foreign = write_csv(tmp_path / "foreign.csv", [("so so", "middling")])
    with pytest.raises(DataError, match="line 2: label 'middling'"):
        load(train, test_path=str(foreign))


def test_shared_texts_are_counted(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", TEXTS)
    test = write_csv(tmp_path / "test.csv", [("Good film, number 3!".replace(",", ""), "good")])
    assert load(train, test_path=str(test)).source["texts_shared_between_splits"] == "1"


def test_label_names_and_their_order(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "data.csv", TEXTS)
    assert load(path, labels=("good", "bad")).label_names == ("good", "bad")
    with pytest.raises(DataError, match="label 'bad'"):
        load(path, labels=("good", "poor"))
    with pytest.raises(DataError, match="class 'superb' has 0"):
        load(path, labels=("bad", "good", "superb"))
    numbers = [(f"text {n}", str(n % 11)) for n in range(44)]
    data = load(write_csv(tmp_path / "numbers.csv", numbers))
    assert data.label_names == tuple(str(n) for n in range(11))


def test_limits_keep_the_classes_level(tmp_path: Path) -> None:
    limit = {"train": 6, "dev": 2, "test": 2}
    data = load(write_csv(tmp_path / "data.csv", TEXTS), limit=limit)
    assert class_counts(data.train, data.label_names) == {"bad": 3, "good": 3}
    assert data.source["train"] == "6"


def test_empty_dev_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the dev split is empty"):
        load(write_csv(tmp_path / "data.csv", TEXTS), split={"dev": 0.0})


def test_jsonl(tmp_path: Path) -> None:
    records = [{"text": text, "label": name == "good", "more": 1} for text, name in TEXTS]
    data = load(write_jsonl(tmp_path / "data.jsonl", records), "jsonl")
    assert data.label_names == ("false", "true")
    assert sorted(all_texts(data)) == sorted(text for text, _ in TEXTS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: is not JSON"),
        ("[1, 2]", "line 2: is not an object but list"),
        ('{"txt": "a", "label": 1}', r"line 2: has no column 'text' \(did you mean 'txt'\?\)"),
        ('{"text": null, "label": 1}', "line 2: the text is empty"),
        ('{"text": 7, "label": 1}', "line 2: the text is not a string: '7'"),
        ('{"text": "a", "label": null}', "line 2: the label is missing"),
        ('{"text": "a", "label": 0.5}', "line 2: a label is a string or a whole number"),
    ],
)
def test_jsonl_flaws_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        load(path, "jsonl")


def test_parquet_texts(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table = pyarrow.table({"text": [t for t, _ in TEXTS], "label": [n == "good" for _, n in TEXTS]})
    pyarrow.parquet.write_table(table, path)
    assert sorted(all_texts(load(path, "parquet"))) == sorted(text for text, _ in TEXTS)
    with pytest.raises(DataError, match="no column 'review'; its columns are 'text', 'label'"):
        load(path, "parquet", text_column="review")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load(path, "parquet")


def test_parquet_images(tmp_path: Path, pictures: Path) -> None:
    files = sorted(pictures.rglob("*.png"))
    path = tmp_path / "data.parquet"
    stored = [{"bytes": file.read_bytes(), "path": None} for file in files]
    labels = [file.relative_to(pictures).parts[0] for file in files]
    pyarrow.parquet.write_table(pyarrow.table({"image": stored, "label": labels}), path)
    data = load(path, "parquet", "image")
    assert data.label_names == ("cat", "dog")
    assert np.asarray(data.train.raw(0)).shape[2] == 3
    stored[4]["bytes"] = b"garbage"
    pyarrow.parquet.write_table(pyarrow.table({"image": stored, "label": labels}), path)
    data = load(path, "parquet", "image")
    with pytest.raises(DataError, match=r"data\.parquet: row 5: not an image"):
        read_all(data)


def test_csv_of_image_paths(tmp_path: Path, pictures: Path) -> None:
    files = [f for f in sorted(pictures.rglob("*")) if f.suffix in {".png", ".JPG"}]
    rows = [(str(f.relative_to(tmp_path)), f.relative_to(pictures).parts[0]) for f in files]
    data = load(write_csv(tmp_path / "data.csv", rows, "image,label"), "csv", "image")
    assert len(data.train) + len(data.dev) + len(data.test) == 12
    assert np.asarray(data.test.raw(0)).dtype == np.uint8
    rows[2] = ("pictures/none.png", "cat")
    with pytest.raises(DataError, match=r"line 4: .*none\.png: cannot be read: No such file"):
        load(write_csv(tmp_path / "data.csv", rows, "image,label"), "csv", "image")


# --- image folders ------------------------------------------------------------------------


def test_image_folder(pictures: Path) -> None:
    data = load(pictures, "image-folder", "image")
    assert data.label_names == ("cat", "dog")
    assert len(data.train) + len(data.dev) + len(data.test) == 12
    shapes = {np.asarray(data.train.raw(index)).shape for index in range(len(data.train))}
    assert len(shapes) > 1, "images are given at their own sizes"


def test_image_folder_with_its_own_splits(tmp_path: Path, pictures: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for part in ("train", "val", "test"):
        (root / part).symlink_to(pictures)
    data = load(root, "image-folder", "image")
    assert [len(data.train), len(data.dev), len(data.test)] == [12, 12, 12]
    assert data.label_names == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path: Path, pictures: Path) -> None:
    root = tmp_path / "vehicles"
    root.mkdir()
    (root / "train").symlink_to(pictures / "cat")
    (root / "boat").symlink_to(pictures / "dog")
    assert load(root, "image-folder", "image").label_names == ("boat", "train")


def test_image_folder_flaws_are_named(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "absent", "image-folder", "image")
    with pytest.raises(DataError, match="has no class folders"):
        load(pictures / "cat" / "more", "image-folder", "image")
    (pictures / "dog" / "broken.png").write_text("no image")
    (pictures / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        load(pictures, "image-folder", "image")
    assert "broken.png: not an image" in caught.value.message
    assert "empty: holds no images" in caught.value.message
    with pytest.raises(RecipeError, match="modality: image"):
        load(pictures, "image-folder", "text")


def test_truncated_image_is_named_when_read(pictures: Path) -> None:
    victim = pictures / "cat" / "1.png"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    data = load(pictures, "image-folder", "image")
    with pytest.raises(DataError, match=r"cat/1\.png: the image is corrupt or truncated"):
        read_all(data)
