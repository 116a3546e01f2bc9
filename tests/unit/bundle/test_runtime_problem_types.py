"""What the runtime answers from bundles of several labels and of values, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from pydantic import ValidationError

from rekd_edge.bundle import BundleConfig, open_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.calibrate.probabilities import probabilities_of
from rekd_edge.problem import PRIMARY, answers
from tests.changed_bundle import CALIBRATION, with_config

runtime = load_runtime()
TEXTS = [
    "a gorgeous, witty film",
    "dull",
    "it drags, and then it drags on some more",
    "so so",
    "two hours of nothing at all, and yet one smiles",
]
NAMES = ("negative", "neutral", "positive")


def logits_of(bundle: Path, model: Any) -> np.ndarray:
    """Of the texts, from the file itself."""
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    feeds = [model.encode(text).arrays for text in TEXTS]
    return np.concatenate([np.asarray(session.run(["logits"], feed)[0]) for feed in feeds])


def test_several_labels_have_probabilities_of_their_own(multi_label_bundle: Path) -> None:
    model = runtime.Rationalist.load(multi_label_bundle, threads=1)
    assert model.config.problem_type == "multi_label_classification"
    logits = logits_of(multi_label_bundle, model)
    due = probabilities_of(logits, "multi_label_classification")
    decided = answers(logits, "multi_label_classification")
    assert {int(row.sum()) for row in decided} > {1}  # not one label each
    for prediction, shares, has in zip(model.predict(TEXTS), due, decided, strict=True):
        assert prediction.labels == tuple(n for n, h in zip(NAMES, has, strict=True) if h)
        np.testing.assert_allclose(list(prediction.probabilities.values()), shares, atol=1e-6)
        assert (prediction.label, prediction.probability, prediction.values) == (None, None, None)
        assert prediction.rationale
        shown = prediction.to_json()
        assert shown["labels"] == list(prediction.labels)
        assert not {"label", "probability", "values"} & shown.keys()
        head = runtime.describe(prediction, color=False).split("\n")[0]
        for name in prediction.labels:
            assert f"{name}  {prediction.probabilities[name]:.3f}" in head
        assert prediction.labels or head.startswith("no label, nearest ")


def test_values_are_the_numbers_of_the_file(
    regression_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = runtime.Rationalist.load(regression_bundle, threads=1)
    for prediction, row in zip(
        model.predict(TEXTS), logits_of(regression_bundle, model), strict=True
    ):
        assert prediction.values is not None
        np.testing.assert_allclose(list(prediction.values.values()), row, atol=1e-6)
        assert tuple(prediction.values) == NAMES
        assert (prediction.label, prediction.labels, prediction.probabilities) == (None, None, {})
        assert prediction.abstain is False
    assert runtime.main(["--bundle", str(regression_bundle), "--json", "-", TEXTS[0]]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["problem_type"] == "regression"
    (shown,) = document["predictions"]
    assert list(shown["values"]) == list(NAMES)
    assert not {"label", "probability", "probabilities", "labels"} & shown.keys()
    assert runtime.main(["--bundle", str(regression_bundle), TEXTS[0]]) == 0
    head = capsys.readouterr().out.split("\n")[0]
    assert head.startswith(f"negative  {shown['values']['negative']:.6g}, neutral  ")


def test_one_label_shows_what_it_always_showed(text_bundle: Path) -> None:
    (prediction,) = runtime.Rationalist.load(text_bundle, threads=1).predict(TEXTS[:1])
    shown = prediction.to_json()
    assert {"label", "probability", "probabilities"} < shown.keys()
    assert not {"labels", "values"} & shown.keys()
    assert prediction.problem_type == "single_label_classification"


def test_several_labels_are_calibrated_and_withheld(
    multi_label_bundle: Path, tmp_path: Path
) -> None:
    soft = with_config(multi_label_bundle, tmp_path / "a", calibration=CALIBRATION)
    model = runtime.Rationalist.load(soft, threads=1)
    logits = logits_of(multi_label_bundle, model)
    due = probabilities_of(logits, "multi_label_classification", 2.5)
    found = model.predict(TEXTS)
    np.testing.assert_allclose([list(one.probabilities.values()) for one in found], due, atol=1e-6)
    decided = answers(logits, "multi_label_classification")
    assert [one.labels for one in found] == [
        tuple(n for n, h in zip(NAMES, row, strict=True) if h) for row in decided
    ]
    sure = np.maximum(due, 1 - due).min(axis=1)
    middle = float(np.sort(sure)[2:4].mean())
    stated = CALIBRATION | {"confidence_threshold": middle}
    strict = with_config(multi_label_bundle, tmp_path / "b", calibration=stated)
    withheld = runtime.Rationalist.load(strict, threads=1).predict(TEXTS)
    assert [one.abstain for one in withheld] == (sure < middle).tolist()
    doubtful = next(one for one in withheld if one.abstain)
    assert runtime.describe(doubtful, color=False).startswith("no answer (confidence too low)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "ranking"}, "'ranking' is not known"),
        ({"problem_type": ["regression"]}, "is not known"),
        ({"schema_version": 2}, "needs schema_version 3"),
        ({"problem_type": "regression", "calibration": CALIBRATION}, "no probabilities"),
        ({"label_names": []}, "label_names are too few"),
        ({"problem_type": "single_label_classification", "label_names": ["a"]}, "too few"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(
    changes: dict[str, Any], message: str, multi_label_bundle: Path, tmp_path: Path
) -> None:
    bundle = with_config(multi_label_bundle, tmp_path / "b", **changes)
    with pytest.raises(runtime.IntegrityError, match=message):
        runtime.Rationalist.load(bundle, threads=1)


@pytest.mark.parametrize("name", ["multi_label_bundle", "regression_bundle"])
def test_a_reader_of_schema_2_refuses_other_problem_types(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = request.getfixturevalue(name)
    monkeypatch.setattr(runtime, "CONFIG_SCHEMA_VERSION", 2)
    with pytest.raises(runtime.IntegrityError, match="schema_version 3 is newer than 2"):
        runtime.Rationalist.load(bundle, threads=1)


def test_the_config_says_it_in_the_words_of_transformers(
    text_bundle: Path, multi_label_bundle: Path, regression_bundle: Path
) -> None:
    written = {
        path: json.loads((path / "config.json").read_text())
        for path in (text_bundle, multi_label_bundle, regression_bundle)
    }
    assert "problem_type" not in written[text_bundle]
    assert written[text_bundle]["schema_version"] == 2
    for path, problem in (
        (multi_label_bundle, "multi_label_classification"),
        (regression_bundle, "regression"),
    ):
        assert written[path]["problem_type"] == problem
        assert written[path]["schema_version"] == 3
        assert open_bundle(path).config.problem_type == problem
    assert set(runtime.PROBLEM_TYPES) == set(PRIMARY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "problem_type needs schema_version 3"),
        ({"problem_type": "regression", "calibration": CALIBRATION}, "no probabilities"),
        ({"problem_type": "single_label_classification", "label_names": ["a"]}, "two label_names"),
    ],
)
def test_the_schema_refuses_what_the_runtime_refuses(
    changes: dict[str, Any], message: str, multi_label_bundle: Path
) -> None:
    document = json.loads((multi_label_bundle / "config.json").read_text()) | changes
    with pytest.raises(ValidationError, match=message):
        BundleConfig.model_validate(document)


def test_the_cards_say_what_is_answered(multi_label_bundle: Path, regression_bundle: Path) -> None:
    several = (multi_label_bundle / "README.md").read_text(encoding="utf-8")
    for fact in (
        "Says of a text which of 3 labels it has (any number of them)",
        "Probabilities are sigmoid values, each label's its own, and are not calibrated.",
        "| model | micro F1 |",
        "an input may get none",
    ):
        assert fact in several, fact
    values = (regression_bundle / "README.md").read_text(encoding="utf-8")
    for fact in (
        "Answers a text with 3 numbers (`negative`, `neutral`, `positive`)",
        "without a measure of how sure it is",
        "| model | R² |",
        "its values and its rationale",
    ):
        assert fact in values, fact
    for card in (several, values):
        assert "Every input gets one of the labels" not in card
        assert "softmax" not in card
