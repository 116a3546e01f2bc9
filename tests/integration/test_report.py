"""Pages of runs that were really trained and bundles that were really exported."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rekd_edge.bench import BenchSettings
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.calibrate.spec import AbstentionSpec
from rekd_edge.cli.app import app
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.export_pipeline import bench_bundle, export_bundle
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.report.content import Box, Span
from rekd_edge.report.page import rows
from rekd_edge.report_pipeline import Report, build_report
from rekd_edge.report_sources import read_training
from rekd_edge.run_folder import Run

LENIENT = """schema_version: 1
name: lenient
gates:
  - {metric: io_valid, value: 1}
  - {metric: failed_shapes, value: 0}
  - {metric: exclusion_leaks, value: 0}
  - {metric: accuracy, goal: max-degradation, value: 1, reference: plain, optional: true}
"""
SHORT = BenchSettings(min_duration_s=0.0, min_count=20, warmup_count=1, cold_starts=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("text") / "run"
    limit = "data.limit={train: 64, dev: 100, test: 32}"  # as few as a calibration takes
    return train_run(load_recipe(find_recipe("smoke/text"), [limit]), path, device="cpu")


@pytest.fixture(scope="module")
def bundle(run: Run) -> Path:
    gates = run.path.parent / "lenient.yaml"
    gates.write_text(LENIENT)
    result = export_bundle(
        run,
        output=run.path / "bundle",
        gates=str(gates),
        threads=1,
        abstention=AbstentionSpec(coverage=0.7),
    )
    assert result.passed
    return result.path


@pytest.fixture(scope="module")
def bench(bundle: Path) -> Path:
    """As `rekd-edge bench --json` writes it."""
    path = bundle.parent / "bench.json"
    path.write_text(json.dumps(bench_bundle(bundle, settings=SHORT).to_json()))
    return path


@pytest.fixture(scope="module")
def report(run: Run, bundle: Path, bench: Path) -> Report:
    return build_report([run.path, bundle], benches=[bench], examples=12)


def test_every_model_was_run_and_says_what_was_recorded(
    report: Report, run: Run, bundle: Path
) -> None:
    results = {result.name: result for result in report.content.results}
    assert list(results) == ["teacher", "student", "bundle (fp32)"]
    distilled = run.report("distill") or {}
    check = json.loads((bundle / "reports" / "check.json").read_text())
    assert results["teacher"].accuracy == pytest.approx(distilled["teacher"]["test"]["accuracy"])
    assert results["student"].accuracy == pytest.approx(distilled["student"]["test"]["accuracy"])
    file = results["bundle (fp32)"]
    assert file.accuracy == pytest.approx(check["accuracy"]["onnx"]["overall"])
    assert file.per_class == pytest.approx(check["accuracy"]["onnx"]["per_class"])
    assert file.counts is not None
    assert file.counts.sum() == file.examples == 32
    assert file.agreement is not None
    assert (file.agreement.other, file.agreement.labels) == ("student", 1.0)
    shared = results["student"].agreement
    assert shared is not None
    assert shared.labels == distilled["agreement_with_teacher"]["label_agreement"]
    assert shared.rationale_jaccard == pytest.approx(
        distilled["agreement_with_teacher"]["rationale_jaccard"], abs=1e-6
    )


def test_what_is_shown_is_what_the_device_answers(report: Report, run: Run, bundle: Path) -> None:
    """Texts, labels, probabilities, margins and characters of the bundle's own runtime."""
    shown = [example for group in report.content.groups for example in group.examples]
    assert 0 < len(shown) <= 12
    assert len({example.index for example in shown}) == len(shown)
    device = load_runtime().Rationalist.load(bundle)
    for example in shown:
        assert example.text is not None
        assert example.text == run.data().test.raw(example.index)
        assert example.label == run.label_names[run.data().test.labels[example.index]]
        answer = next(one for one in example.answers if one.model == "bundle (fp32)")
        expected = device.predict([example.text])[0]
        assert answer.label == expected.label
        assert answer.probability == pytest.approx(expected.probability, abs=1e-5)
        assert answer.margin == pytest.approx(expected.margin, abs=1e-5)
        assert answer.withheld == expected.refused_for
        assert (answer.kept, answer.candidates) == (expected.kept, expected.candidates)
        marked, true = np.zeros(len(example.text)), np.zeros(len(example.text))
        for part in answer.evidence:
            assert isinstance(part, Span)
            marked[part.start : part.end] = 1
        for span in expected.rationale:
            true[span.start : span.end] = 1
        assert (marked == true).all()


