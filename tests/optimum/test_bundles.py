"""Bundles in optimum and in transformers' pipelines, against the runtime that lies in each bundle.

Runs where optimum is and this project is not; ``tests/integration/test_optimum.py`` writes the file
that ``REKD_OPTIMUM_CASES`` names (bundles, texts, paths of images) and starts it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from optimum.onnxruntime import (
    ORTModelForCustomTasks,
    ORTModelForImageClassification,
    ORTModelForSequenceClassification,
)
from optimum.onnxruntime import pipeline as optimum_pipeline
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.image_utils import load_image

CASES = json.loads(Path(os.environ["REKD_OPTIMUM_CASES"]).read_text(encoding="utf-8"))
CLOSE = {"rtol": 0.0, "atol": 1e-5}
TASKS = {
    "text": ("text-classification", ORTModelForSequenceClassification),
    "image": ("image-classification", ORTModelForImageClassification),
}


@dataclass(frozen=True)
class Opened:
    """A bundle, real inputs for it, and what its own runtime says about each."""

    folder: Path
    modality: str
    inputs: list[str]
    """Texts, or paths of images."""
    feeds: list[dict[str, np.ndarray]]
    """What the runtime gave to the model, by input."""
    answers: list[Any]
    """Of the runtime's model: ``logits``, ``kept``, ``scores``, ``margin``."""
    encoded: list[Mapping[str, Any]]
    """Model inputs by transformers' own reading of the folder."""
    label_names: tuple[str, ...]
    problem_type: str

    @property
    def expected_logits(self) -> np.ndarray:
        return np.stack([answer.logits for answer in self.answers])

    def expected_scores(self) -> np.ndarray:
        """Of the logits as they come, without the bundle's calibration."""
        if self.problem_type == "regression":
            return self.expected_logits
        if self.problem_type == "multi_label_classification":
            return 1 / (1 + np.exp(-self.expected_logits.astype(np.float64)))
        exponents = np.exp(self.expected_logits.astype(np.float64))
        return exponents / exponents.sum(axis=1, keepdims=True)


def encode(folder: Path, modality: str, inputs: list[str]) -> list[Mapping[str, Any]]:
    if modality == "text":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return [tokenizer(text, truncation=True, return_tensors="pt") for text in inputs]
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return [processor(load_image(path), return_tensors="pt") for path in inputs]


def open_runtime(folder: Path) -> Any:
    path = folder / "runtime" / "rekd_runtime.py"
    spec = importlib.util.spec_from_file_location(f"runtime_{abs(hash(folder))}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", params=list(CASES["bundles"]))
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    folder = Path(CASES["bundles"][request.param])
    before = digests(folder)
    model = open_runtime(folder).Rationalist.load(folder, threads=1)
    feeds: list[dict[str, np.ndarray]] = []
    answers: list[Any] = []
    answer = model.run_encoded

    def record(given: list[Any]) -> Any:
        found = answer(given)
        feeds.extend(one.arrays for one in given)
        answers.extend(found)
        return found

    model.run_encoded = record
    modality = model.config.modality
    inputs = CASES["texts" if modality == "text" else "images"]
    assert len(inputs) >= 100
    model.predict(inputs)
    encoded = encode(folder, modality, inputs)
    names, problem_type = model.config.label_names, model.config.problem_type
    yield Opened(folder, modality, inputs, feeds, answers, encoded, names, problem_type)
    assert digests(folder) == before  # opening it elsewhere left the bundle as it was


def test_inputs_are_those_of_the_runtime(opened: Opened) -> None:
    for encoded, feeds in zip(opened.encoded, opened.feeds, strict=True):
        assert set(encoded) == set(feeds)
        for name, expected in feeds.items():
            assert encoded[name].numpy().dtype == expected.dtype
            assert np.array_equal(encoded[name].numpy(), expected)


def test_the_labels_are_known(opened: Opened) -> None:
    config = AutoConfig.from_pretrained(opened.folder)
    assert tuple(config.id2label[index] for index in range(config.num_labels)) == opened.label_names
    assert config.label2id == {name: index for index, name in enumerate(opened.label_names)}


def test_logits_are_those_of_the_runtime(opened: Opened) -> None:
    model = TASKS[opened.modality][1].from_pretrained(opened.folder)
    logits = np.concatenate([model(**encoded).logits.numpy() for encoded in opened.encoded])
    assert np.allclose(logits, opened.expected_logits, **CLOSE)
    assert np.ptp(logits, axis=0).min() > 1e-3  # the inputs are told apart


def test_the_rationale_outputs_stay_reachable(opened: Opened) -> None:
    model = ORTModelForCustomTasks.from_pretrained(opened.folder)
    for encoded, expected in zip(opened.encoded, opened.answers, strict=True):
        found = model(**encoded)
        assert np.allclose(found["logits"][0].numpy(), expected.logits, **CLOSE)
        assert np.array_equal(found["rationale_mask"][0].numpy(), expected.kept)
        assert np.allclose(found["selection_score"][0].numpy(), expected.scores, **CLOSE)
        assert np.allclose(found["selection_margin"].numpy(), expected.margin, **CLOSE)


@pytest.mark.parametrize("maker", ["optimum", "transformers"])
def test_pipelines_answer_with_the_uncalibrated_probabilities(opened: Opened, maker: str) -> None:
    task, model_class = TASKS[opened.modality]
    settings: dict[str, Any] = {"top_k": len(opened.label_names)}
    if maker == "optimum":
        extra: dict[str, Any] = {"use_fast": False} if opened.modality == "image" else {}
        made = optimum_pipeline(task, model=str(opened.folder), **extra)
    else:
        model = model_class.from_pretrained(opened.folder)
        if opened.modality == "text":
            parts: dict[str, Any] = {"tokenizer": AutoTokenizer.from_pretrained(opened.folder)}
        else:
            processor = AutoImageProcessor.from_pretrained(opened.folder, use_fast=False)
            parts = {"image_processor": processor}
        made = transformers.pipeline(task, model=model, device="cpu", **parts)
    if opened.modality == "text":
        settings["truncation"] = True
    answers = made(opened.inputs, **settings)
    found = np.array(
        [
            [{row["label"]: row["score"] for row in rows}[name] for name in opened.label_names]
            for rows in answers
        ]
    )
    assert np.allclose(found, opened.expected_scores(), **CLOSE)


def test_a_padded_batch_answers_as_one_by_one(opened: Opened) -> None:
    config = AutoConfig.from_pretrained(opened.folder)
    if opened.modality == "image" or config.precision != "fp32":
        pytest.skip("only texts are padded; dynamic int8 rounds by batch")
    tokenizer = AutoTokenizer.from_pretrained(opened.folder)
    model = ORTModelForCustomTasks.from_pretrained(opened.folder)
    batch = tokenizer(opened.inputs[:32], padding=True, truncation=True, return_tensors="pt")
    assert 0 in batch["attention_mask"]
    found = model(**batch)
    assert np.allclose(found["logits"].numpy(), opened.expected_logits[:32], **CLOSE)
    for row, answer in enumerate(opened.answers[:32]):
        kept = found["rationale_mask"][row].numpy()
        assert np.array_equal(kept[: len(answer.kept)], answer.kept)
        assert not kept[len(answer.kept) :].any()


def test_this_is_the_older_transformers() -> None:
    assert transformers.__version__.startswith("4.")
    assert "rekd_edge" not in sys.modules
    assert torch.get_default_dtype() is torch.float32
