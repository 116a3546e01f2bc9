"""Exporting, checking and measuring a run that was really trained, on real data."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from rekd_edge import export_pipeline
from rekd_edge.bench import BenchSettings
from rekd_edge.bundle import verify_bundle
from rekd_edge.errors import GateError, IntegrityError, UsageError
from rekd_edge.export_pipeline import ExportResult, bench_bundle, check_bundle, export_bundle
from rekd_edge.load_pipeline import load_examples, load_test
from rekd_edge.run_folder import Run, open_run

QUICK = BenchSettings(min_duration_s=0.0, min_count=5, warmup_count=1, cold_starts=1, quick=True)


@pytest.fixture(scope="module")
def run(smoke_run: Callable[[str, Path], Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return smoke_run("text", tmp_path_factory.mktemp("text") / "run")


@pytest.fixture(scope="module")
def exported(run: Run) -> ExportResult:
    return export_bundle(run, output=run.path / "bundle", threads=1)


@pytest.fixture
def bundle(exported: ExportResult, run: Run) -> Iterator[Path]:
    """A copy of the bundle inside the run, which a test may damage."""
    path = run.path / "copy"
    shutil.copytree(exported.path, path)
    yield path
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(run.path / "rejected", ignore_errors=True)


def scale_weight(path: Path, prefix: str, factor: float) -> None:
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if t.name.startswith(prefix))
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(path))


def seal(bundle: Path) -> None:
    """Writes the digests of changed files into the manifest, as a forger would."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["files"]:
        content = (bundle / entry["path"]).read_bytes()
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        entry["size_bytes"] = len(content)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    verify_bundle(bundle)


def command_line(*words: str) -> subprocess.CompletedProcess[str]:
    code = "from rekd_edge.cli.app import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_trained_run_becomes_a_verified_bundle(exported: ExportResult, run: Run) -> None:
    assert exported.passed, exported.reasons
    manifest = verify_bundle(exported.path)
    assert manifest.passed
    assert {gate.name for gate in manifest.gates} >= {"exclusion_changed", "rationale_exact"}
    assert {"student_onnx", "student", "teacher"} <= manifest.accuracy.keys()
    assert hidden(run.path) == []
    assert exported.report is not None
    assert exported.report.numerical is not None
    assert exported.report.numerical.max_change == 0.0


def test_the_bundle_holds_no_path_of_this_machine(exported: ExportResult, run: Run) -> None:
    for path in exported.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(run.path).encode() not in content, path
            assert str(Path(export_pipeline.__file__).parent).encode() not in content, path


def test_the_file_says_what_it_is(exported: ExportResult, run: Run) -> None:
    model = onnx.load(str(exported.path / "model.onnx"))
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["rekd_edge.recipe"] == "smoke-text"
    assert json.loads(metadata["rekd_edge.labels"]) == list(run.label_names)
    assert metadata["rekd_edge.rationale_ratio"] == "1/5"
    assert metadata["rekd_edge.cut"] == "rationale_index,rationale_valid"
    assert len(metadata["rekd_edge.weights_sha256"]) == 64


def test_check_finds_the_run_above_the_bundle_and_passes(bundle: Path) -> None:
    report, place = check_bundle(bundle, threads=1)
    assert report.passed, report.failures
    assert place == bundle
    assert {"onnx", "torch", "teacher"} <= report.accuracy.keys()


def test_a_changed_byte_is_an_integrity_error_and_the_bundle_stays(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-100] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        check_bundle(bundle)
    assert bundle.is_dir()


def test_a_forged_weight_is_found_and_the_bundle_rejected(bundle: Path, run: Run) -> None:
    scale_weight(bundle / "model.onnx", "predictor.head.weight", 3.0)
    seal(bundle)
    done = command_line("check", str(bundle), "--threads", "1", "--json", "-")
    assert done.returncode == 3, done.stderr
    assert "max_logit_error" in done.stderr
    assert "Traceback" not in done.stderr
    printed = json.loads(done.stdout)
    assert printed["passed"] is False
    assert not bundle.exists()
    rejected = run.path / "rejected" / "copy"
    assert printed["path"] == str(rejected)
    reason = json.loads((rejected / "reason.json").read_text())
    assert any("max_logit_error" in line for line in reason["reasons"])
    assert (rejected / "model.onnx").is_file()


