"""From a trained run to a runtime that withholds what it should: temperature and thresholds come
from the exported file's own answers to the development split."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rekd_edge import export_pipeline
from rekd_edge.bundle import open_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.calibrate.probabilities import fit_temperature
from rekd_edge.calibrate.spec import AbstentionSpec
from rekd_edge.errors import GateError, UsageError
from rekd_edge.export_pipeline import ExportResult, check_bundle, export_bundle
from rekd_edge.pipeline import train_run
from rekd_edge.precision_pipeline import export_fastest
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.run_folder import Run

pytestmark = pytest.mark.usefixtures("converted_once")
runtime = load_runtime()
DEV = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    limit = f"data.limit={{train: 64, dev: {DEV}, test: 80}}"
    path = tmp_path_factory.mktemp("text") / "run"
    return train_run(load_recipe(find_recipe("smoke/text"), [limit]), path, device="cpu")


@pytest.fixture(scope="module")
def exported(run: Run) -> ExportResult:
    return export_bundle(
        run,
        output=run.path / "bundle",
        threads=1,
        twins=False,
        abstention=AbstentionSpec(coverage=0.7),
    )


def predictions(bundle: Path, run: Run, split: str) -> list[Any]:
    examples = getattr(run.data(), split)
    texts = [str(examples.raw(position)) for position in range(len(examples))]
    return runtime.Rationalist.load(bundle, threads=1).predict(texts)


def test_the_runtime_answers_the_share_that_was_asked_for(exported: ExportResult, run: Run) -> None:
    assert exported.passed, exported.reasons
    assert exported.calibration is not None
    stated = open_bundle(exported.path).config.calibration
    assert stated == exported.calibration.calibration
    assert stated is not None
    assert (stated.examples, stated.split) == (DEV, "dev")
    answers = predictions(exported.path, run, "dev")
    answered = [answer for answer in answers if not answer.abstain]
    assert len(answered) == 0.7 * DEV
    least = min(answer.probability for answer in answered)
    assert all(answer.probability < least for answer in answers if answer.abstain)
    assert least == stated.confidence_threshold


def test_the_temperature_is_that_of_the_files_own_answers(exported: ExportResult, run: Run) -> None:
    stated = open_bundle(exported.path).config.calibration
    assert stated is not None
    dev = run.data().dev
    names = list(run.label_names)
    rows = [
        np.log(list(answer.probabilities.values())) * stated.temperature
        for answer in predictions(exported.path, run, "dev")
    ]
    labels = np.asarray([int(dev.labels[position]) for position in range(len(dev))])
    assert len(names) == len(rows[0])
    assert fit_temperature(np.asarray(rows), labels) == pytest.approx(stated.temperature, rel=1e-4)


def test_the_report_counts_what_the_runtime_does_on_test(exported: ExportResult, run: Run) -> None:
    report = json.loads((exported.path / "reports" / "calibration.json").read_text())
    test = run.data().test
    answers = predictions(exported.path, run, "test")
    answered = [not answer.abstain for answer in answers]
    wrong = [
        answer.label != run.label_names[int(test.labels[position])]
        for position, answer in enumerate(answers)
    ]
    assert report["test"]["examples"] == len(answers)
    assert report["test"]["coverage"] == pytest.approx(np.mean(answered))
    assert report["test"]["risk"] == pytest.approx(np.mean(np.asarray(wrong)[answered]))
    assert report["dev"]["coverage"] == 0.7
    assert report["test"]["uncalibrated"]["temperature"] == 1.0
    assert report["test"]["calibrated"]["ece"] >= 0


def test_int8_is_calibrated_on_its_own_answers(exported: ExportResult, run: Run) -> None:
    # Random weights do not survive int8 well enough for the shipped gates, which are not the point.
    gates = run.path / "lax.yaml"
    gates.write_text("schema_version: 1\nname: lax\ngates: [{metric: io_valid, value: 1}]\n")
    found = export_bundle(
        run,
        target="onnx-int8",
        output=run.path / "int8",
        gates=str(gates),
        threads=1,
        twins=False,
        recover=False,
    )
    assert found.passed, found.reasons
    assert found.calibration is not None
    assert exported.calibration is not None
    assert found.calibration.calibration.asked is None
    assert (
        found.calibration.dev.calibrated.nll != exported.calibration.dev.calibrated.nll
        or found.calibration.calibration.temperature != exported.calibration.calibration.temperature
    )
    assert not any(answer.abstain for answer in predictions(found.path, run, "test"))


def test_check_holds_a_bundle_to_its_calibration(exported: ExportResult, run: Run) -> None:
    report, _ = check_bundle(exported.path, run=run, threads=1)
    assert report.passed
    forged = Path(shutil.copytree(exported.path, run.path / "forged"))
    config = json.loads((forged / "config.json").read_text())
    config["calibration"]["temperature"] *= 2
    content = json.dumps(config).encode()
    (forged / "config.json").write_bytes(content)
    manifest = json.loads((forged / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "config.json":
            entry["sha256"] = hashlib.sha256(content).hexdigest()
            entry["size_bytes"] = len(content)
    (forged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GateError, match=r"config\.json says temperature is"):
        check_bundle(forged, run=run, threads=1)
    assert not forged.exists()  # in rejected/


def test_a_risk_that_cannot_be_promised_writes_no_bundle(run: Run) -> None:
    found = export_bundle(
        run,
        output=run.path / "promised",
        threads=1,
        twins=False,
        abstention=AbstentionSpec(risk=0.01),
    )
    assert not found.passed
    assert "risk 0.01 cannot be promised from 120 examples" in found.reasons[0]
    assert not (run.path / "promised").exists()
    assert (found.path / "reason.json").is_file()


def test_too_small_a_split_is_said_before_anything_is_converted(
    smoke_run: Callable[[str, Path], Run], tmp_path: Path
) -> None:
    small = smoke_run("text", tmp_path / "run")
    wanted = AbstentionSpec(coverage=0.9)
    message = "needs 100 examples in the development split, it has 32"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export_pipeline, "convert_to_onnx", None)
        with pytest.raises(UsageError, match=message):
            export_bundle(small, output=tmp_path / "bundle", abstention=wanted)
        with pytest.raises(UsageError, match=message):
            export_fastest(small, output=tmp_path / "bundle", abstention=wanted)
    assert not (tmp_path / "bundle").exists()
    found = export_bundle(small, output=tmp_path / "bundle", threads=1, twins=False)
    assert found.passed
    assert found.calibration is None
    assert open_bundle(found.path).config.calibration is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coverage", "1.5"], "--coverage Input should be less than or equal to 1"),
        (["--risk", "0"], "--risk Input should be greater than 0"),
        (["--coverage", "0.9", "--risk", "0.1"], "coverage and risk contradict each other"),
    ],
)
def test_options_that_make_no_sense_are_one_message(
    run: Run, words: list[str], message: str
) -> None:
    code = "from rekd_edge.cli.app import main; main()"
    command = [sys.executable, "-c", code, "export", str(run.path), "--output", "x", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
