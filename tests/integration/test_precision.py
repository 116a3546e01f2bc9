"""`export --precision auto` on a run that was really trained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from rekd_edge.bench import BenchSettings
from rekd_edge.bundle import verify_bundle
from rekd_edge.convert import load_target, matrix_products
from rekd_edge.export_pipeline import bench_bundle, check_bundle, export_bundle
from rekd_edge.precision_pipeline import Variant, choose, export_fastest
from rekd_edge.run_folder import Run

QUICK = BenchSettings(min_duration_s=0.0, min_count=20, warmup_count=1, cold_starts=0, quick=True)
LENIENT = """schema_version: 1
name: lenient
gates:
  - {metric: io_valid, value: 1}
  - {metric: failed_shapes, value: 0}
  - {metric: exclusion_leaks, value: 0}
  - {metric: exclusion_changed, value: 0}
"""


@pytest.fixture(scope="module")
def run(smoke_run: Callable[[str, Path], Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return smoke_run("text", tmp_path_factory.mktemp("text") / "run")


def test_the_fastest_precision_that_holds_its_gates_is_bundled(run: Run, tmp_path: Path) -> None:
    gates = tmp_path / "lenient.yaml"
    gates.write_text(LENIENT)
    output = run.path / "bundle"
    result, report = export_fastest(run, output=output, gates=str(gates), threads=1, settings=QUICK)
    assert result.passed
    assert [one.target for one in report.variants] == [
        "onnx",
        "onnx-fp16",
        "onnx-fp16-predictor",
        "onnx-int8",
        "onnx-int8-predictor",
        "onnx-int8-static",
    ]
    assert all(one.passed for one in report.variants)
    times = {one.target: one.p50_ms for one in report.variants}
    assert None not in times.values()
    assert report.chosen == min(times, key=lambda name: times[name] or 0.0)
    chosen = next(one for one in report.variants if one.target == report.chosen)
    assert chosen.on_front
    assert all(bool(one.why_not) == (one is not chosen) for one in report.variants)
    # The selector is untouched where the predictor alone is changed.
    exact = {one.target: one.rationale_exact for one in report.variants}
    assert exact["onnx-int8-predictor"] == exact["onnx-fp16-predictor"] == exact["onnx"]
    size = {one.target: one.size_bytes or 0 for one in report.variants}
    assert size["onnx-fp16"] < 0.55 * size["onnx"]

    manifest = verify_bundle(output)
    assert manifest.target == report.chosen
    model = onnx.load(str(output / "model.onnx"))
    stored = json.loads((output / "reports" / "precision.json").read_text())
    assert stored["chosen"] == report.chosen
    stated = {item.key: item.value for item in model.metadata_props}
    assert stated["rekd_edge.target"] == report.chosen
    kinds = {kind for counts in matrix_products(model).values() for kind in counts}
    assert load_target(report.chosen or "").precision.partition("-")[0] in kinds
    assert not list(run.path.glob(".bundle*"))


def test_an_int8_bundle_is_checked_and_measured_like_any_other(run: Run, tmp_path: Path) -> None:
    gates = tmp_path / "lenient.yaml"
    gates.write_text(LENIENT)
    output = run.path / "int8"
    result = export_bundle(
        run, target="onnx-int8-static", output=output, gates=str(gates), threads=1
    )
    assert result.passed, result.reasons
    config = json.loads((output / "config.json").read_text())
    assert config["precision"] == "int8-static"
    report, _ = check_bundle(output, gates=str(gates), threads=1, reject_failed=False)
    assert report.passed
    measured = bench_bundle(output, settings=QUICK, threads=1)
    assert set(measured.candidates) == {"gathered", "plain", "masked", "plain-int8-static"}


@pytest.mark.slow
def test_without_a_variant_inside_the_gates_nothing_is_bundled(run: Run, tmp_path: Path) -> None:
    gates = tmp_path / "impossible.yaml"
    gates.write_text(f"{LENIENT}  - {{metric: size_bytes, value: 10}}\n")
    output = tmp_path / "out" / "bundle"
    words = ["export", str(run.path), "--output", str(output), "--precision", "auto"]
    words += ["--gates", str(gates), "--threads", "1", "--no-twins"]
    answer = subprocess.run(
        [sys.executable, "-m", "rekd_edge", *words], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 3, answer.stderr
    assert "no precision holds its gates" in answer.stderr
    assert "size_bytes" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not output.exists()
    reason = json.loads((output.parent / "rejected" / "bundle" / "reason.json").read_text())
    assert len(reason["reasons"]) == 6
    assert [path.name for path in output.parent.iterdir()] == ["rejected"]


def variant(name: str, p50: float, accuracy: float, exact: float, *failed: str) -> Variant:
    return Variant(name, "fp32", (), accuracy, 1.0, exact, 1.0, 1, failed, p50_ms=p50)


def test_the_front_and_the_choice() -> None:
    found = choose(
        (
            variant("exact", 3.0, 0.80, 1.0),
            variant("fast", 1.0, 0.79, 0.95),
            variant("dominated", 2.0, 0.79, 0.95),
            variant("wrong", 0.5, 0.50, 0.2, "accuracy is 0.5"),
        )
    )
    assert [one.on_front for one in found] == [True, True, False, False]
    assert [one.why_not for one in found] == [
        "slower than fast",
        "",
        "off the front: fast is as good in everything, and better",
        "accuracy is 0.5",
    ]


def test_two_variants_that_are_equal_do_not_exclude_each_other() -> None:
    found = choose((variant("one", 1.0, 0.8, 1.0), variant("two", 1.0, 0.8, 1.0)))
    assert [one.on_front for one in found] == [True, True]
    assert [one.why_not for one in found] == ["", "slower than one"]


def test_only_auto_is_searched_for(run: Run, tmp_path: Path) -> None:
    words = ["export", str(run.path), "--output", str(tmp_path / "bundle"), "--precision", "int8"]
    answer = subprocess.run(
        [sys.executable, "-m", "rekd_edge", *words], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert "--target onnx-int8" in answer.stderr
