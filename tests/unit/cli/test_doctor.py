from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import replace

import pytest
import typer

from rekd_edge.cli.doctor_command import (
    Facts,
    _engines_of,
    _package_here,
    doctor,
    gather_facts,
    judge,
)

HEALTHY = Facts(
    python=(3, 11),
    versions={
        "torch": "2.15.0",
        "torchvision": "0.29.2",
        "transformers": "5.23.0",
        "timm": "1.0.31",
        "tokenizers": "0.23.3",
        "safetensors": "0.8.0",
        "numpy": "2.4.6",
        "onnx": "1.23.2",
        "onnxscript": "0.7.2",
        "onnxruntime": "1.31.1",
        "onnxruntime-gpu": None,
    },
    torch_cuda="13.2",
    torchvision_cuda="13.2",
)


def with_versions(**changes: str | None) -> Facts:
    named = {name.replace("_", "-"): version for name, version in changes.items()}
    return replace(HEALTHY, versions={**HEALTHY.versions, **named})


def test_a_healthy_installation_has_no_findings() -> None:
    assert list(judge(HEALTHY)) == []


@pytest.mark.parametrize(
    ("facts", "level", "message", "hint"),
    [
        (replace(HEALTHY, python=(3, 13)), "error", "Python 3.13", "3.11 or 3.12"),
        (with_versions(timm=None), "error", "timm is not installed", "pip install timm"),
        (
            replace(HEALTHY, torch_cuda=None),
            "error",
            "CPU-only torch lies beside a torchvision",
            "--force-reinstall torch",
        ),
        (
            replace(
                HEALTHY,
                torch_cuda=None,
                torchvision_cuda=None,
                import_errors={"torchvision": "operator torchvision::nms does not exist"},
            ),
            "error",
            "CPU-only torch lies beside a torchvision",
            "--force-reinstall torch",
        ),
        (
            replace(HEALTHY, torchvision_cuda=None, import_errors={"torchvision": "bad ELF"}),
            "error",
            "torchvision does not import: bad ELF",
            "torch torchvision",
        ),
        (
            replace(HEALTHY, import_errors={"timm": "broken"}),
            "error",
            "timm does not import: broken",
            "--force-reinstall timm",
        ),
        (
            with_versions(onnxruntime_gpu="1.31.1"),
            "error",
            "onnxruntime and onnxruntime-gpu are both installed",
            "pip uninstall",
        ),
        (
            with_versions(onnxruntime=None, onnxruntime_gpu="1.31.1"),
            "warning",
            "without a usable GPU",
            "install onnxruntime",
        ),
        (with_versions(onnxruntime=None), "warning", "onnxruntime is not installed", "[onnx]"),
        (with_versions(onnxscript=None), "warning", "onnxscript is not installed", "[onnx]"),
    ],
)
def test_each_fault_is_found_with_its_mend(
    facts: Facts, level: str, message: str, hint: str
) -> None:
    findings = list(judge(facts))
    assert len(findings) == 1
    assert findings[0].level == level
    assert message in findings[0].message
    assert hint in findings[0].hint


def test_cpu_builds_of_both_are_fine() -> None:
    assert list(judge(replace(HEALTHY, torch_cuda=None, torchvision_cuda=None))) == []


def test_this_machine_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    facts = gather_facts()
    assert facts.versions["torch"] is not None
    assert facts.import_errors == {}
    assert facts.cores >= 1
    assert facts.memory_bytes > 2**30
    try:
        doctor(json_path="-")
        code = 0
    except typer.Exit as stop:
        code = stop.exit_code
    result = json.loads(capsys.readouterr().out)
    assert code == (0 if result["passed"] else 4)
    assert set(result["optional"]) >= {"tensorrt", "tensorrt-rtx-cu13", "torch-tensorrt", "optimum"}
    targets = result["facts"]["targets"]
    assert set(targets) == {
        *("trt-rtx", "trt", "ort-cuda", "ort-trt", "aoti", "aoti-cuda", "torch-trt")
    }
    if not facts.cuda_devices:
        assert "onnxruntime-gpu" in targets["ort-cuda"] or "needs a CUDA GPU" in targets["ort-cuda"]
        assert "there is none here: on a CPU, --target aoti" in targets["aoti-cuda"]
    if any(map(shutil.which, ("g++", "c++", "clang++"))):
        assert targets["aoti"].startswith("compiles for this CPU, with torch")


def test_without_a_compiler_packages_run_and_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    found = _package_here(("aoti", "cpu"))
    assert "there is no /nowhere/g++, which CXX names" in found
    assert found.endswith("; packages that were compiled here before run")


@pytest.mark.parametrize("has_gpu", [False, True])
def test_what_builds_and_runs_engines_here_is_told(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    missing = _engines_of("tensorrt", has_gpu)
    assert missing.startswith("tensorrt is not installed: on a machine with an NVIDIA GPU, pip")
    found = _engines_of("tensorrt-rtx", has_gpu)
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        assert "builds engines for SM 75, 80, 86" in found
        assert found.endswith("runs those of its GPU" if has_gpu else "runs none: no GPU")
    else:
        assert "pip install 'rekd-edge[trt-rtx]'" in found
