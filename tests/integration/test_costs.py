"""A sweep of costs over tiny models: measured, resumed, written as tables and drawings."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rekd_edge.bench import BenchSettings
from rekd_edge.bench.cost_figures import draw_costs
from rekd_edge.bench.cost_models import TINY, CostPoint, build_forms, example
from rekd_edge.bench.costs import CostPlan, full_plan, measure_costs, quick_plan

PLAN = CostPlan(
    scale=TINY,
    bases={
        "text": CostPoint("text", 0.25, 600, 0, 1, 1),
        "image": CostPoint("image", 0.25, 0, 56, 1, 1),
    },
    axes={"text": {"tokens": (16, 600), "batch": (1, 2)}, "image": {"batch": (1,)}},
    square=64,
    settings=BenchSettings(
        min_duration_s=0.0, min_count=4, warmup_count=1, cold_starts=1, rss_queries=1, quick=True
    ),
    bandwidth_bytes=10**6,
    bandwidth_queries=3,
    quick=True,
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep that was interrupted before its last point, and resumed."""
    output = tmp_path_factory.mktemp("costs")
    seen: list[str] = []

    def interrupt(message: str) -> None:
        seen.append(message)
        if message.startswith("4 of 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_costs(PLAN, output, progress=interrupt)
    assert len(seen) == 4
    assert not (output / "costs.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (output / "points").iterdir()}
    assert len(before) == 3
    seen.clear()
    report = measure_costs(PLAN, output, progress=seen.append)
    assert [message.split(":")[0] for message in seen] == ["4 of 4"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    return output, report


def test_every_point_says_what_it_cost_and_what_was_possible(
    measured: tuple[Path, dict[str, Any]],
) -> None:
    output, report = measured
    assert json.loads((output / "costs.json").read_text()) == report
    assert [(c["modality"], c["axis"], len(c["points"])) for c in report["curves"]] == [
        ("text", "tokens", 2),
        ("text", "batch", 2),
        ("image", "batch", 1),
    ]
    for curve in report["curves"]:
        for point in curve["points"]:
            limits = point["limits"]
            assert limits["bandwidth_gb_per_s"] > 0
            rates = [product["gflops_per_s"] for product in limits["products"].values()]
            assert limits["peak_gflops_per_s"] == max(rates)
            for form in point["forms"].values():
                latency = form["latency_ms"]
                assert 0 < latency["p10"] <= latency["p50"] <= latency["p90"]
                expected = form["bound_ms"] / latency["p50"]
                assert form["share_of_bound"] == pytest.approx(expected)
                assert sum(form["time_shares"].values()) == pytest.approx(1.0)
                assert form["peak_rss_bytes"] > form["rss_before_model_bytes"] > 0
            assert point["forms"]["plain"]["ratio_to_plain"]["value"] == 1.0
    short, long = report["curves"][0]["points"]
    for form in ("gathered", "plain"):
        assert long["forms"][form]["flops"] > 30 * short["forms"][form]["flops"]
    # A quarter of the tokens costs less than all of them, beyond the 512 of a usual BERT too.
    assert long["forms"]["gathered"]["flops"] < 0.6 * long["forms"]["plain"]["flops"]


def test_another_plan_measures_anew(measured: tuple[Path, dict[str, Any]]) -> None:
    assert replace(PLAN, square=65).fingerprint != PLAN.fingerprint
    assert replace(PLAN, threads=2).fingerprint != PLAN.fingerprint
    assert replace(PLAN, bandwidth_bytes=10**7).fingerprint == PLAN.fingerprint
    path = next((measured[0] / "points").iterdir())
    assert json.loads(path.read_text())["fingerprint"] == PLAN.fingerprint


def test_tables_and_drawings_are_the_same_bytes_for_the_same_figures(
    measured: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    output, report = measured
    table = (output / "costs.md").read_text()
    assert "## text: tokens" in table
    assert "Elsewhere ratio 0.25, batch 1, 1 blocks." in table
    assert "QUICK" in table
    paths = draw_costs(report, tmp_path)
    assert [path.name for path in paths] == [
        "text-tokens.svg",
        "text-batch.svg",
        "image-batch.svg",
        "roofline.svg",
    ]
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw_costs(report, tmp_path)] == first
    assert b"<dc:date>" not in b"".join(first)
    assert b"peak memory, MB" in first[0]
    assert b"GFLOP/s" in first[3]


def test_the_forms_answer_and_share_their_predictor() -> None:
    import torch

    point = CostPoint("text", 0.5, 40, 0, 3, 2)
    fused, plain = build_forms(point, TINY, 64)
    inputs = [torch.from_numpy(value) for value in example(point, TINY).values()]
    with torch.inference_mode():
        logits, kept = fused(*inputs)[:2]
        assert logits.shape == plain(*inputs)[0].shape == (3, 2)
    assert kept.sum(dim=1).tolist() == [19, 19, 19]  # half of 38, without [CLS] and [SEP]
    assert fused.predictor is plain.predictor
    again = example(point, TINY)["input_ids"]
    np.testing.assert_array_equal(inputs[0].numpy(), again)


def test_the_plans_reach_4096_tokens_and_never_ask_twice() -> None:
    plan = full_plan(1)
    points = plan.all_points()
    assert len(points) == len(set(points))
    assert plan.max_tokens() == 4096
    models = [point.model for point in points]
    changes = sum(a != b for a, b in itertools.pairwise(models))
    assert changes + 1 == len(set(models))  # each model is exported once
    assert len(quick_plan(1).all_points()) < 10


def test_without_matplotlib_nothing_is_measured(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    search = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "rekd_edge", "costs", "--quick", "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
        check=False,
    )
    assert done.returncode == 4
    assert "pip install 'rekd-edge[figures]'" in done.stderr
    assert not (tmp_path / "out").exists()
