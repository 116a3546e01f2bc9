"""The table and the picture say what sweep.json says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rekd_edge.recipe import load_recipe
from rekd_edge.sweep.figure import draw_front, write_front
from rekd_edge.sweep.plan import make_plan
from rekd_edge.sweep.report import (
    add_measured,
    failures,
    sweep_json,
    sweep_table,
    table_rows,
    trial_rows,
)
from rekd_edge.sweep.space import parse_space
from rekd_edge.sweep.study import FinishedTrial
from rekd_edge.sweep.timing import Plain, Timed, architecture
from rekd_edge.sweep.trial import FileScore

GRID = ["rationale_ratio=0.1,0.3", "student.selector.depth=1,2", "student.predictor.depth=2"]
RATIO = {"value": 0.5, "low": 0.4, "high": 0.6}


def figures(dev: float, kept: float) -> dict[str, Any]:
    return {
        "dev_accuracy": dev,
        "dev_examples": 40,
        "test_accuracy": dev - 0.011,
        "test_examples": 80,
        "kept_share": kept,
        "flops_share": 0.4,
        "size_bytes": 5_000_000,
        "sha256": "0" * 64,
    }


@pytest.fixture
def content() -> dict[str, Any]:
    plan = make_plan("smoke/text", parse_space(GRID, []))
    points = list(plan.space.points())
    rows = trial_rows(
        [
            FinishedTrial(0, points[0], figures(0.70, 0.1), None),
            FinishedTrial(1, points[1], figures(0.69, 0.1), None),
            FinishedTrial(2, points[2], figures(0.75, 0.3), None),
            FinishedTrial(3, points[3], None, "size_bytes is 12, at most 10"),
        ]
    )
    plain = Plain("plain-a", Path("a.onnx"), None, FileScore(0.8, 1, 40), FileScore(0.79, 1, 80))
    diverged = Plain("plain-b", None, None, failed="the loss became nan")
    add_measured(
        rows,
        {
            0: Timed(2.0, RATIO, 0, "plain-a"),
            1: Timed(2.5, None, 1, "plain-b"),
            2: Timed(3.0, RATIO, 2, "plain-a"),
        },
    )
    facts = {"hardware": {"processor": "a processor", "cores": 2}}
    plains = {"plain-a": plain, "plain-b": diverged}
    found = sweep_json(plan, rows, plains, {"plain-a": 4.0}, None, facts)
    latency = {"result_validity": "VALID", "result_invalid_reason": "", "threads": 1}
    return found | {"latency": latency}


def test_the_front_is_of_those_that_passed(content: dict[str, Any]) -> None:
    assert [row.get("on_front") for row in content["rows"]] == [True, False, True, None]


def test_the_table_goes_from_fast_to_slow_and_failures_follow(content: dict[str, Any]) -> None:
    rows = table_rows(content, short=True)
    assert [row[0] for row in rows] == ["0", "1", "2", ""]
    assert rows[0][1] == "rationale_ratio=0.1\npredictor.depth=2\nselector.depth=1"
    assert rows[0][2:] == ("0.700", "0.689", "2.000", "0.50", "0.10", "0.40", "5.0", "yes")
    assert rows[1][5] == ""  # its plain classifier diverged
    assert rows[3][1:5] == ("plain classifier of 0, 2", "0.800", "0.790", "4.000")
    trial, plain = failures(content)
    assert trial.startswith("trial 3 (rationale_ratio=0.3 ")
    assert trial.endswith("failed: size_bytes is 12, at most 10")
    assert plain == "plain classifier of 1 failed: the loss became nan"
    text = sweep_table(content)
    assert "| 2 | rationale_ratio=0.3 student.predictor.depth=2 student.selector.depth=1 |" in text
    assert "40 development and 80 test examples" in text
    assert "- trial 3 (" in text


def test_the_picture_is_deterministic_and_follows_the_figures(
    content: dict[str, Any], tmp_path: Path
) -> None:
    first = draw_front(content)
    assert first == draw_front(content)
    assert b"<dc:date>" not in first
    write_front(content, tmp_path / "front.svg")
    assert (tmp_path / "front.svg").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["front.svg"]
    comments = set(re.findall(r"<!-- (.*?) -->", first.decode()))
    assert {"0", "1", "2", "plain classifier", "smoke-text (onnx, VALID)"} <= comments
    assert "3" not in comments  # failed
    content["rows"][0]["dev_accuracy"] = 0.72
    assert draw_front(content) != first


def test_a_sweep_without_a_passed_trial_has_an_empty_picture(content: dict[str, Any]) -> None:
    empty = content | {"rows": [content["rows"][3]], "plain": [], "latency": None}
    assert b"not measured" in draw_front(empty)
    assert table_rows(empty) == []
    assert "failed: size_bytes" in sweep_table(empty)


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("student.train.learning_rate=1e-3", True),
        ("objective.alpha=0.1", True),
        ("student.predictor.dropout=0.3", True),
        ("data.augment.flip=true", True),
        ("student.predictor.depth=2", False),
        ("student.selector.kind=convolution", False),
        ("rationale_ratio=0.3", False),
        ("data.max_length=16", False),
    ],
)
def test_files_of_one_architecture_share_a_latency(override: str, same: bool) -> None:
    base = architecture(load_recipe("smoke/text"))
    assert (architecture(load_recipe("smoke/text", [override])) == base) == same