def test_calibration_is_what_the_bundle_says(report: Report, bundle: Path) -> None:
    """And what the page finds by running the file agrees with it."""
    stated = json.loads((bundle / "reports" / "calibration.json").read_text())
    ((name, found),) = report.content.calibrations
    assert found is not None
    test = stated["test"]
    assert found.temperature == stated["calibration"]["temperature"] != 1
    assert found.ece_before == test["uncalibrated"]["ece"]
    assert found.ece_after == test["calibrated"]["ece"]
    assert (found.coverage, found.risk) == (test["coverage"], test["risk"])
    assert found.refused == test["refused"]
    assert found.asked == {"coverage": 0.7, "confidence": 0.9}
    (seen,) = report.content.confidences
    assert (seen.model, seen.calibration_error) == (name, pytest.approx(found.ece_after, abs=1e-6))
    assert f"{found.temperature:.3f}</td>" in report.page
    threshold = stated["calibration"]["confidence_threshold"]
    assert f"{test['refused']['confidence']} of 32 with probability below" in report.page
    assert f"below {threshold:.4g}</td>" in report.page


def test_old_bundles_and_reports_of_another_calibration(bundle: Path, tmp_path: Path) -> None:
    """A bundle of schema 1 has neither; a report of another calibration is refused."""
    old, forged = (Path(shutil.copytree(bundle, tmp_path / name)) for name in ("old", "forged"))
    config = json.loads((old / "config.json").read_text())
    del config["calibration"]
    (old / "reports" / "calibration.json").unlink()
    rewritten(old, "config.json", config | {"schema_version": 1})
    made = build_report([old])
    assert made.content.calibrations == (("old (fp32)", None),)
    assert "no bundle of this page holds a calibration report" in made.page
    stated = json.loads((forged / "reports" / "calibration.json").read_text())
    stated["calibration"]["temperature"] *= 2
    rewritten(forged, "reports/calibration.json", stated)
    with pytest.raises(IntegrityError, match="not about the calibration in config"):
        build_report([forged])
    del stated["test"]["coverage"]
    rewritten(forged, "reports/calibration.json", stated)
    with pytest.raises(IntegrityError, match="is no calibration report"):
        build_report([forged])


