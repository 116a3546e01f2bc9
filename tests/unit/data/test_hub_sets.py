"""Hugging Face data sets: read from disk for real; without a hub, refused at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from rekd_edge.data import reachability
from rekd_edge.data.load import load_source
from rekd_edge.errors import BackendError, DataError, RecipeError
from rekd_edge.recipe.schema import DataSpec

TEXTS = [f"text number {n}" for n in range(20)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )

    def part(labels: list[int]) -> datasets.Dataset:
        return datasets.Dataset.from_dict(
            {"text": TEXTS[: len(labels)], "label": labels}, features=features
        )

    parts: Any = {
        "train": part([0, 1] * 10),
        "validation": part([0, 1] * 2),
        "test": part([-1] * 4),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_saved_texts_with_a_hidden_test_split(saved: Path) -> None:
    data = load_source(DataSpec(source="huggingface", path=str(saved)), "text")
    assert data.label_names == ("neg", "pos")
    assert len(data.dev) == 4
    assert len(data.test) == 4, "cut from the training data, since the labels are hidden"
    assert len(data.train) == 16


def test_missing_column_is_named(saved: Path) -> None:
    spec = DataSpec(source="huggingface", path=str(saved), text_column="sentence")
    with pytest.raises(DataError, match="no column 'sentence'; its columns are 'text', 'label'"):
        load_source(spec, "text")


def test_saved_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (9, 7, 3), dtype=np.uint8) for _ in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    part = datasets.Dataset.from_dict(
        {"image": images, "label": [n % 2 for n in range(12)]}, features=features
    )
    part.save_to_disk(str(tmp_path / "saved"))
    data = load_source(DataSpec(source="huggingface", path=str(tmp_path / "saved")), "image")
    assert data.label_names == ("0", "1")
    read = [np.asarray(data.train.raw(index)) for index in range(len(data.train))]
    for pixels in read:
        assert any(np.array_equal(pixels, image) for image in images)


def test_offline_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKD_EDGE_OFFLINE", "1")
    start = time.monotonic()
    with pytest.raises(BackendError, match="'imdb' is on the Hugging Face hub, and") as caught:
        load_source(DataSpec(source="huggingface", name="imdb"), "text")
    assert "REKD_EDGE_OFFLINE" in caught.value.message
    assert time.monotonic() - start < 1


def test_silent_hub_costs_three_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    # 192.0.2.0/24 is reserved for documentation (RFC 5737): packets to it vanish.
    monkeypatch.delenv("REKD_EDGE_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://192.0.2.1")
    start = time.monotonic()
    first = reachability.hub_obstacle()
    assert first is not None
    assert "192.0.2.1" in first
    assert time.monotonic() - start < reachability.CONNECT_SECONDS + 0.5
    start = time.monotonic()
    assert reachability.hub_obstacle() == first
    assert time.monotonic() - start < 0.1


def test_nothing_named_and_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.name .* or data\.path"):
        load_source(DataSpec(source="huggingface"), "text")
    with pytest.raises(DataError, match="cannot be read as a saved data set"):
        load_source(DataSpec(source="huggingface", path=str(tmp_path)), "text")
