"""A run whose int8 file is spoilt on purpose, exported with and without recovery."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rekd_edge import export_pipeline
from rekd_edge.bench import BenchSettings
from rekd_edge.convert import file_sha256
from rekd_edge.distill.loop import Silent
from rekd_edge.errors import UsageError
from rekd_edge.export_pipeline import Agreement, export_bundle
from rekd_edge.pipeline import train_run
from rekd_edge.precision_pipeline import export_fastest
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.run_folder import Run

pytestmark = pytest.mark.usefixtures("converted_once")
QUICK = BenchSettings(min_duration_s=0.0, min_count=20, warmup_count=1, cold_starts=0, quick=True)
EXCLUSION = """  - {metric: io_valid, value: 1}
  - {metric: failed_shapes, value: 0}
  - {metric: exclusion_leaks, value: 0}
  - {metric: exclusion_changed, value: 0}
  - {metric: exclusion_max_change, value: 0}
  - {metric: rationale_mismatches, value: 0}
"""
TARGET = """schema_version: 1
name: spoilt
runtime: onnxruntime
opset: 20
ir_version: 10
precision: int8-dynamic
recovery: {epochs: 6, learning_rate: 1.0e-3}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Weights that make distinct answers; then a channel of the attended values is scaled up, and
    down again in the next product: the same function, but the range of an activation is ruined."""
    changes = ["task=extract", "data.limit={train: 256, dev: 32, test: 96}"]
    path = tmp_path_factory.mktemp("spoilt") / "run"
    made = train_run(load_recipe(find_recipe("smoke/text"), changes), path, device="cpu")
    file = path / "student" / "best" / "model.safetensors"
    weights = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name in sorted(weights):
        if name.endswith("weight") and any(part in name for part in ("dense", "self.", "head.")):
            spread = 1.0 if "head." in name else 0.1
            weights[name] = spread * torch.randn(weights[name].shape, generator=generator)
    for name in [name for name in weights if name.endswith("attention.self.value.weight")]:
        block = name.removesuffix("self.value.weight")
        weights[name][3] *= 300
        weights[f"{block}self.value.bias"][3] *= 300
        weights[f"{block}output.dense.weight"][:, 3] /= 300
    save_file(weights, file)
    return made


def gate_file(folder: Path, *gates: str) -> str:
    lines = "".join(f"  - {{{gate}}}\n" for gate in gates)
    path = folder / "close.yaml"
    path.write_text(f"schema_version: 1\nname: close\ngates:\n{EXCLUSION}{lines}")
    return str(path)


def target_file(folder: Path) -> str:
    path = folder / "spoilt.yaml"
    path.write_text(TARGET)
    return str(path)


def everything(run: Run) -> dict[str, str]:
    return {
        str(path.relative_to(run.path)): file_sha256(path)
        for path in sorted(run.path.rglob("*"))
        if path.is_file()
    }


class Counting(Silent):
    steps = 0

    def step(self, terms: dict[str, float]) -> None:
        self.steps += 1


def test_a_spoilt_file_fails_without_recovery_and_passes_or_gets_nearer_with_it(
    run: Run, tmp_path: Path
) -> None:
    gates = gate_file(tmp_path, "metric: label_agreement, value: 0.9")
    target = target_file(tmp_path)
    before = everything(run)
    refused = export_bundle(
        run,
        target=target,
        gates=gates,
        output=tmp_path / "b",
        twins=False,
        threads=1,
        recover=False,
    )
    assert not refused.passed
    assert refused.recovery is None
    assert refused.report is not None

    told = Counting()
    result = export_bundle(
        run,
        target=target,
        gates=gates,
        output=tmp_path / "b",
        threads=1,
        twins=False,
        listener=told,
    )
    assert everything(run) == before
    found = result.recovery
    assert found is not None
    assert found.after is not None
    assert result.report is not None
    assert told.steps == found.steps == 6 * 16
    assert found.before == Agreement.of(refused.report)
    assert found.taken
    assert (found.after.label_agreement or 0) > (found.before.label_agreement or 0)
    assert found.after == Agreement.of(result.report)
    assert {g.metric: g.passed for g in result.report.gates}["exclusion_changed"]
    assert result.passed, result.reasons
    stored = json.loads((tmp_path / "b" / "reports" / "recovery.json").read_text())
    assert stored["taken"]
    assert stored["steps"] == found.steps
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"b", "rejected", "close.yaml", "spoilt.yaml"}


def test_what_training_cannot_mend_is_not_trained(run: Run, tmp_path: Path) -> None:
    told = Counting()
    gates = gate_file(
        tmp_path, "metric: label_agreement, value: 1", "metric: size_bytes, value: 10"
    )
    result = export_bundle(
        run,
        target=target_file(tmp_path),
        gates=gates,
        output=tmp_path / "b",
        twins=False,
        threads=1,
        listener=told,
    )
    assert not result.passed
    assert result.recovery is None
    assert told.steps == 0


def test_an_interruption_leaves_nothing(run: Run, tmp_path: Path) -> None:
    class Interrupting(Silent):
        def step(self, terms: dict[str, float]) -> None:
            raise KeyboardInterrupt

    gates = gate_file(tmp_path, "metric: label_agreement, value: 1")
    target, before = target_file(tmp_path), everything(run)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(
            run,
            target=target,
            gates=gates,
            output=tmp_path / "b",
            twins=False,
            threads=1,
            listener=Interrupting(),
        )
    assert {path.name for path in tmp_path.iterdir()} == {"close.yaml", "spoilt.yaml"}
    assert everything(run) == before


@pytest.mark.slow
def test_auto_recovers_what_fails_and_measures_baselines_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    measured = export_pipeline.measure_baselines
    for module in ("rekd_edge.export_pipeline", "rekd_edge.precision_pipeline"):
        monkeypatch.setattr(
            f"{module}.measure_baselines", lambda run: calls.append(1) or measured(run)
        )
    gates = gate_file(tmp_path, "metric: label_agreement, value: 0.97")
    told = Counting()
    result, report = export_fastest(
        run,
        output=tmp_path / "b",
        gates=gates,
        twins=False,
        threads=1,
        settings=QUICK,
        listener=told,
    )
    assert len(calls) == 1
    assert result.passed  # fp32 holds everything
    trained = {one.target: one.recovery for one in report.variants if one.recovery is not None}
    assert trained
    assert all(name.startswith("onnx-int8") for name in trained)
    assert told.steps == sum(one.steps for one in trained.values())
    for one in report.variants:
        if one.recovery is not None and not one.recovery.taken:
            assert one.recovery.before.label_agreement == one.label_agreement


def test_recovery_is_for_int8(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for int8"):
        export_bundle(run, target="onnx-fp16", output=tmp_path / "b", recover=True)
    words = ["export", str(run.path), "--output", str(tmp_path / "b"), "--recover"]
    answer = subprocess.run(
        [sys.executable, "-m", "rekd_edge", *words], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2, answer.stderr
    assert "--recover is for int8" in answer.stderr
