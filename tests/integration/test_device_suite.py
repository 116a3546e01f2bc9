"""A latency suite on a device: here the CPU, with the code that a GPU runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from rekd_edge import device_suite
from rekd_edge.bench import BenchSettings
from rekd_edge.bench.residents import TorchResident
from rekd_edge.cli.app import app
from rekd_edge.convert import load_target
from rekd_edge.device_suite import _DeviceTable, _Way, device_table
from rekd_edge.errors import BackendError, RecipeError, UsageError
from rekd_edge.export_pipeline import convert_run
from rekd_edge.fuse import FusedRationalist
from rekd_edge.latency_suite import run_latency
from rekd_edge.recipe.latency_file import load_latency
from rekd_edge.recipe.suite_file import row_recipes

ROOT = Path(__file__).parents[2]
QUICK = BenchSettings(min_duration_s=0.0, min_count=3, warmup_count=1, cold_starts=0, quick=True)
SUITE = """schema_version: 1
name: trial
recipe: smoke/text
batch: [1, 4]
rows:
  - name: ours
  - name: plain
    overrides: [task=classify]
candidates:
  - {name: plain, title: plain classifier, run: plain, form: plain}
  - {name: ours, run: ours, form: gathered, targets: [onnx, onnx-fp16]}
  - {name: masked, run: ours, form: masked}
