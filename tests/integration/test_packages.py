"""Targets with packages and with providers for GPUs, on runs that were really trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rekd_edge.bench import BenchSettings
from rekd_edge.bundle import open_bundle
from rekd_edge.cli.export_command import show_package
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.export_pipeline import bench_bundle, check_bundle, export_bundle
from rekd_edge.packages.backend import cxx, installed
from rekd_edge.packages.store import packages_dir
from rekd_edge.pipeline import train_run
from rekd_edge.precision_pipeline import export_fastest
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.run_folder import Run

QUICK = BenchSettings(min_duration_s=0.0, min_count=5, warmup_count=1, cold_starts=1, quick=True)


@pytest.fixture(scope="module", params=["text", "image"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp(request.param) / "run"
    return train_run(load_recipe(find_recipe(f"smoke/{request.param}")), path, device="cpu")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of packages; data and weights are still there."""
    from rekd_edge.packages import store

    monkeypatch.setattr(store, "PACKAGES_FOLDER", f"packages-of-{tmp_path.name}")
    place = packages_dir()
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(cxx() is None, reason="needs a C++ compiler")
def test_a_package_is_made_beside_the_bundle_and_measured_with_it(
    run: Run, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = export_bundle(run, target="aoti", output=run.path / "bundle", threads=1)
    assert result.passed, result.reasons
    assert result.package is not None
    checks = result.package.record.checks
    assert (checks.parity, checks.accuracy, checks.exclusion) == ("passed",) * 3
    bundle = open_bundle(result.path)
    assert not list(result.path.rglob("*.pt2"))
    assert bundle.reports()["package"] == json.loads(
        result.package.path.with_name("package.json").read_text()
    )
    assert str(packages) not in json.dumps(bundle.reports()["package"])
    from rich.console import Console

    show_package(Console(width=200), result.package)
    assert "(not in the bundle)" in capsys.readouterr().out
    report, _ = check_bundle(result.path, threads=1, reject_failed=False)
    assert report.passed

    measured = bench_bundle(result.path, settings=QUICK)
    assert measured.candidates["gathered-aoti"].providers == ("aoti cpu",)
    assert set(measured.candidates) == {"gathered", "gathered-aoti", "plain", "masked"}
    shutil.rmtree(packages)
    without = bench_bundle(result.path, settings=QUICK)
    assert "gathered-aoti" not in without.candidates
    assert any("export the run here with --target aoti" in note for note in without.notes)


def test_what_is_missing_is_said_before_anything_is_made(tmp_path: Path) -> None:
    """Without a GPU each of these targets ends at once, and leaves nothing."""
    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    run = train_run(load_recipe(find_recipe("smoke/text")), tmp_path / "run", device="cpu")
    output = tmp_path / "bundle"
    for target in ("ort-cuda", "ort-cuda-fp16", "ort-trt", "aoti-cuda", "torch-trt"):
        with pytest.raises(BackendError) as raised:
            export_bundle(run, target=target, output=output, threads=1)
        assert raised.value.exit_code == 4
        assert raised.value.hint
    with pytest.raises(UsageError, match="'aoti' is for aoti"):
        export_fastest(run, target="aoti", output=output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
def test_torch_tensorrt_holds_the_gates_on_a_gpu(run: Run, packages: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available() or installed("torch-tensorrt") is None:
        pytest.skip("torch-tensorrt needs a CUDA GPU and the package; it has not been run")
    result = export_bundle(run, target="torch-trt", output=tmp_path / "bundle", threads=1)
    assert result.passed, result.reasons
