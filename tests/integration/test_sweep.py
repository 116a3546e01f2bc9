"""A sweep from the recipe to its front: interrupted, resumed, repeated, in several processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rekd_edge.bench import BenchSettings
from rekd_edge.bundle import verify_bundle
from rekd_edge.cli.sweep_command import sweep
from rekd_edge.convert import file_sha256
from rekd_edge.distill.loop import Silent
from rekd_edge.errors import GateError, RecipeError
from rekd_edge.export_pipeline import test_batches as split_batches
from rekd_edge.run_folder import open_run
from rekd_edge.runners import OnnxRunner
from rekd_edge.sweep.plan import make_plan
from rekd_edge.sweep.run import run_sweep
from rekd_edge.sweep.space import parse_space

QUICK = BenchSettings(min_duration_s=0.0, min_count=20, warmup_count=1, cold_starts=0, quick=True)
LIMIT = "data.limit={train: 32, dev: 16, test: 16}"


class Watcher(Silent):
    """Counts the steps; after ``stop`` of them raises KeyboardInterrupt, as Ctrl-C would."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.steps = 0
        self.titles: list[str] = []

    def retitle(self, title: str) -> None:
        self.titles.append(title)

    def step(self, terms: dict[str, float]) -> None:
        self.steps += 1
        if self.steps == self.stop:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[Watcher]:
        yield self


def test_a_sweep_resumes_and_repeats_nothing(tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    space = parse_space(["student.selector.kind=blocks,convolution"], [])
    plan = make_plan("smoke/text", space, overrides=[LIMIT])

    # 5 steps of the teacher, then some of the student of the first point.
    interrupted = Watcher(stop=8)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, output, device="cpu", listeners=interrupted.listening)
    assert interrupted.titles == ["trial 0 of 2, student.selector.kind=blocks"]
    assert not (output / "sweep.json").exists()
    (teacher,) = output.glob("teacher-*/seed-0")
    trained = (teacher / "run.json").stat().st_mtime_ns

    resumed = Watcher()
    listeners = resumed.listening
    content = run_sweep(plan, output, device="cpu", listeners=listeners, settings=QUICK)
    assert [title.partition(",")[0] for title in resumed.titles] == [
        "trial 0 of 2",
        "trial 1 of 2",
        "plain classifier of trial 0",
    ]
    assert content == json.loads((output / "sweep.json").read_text())
    assert (teacher / "run.json").stat().st_mtime_ns == trained
    assert list(output.glob("teacher-*/seed-0")) == [teacher]
    log = [json.loads(line) for line in (output / "study.journal").read_text().splitlines()]
    told = [entry["trial_id"] for entry in log if entry.get("values")]
    assert sorted(told) == [0, 1]

    rows = content["rows"]
    assert [row["overrides"] for row in rows] == [
        ["student.selector.kind=blocks"],
        ["student.selector.kind=convolution"],
    ]
    assert not [row["failed"] for row in rows if row["failed"]]
    assert any(row["on_front"] for row in rows)
    (plain,) = content["plain"]
    samples = json.loads((output / "latency.json").read_text())["candidates"]
    assert set(samples) == {"trial-0", "trial-1", plain["name"]}
    assert content["latency"]["result_validity"] == "INVALID"  # quick
    for row in rows:
        folder = output / row["folder"]
        verify_bundle(folder / "bundle")
        file = folder / "bundle" / "model.onnx"
        assert file_sha256(file) == row["sha256"]
        mine = samples[f"trial-{row['trial']}"]["samples_ns"]
        theirs = samples[plain["name"]]["samples_ns"]
        assert row["ratio_to_plain"]["value"] == np.median(mine) / np.median(theirs)
        run = open_run(folder)
        assert run.recipe.teacher is not None
        assert run.recipe.teacher.run == str(teacher)
        with OnnxRunner(file, threads=1) as runner:
            for split, accuracy in (("dev", "dev_accuracy"), ("test", "test_accuracy")):
                batches = list(split_batches(getattr(run.data(), split), run.preprocessor))
                right = sum(
                    int((runner.run(batch.inputs).logits.argmax(1) == batch.labels).sum())
                    for batch in batches
                )
                assert row[accuracy] == right / 16
        assert 0.2 <= row["kept_share"] < 0.35
        assert not list(folder.rglob("last.safetensors"))
    assert rows[1]["flops_share"] < rows[0]["flops_share"]
    assert rows[1]["size_bytes"] != rows[0]["size_bytes"]
    assert "student.selector.kind=convolution" in (output / "sweep.md").read_text()
    assert (output / "front.svg").read_text().startswith("<?xml")

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    again = Watcher()
    assert run_sweep(plan, output, device="cpu", listeners=again.listening) == content
    assert (again.steps, again.titles) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_file_that_fails_a_gate_is_listed_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = tmp_path / "small.yaml"
    gates.write_text(
        "schema_version: 1\nname: small\ngates:\n  - {metric: size_bytes, value: 10}\n"
    )
    output = tmp_path / "sweep"
    changes = [LIMIT, "task=extract", "student.train.warmup={selector: none}"]
    with pytest.raises(GateError, match="no trial passed"):
        sweep(
            "smoke/text",
            output,
            grid=["rationale_ratio=0.25"],
            overrides=changes,
            gates=str(gates),
            device="cpu",
        )
    assert "trial 0 (rationale_ratio=0.25) failed: size_bytes" in capsys.readouterr().out
    content = json.loads((output / "sweep.json").read_text())
    (row,) = content["rows"]
    assert "size_bytes" in row["failed"]
    assert "p50_ms" not in row
    assert content["plain"] == []
    assert (output / row["folder"] / "rejected" / "bundle" / "reason.json").is_file()
    assert not (output / row["folder"] / "bundle").exists()


