"""What the runtime makes of a bundle's calibration, and of what it cannot apply."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rekd_edge.bundle import BundleConfig
from rekd_edge.bundle.card import model_card
from rekd_edge.bundle.read import open_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.calibrate.probabilities import softmax
from rekd_edge.errors import IntegrityError
from tests.changed_bundle import CALIBRATION, with_config

runtime = load_runtime()
TEXTS = ["a gorgeous, witty film", "dull", "it drags, and then it drags on some more", "so so"]


@pytest.fixture(scope="module")
def plain_answers(text_bundle: Path) -> list[Any]:
    return runtime.Rationalist.load(text_bundle, threads=1).predict(TEXTS)


def test_without_calibration_nothing_is_withheld(plain_answers: list[Any]) -> None:
    for answer in plain_answers:
        assert answer.abstain is False
        assert answer.refused_for == ()
        assert answer.to_json()["abstain"] is False


def test_temperature_softens_and_changes_no_label(
    text_bundle: Path, plain_answers: list[Any], tmp_path: Path
) -> None:
    bundle = with_config(text_bundle, tmp_path / "b", calibration=CALIBRATION)
    answers = runtime.Rationalist.load(bundle, threads=1).predict(TEXTS)
    for answer, plain in zip(answers, plain_answers, strict=True):
        assert answer.label == plain.label
        assert answer.rationale == plain.rationale
        logits = np.log(list(plain.probabilities.values()))
        np.testing.assert_allclose(list(answer.probabilities.values()), softmax(logits, 2.5))
        assert answer.probability == max(answer.probabilities.values()) < plain.probability
        assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_thresholds_withhold_what_lies_below_and_nothing_else(
    text_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated = with_config(text_bundle, tmp_path / "a", calibration=CALIBRATION)
    answers = runtime.Rationalist.load(calibrated, threads=1).predict(TEXTS)
    confidence = sorted(answer.probability for answer in answers)
    margin = sorted(answer.margin for answer in answers)
    assert len(set(confidence)) == len(set(margin)) == 4
    stated = CALIBRATION | {"confidence_threshold": confidence[2], "margin_threshold": margin[1]}
    bundle = with_config(text_bundle, tmp_path / "b", calibration=stated)
    withheld = runtime.Rationalist.load(bundle, threads=1).predict(TEXTS)
    for answer in withheld:
        expected = []
        if answer.probability in confidence[:2]:
            expected.append("confidence")
        if answer.margin == margin[0]:
            expected.append("margin")
        assert answer.refused_for == tuple(expected)  # the threshold itself is answered
        assert answer.abstain == bool(expected)
    assert {answer.abstain for answer in withheld} == {True, False}
    doubtful = next(answer for answer in withheld if "confidence" in answer.refused_for)
    assert runtime.describe(doubtful, color=False).startswith("no answer (confidence")
    assert runtime.main(["--bundle", str(bundle), "--json", "-", doubtful.source]) == 0
    shown = json.loads(capsys.readouterr().out)["predictions"][0]
    assert shown["abstain"] is True
    assert shown["label"] == doubtful.label
    card = model_card(open_bundle(bundle).manifest, open_bundle(bundle).config, [])
    assert "at temperature 2.500, fitted on 200 examples" in card
    assert "withheld (`abstain`) where the probability is below" in card
    assert "not calibrated" not in card


@pytest.mark.parametrize(
    "change",
    [
        {"method": "isotonic"},
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": 1e-300},
        {"temperature": "2.5"},
        {"temperature": True},
        {"temperature": "NaN"},
        {"temperature": None},
        {"confidence_threshold": 1.5},
        {"confidence_threshold": float("nan")},
        {"margin_threshold": float("inf")},
        {"margin_threshold": -0.1},
        {"margin_threshold": "high"},
    ],
)
def test_what_cannot_be_applied_as_meant_is_refused(
    text_bundle: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    bundle = with_config(text_bundle, tmp_path / "b", calibration=CALIBRATION | change)
    with pytest.raises(runtime.IntegrityError, match="malformed") as caught:
        runtime.Rationalist.load(bundle)
    assert caught.value.exit_code == 6
    with pytest.raises(IntegrityError):
        open_bundle(bundle)


def test_an_incomplete_calibration_is_refused(text_bundle: Path, tmp_path: Path) -> None:
    part = {"method": "temperature", "temperature": 1.5}
    bundle = with_config(text_bundle, tmp_path / "b", calibration=part)
    with pytest.raises(runtime.IntegrityError, match="confidence_threshold"):
        runtime.Rationalist.load(bundle)


def test_bundles_of_the_first_schema_still_answer(
    text_bundle: Path, plain_answers: list[Any], tmp_path: Path
) -> None:
    bundle = with_config(text_bundle, tmp_path / "b", schema_version=1)
    assert open_bundle(bundle).config.schema_version == 1
    assert runtime.Rationalist.load(bundle, threads=1).predict(TEXTS) == plain_answers
    stated = with_config(text_bundle, tmp_path / "c", schema_version=1, calibration=CALIBRATION)
    with pytest.raises(IntegrityError, match="calibration needs schema_version 2"):
        open_bundle(stated)
    with pytest.raises(runtime.IntegrityError, match="calibration needs schema_version 2"):
        runtime.Rationalist.load(stated)


def test_a_config_of_a_newer_schema_is_refused(text_bundle: Path, tmp_path: Path) -> None:
    bundle = with_config(text_bundle, tmp_path / "b", schema_version=4)
    with pytest.raises(runtime.IntegrityError, match="schema_version 4 is newer than 3") as caught:
        runtime.Rationalist.load(bundle)
    assert "upgrade" in caught.value.hint
    config = json.loads((text_bundle / "config.json").read_text())
    assert config["schema_version"] == BundleConfig.model_fields["schema_version"].default == 2


# --- the check and the use ---


@pytest.mark.parametrize("how", ["written", "replaced", "removed"])
def test_a_model_that_changes_while_it_is_opened_is_refused(
    text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bundle = Path(shutil.copytree(text_bundle, tmp_path / "bundle"))
    opened = runtime._open_session

    def change_first(path: Path, *words: Any) -> Any:
        content = path.read_bytes()
        if how == "written":
            os.utime(path)
        elif how == "replaced":
            (tmp_path / "other").write_bytes(content)
            os.replace(tmp_path / "other", path)
        session = opened(path, *words)
        if how == "removed":
            path.unlink()
        return session

    monkeypatch.setattr(runtime, "_open_session", change_first)
    with pytest.raises(runtime.IntegrityError, match="has changed while it was opened"):
        runtime.Rationalist.load(bundle)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_small_files_are_used_as_they_were_hashed(
    text_bundle: Path, plain_answers: list[Any], tmp_path: Path, name: str
) -> None:
    bundle = Path(shutil.copytree(text_bundle, tmp_path / "bundle"))
    verified = runtime._verified

    def spoil_after(root: Path, keep: Any = ()) -> Any:
        found = verified(root, keep)
        (root / name).write_text("{}")
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runtime, "_verified", spoil_after)
        model = runtime.Rationalist.load(bundle, threads=1)
    assert model.predict(TEXTS) == plain_answers
    with pytest.raises(runtime.IntegrityError):
        runtime.Rationalist.load(bundle)


# --- what predict takes ---


def test_pixels_and_pictures_are_answered_like_their_file(
    image_bundle: Path, tmp_path: Path
) -> None:
    model = runtime.Rationalist.load(image_bundle, threads=1)
    picture = Image.radial_gradient("L").resize((80, 50))
    picture.save(tmp_path / "grey.png")
    picture.convert("RGB").save(tmp_path / "rgb.png")
    inputs = [
        tmp_path / "grey.png",
        str(tmp_path / "rgb.png"),
        picture,
        np.asarray(picture),
        np.asarray(picture.convert("RGB")),
    ]
    answers = model.predict(inputs)
    first = answers[0].to_json()
    for answer in answers[1:]:
        assert answer.to_json() | {"source": ""} == first | {"source": ""}
    assert [answer.source != "" for answer in answers] == [True, True, False, False, False]
    kept = answers[0].rationale_mask
    assert kept.shape == (4, 4)
    assert [tuple(place) for place in np.argwhere(kept)] == [
        (box.row, box.column) for box in answers[0].rationale
    ]
    with pytest.raises(runtime.InputError, match="an overlay needs an image file"):
        runtime.write_overlay(answers[2], tmp_path / "o.png")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), "not float32"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"not uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "no pixels"),
        (7, "an image is due, not int"),
        (np.zeros((1, 20_000, 3), dtype=np.uint8), "too long and thin"),
    ],
)
def test_pixels_that_cannot_be_used_are_refused(
    image_bundle: Path, item: Any, message: str
) -> None:
    model = runtime.Rationalist.load(image_bundle, threads=1)
    with pytest.raises(runtime.InputError, match=message):
        model.predict([item])


def test_a_single_input_is_not_taken_for_a_list(text_bundle: Path, image_bundle: Path) -> None:
    for bundle in (text_bundle, image_bundle):
        with pytest.raises(runtime.InputError, match="takes a list") as caught:
            runtime.Rationalist.load(bundle, threads=1).predict("photo.jpg")
        assert caught.value.hint == "predict([one_input])"
    with pytest.raises(runtime.InputError, match="a text is due, not"):
        runtime.Rationalist.load(text_bundle, threads=1).predict([Path("a.txt")])


def test_a_megabyte_of_text_is_answered_with_a_notice(
    text_bundle: Path,
) -> None:
    text = "a gorgeous, witty film. " * 43_700
    assert len(text) > 1_000_000
    (answer,) = runtime.Rationalist.load(text_bundle, threads=1).predict([text])
    assert answer.candidates == 46
    assert "truncated" in answer.notices[0]


def png_of_size(width: int, height: int) -> bytes:
    """A file that says it is that large; what it claims is not in it."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": b"x"}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )


def test_one_pixel_and_many_are_answered_or_refused_in_a_line(
    image_bundle: Path, tmp_path: Path
) -> None:
    model = runtime.Rationalist.load(image_bundle, threads=1)
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "one.png")
    assert model.predict([tmp_path / "one.png"])[0].kept == 4
    (tmp_path / "large.png").write_bytes(png_of_size(20_000, 20_000))
    with pytest.raises(runtime.InputError, match=r"large\.png: the image is too large"):
        model.predict([tmp_path / "large.png"])