on_device: {runtimes: [torch, onnxruntime, tensorrt], queries: 2}
"""


def run_it(path: Path, output: Path, device: str = "cpu", **changes: Any) -> dict[str, Any]:
    (spec, file), *_ = load_latency(path).values()
    recipes = row_recipes(spec, file.parent)
    return run_latency(spec, recipes, output, settings=QUICK, device=device, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("device")
    path = folder / "suite.yaml"
    path.write_text(SUITE)
    return path, folder / "out", run_it(path, folder / "out")


def test_every_form_is_timed_in_every_runtime_that_is_there(
    made: tuple[Path, Path, dict[str, Any]],
) -> None:
    _, output, result = made
    assert json.loads((output / "device-cpu.json").read_text()) == result
    assert (output / "device-cpu.md").read_text() == device_table(result)
    keys = [(r["name"], r["runtime"], r["target"], r["batch"]) for r in result["rows"]]
    fp32 = [
        (name, runtime, "onnx")
        for runtime in ("torch", "onnxruntime")
        for name in ("plain", "ours", "masked")
    ]
    each = [*fp32, ("ours", "onnxruntime", "onnx-fp16")]
    assert sorted(keys) == sorted((*one, batch) for one in each for batch in (1, 4))
    for row in result["rows"]:
        assert not row["cuda_graph"]
        assert row["label_agreement"] in {1.0, None}
        for scope in ("excluded", "included"):
            timing = row["transfers"][scope]
            assert timing["result_99_percentile_latency_ns"] > 0
            assert timing["result_query_count"] == 3
            assert timing["examples_per_s"] > 0
            if row["target"] == "onnx":
                assert (timing["ratio_to_plain"]["value"] == 1) == (row["name"] == "plain")
    reasons = {(one["way"], one["reason"]) for one in result["not_run"]}
    assert ("torch, CUDA graph", "CUDA graphs need a CUDA GPU") in reasons
    assert ("tensorrt", "TensorRT needs a CUDA GPU") in reasons
    ran = {f"{r['target']}, batch {r['batch']}, {r['runtime']}" for r in result["rows"]}
    assert {run for run, said in result["validity"].items() if said == "INVALID: quick"} == ran
    assert {said for run, said in result["validity"].items() if run not in ran} == {
        "INVALID: quick; nothing ran"
    }
    assert result["gpu"][0]["before"] is None
    assert result["unfinished"] is False
    assert result["onnxruntime"]["version"] == onnxruntime.__version__
    table = device_table(result)
    assert "not run: tensorrt, onnx: TensorRT needs a CUDA GPU" in table
    assert "in one interleaved run (INVALID: quick)" in table
    kept = {path.name for path in (output / "device").glob("timing-*.json")}
    assert kept == {
        f"timing-cpu-{target}-{size}-{way}.json"
        for target, way in (
            ("onnx", "torch"),
            ("onnx", "onnxruntime"),
            ("onnx-fp16", "onnxruntime"),
        )
        for size in (1, 4)
    }  # and none of what did not run


def test_a_lower_precision_is_made_from_the_fp32_file(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[tuple[str, Path | None]] = []

    def noted(*given: Any, fp32: Path | None = None) -> None:
        exported.append((given[3].name, fp32))
        convert_run(*given, fp32=fp32)

    monkeypatch.setattr(device_suite, "convert_run", noted)
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.replace("targets: [onnx, onnx-fp16]", "targets: [onnx-fp16, onnx]"))
    result = run_it(path, tmp_path / "out", batch=(1,))
    whole = tmp_path / "out" / "device" / "ours.fp32-opset20.onnx"
    assert [one for one in exported if one[0].startswith("ours")] == [
        ("ours.fp32-opset20.onnx", None),
        ("ours.onnx-fp16.onnx", whole),
    ]
    halves = [row for row in result["rows"] if row["target"] == "onnx-fp16"]
    assert [row["label_agreement"] for row in halves] in ([1.0], [None])
    fp16 = tmp_path / "out" / "device" / "ours.onnx-fp16.onnx"
    assert fp16.stat().st_size < 0.7 * whole.stat().st_size


def test_a_timing_that_is_there_is_kept_and_another_one_is_made(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, output, result = made
    shutil.copytree(output, tmp_path / "out")
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "device").iterdir()}
    assert run_it(path, tmp_path / "out")["rows"] == result["rows"]
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "device").iterdir()}
    assert after == stamps
    found = run_it(path, tmp_path / "out", batch=(2,))
    assert {row["batch"] for row in found["rows"]} == {2}
    assert (tmp_path / "out" / "device" / "timing-cpu-onnx-2-torch.json").is_file()


class Interrupting:
    """A listener that ends the run at what it is told."""

    def __init__(self, at: str) -> None:
        self.at = at

    def retitle(self, title: str) -> None:
        if title.startswith(self.at):
            raise KeyboardInterrupt


def test_what_was_timed_is_in_the_table_of_a_run_that_was_ended(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, output, result = made
    shutil.copytree(output, tmp_path / "out")
    (tmp_path / "out" / "device-cpu.json").unlink()
    (tmp_path / "out" / "device" / "timing-cpu-onnx-4-onnxruntime.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        run_it(path, tmp_path / "out", listener=Interrupting("onnx, batch 4: ours in onnxruntime"))
    found = json.loads((tmp_path / "out" / "device-cpu.json").read_text())
    assert found["rows"] == [
        row
        for row in result["rows"]
        if row["batch"] == 1 or (row["runtime"], row["target"]) == ("torch", "onnx")
    ]


def test_a_limit_leaves_the_rest_to_another_call(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """What is open when there is no time for more is timed, and made again with the others."""
    path, output, result = made
    found = run_it(path, tmp_path / "out", limit_s=0.0)
    assert [(row["name"], row["runtime"], row["batch"]) for row in found["rows"]] == [
        ("plain", "torch", 1)
    ]
    assert found["unfinished"]
    assert json.loads((tmp_path / "out" / "device-cpu.json").read_text()) == found
    left_out = [one for one in found["not_run"] if one["reason"] == "no time was left"]
    assert [one["model"] for one in left_out] == ["ours", "masked"]
    said = "- not run: torch, onnx, ours, masked at batch 1: no time was left"
    assert said in device_table(found)
    again = run_it(path, tmp_path / "out", batch=(1,))
    assert len(again["rows"]) == len([row for row in result["rows"] if row["batch"] == 1])
    shutil.copytree(output, tmp_path / "whole")
    assert not run_it(path, tmp_path / "whole", limit_s=60.0)["unfinished"]
    # By the command: the limit counts from the start of the process, and it says that it stopped.
    words = ["bench", "--suite", path, "--output", tmp_path / "asked", "--device", "cpu"]
    limits = ["--min-count", 3, "--min-duration-s", 0, "--max-duration-s", 0.1, "--limit-s", 1]
    done = CliRunner().invoke(app, [str(word) for word in (*words, *limits)])
    assert done.exit_code == 0, done.output
    assert "\nstopped after 1 s; run it again to go on\n" in done.output
    asked = json.loads((tmp_path / "asked" / "device-cpu.json").read_text())
    assert asked["settings"]["max_duration_s"] == 0.1
    assert asked["unfinished"]
    done = CliRunner().invoke(app, ["bench", str(tmp_path), "--limit-s", "1"])
    assert str(done.exception) == "--limit-s: only for --suite"
    plain = tmp_path / "plain.yaml"
    plain.write_text(SUITE.replace(SUITE.splitlines()[-1], ""))
    with pytest.raises(UsageError, match="for suites with on_device, and trial has none"):
        run_it(plain, tmp_path / "files", limit_s=1.0)


def table_of(path: Path, output: Path, device: str) -> _DeviceTable:
    (spec, file), *_ = load_latency(path).values()
    assert spec.on_device is not None
    return _DeviceTable(
        spec, spec.on_device, row_recipes(spec, file.parent), output, device, listener=None
    )


def test_a_provider_that_is_missing_is_known_before_a_file_is_made_for_it(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    table = table_of(made[0], tmp_path, "cuda")
    candidate, target = table.spec.candidates[0], load_target("onnx")
    with ExitStack() as opened, pytest.raises(BackendError, match="has no CUDAExecutionProvider"):
        table._resident(candidate, _Way("onnxruntime", False), target, 1, opened)
    assert not list(tmp_path.rglob("*.onnx"))


def test_the_cpu_answers_once_for_all_ways_and_a_way_that_breaks_is_listed(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(made[0], tmp_path, "cpu")
    candidate = table.spec.candidates[0]
    four = table._answers(candidate, table.queries(4))
    model = table.model(candidate).model

    def broken(*_: object, **__: object) -> Any:
        raise ValueError("no such type\nmore")

    # The examples of a batch are known from another one, and for both precisions.
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", broken)
        again = table._answers(candidate, table.queries(4))
        ones = table._answers(candidate, table.queries(1))
    assert all(map(np.array_equal, four, again))
    assert len(ones) == 2  # the queries asked for
    assert np.array_equal(np.concatenate(ones), four[0][:2])
    # A large batch is compared in part.
    monkeypatch.setattr(device_suite, "COMPARED", 5)
    assert [len(one) for one in table._answers(candidate, table.queries(4))] == [4, 1]

    # Nothing at all runs: the timing says why, and is not kept.
    monkeypatch.setattr(table, "_resident", broken)
    timing = table.timing("onnx", _Way("torch", False), 1, QUICK)
    assert timing["rows"] == []
    assert {one["reason"] for one in timing["not_run"]} == {"no such type"}
    assert timing["validity"] == "INVALID: quick; nothing ran"
    assert not list(tmp_path.rglob("timing-*.json"))
    monkeypatch.setattr(_DeviceTable, "_resident", broken)
    with pytest.raises(BackendError, match="nothing ran on cpu") as raised:
        run_it(made[0], tmp_path / "none")
    assert raised.value.hint == "no such type"
    assert (tmp_path / "none" / "device-cpu.md").is_file()


def test_a_model_that_breaks_while_it_is_timed_costs_itself_alone(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason has what is to be done, and the others are timed."""
    table = table_of(made[0], tmp_path, "cpu")
    launch = TorchResident.launch
    launches: list[TorchResident] = []

    def breaking(self: TorchResident) -> None:
        launches.append(self)
        if launches.count(self) > 3 and isinstance(self._model, FusedRationalist):
            raise BackendError("it broke\noff", hint="Failed to load " + "lib " * 200)
        launch(self)

    monkeypatch.setattr(TorchResident, "launch", breaking)
    timing = table.timing("onnx", _Way("torch", False), 1, QUICK)
    assert [row["name"] for row in timing["rows"]] == ["plain", "masked"]
    (one,) = timing["not_run"]
    assert (one["model"], one["batch"]) == ("ours", 1)
    assert one["reason"].startswith("it broke off (Failed to load lib")
    assert len(one["reason"]) == 500
    assert all(row["transfers"].keys() == {"excluded", "included"} for row in timing["rows"])
    short = BenchSettings(min_duration_s=9.0, min_count=99, max_duration_s=0.0, warmup_count=1)
    timing = table.timing("onnx", _Way("onnxruntime", False), 1, short)
    assert timing["validity"] == (
        "INVALID: transfers excluded: fewer than 99 queries; transfers excluded: less than 9 s; "
        "transfers included: fewer than 99 queries; transfers included: less than 9 s"
    )
    counts = [row["transfers"]["excluded"]["result_query_count"] for row in timing["rows"]]
    assert set(counts) == {21}


