"""`export --tune` on a run that was really trained, and bundles with and without settings."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rekd_edge.bench import BenchSettings
from rekd_edge.bench.tune import TunePlan
from rekd_edge.bundle import open_bundle, verify_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.errors import IntegrityError
from rekd_edge.export_pipeline import ExportResult, bench_bundle, check_bundle, export_bundle
from rekd_edge.run_folder import Run
from rekd_edge.runners import RuntimeSettings, available_cores

QUICK = BenchSettings(min_duration_s=0.0, min_count=5, warmup_count=1, cold_starts=1, quick=True)
PLAN = TunePlan(first_rounds=4, rounds=8, confirm_rounds=16, warmup=1)
TEXT = "A dull and lifeless film that wastes a wonderful cast."


@pytest.fixture(scope="module")
def run(smoke_run: Callable[[str, Path], Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return smoke_run("text", tmp_path_factory.mktemp("text") / "run")


@pytest.fixture(scope="module")
def tuned(run: Run) -> ExportResult:
    return export_bundle(run, output=run.path / "tuned", tune=True, plan=PLAN, twins=False)


def rewrite(bundle: Path, name: str, document: dict[str, Any]) -> None:
    """Writes a JSON file of a bundle and its digest into the manifest."""
    content = json.dumps(document).encode()
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = next(entry for entry in manifest["files"] if entry["path"] == name)
    entry.update(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    verify_bundle(bundle)


def with_settings(bundle: Path, copy: Path, **settings: object) -> Path:
    shutil.copytree(bundle, copy)
    config = json.loads((copy / "config.json").read_text())
    stored = RuntimeSettings().model_dump() | settings
    rewrite(copy, "config.json", config | {"runtime_settings": stored})
    return copy


def test_a_tuned_bundle_carries_its_settings_and_the_evidence(tuned: ExportResult) -> None:
    assert tuned.passed
    assert tuned.tuning is not None
    bundle = open_bundle(tuned.path)
    evidence = bundle.reports()["runtime_settings"]
    assert RuntimeSettings.model_validate(evidence["settings"]) == tuned.tuning.settings
    assert len(evidence["trials"]) >= 6
    stored = bundle.config.runtime_settings
    if tuned.tuning.settings.is_default:
        assert stored is None
        assert evidence["why_not"]
    else:
        assert stored is not None
        assert stored == tuned.tuning.settings
        assert evidence["confirmation"]["high"] < 1.0
        # What the manifest's gates say was measured with these settings.
        assert bundle.reports()["check"]["runtime_settings"] == stored.differences()


def test_a_bundles_settings_are_what_check_bench_and_predict_run_with(
    tuned: ExportResult, run: Run
) -> None:
    bundle = with_settings(
        tuned.path, run.path / "stored", threads=4096, graph_optimization="basic", cpu_arena=False
    )
    changed = {"threads": 4096, "graph_optimization": "basic", "cpu_arena": False}
    report, _ = check_bundle(bundle, reject_failed=False)
    assert report.passed, report.failures
    assert report.runtime_settings == changed
    assert report.threads == available_cores()  # never more than there are
    measured = bench_bundle(bundle, settings=QUICK)
    assert measured.runtime_settings == changed
    assert measured.threads == available_cores()
    assert bench_bundle(bundle, settings=QUICK, threads=1).threads == 1
    runtime = load_runtime()
    model = runtime.Rationalist.load(bundle)
    assert model.config.settings.graph_optimization == "basic"
    options = model._session.get_session_options()
    assert options.intra_op_num_threads == available_cores()
    assert not options.enable_cpu_mem_arena
    plain = runtime.Rationalist.load(tuned.path).predict([TEXT])[0]
    answer = model.predict([TEXT])[0]
    assert answer.label == plain.label
    # The same words; scores of another graph may be rounded otherwise.
    for mine, default in zip(answer.rationale, plain.rationale, strict=True):
        assert replace(mine, score=0.0) == replace(default, score=0.0)
        assert mine.score == pytest.approx(default.score, abs=1e-5)
    card = (tuned.path / "README.md").read_text()
    assert tuned.tuning is not None
    found = tuned.tuning.settings.graph_optimization
    assert ("graph_optimization basic" in card) == (found == "basic")


def test_a_bundle_from_before_settings_opens_and_answers(
    tuned: ExportResult, run: Run, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(tuned.path, old)
    config = json.loads((old / "config.json").read_text())
    for key in ("runtime", "runtime_settings"):
        del config[key]
    rewrite(old, "config.json", config)
    bundle = open_bundle(old)
    assert bundle.config.runtime == "onnxruntime"
    assert bundle.config.runtime_settings is None
    assert load_runtime().Rationalist.load(old).predict([TEXT])[0].label
    report, _ = check_bundle(old, run=run, threads=1, reject_failed=False)
    assert report.passed
    assert bench_bundle(old, run=run, settings=QUICK).threads == 1


def test_settings_that_no_runtime_knows_are_refused(tuned: ExportResult, tmp_path: Path) -> None:
    bundle = with_settings(tuned.path, tmp_path / "odd", graph_optimization="most")
    with pytest.raises(IntegrityError, match="graph_optimization"):
        open_bundle(bundle)
    runtime = load_runtime()
    with pytest.raises(runtime.IntegrityError, match="runtime_settings"):
        runtime.Rationalist.load(bundle)