def test_swapped_class_names_are_found_and_the_bundle_rejected(bundle: Path, run: Run) -> None:
    config = json.loads((bundle / "config.json").read_text())
    names = config["label_names"][::-1]
    config["label_names"] = names
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (bundle / "config.json").write_text(json.dumps(config))
    (bundle / "labels.json").write_text(json.dumps(names))
    seal(bundle)
    with pytest.raises(GateError, match="label_names") as raised:
        check_bundle(bundle, threads=1)
    assert raised.value.exit_code == 3
    assert not bundle.exists()
    reason = json.loads((run.path / "rejected" / "copy" / "reason.json").read_text())
    assert "label_names" in reason["reasons"][0]


def test_another_preparation_of_the_input_is_found(bundle: Path) -> None:
    file = bundle / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    settings["max_length"] -= 1
    file.write_text(json.dumps(settings))
    seal(bundle)
    with pytest.raises(GateError, match="prepares its input otherwise"):
        check_bundle(bundle, reject_failed=False)
    assert bundle.is_dir()


def test_keep_leaves_a_failed_bundle_where_it_is(bundle: Path) -> None:
    scale_weight(bundle / "model.onnx", "selector.", -2.0)
    seal(bundle)
    report, place = check_bundle(bundle, reject_failed=False, threads=1)
    assert not report.passed
    assert place == bundle
    assert bundle.is_dir()
    assert not (bundle / "reason.json").exists()


def damaged(exported: ExportResult, change: Callable[[Path], None]) -> Callable[..., None]:
    """In place of the conversion: what it made of the same student, damaged before anything else
    sees it."""

    def convert(model: Any, io_spec: Any, path: Path, **_: Any) -> None:
        shutil.copyfile(exported.path / "model.onnx", path)
        change(path)

    return convert


