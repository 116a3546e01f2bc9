"""Training from recipes on real text: resuming, tasks, and what a run folder refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rekd_edge.data.preprocess import TextPreprocessor
from rekd_edge.distill import objectives
from rekd_edge.distill.loop import DevResult, DivergedError
from rekd_edge.distill.monitor import TrainingWarning
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.models.kept import classify_kept
from rekd_edge.pipeline import plan_run, train_run
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.schema import Recipe
from rekd_edge.run_folder import Run, open_run


def smoke(*overrides: str) -> Recipe:
    return load_recipe(find_recipe("smoke/text"), overrides)


class InterruptAfter:
    """Raises KeyboardInterrupt after a number of steps, as Ctrl-C would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def phase(self, name: str, total_steps: int, done_steps: int) -> None:
        return

    def epoch(self, name: str, result: DevResult) -> None:
        return

    def warning(self, warning: TrainingWarning) -> None:
        return

    def step(self, terms: dict[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def weights(run: Path, role: str) -> dict[str, torch.Tensor]:
    return load_file(run / role / "best" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(
    smoke_run: Callable[[str, Path], Run], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return smoke_run("text", tmp_path_factory.mktemp("runs") / "run").path


# 3 stops in the teacher's first phase, 7 in its last, 14 and 19 in the student's.
@pytest.mark.parametrize("steps", [3, 7, 14, 19])
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(
    finished: Path, tmp_path: Path, steps: int
) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(smoke(), path, device="cpu", listener=InterruptAfter(steps))
    assert open_run(path).info["status"] == "training"
    run = train_run(smoke(), path, device="cpu", resume=True)
    assert run.info["status"] == "finished"
    for role in ("teacher", "student"):
        expected = weights(finished, role)
        found = weights(path, role)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), role
    assert not list(path.rglob("*.tmp"))


def test_a_log_has_each_step_once_after_resuming(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(smoke(), path, device="cpu", listener=InterruptAfter(7))
    train_run(smoke(), path, device="cpu", resume=True)

    def entries(run: Path) -> list[tuple[int, str, int]]:
        lines = (run / "teacher" / "log.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [(row["phase_index"], row["phase"], row["step"]) for row in rows]

    assert entries(path) == entries(finished)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    finished: Path, tmp_path: Path
) -> None:
    train_run(smoke(), tmp_path / "same", device="cpu")
    train_run(smoke("seed=1"), tmp_path / "other", device="cpu")
    head = "predictor.head.weight"
    reference = weights(finished, "student")[head]
    assert torch.equal(weights(tmp_path / "same", "student")[head], reference)
    assert not torch.equal(weights(tmp_path / "other", "student")[head], reference)


def test_a_finished_run_reports_and_reopens(finished: Path) -> None:
    run = open_run(finished)
    distill, fuse = run.report("distill"), run.report("fuse")
    assert distill is not None
    assert fuse is not None
    assert 0 <= distill["student"]["test"]["accuracy"] <= 1
    assert set(distill["student"]["test"]["per_class"]) == set(run.label_names)
    assert {"top_k_gathered", "threshold", "sampled_bernoulli"} <= set(fuse["modes"])
    assert fuse["passed"]
    assert fuse["modes"]["top_k_gathered"]["accuracy"] == distill["student"]["test"]["accuracy"]
    assert run.teacher() is not None
    assert run.info["weights"]["student"]["predictor"]["source"] == "random:bert-tiny"
    fused = run.fused()
    assert isinstance(run.preprocessor, TextPreprocessor)
    texts = [str(run.data().test.raw(i)) for i in range(3)]
    inputs = {n: torch.from_numpy(v) for n, v in run.preprocessor.encode(texts).items()}
    assert fused(*inputs.values())[0].shape == (3, len(run.label_names))


@pytest.mark.parametrize("task", ["extract", "classify"])
def test_tasks_without_a_teacher(task: str, tmp_path: Path) -> None:
    run = train_run(smoke(f"task={task}"), tmp_path / "run", device="cpu")
    assert not (run.path / "teacher").exists()
    if task == "classify":
        plain = run.plain()
        assert plain is not None
        with pytest.raises(UsageError, match="plain classifier"):
            run.student()
    else:
        assert run.teacher() is None
        assert run.fused().modality == "text"


def test_the_paper_objective_trains(tmp_path: Path) -> None:
    run = train_run(
        smoke("objective.name=paper", "objective.lambda_select=0.0001"),
        tmp_path / "run",
        device="cpu",
    )
    lines = (run.path / "student" / "log.jsonl").read_text().splitlines()
    joint = [json.loads(line) for line in lines if '"joint"' in line]
    assert {"ce", "budget", "kl_rationale", "kl_prediction", "selected_share"} <= set(joint[-1])


def joint_entries(run: Path) -> list[dict[str, Any]]:
    lines = (run / "student" / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if entry["phase"] == "joint"]


EVERYTHING = (
    "objective.ratio_schedule.until=0.6",
    "objective.lambda_contiguity=0.1",
    "objective.alpha_end=0.9",
    "objective.estimator_samples=8",
)


@pytest.mark.parametrize("estimator", ["soft_top_k", "subset_softmax", "perturbed"])
def test_every_estimator_trains_with_all_that_an_objective_can_add(
    finished: Path, estimator: str, tmp_path: Path
) -> None:
    changes = [*EVERYTHING, f"objective.estimator={estimator}", f"teacher.run={finished}"]
    run = train_run(smoke(*changes), tmp_path / "run", device="cpu")
    last = joint_entries(run.path)[-1]
    assert {"ce", "kl_rationale", "kl_prediction", "contiguity"} <= set(last)
    report = run.report("fuse")
    assert report is not None
    assert report["modes"]["top_k_gathered"]["kept_share"] < 0.3  # evaluated at the recipe's ratio


def test_a_frozen_selector_runs_gathered_under_a_falling_budget(
    finished: Path, tmp_path: Path
) -> None:
    frozen = "student.train.selector_learning_rate=0"
    recipe = smoke(*EVERYTHING, frozen, f"teacher.run={finished}")
    run = train_run(recipe, tmp_path / "run", device="cpu")
    assert joint_entries(run.path)


def test_a_run_with_everything_resumes_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    recipe = smoke(*EVERYTHING, "objective.estimator=perturbed", f"teacher.run={finished}")
    train_run(recipe, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train_run(recipe, tmp_path / "broken", device="cpu", listener=InterruptAfter(11))
    train_run(recipe, tmp_path / "broken", device="cpu", resume=True)
    expected, found = (weights(tmp_path / name, "student") for name in ("whole", "broken"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_images_may_move_to_the_device_and_to_workers_between_resumes(tmp_path: Path) -> None:
    def image(*changes: str) -> Recipe:
        return load_recipe(find_recipe("smoke/image"), ["task=extract", "seed=1", *changes])

    train_run(image(), tmp_path / "whole", device="cpu", with_fuse_report=False)
    expected = weights(tmp_path / "whole", "student")
    for changes in (["data.augment.where=device"], ["data.workers=1"]):
        path = tmp_path / changes[0]
        with pytest.raises(KeyboardInterrupt):
            train_run(image(*changes), path, device="cpu", listener=InterruptAfter(6))
        train_run(image(*changes), path, device="cpu", resume=True, with_fuse_report=False)
        found = weights(path, "student")
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_texts_cannot_be_prepared_on_the_device(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be held there"):
        train_run(smoke("data.augment.where=device"), tmp_path / "run", device="cpu")


def test_training_through_kept_tokens_alone_ends_where_the_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {}
    gathered: list[int] = []

    def counted(predictor: Any, view: Any, keep: Any, slots: int, *, filled: bool) -> Any:
        gathered.append(slots)
        return classify_kept(predictor, view, keep, slots, filled=filled)

    monkeypatch.setattr(objectives, "classify_kept", counted)
    for gather in ("false", "true"):
        path = tmp_path / gather
        recipe = smoke("task=extract", f"student.train.gather={gather}")
        train_run(recipe, path, device="cpu", with_fuse_report=False)
        last = load_file(path / "student" / "last.safetensors")
        ends[gather] = {name: value for name, value in last.items() if name.startswith("model.")}
        assert bool(gathered) == (gather == "true")
    for name, value in ends["false"].items():
        torch.testing.assert_close(ends["true"][name], value, rtol=0, atol=2e-3)


def test_patches_can_be_asked_to_hang_together(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("smoke/image"), ["task=extract", *EVERYTHING])
    run = train_run(recipe, tmp_path / "run", device="cpu")
    assert 0 <= joint_entries(run.path)[-1]["contiguity"] <= 1


def test_a_warning_reaches_the_report_the_log_and_the_terminal(tmp_path: Path) -> None:
    """So cold a surrogate has no gradient: the selector cannot learn, and the run says so."""
    overrides = [
        "task=extract",
        "objective.temperature={start: 1.0e-7, end: 1.0e-7}",
        "objective.selection_noise=0",
        "student.train.warmup.selector=none",
    ]
    command = [sys.executable, "-m", "rekd_edge", "distill", "smoke/text", "--device", "cpu"]
    for override in overrides:
        command += ["--set", override]
    result = subprocess.run(
        [*command, "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"COLUMNS": "400"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    run = open_run(tmp_path / "run")
    report = run.report("distill")
    assert report is not None
    (warning,) = report["warnings"]
    assert (warning["role"], warning["kind"]) == ("student", "stalled_selector")
    assert warning["evidence"]["gradient_ratio"] < 1e-5
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert warning["message"] in line
    assert warning["advice"] in line
    logged = (run.path / "student" / "log.jsonl").read_text().splitlines()
    (entry,) = [json.loads(row) for row in logged if '"joint/warning"' in row]
    assert entry["warning"]["kind"] == "stalled_selector"


def test_the_monitor_changes_nothing_in_training(finished: Path, tmp_path: Path) -> None:
    off = smoke("student.train.monitor=false", f"teacher.run={finished}")
    train_run(off, tmp_path / "off", device="cpu")
    expected, found = weights(finished, "student"), weights(tmp_path / "off", "student")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    log = (tmp_path / "off" / "student" / "log.jsonl").read_text()
    assert "monitor" not in log
    assert '"joint/monitor"' in (finished / "student" / "log.jsonl").read_text()


def test_gradient_accumulation_and_bf16(tmp_path: Path) -> None:
    run = train_run(
        smoke("student.train.gradient_accumulation=2", "student.train.precision=bf16"),
        tmp_path / "run",
        device="cpu",
    )
    report = run.report("distill")
    assert report is not None
    assert report["student"]["steps"] == 6  # 3 phases of 4 batches, two batches a step


def test_a_trained_teacher_is_loaded_from_its_run(finished: Path, tmp_path: Path) -> None:
    recipe = smoke(f"teacher.run={finished}")
    run = train_run(recipe, tmp_path / "run", device="cpu")
    assert not (run.path / "teacher").exists()
    report, first = run.report("distill"), open_run(finished).report("distill")
    assert report is not None
    assert first is not None
    assert report["teacher"]["test"] == first["teacher"]["test"]


def test_two_processes_share_the_batches(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["-m", "rekd_edge", "distill", "smoke/text", "--device", "cpu"]
    result = subprocess.run(
        [*command, "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("run folder") == 1
    run = open_run(tmp_path / "run")
    assert run.info["status"] == "finished"
    report = run.report("distill")
    assert report is not None
    assert report["student"]["steps"] == 6  # 3 phases of 4 batches, two processes


def test_an_existing_run_is_not_overwritten(finished: Path) -> None:
    before = (finished / "run.json").read_bytes()
    with pytest.raises(UsageError, match="already holds a run"):
        train_run(smoke(), finished, device="cpu")
    with pytest.raises(UsageError, match="another recipe"):
        train_run(smoke("seed=5"), finished, device="cpu", resume=True)
    assert (finished / "run.json").read_bytes() == before


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="no run folder"):
        train_run(smoke(), tmp_path, device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path: Path) -> None:
    recipe = smoke(
        "task=classify",
        "student.train.learning_rate=1e30",
        "student.train.gradient_clip=null",
        "student.train.epochs=20",
    )
    with pytest.raises(DivergedError, match=r"loss became (nan|inf).*last good checkpoint") as info:
        train_run(recipe, tmp_path / "run", device="cpu")
    assert "learning_rate" in str(info.value)


def test_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(smoke(), path, device="cpu", listener=InterruptAfter(6))
    checkpoint = path / "teacher" / "last.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(IntegrityError, match="not a readable safetensors file"):
        train_run(smoke(), path, device="cpu", resume=True)


def test_cuda_is_refused_where_there_is_none(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UsageError, match="no CUDA device"):
        train_run(smoke(), tmp_path / "run", device="cuda")
    with pytest.raises(UsageError, match="fp16 needs a CUDA device"):
        train_run(smoke("teacher.train.precision=fp16"), tmp_path / "other", device="cpu")


def test_a_student_trains_on_a_transfer_set_that_its_teacher_answers_for(tmp_path: Path) -> None:
    lines = [f"an unlabelled sentence about film {number}" for number in range(24)]
    (tmp_path / "more.csv").write_text("text\n" + "\n".join(lines) + "\n")
    changes = ["data.limit={train: 32, dev: 16, test: 16}"]
    recipe = load_recipe(
        "smoke/text", [*changes, f"transfer={{source: csv, path: {tmp_path / 'more.csv'}}}"]
    )
    assert plan_run(recipe).examples["transfer"] == 24
    run = train_run(recipe, tmp_path / "run", device="cpu")
    report = run.report("distill")
    assert report is not None
    assert report["transfer"]["examples"] == sum(report["transfer"]["answers"].values()) == 24
    assert set(report["transfer"]["answers"]) == set(run.label_names)
    # 32 labelled examples are 2 batches of 16; with 24 more there are 4. The teacher has no more.
    steps = {role: _steps(run.path / role, "joint") for role in ("teacher", "student")}
    assert steps == {"teacher": 2, "student": 4}
    without = train_run(load_recipe("smoke/text", changes), tmp_path / "without", device="cpu")
    teachers = [
        load_file(folder.path / "teacher" / "best" / "model.safetensors")
        for folder in (run, without)
    ]
    assert all(torch.equal(teachers[0][name], teachers[1][name]) for name in teachers[0])


def _steps(folder: Path, phase: str) -> int:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return max(line["step"] for line in lines if line.get("phase", "").startswith(phase))