def test_a_dry_run_checks_every_point_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    with pytest.raises(RecipeError, match=r"rationale_ratio=2: --set rationale_ratio=2"):
        sweep("smoke/text", output, grid=["rationale_ratio=0.2,2"], dry_run=True)
    sweep("smoke/text", output, grid=["rationale_ratio=0.2,0.3"], dry_run=True, json_path="-")
    assert json.loads(capsys.readouterr().out) == {
        "points": [["rationale_ratio=0.2"], ["rationale_ratio=0.3"]],
        "trials": 2,
    }
    assert not output.exists()


@pytest.mark.slow
def test_workers_stop_at_an_interrupt_and_a_second_command_joins_in(tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    words = ["sweep", "smoke/text", "--output", str(output), "--device", "cpu", "--set", LIMIT]
    words += ["--grid", "student.train.learning_rate=1e-4,2e-4"]
    command = [sys.executable, "-m", "rekd_edge", *words]

    def start(name: str, *more: str) -> tuple[subprocess.Popen[bytes], Path, Path]:
        out, errors = tmp_path / f"{name}.out", tmp_path / f"{name}.err"
        with out.open("wb") as stdout, errors.open("wb") as stderr:
            return subprocess.Popen([*command, *more], stdout=stdout, stderr=stderr), out, errors

    first, _, errors = start("first", "--workers", "2")
    while first.poll() is None and "joint" not in errors.read_text():
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=120) == 130
    assert "Traceback" not in errors.read_text()
    assert not (output / "sweep.json").exists()

    both = [start("second"), start("third")]
    for process, out, errors in both:
        assert process.wait(timeout=600) == 0, errors.read_text()
        assert "0, 1" in " ".join(out.read_text().split())  # users of the plain classifier
    log = [json.loads(line) for line in (output / "study.journal").read_text().splitlines()]
    told = [entry["trial_id"] for entry in log if entry.get("values")]
    assert sorted(told) == [0, 1]
    content = json.loads((output / "sweep.json").read_text())
    assert {row["timed_as"] for row in content["rows"]} == {0}  # one architecture, timed once
    assert len(list(output.glob("teacher-*/seed-0"))) == 1