def test_a_wrong_export_is_rejected_and_never_gets_the_name(
    exported: ExportResult, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = damaged(exported, lambda path: scale_weight(path, "predictor.head.weight", -1.0))
    monkeypatch.setattr(export_pipeline, "convert_to_onnx", convert)
    result = export_bundle(run, output=tmp_path / "bundle", threads=1)
    assert not result.passed
    assert any("max_logit_error" in reason for reason in result.reasons)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rejected"]
    assert result.path == tmp_path / "rejected" / "bundle"
    assert sorted(path.name for path in result.path.iterdir()) == ["model.onnx", "reason.json"]
    again = export_bundle(run, output=tmp_path / "bundle", threads=1)
    assert again.path == tmp_path / "rejected" / "bundle-2"


def test_a_gate_that_does_not_hold_ends_with_exit_code_3(run: Run, tmp_path: Path) -> None:
    # Random weights, trained for a moment, are no better than always guessing one class.
    gates = tmp_path / "clever.yaml"
    gates.write_text(
        "schema_version: 1\nname: clever\ngates:\n"
        "  - {metric: accuracy, goal: min-improvement, value: 0.45, reference: majority}\n"
    )
    output = tmp_path / "bundle"
    done = command_line(
        "export", str(run.path), "--output", str(output), "--gates", str(gates), "--no-twins"
    )
    assert done.returncode == 3, done.stderr
    assert "accuracy is" in done.stderr
    assert str(tmp_path / "rejected" / "bundle") in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()
    assert hidden(tmp_path) == []


def test_a_taken_output_is_refused_before_any_work(
    exported: ExportResult, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="already holds a bundle"):
        export_bundle(run, output=exported.path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match="is no bundle"):
            export_bundle(run, output=other, force=force)
    assert (other / "notes.txt").read_text() == "mine"


def test_force_replaces_a_bundle_only_by_one_that_passes(
    bundle: Path, exported: ExportResult, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = verify_bundle(bundle)
    with monkeypatch.context() as patched:
        convert = damaged(exported, lambda path: scale_weight(path, "predictor.head.weight", 5.0))
        patched.setattr(export_pipeline, "convert_to_onnx", convert)
        refused = export_bundle(run, output=bundle, force=True, twins=False, threads=1)
    assert not refused.passed
    assert verify_bundle(bundle) == before
    replaced = export_bundle(run, output=bundle, force=True, twins=False, threads=1)
    assert replaced.passed
    assert verify_bundle(bundle) == replaced.manifest
    assert hidden(run.path) == []


def test_another_runs_bundle_is_not_compared(bundle: Path, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.path, other, ignore=shutil.ignore_patterns("copy", "bundle", "onnx"))
    weights = other / "student" / "best" / "model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, weights)
    with pytest.raises(UsageError, match="was not made from"):
        check_bundle(bundle, run=open_run(other))
    alone = tmp_path / "alone"
    shutil.copytree(bundle, alone)
    with pytest.raises(UsageError, match="--run"):
        check_bundle(alone)


def test_bench_compares_with_plain_and_masked_on_the_test_split(bundle: Path, run: Run) -> None:
    report = bench_bundle(bundle, settings=QUICK, threads=1)
    assert list(report.candidates) == ["gathered", "plain", "masked"]
    assert report.reference == "plain"
    assert report.inputs.startswith("test split of")
    assert report.input_count == len(run.data().test)
    assert any("its answers are not" in note for note in report.notes)
    assert not report.valid
    for candidate in report.candidates.values():
        assert candidate.ratio is not None
        assert candidate.cold_start is not None


def test_bench_command_writes_json(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = command_line("bench", str(bundle), "--quick", "--threads", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert "INVALID: quick" in done.stdout
    written = json.loads(out.read_text())
    assert written["result_validity"] == "INVALID"
    assert set(written["candidates"]) == {"gathered", "plain", "masked"}


def accuracy_of_the_test_split(bundle: Path) -> float:
    asked = {"schema_version": 1, "scenario": "SingleStream", "mode": "AccuracyOnly"}
    report = load_test(bundle, asked, load_examples(bundle, limit=None))
    assert report.valid
    assert report.document["inputs"].startswith("test split of")
    return report.document["quality"]["accuracy"]


def test_the_load_test_finds_the_accuracy_that_was_checked(bundle: Path, run: Run) -> None:
    checked = json.loads((bundle / "reports" / "check.json").read_text())["metrics"]["accuracy"]
    assert accuracy_of_the_test_split(bundle) == pytest.approx(checked)
    assert len(load_examples(bundle, limit=3).examples) == 3


def test_bench_without_a_run_needs_inputs_and_says_so(bundle: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(bundle, alone)
    with pytest.raises(UsageError, match="--inputs"):
        bench_bundle(alone, settings=QUICK)
    texts = tmp_path / "texts.txt"
    texts.write_text("a fine film\n\nnot worth the time it takes\n")
    report = bench_bundle(alone, inputs_file=texts, settings=QUICK)
    assert list(report.candidates) == ["gathered"]
    assert report.reference is None
    assert report.inputs == "texts.txt, given with --inputs"
    assert report.input_count == 2
    assert any("no run was found" in note for note in report.notes)
    texts.write_text("\n")
    with pytest.raises(UsageError, match="holds no text"):
        bench_bundle(alone, inputs_file=texts, settings=QUICK)


def test_a_write_that_fails_half_way_leaves_nothing(run: Run, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError) as raised:
            export_bundle(run, output=tmp_path / "bundle", twins=False, threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_unknown_targets_and_missing_runs_are_usage_errors(run: Run, tmp_path: Path) -> None:
    done = command_line("export", str(run.path), "--target", "onxn", "--output", f"{tmp_path}/b")
    assert done.returncode == 2
    assert "did you mean 'onnx'" in done.stderr
    done = command_line("export", str(tmp_path), "--output", f"{tmp_path}/b")
    assert done.returncode == 2
    assert "is no run folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_images_end_to_end(smoke_run: Callable[[str, Path], Run], tmp_path: Path) -> None:
    run = smoke_run("image", tmp_path / "run")
    result = export_bundle(run, output=run.path / "bundle", threads=1)
    assert result.passed, result.reasons
    assert result.report is not None
    assert result.report.structural is not None
    assert result.report.structural.gated_reads == ("pixel_values",)
    checked = result.report.metrics["accuracy"]
    assert accuracy_of_the_test_split(result.path) == pytest.approx(checked)
    report = bench_bundle(result.path, settings=QUICK, threads=1)
    assert list(report.candidates) == ["gathered", "plain", "masked"]
