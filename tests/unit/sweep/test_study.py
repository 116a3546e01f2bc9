"""Claims in the shared storage: each point once, whatever happens to the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rekd_edge.errors import UsageError
from rekd_edge.sweep.locks import FileLock
from rekd_edge.sweep.plan import SweepPlan, make_plan
from rekd_edge.sweep.space import parse_space
from rekd_edge.sweep.study import JOURNAL_FILE, RECIPE_FILE, SweepStudy

GRID = ["student.train.epochs=1,2,3", "rationale_ratio=0.2,0.3"]
FIGURES = {"dev_accuracy": 0.7, "flops_share": 0.3, "kept_share": 0.2}

HOLD = """
import sys, time
from pathlib import Path
from rekd_edge.sweep.plan import make_plan
from rekd_edge.sweep.space import parse_space
from rekd_edge.sweep.study import SweepStudy
folder, *grid = sys.argv[1:]
study = SweepStudy(Path(folder), make_plan("smoke/text", parse_space(grid, [])))
claim = study.claim()
print(claim.number, flush=True)
time.sleep(60)
"""

WORK = """
import sys, time
from pathlib import Path
from rekd_edge.sweep.plan import make_plan
from rekd_edge.sweep.space import parse_space
from rekd_edge.sweep.study import SweepStudy
folder, *grid = sys.argv[1:]
study = SweepStudy(Path(folder), make_plan("smoke/text", parse_space(grid, [])))
while (claim := study.claim()) is not None:
    with claim:
        time.sleep(0.02)
        study.finish(claim, {"dev_accuracy": 0.5, "flops_share": 0.3, "kept_share": 0.2})
        print(claim.number, flush=True)