def rewritten(bundle: Path, name: str, document: dict[str, Any]) -> None:
    """Another content for one file, and a manifest of the files that are there."""
    content = json.dumps(document).encode()
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if (bundle / file["path"]).is_file()]
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry.update(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_the_lineage_names_every_file(report: Report, run: Run, bundle: Path) -> None:
    files = [
        run.path / "recipe.resolved.yaml",
        run.path / "teacher" / "best" / "model.safetensors",
        run.path / "student" / "best" / "model.safetensors",
        bundle / "model.onnx",
        bundle / "manifest.json",
    ]
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in report.page, file
    assert str(run.path) not in report.page
    kinds = [stage.kind for stage in report.content.lineages[0].stages]
    assert kinds == ["recipe", "teacher", "student", "fused"]


def test_training_latency_and_gates_are_those_of_the_files(report: Report, bench: Path) -> None:
    content = report.content
    assert [training.title for training in content.trainings] == ["Teacher", "Student"]
    assert all(training.phases and training.dev for training in content.trainings)
    measured = json.loads(bench.read_text())
    timing = next(t for t in content.benches[0].timings if t.name == "bundle (fp32)")
    median = measured["candidates"]["gathered"]["result_50_percentile_latency_ns"] / 1e6
    assert timing.quantiles[3] == pytest.approx(median)
    assert timing.ratio is not None
    assert timing.ratio[0] == measured["candidates"]["gathered"]["ratio"]["value"]
    outcomes = {gate.name: gate.outcome for gate in content.checks[0].gates}
    assert outcomes["io_valid"] == "passed"
    assert outcomes["accuracy"] == "skipped"
    assert content.fronts == ()


def test_a_bundle_alone_shows_what_it_recorded(bundle: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(bundle, tmp_path / "alone")
    content = build_report([alone]).content
    sources = {result.name: result.source for result in content.results}
    assert sources == {
        "alone (fp32)": "check report of alone (fp32)",
        "student": "check report of alone (fp32)",
        "teacher": "check report of alone (fp32)",
    }
    assert all(result.counts is None for result in content.results)
    assert content.groups == content.confidences == content.trainings == ()
    assert any("was not run" in note for note in content.notes)


def test_a_teacher_that_is_gone_is_said_to_be_gone(run: Run, tmp_path: Path) -> None:
    path = shutil.copytree(run.path, tmp_path / "run")
    stated = path / "recipe.resolved.yaml"
    text = stated.read_text()
    assert text.count("\n  run: null") == 1
    stated.write_text(text.replace("\n  run: null", f"\n  run: {tmp_path / 'gone'}"))
    report = build_report([path], limit=10, examples=3)
    content = report.content
    assert str(tmp_path) not in report.page
    assert [result.name for result in content.results] == ["student"]
    assert any(note.startswith("teacher was not run") for note in content.notes)
    assert "the models were run on 10 of 32 test examples, by class" in content.notes
    assert content.results[0].examples == 10


def test_images_are_shown_with_their_patches(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("smoke/image"))
    run = train_run(recipe, tmp_path / "run", device="cpu", with_fuse_report=False)
    report = build_report([run.path], examples=6)
    first = report.content.groups[0].examples[0]
    assert first.picture is not None
    raw = run.data().test.raw(first.index)
    assert (np.asarray(Image.open(io.BytesIO(first.picture.content))) == raw).all()
    encoded = base64.b64encode(first.picture.content).decode()
    assert report.page.count(encoded) == 1
    shown = [example for group in report.content.groups for example in group.examples]
    panels = sum(len(rows(example)) for example in shown)
    assert 6 <= panels <= 12
    for answer in first.answers:
        assert answer.kept == len(answer.evidence) == 4
        for box in answer.evidence:
            assert isinstance(box, Box)
            assert (box.width, box.height) == (0.25, 0.25)
            assert (box.x * 4).is_integer()
    assert (
        len(re.findall('<rect class="patch (kept|both|only)"', report.page)) == 4 * panels + 2
    )  # and the legend


@pytest.mark.parametrize("what", ["nothing", "twice", "bench", "other bench", "broken", "labels"])
def test_what_cannot_be_shown_is_refused(
    what: str, run: Run, bundle: Path, bench: Path, text_bundle: Path, tmp_path: Path
) -> None:
    kind: type[Exception] = UsageError
    paths, benches, message = [bundle], [], ""
    if what == "nothing":
        paths, message = [tmp_path], "neither a run nor a bundle"
    elif what == "twice":
        paths, message = [bundle, bundle], "given twice"
    elif what == "bench":
        benches, message = [run.path / "run.json"], "is no result of a benchmark"
    elif what == "other bench":
        document: dict[str, Any] = json.loads(bench.read_text())
        for candidate in document["candidates"].values():
            candidate["sha256"] = "0" * 64
        other = tmp_path / "other.json"
        other.write_text(json.dumps(document))
        benches, message = [other], "measured none of these bundles"
    elif what == "broken":
        changed = shutil.copytree(bundle, tmp_path / "changed")
        (changed / "labels.json").write_text("[]")
        paths, kind, message = [changed], IntegrityError, "labels.json"
    else:
        paths, message = [bundle, text_bundle], "knows the labels negative, neutral, positive"
    with pytest.raises(kind, match=message):
        build_report(paths, benches=benches)


def test_the_command(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    words = ["report", str(run.path), "--output", str(output), "--examples", "2", "--limit", "8"]
    done = CliRunner().invoke(app, [*words, "--json", "-"])
    assert done.exit_code == 0, done.output
    stated = json.loads(done.stdout)
    assert stated["bytes"] == output.stat().st_size < 200_000
    assert stated["examples"] == 2
    before = output.read_bytes()
    again = CliRunner().invoke(app, words).exception
    assert isinstance(again, UsageError)
    assert "--force" in (again.hint or "")
    assert output.read_bytes() == before


def test_a_log_that_was_cut_off(run: Run, tmp_path: Path) -> None:
    whole = run.path / "student" / "log.jsonl"
    log = tmp_path / "log.jsonl"
    log.write_text(whole.read_text() + '{"phase": "joint", "st')
    assert read_training(log, "student") == read_training(whole, "student")
    log.write_text("no json\n" + whole.read_text())
    with pytest.raises(IntegrityError, match="line 1"):
        read_training(log, "student")