def test_what_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    with pytest.raises(UsageError, match="auto, cpu or cuda"):
        run_it(path, tmp_path / "out", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="sees no CUDA GPU"):
            run_it(path, tmp_path / "out", device="cuda")
    path.write_text(SUITE.replace("onnx-fp16", "onnx-int8"))
    with pytest.raises(UsageError, match="fp32 and fp16 are timed, not 'onnx-int8'"):
        run_it(path, tmp_path / "out")
    for old, new, why in (
        ("[torch, onnxruntime, tensorrt]", "[torch, torch]", "a runtime twice"),
        ("[torch, onnxruntime, tensorrt]", "[jax]", "on_device.runtimes"),
        ("form: masked}", "form: peer, peer: {kind: truncate, share: 0.5}}", "peers are timed"),
    ):
        path.write_text(SUITE.replace(old, new))
        with pytest.raises(RecipeError, match=why):
            load_latency(path)
    assert not (tmp_path / "out" / "device").exists()


def test_the_shipped_suites_of_gpus_are_whole() -> None:
    parts = load_latency(ROOT / "benchmarks" / "suites" / "latency-gpu.yaml")
    assert set(parts) == {"text", "cifar10"}
    for spec, file in parts.values():
        assert spec.on_device is not None
        assert max(spec.batch) == 256
        recipes = row_recipes(spec, file.parent)
        assert recipes["cheap"].student.selector.kind == "convolution"
        assert recipes["full"].student.selector.kind == "blocks"


