"""The ladder of training settings, run at tiny size on the processor."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rekd_edge.bench import training_speed
from rekd_edge.bench.training_speed import (
    SpeedPlan,
    ladder,
    measure_speed,
    speed_table,
    with_random_weights,
)
from rekd_edge.errors import UsageError
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.schema import Recipe

CPU = torch.device("cpu")


def shipped(name: str, *changes: str) -> Recipe:
    return load_recipe(find_recipe(name), list(changes))


def test_each_setting_has_what_those_before_it_have() -> None:
    settings = ladder(shipped("vision/cifar10"), torch.device("cuda"), SpeedPlan())
    assert [setting.name for setting in settings] == [
        *("official", "workers", "device images", "tf32", "bf16", "fused", "batch", "objective"),
        *("gathered", "compiled", "graphs", "cached teacher"),
    ]
    first, last = settings[0], settings[-1]
    assert (first.published, first.precision, first.batch_size, first.data) == (
        *(True, "fp32", 32, "loader"),
    )
    assert (last.published, last.precision, last.batch_size) == (False, "bf16", 128)
    assert last.gather
    assert last.fused
    changed = [
        {key for key in before.__dataclass_fields__ if getattr(before, key) != getattr(after, key)}
        for before, after in itertools.pairwise(settings)
    ]
    own = {frozenset(keys - {"name", "adds"}) for keys in changed}
    assert len(own) >= len(changed) - 2  # two change the precision and two the compilation
    assert all(own)


def test_text_has_neither_images_nor_a_gathered_backward_pass_where_its_selector_is_kept() -> None:
    settings = ladder(shipped("text/movie-review-snippets"), torch.device("cuda"), SpeedPlan())
    names = [setting.name for setting in settings]
    assert names == ["official", "tf32", "bf16", "fused", "objective", "compiled"]
    convolutional = ladder(shipped("vision/cifar10-conv"), CPU, SpeedPlan())
    assert "channels last" in [setting.name for setting in convolutional]


def test_unknown_settings_are_refused() -> None:
    plan = replace(SpeedPlan.quick(), only=("official", "magic"))
    with pytest.raises(UsageError, match="no setting 'magic'"):
        ladder(shipped("smoke/image"), CPU, plan)


def test_architectures_without_their_weights() -> None:
    recipe = with_random_weights(shipped("paper/cifar10"))
    assert recipe.student.predictor.weights == ("random:vit_tiny_patch16_224.augreg_in21k_ft_in1k",)
    with pytest.raises(UsageError, match="names no architecture"):
        with_random_weights(shipped("text/movie-review-snippets"))


@pytest.mark.slow
def test_operations_are_counted_and_a_failing_setting_is_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_speed, "no_compiler", lambda device: "no g++")
    only = ("official", "device images", "objective", "gathered", "compiled", "cached teacher")
    plan = replace(SpeedPlan.quick(), only=only, square=64)
    changes = ["data.limit.train=60", "student.train.batch_size=8"]
    monkeypatch.setattr(training_speed, "OFFICIAL_BATCH", 8)
    report = measure_speed(shipped("smoke/image", *changes), CPU, plan)
    rows = {row["name"]: row for row in report["settings"]}
    assert list(rows) == list(only)
    assert rows["compiled"]["failed"] == "RuntimeError: no compiler: no g++"
    del rows["compiled"]
    for row in rows.values():
        if "failed" in row:
            assert row["compile"] is not None, row["failed"]
            continue
        assert row["examples_per_s"]["low"] <= row["examples_per_s"]["p50"]
        assert len(row["samples_s"]) == plan.rounds
        assert row["mfu"] > 0
    assert rows["official"]["ratio_to_official"] == 1.0
    # The published step runs every token forward and backward, and the teacher twice.
    official, objective, gathered = (
        rows[name]["flops"] / rows[name]["batch_size"]
        for name in ("official", "objective", "gathered")
    )
    assert gathered < objective < official
    assert {one["setting"] for one in report["teacher_pass"]} >= {"official", "objective"}
    json.dumps(report, allow_nan=False)
    table = speed_table(report)
    assert "| gathered |" in table
    assert "no compiler" in table


def speed_of(folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    from rekd_edge.cli.app import app

    files = ["--json", str(folder / "speed.json"), "--markdown", str(folder / "speed.md")]
    chosen = ["--quick", "--device", "cpu", "--random-weights", "--set", "data.limit.train=60"]
    done = CliRunner().invoke(app, ["speed", "smoke/image", *chosen, *files, *options])
    report = json.loads((folder / "speed.json").read_text())
    return done.exit_code, report, (folder / "speed.md").read_text()


def test_what_was_measured_before_an_interruption_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up = training_speed._Contender.warm_up

    def interrupted(self: training_speed._Contender, block_s: float) -> None:
        if self.name == "device images":
            raise KeyboardInterrupt
        warm_up(self, block_s)

    monkeypatch.setattr(training_speed._Contender, "warm_up", interrupted)
    code, report, table = speed_of(tmp_path, "--settings", "official,device images")
    assert code == 130
    assert not report["complete"]
    (row,) = report["settings"]
    assert row["name"] == "official"
    assert row["examples_per_s"]["p50"] > 0
    assert [one["setting"] for one in report["teacher_pass"]] == ["official"]
    assert report["teacher_pass"][0]["mfu"] > 0
    assert "**Not complete**" in table


def test_a_compilation_that_would_not_fit_into_the_limit_is_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_speed, "no_compiler", lambda device: None)
    recipe = shipped("smoke/image", "data.limit.train=60")
    only = ("official", "compiled")
    plan = replace(SpeedPlan.quick(), rounds=1, only=only, square=64, limit_s=1000.0)
    monkeypatch.setattr(training_speed._Run, "_longest_compile_s", lambda self: 700.0)
    report = measure_speed(with_random_weights(recipe), CPU, plan)
    rows = {row["name"]: row for row in report["settings"]}
    assert report["complete"]
    assert rows["compiled"]["failed"] == "not started: no time was left"
    assert "failed" not in rows["official"]


def test_the_table_says_what_is_due_to_the_loader() -> None:
    def row(name: str, rate: float, augment: bool = True) -> dict[str, Any]:
        return {"name": name, "augment": augment, "examples_per_s": {"p50": rate}}

    rows = [row("official", 10), row("device images", 20), row("compiled", 100)]
    said = training_speed._gain([*rows, row("cached teacher", 500, augment=False)])
    assert said is not None
    assert said.startswith("The fastest is *compiled*: 10.00x the official setting, 5.00x *device")
    assert training_speed._gain(rows[:1]) is None


def test_the_command_writes_both_forms_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    from rekd_edge.cli.app import app

    options = ["--quick", "--device", "cpu", "--settings", "official", "--random-weights"]
    files = ["--json", str(tmp_path / "speed.json"), "--markdown", str(tmp_path / "speed.md")]
    changes = ["--set", "data.limit.train=60", "--rounds", "1"]
    done = CliRunner().invoke(app, ["speed", "smoke/image", *options, *files, *changes])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "speed.json").read_text())
    assert [row["name"] for row in report["settings"]] == ["official"]
    assert (tmp_path / "speed.md").read_text() == speed_table(report)
    refused = CliRunner().invoke(app, ["speed", "smoke/image", "--device", "abacus"])
    assert isinstance(refused.exception, UsageError)