"""


def plan_of(grid: list[str], search: list[str] | None = None, **others: object) -> SweepPlan:
    return make_plan("smoke/text", parse_space(grid, search or []), **others)  # type: ignore[arg-type]


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, str(folder), *GRID]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_each_point_is_claimed_once_and_in_the_order_of_the_grid(tmp_path: Path) -> None:
    plan = plan_of(GRID)
    one, other = SweepStudy(tmp_path / "sweep", plan), SweepStudy(tmp_path / "sweep", plan)
    claims = [study.claim() for study in (one, other, one, other, one, other)]
    assert [claim.overrides for claim in claims if claim] == list(plan.space.points())
    assert one.claim() is None
    assert other.busy
    for claim in claims:
        assert claim is not None
        one.finish(claim, FIGURES)
    assert not other.busy
    assert [trial.figures for trial in other.finished()] == [FIGURES] * 6


def test_a_claim_that_is_left_without_a_result_is_taken_up_again(tmp_path: Path) -> None:
    study = SweepStudy(tmp_path / "sweep", plan_of(GRID))
    first = study.claim()
    assert first is not None
    with pytest.raises(KeyboardInterrupt), first:
        raise KeyboardInterrupt
    again = study.claim()
    assert again is not None
    assert (again.number, again.overrides) == (first.number, first.overrides)
    study.fail(again, "the loss became nan")
    following = study.claim()
    assert following is not None
    assert following.number == first.number + 1
    (found,) = study.finished()
    assert (found.figures, found.failed) == (None, "the loss became nan")


def test_the_claim_of_a_killed_process_is_free_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "sweep"
    SweepStudy(folder, plan_of(GRID))
    holder = start(HOLD, folder)
    try:
        assert holder.stdout is not None
        held = int(holder.stdout.readline())
        study = SweepStudy(folder, plan_of(GRID))
        mine = study.claim()
        assert mine is not None
        assert mine.number != held
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        taken = study.claim()
        assert taken is not None
        assert taken.number == held
    finally:
        holder.kill()
        holder.communicate()


def test_two_processes_share_the_points_of_one_study(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    processes = [start(WORK, folder) for _ in range(2)]
    done = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(int(number) for numbers in done for number in numbers) == [0, 1, 2, 3, 4, 5]
    study = SweepStudy(folder, plan_of(GRID))
    assert not study.busy
    assert {trial.overrides for trial in study.finished()} == set(plan_of(GRID).space.points())


def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    SweepStudy(folder, plan_of(GRID))
    before = (folder / JOURNAL_FILE).read_bytes()
    with pytest.raises(UsageError, match=r"another grid\n"):
        SweepStudy(folder, plan_of(["rationale_ratio=0.2,0.3"]))
    with pytest.raises(UsageError, match=r"another recipe\n"):
        SweepStudy(folder, plan_of(GRID, overrides=["seed=3"]))
    with pytest.raises(UsageError, match=r"another target and gates\n"):
        SweepStudy(folder, plan_of(GRID, target="onnx-int8", gates="low-precision"))
    with pytest.raises(UsageError, match=r"another sampler\n"):
        SweepStudy(folder, plan_of(GRID, sampler="random", trials=6))
    assert (folder / JOURNAL_FILE).read_bytes() == before
    SweepStudy(folder, plan_of(list(reversed(GRID))))


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no sweep"):
        SweepStudy(tmp_path, plan_of(GRID))
    with pytest.raises(UsageError, match="holds no sweep"):
        SweepStudy(tmp_path / "thesis.txt", plan_of(GRID))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_trials_read_the_recipe_as_it_was_at_the_start(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: smoke/text\nschema_version: 1\nname: mine\nseed: 5\n")
    plan = make_plan(recipe, parse_space(["rationale_ratio=0.2,0.3"], []), overrides=["seed=6"])
    study = SweepStudy(tmp_path / "sweep", plan)
    expected = plan.recipe_of(("rationale_ratio=0.3",))
    recipe.write_text("extends: smoke/text\nname: changed\n")
    assert study.plan.recipe_of(("rationale_ratio=0.3",)) == expected
    assert study.plan.file == tmp_path / "sweep" / RECIPE_FILE


def test_a_half_written_line_is_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    study = SweepStudy(folder, plan_of(GRID))
    claim = study.claim()
    assert claim is not None
    study.finish(claim, FIGURES)
    journal = folder / JOURNAL_FILE
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 6, "tri')
    again = SweepStudy(folder, plan_of(GRID))
    assert journal.read_bytes() == whole
    assert len(again.finished()) == 1


SEARCH = ["student.train.learning_rate=1e-5..1e-3:log", "student.train.epochs=1..3"]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_proposes_the_same_points_after_an_interruption(
    sampler: str, tmp_path: Path
) -> None:
    plan = plan_of(["rationale_ratio=0.2,0.3"], SEARCH, sampler=sampler, trials=14)

    def run(study: SweepStudy, count: int) -> None:
        for _ in range(count):
            claim = study.claim()
            assert claim is not None
            rate = float(claim.overrides[-1].partition("=")[2])
            study.finish(claim, FIGURES | {"dev_accuracy": 0.5 + 100 * rate})

    whole = SweepStudy(tmp_path / "whole", plan)
    run(whole, 14)
    assert whole.claim() is None
    assert not whole.busy
    run(SweepStudy(tmp_path / "parts", plan), 5)
    run(SweepStudy(tmp_path / "parts", plan), 9)
    points = [trial.overrides for trial in whole.finished()]
    assert points == [t.overrides for t in SweepStudy(tmp_path / "parts", plan).finished()]
    assert len(set(points)) == 14
    for point in points:
        recipe = plan.recipe_of(point)
        assert recipe.rationale_ratio in (0.2, 0.3)
        assert recipe.student.train.epochs in (1, 2, 3)
        assert 1e-5 <= recipe.student.train.learning_rate <= 1e-3
    longer = SweepStudy(
        tmp_path / "whole", plan_of(["rationale_ratio=0.2,0.3"], SEARCH, sampler=sampler, trials=15)
    )
    run(longer, 1)
    assert not longer.busy


def test_tpe_prefers_what_was_good(tmp_path: Path) -> None:
    plan = plan_of([], ["rationale_ratio=0.01..0.99"], trials=40)
    study = SweepStudy(tmp_path / "sweep", plan)
    proposed = []
    for _ in range(40):
        claim = study.claim()
        assert claim is not None
        ratio = float(claim.overrides[0].partition("=")[2])
        proposed.append(ratio)
        study.finish(claim, FIGURES | {"dev_accuracy": 1 - (ratio - 0.8) ** 2})
    near = [abs(ratio - 0.8) for ratio in proposed]
    assert sum(near[20:]) < sum(near[:10]) * 2 * 0.6


def test_a_trial_whose_process_ended_before_it_had_a_point_is_not_counted(tmp_path: Path) -> None:
    plan = plan_of([], ["rationale_ratio=0.1..0.9"], sampler="random", trials=2)
    folder = tmp_path / "sweep"
    study = SweepStudy(folder, plan)
    study._study.ask()  # and nothing more, as a process would leave it that was killed here
    claims = [study.claim(), study.claim()]
    assert [claim.number for claim in claims if claim] == [1, 2]
    assert study.claim() is None
    for claim in claims:
        assert claim is not None
        study.finish(claim, FIGURES)
    assert len(study.finished()) == 2
    assert not study.busy


def test_the_same_point_drawn_twice_waits_for_the_first(tmp_path: Path) -> None:
    plan = plan_of([], ["student.train.epochs=1..2"], sampler="random", trials=6)
    study = SweepStudy(tmp_path / "sweep", plan)
    first, second = study.claim(), study.claim()
    assert first is not None
    assert second is not None
    assert first.overrides != second.overrides
    assert study.claim() is None  # all that is left is being worked on
    assert study.busy
    study.finish(first, FIGURES)
    study.finish(second, FIGURES)
    while (claim := study.claim()) is not None:
        study.finish(claim, FIGURES)
    assert not study.busy
    assert len(study.finished()) == 2


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    one, other = FileLock(tmp_path / "a" / "lock"), FileLock(tmp_path / "a" / "lock")
    assert one.acquire(wait=False)
    assert not other.acquire(wait=False)
    one.release()
    assert other.acquire(wait=False)
    other.release()
    other.release()


def test_without_optuna_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "from rekd_edge.errors import BackendError\n"
        "try:\n    import rekd_edge.sweep.study\n"
        "except BackendError as error:\n    print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("4 sweeps need the package optuna")
    assert "pip install 'rekd-edge[sweep]'" in done.stdout


def test_claims_import_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, rekd_edge.sweep.study\n"
        "print({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
