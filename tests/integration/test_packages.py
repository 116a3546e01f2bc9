"""Targets with packages and with providers for GPUs, on runs that were really trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch

from rekd_edge.bench import BenchSettings
from rekd_edge.bundle import open_bundle
from rekd_edge.cli.export_command import show_package
from rekd_edge.convert import file_sha256, load_target
from rekd_edge.engines.backend import Device
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.export_pipeline import bench_bundle, check_bundle, convert_run, export_bundle
from rekd_edge.export_pipeline import test_batches as batches_of
from rekd_edge.packages.backend import cxx, installed
from rekd_edge.packages.store import packages_dir
from rekd_edge.precision_pipeline import export_fastest
from rekd_edge.run_folder import Run
from rekd_edge.runners import OnnxRunner, TensorRtProviderRunner
from rekd_edge.runtime_options import CUDA_PROVIDER, TENSORRT_PROVIDER

QUICK = BenchSettings(min_duration_s=0.0, min_count=5, warmup_count=1, cold_starts=1, quick=True)


@pytest.fixture(scope="module", params=["text", "image"])
def run(
    request: pytest.FixtureRequest,
    smoke_run: Callable[[str, Path], Run],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    return smoke_run(request.param, tmp_path_factory.mktemp(request.param) / "run")


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


def test_what_is_missing_is_said_before_anything_is_made(
    smoke_run: Callable[[str, Path], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU each of these targets ends at once, and leaves nothing."""
    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    run = smoke_run("text", tmp_path / "run")
    output = tmp_path / "bundle"
    for target in ("ort-cuda", "ort-cuda-fp16", "ort-trt", "aoti-cuda", "torch-trt"):
        with pytest.raises(BackendError) as raised:
            export_bundle(run, target=target, output=output, threads=1)
        assert raised.value.exit_code == 4
        assert raised.value.hint
    with pytest.raises(UsageError, match="'aoti' is for aoti"):
        export_fastest(run, target="aoti", output=output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    _sizes_are_in_the_file(run, tmp_path / "file.onnx", monkeypatch)


def _sizes_are_in_the_file(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of ort-trt as far as it goes without a GPU: what its provider would be told."""
    convert_run(run, run.fused(), load_target("ort-trt"), file)
    with OnnxRunner(file, threads=1) as runner:
        batch = next(iter(batches_of(run.data().test, run.preprocessor)))
        assert runner.run(batch.inputs).logits.shape == (len(batch.labels), 2)
    monkeypatch.setenv("REKD_EDGE_CACHE", str(file.parent / "cache"))
    runner = TensorRtProviderRunner(file, provider=TENSORRT_PROVIDER, cuda_graph=True)
    gpu = Device("some GPU", 90, "580.1")
    (tensorrt, options), (cuda, _) = runner._chain(onnx.load(str(file)), "1.31.1", gpu)
    assert (tensorrt, cuda) == (TENSORRT_PROVIDER, CUDA_PROVIDER)
    assert options["trt_profile_max_shapes"] == "attention_mask:64x32,input_ids:64x32"
    wanted = ("trt_cuda_graph_enable", "trt_engine_cache_enable", "trt_timing_cache_enable")
    assert {name: options[name] for name in wanted} == dict.fromkeys(wanted, "True")
    place = Path(options["trt_engine_cache_path"])
    made_of = json.loads((place / "made-of.json").read_text())
    assert (made_of["driver"], made_of["compute_capability"]) == ("580.1", 90)
    assert made_of["onnx_sha256"] == file_sha256(file)


@pytest.mark.slow
def test_torch_tensorrt_holds_the_gates_on_a_gpu(run: Run, packages: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available() or installed("torch-tensorrt") is None:
        pytest.skip("torch-tensorrt needs a CUDA GPU and the package; it has not been run")
    result = export_bundle(run, target="torch-trt", output=tmp_path / "bundle", threads=1)
    assert result.passed, result.reasons
