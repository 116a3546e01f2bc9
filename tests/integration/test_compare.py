"""The comparison of the four models, from a recipe to summary.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rekd_edge.compare import ROWS, compare
from rekd_edge.errors import UsageError
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import find_recipe, load_recipe

ROOT = Path(__file__).parents[2]


def test_compare_trains_four_models_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("smoke/text"))
    comparison = compare(recipe, tmp_path / "out", seeds=[0], device="cpu")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["accuracy"]) == set(ROWS)
    assert all(0 <= value <= 1 for value in summary["accuracy"].values())
    gain = summary["accuracy"]["rekd_student"] - summary["accuracy"]["extract_student"]
    assert summary["rekd_minus_extract_per_seed"] == [pytest.approx(gain)]
    assert comparison.spread("teacher") is None
    # Only the run that may be shipped is evaluated under every way of selecting.
    reports = tmp_path.rglob("fuse.json")
    assert [path.parent.parent.name for path in reports] == ["seed-0"]

    finished = (tmp_path / "out" / "seed-0" / "run.json").read_bytes()
    again = compare(recipe, tmp_path / "out", seeds=[0, 1], device="cpu")
    assert (tmp_path / "out" / "seed-0" / "run.json").read_bytes() == finished
    assert again.accuracies["teacher"][0] == comparison.accuracies["teacher"][0]
    assert again.spread("teacher") is not None


@pytest.mark.parametrize("source", ["mask_gradient", "teacher_and_own", "teacher_gradient"])
def test_every_warm_up_of_the_student_trains(source: str, tmp_path: Path) -> None:
    changes = [f"student.train.warmup.selector={source}", "student.train.selector_learning_rate=0"]
    run = train_run(load_recipe(find_recipe("smoke/text"), changes), tmp_path / "run", device="cpu")
    lines = (run.path / "student" / "log.jsonl").read_text().splitlines()
    phases = {json.loads(line)["phase"] for line in lines}
    assert f"selector warm-up ({source.replace('_', ' ')})" in phases


def test_compare_needs_a_teacher_and_a_seed(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("smoke/text"))
    with pytest.raises(UsageError, match="no seed"):
        compare(recipe, tmp_path, seeds=[])
    with pytest.raises(UsageError, match="task: distill"):
        compare(recipe.model_copy(update={"task": "extract"}), tmp_path, seeds=[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seeds", ["a,b", "1,1", "-1", ""])
def test_seeds_that_are_none_exit_with_2(seeds: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rekd_edge", "compare", "smoke/text"]
    result = subprocess.run(
        [*command, "--output", str(tmp_path / "out"), f"--seeds={seeds}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 2
    assert "--seeds" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
