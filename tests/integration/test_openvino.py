"""`--target openvino` on a run that was really trained: exported, checked, measured, asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rekd_edge.bench import BenchSettings
from rekd_edge.bundle import open_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.errors import UsageError
from rekd_edge.export_pipeline import ExportResult, bench_bundle, check_bundle, export_bundle
from rekd_edge.run_folder import Run

QUICK = BenchSettings(min_duration_s=0.0, min_count=5, warmup_count=1, cold_starts=1, quick=True)
TEXTS = ("A dull and lifeless film that wastes a wonderful cast.", "One of the best.")


@pytest.fixture(scope="module")
def run(smoke_run: Callable[[str, Path], Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return smoke_run("text", tmp_path_factory.mktemp("text") / "run")


@pytest.fixture(scope="module")
def exported(run: Run) -> ExportResult:
    return export_bundle(run, target="openvino", output=run.path / "bundle", threads=1)


def without_openvino(tmp_path: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command in a process where the package cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['openvino'] = None\n")
    search = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
        check=False,
    )


def test_the_file_passes_the_gates_of_fp32_in_openvino(exported: ExportResult) -> None:
    assert exported.passed, exported.reasons
    report = exported.report
    assert report is not None
    assert (report.runtime, report.provider, report.gate_set) == ("openvino", "CPU", "default")
    assert report.numerical is not None
    assert report.numerical.changed_examples == 0
    assert report.metrics["rationale_exact"] == 1.0
    bundle = open_bundle(exported.path)
    assert bundle.config.runtime == "openvino"
    assert "openvino" in bundle.manifest.versions
    card = (exported.path / "README.md").read_text()
    assert "python -m pip install numpy openvino tokenizers" in card
    assert "| this file (OpenVINO, in fp32) |" in card


def test_it_is_checked_again_and_measured_beside_onnx_runtime(exported: ExportResult) -> None:
    report, _ = check_bundle(exported.path, threads=1, reject_failed=False)
    assert report.passed, report.failures
    assert report.runtime == "openvino"
    measured = bench_bundle(exported.path, settings=QUICK)
    assert set(measured.candidates) == {"gathered", "gathered-onnxruntime", "plain", "masked"}
    providers = {name: item.providers for name, item in measured.candidates.items()}
    assert providers["gathered"] == providers["plain"] == ("CPU",)
    assert providers["gathered-onnxruntime"] == ("CPUExecutionProvider",)
    cold = measured.candidates["gathered"].cold_start
    assert cold is not None
    assert cold.load_ns[0] > 0
    assert measured.to_json()["runtime"] == "openvino"


def test_the_torch_free_runtime_answers_as_onnx_runtime_does(
    exported: ExportResult, run: Run, tmp_path: Path
) -> None:
    other = export_bundle(run, output=tmp_path / "onnx", threads=1, twins=False)
    runtime = load_runtime()
    mine = runtime.Rationalist.load(exported.path, threads=1)
    assert type(mine._session).__name__ == "_OpenVinoSession"
    theirs = runtime.Rationalist.load(other.path, threads=1)
    for one, two in zip(mine.predict(TEXTS), theirs.predict(TEXTS), strict=True):
        assert one.label == two.label
        assert [span.tokens for span in one.rationale] == [span.tokens for span in two.rationale]
        assert one.probability == pytest.approx(two.probability, abs=1e-5)
    with pytest.raises(runtime.BackendError, match="COFFEE"):
        runtime.Rationalist.load(exported.path, provider="COFFEE")


def test_without_the_package_every_command_says_what_to_install(
    exported: ExportResult, run: Run, tmp_path: Path
) -> None:
    script = exported.path / "runtime" / "rekd_runtime.py"
    predict = without_openvino(tmp_path, script, TEXTS[0])
    assert predict.returncode == 4
    assert "pip install openvino" in predict.stderr
    words = ("-m", "rekd_edge", "export", run.path, "--target", "openvino")
    export = without_openvino(tmp_path, *words, "--output", tmp_path / "out", "--no-twins")
    assert export.returncode == 4, export.stderr
    assert "pip install 'rekd-edge[openvino]'" in export.stderr
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in predict.stderr + export.stderr


def test_there_are_no_settings_to_search(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ONNX Runtime"):
        export_bundle(run, target="openvino", output=tmp_path / "bundle", tune=True)
    assert not list(tmp_path.iterdir())


def test_a_bundle_for_a_runtime_that_is_not_known_is_refused(
    exported: ExportResult, tmp_path: Path
) -> None:
    runtime = load_runtime()
    config = json.loads((exported.path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"runtime": "abacus"}))
    preprocessor = (exported.path / "preprocessor_config.json").read_text()
    (tmp_path / "preprocessor_config.json").write_text(preprocessor)
    with pytest.raises(runtime.IntegrityError, match="abacus"):
        runtime.read_config(tmp_path)