@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils")
def test_the_script_unpacks_what_was_brought_and_refuses_what_is_broken(tmp_path: Path) -> None:
    """prepare.sh alone, on two small contents, one of which was not brought."""
    gpu = tmp_path / "benchmarks" / "gpu"
    gpu.mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "gpu" / "prepare.sh", gpu)
    pieces = tmp_path / "build" / "gpu" / "pieces"
    pieces.mkdir(parents=True)
    (tmp_path / "content" / "cache").mkdir(parents=True)
    (tmp_path / "content" / "cache" / "data").write_text("data")
    script = """set -euo pipefail
    make() {
      tar -C content -cf - . | split --bytes=4K --numeric-suffixes --suffix-length=2 - \
        "build/gpu/pieces/$1."
    }
    make text; make cifar10
    (cd build/gpu/pieces && sha256sum -- *.[0-9][0-9] >SHA256SUMS; rm cifar10.*)
    """
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)

    def source(more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"set -euo pipefail; source benchmarks/gpu/prepare.sh; {more}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], **environment},
            check=False,
        )

    done = source('unpack; echo "$REKD_EDGE_CACHE $REKD_EDGE_OFFLINE"')
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "build" / "gpu" / "unpacked" / "cache"), "1"]
    assert "not brought: cifar10" in done.stderr
    assert (tmp_path / "build" / "gpu" / "unpacked" / "cache" / "data").read_text() == "data"
    (pieces / "text.00").write_text("broken")
    assert source("unpack").returncode == 0  # it was unpacked once, and is whole
    shutil.rmtree(tmp_path / "build" / "gpu" / "unpacked")
    broken = source("unpack")
    assert broken.returncode == 6
    assert "text in build/gpu/pieces is not whole" in broken.stderr

    timed = source("in_time sleep 30", LIMIT_S="1")
    assert (timed.returncode, timed.stdout) == (0, "stopped after 1 s; run it again to go on\n")
    assert source("in_time false").returncode == 1
    assert source("in_time true").returncode == 0
