"""A latency suite from its file to its table: trained rows, real sessions, tiny settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rekd_edge import latency_suite, resources
from rekd_edge.bench import BenchSettings
from rekd_edge.check.inputs import queries
from rekd_edge.errors import UsageError
from rekd_edge.latency_suite import latency_table, run_latency
from rekd_edge.recipe.latency_file import load_latency
from rekd_edge.recipe.suite_file import row_recipes
from rekd_edge.run_folder import open_run
from rekd_edge.runners import OnnxRunner

ROOT = Path(__file__).parents[2]
QUICK = BenchSettings(min_duration_s=0.0, min_count=6, warmup_count=1, cold_starts=0, quick=True)
SUITE = """schema_version: 1
name: trial
recipe: smoke/text
overrides:
  - "data.limit={train: 32, dev: 16, test: 16}"
  - "teacher.train.warmup={predictor_epochs: 0, selector: none}"
  - "student.train.warmup={predictor_epochs: 0, selector: none}"
  - student.predictor.depth=2
threads: [1]
batch: [1, 4]
rows:
  - name: ours
  - name: plain
    overrides: [task=classify]
candidates:
  - {name: plain, title: plain classifier, run: plain, form: plain, targets: [onnx, onnx-int8]}
  - {name: ours, run: ours, form: gathered, targets: [onnx, onnx-int8-predictor]}
  - {name: masked, run: ours, form: masked}
  - {name: shorter, run: plain, form: peer, peer: {kind: truncate, share: 0.5}}
  - name: shallow
    run: plain
    form: peer
    peer: {kind: shallow, strength: 1, fine_tune: {epochs: 1, teacher: ours}}
"""


def run_it(path: Path, output: Path) -> dict[str, Any]:
    (spec, file), *_ = load_latency(path).values()
    recipes = row_recipes(spec, file.parent)
    return run_latency(spec, recipes, output, settings=QUICK, device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("latency")
    path = folder / "suite.yaml"
    path.write_text(SUITE)
    return path, folder / "out", run_it(path, folder / "out")


ROW_KEYS = (
    "name",
    "precision",
    "threads",
    "batch",
    "p50_ms",
    "ratio_to_plain",
    "accuracy",
    "rationale_exact",
    "rationale_jaccard",
)


def test_every_candidate_has_a_row_for_each_number_of_threads_and_examples(
    made: tuple[Path, Path, dict[str, Any]],
) -> None:
    _, output, result = made
    assert json.loads((output / "latency.json").read_text()) == result
    names = ["plain", "plain", "ours", "ours", "masked", "shorter", "shallow"]
    rows = result["rows"]
    assert [(row["name"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (1, 4) for name in names
    ]
    for row in rows:
        assert tuple(row)[: len(ROW_KEYS)] == ROW_KEYS
        assert row["p50_ms"] > 0
        assert 0 <= row["accuracy"] <= 1
        assert row["queries"] == 6
        assert (row["rationale_exact"] is None) == (row["form"] in {"plain", "peer"})
    plain, int8, ours, predictor, masked, shorter, shallow = rows[:7]
    assert plain["ratio_to_plain"] == plain["ratio_to_plain_of_precision"] == 1
    assert int8["ratio_to_plain_of_precision"] == 1
    assert int8["precision"] == "int8-dynamic"
    assert predictor["precision"] == "int8-dynamic (predictor)"
    assert predictor["ratio_to_plain"] == pytest.approx(
        predictor["ratio_to_plain_of_precision"] * int8["ratio_to_plain"]
    )
    assert (ours["rationale_exact"], ours["rationale_jaccard"]) == (1.0, 1.0)
    assert (masked["rationale_exact"], predictor["rationale_exact"]) == (1.0, 1.0)
    assert masked["flops_share"] > 1.2 > 1 > ours["flops_share"]
    assert abs(shorter["flops_share"] - 0.5) < 0.1
    assert [row["trained"] for row in rows[:7]] == [True, True, True, True, False, False, True]
    assert shallow["flops_share"] == pytest.approx(0.5, abs=0.02)
    assert result["reference"] == "plain.onnx"
    assert set(result["validity"].values()) == {"INVALID quick"}


def test_accuracy_is_that_of_the_very_file(made: tuple[Path, Path, dict[str, Any]]) -> None:
    _, output, result = made
    run = open_run(output / "plain" / "seed-0")
    for row in result["rows"][:7]:
        right = count = 0
        with OnnxRunner(output / "latency" / f"{row['name']}.{row['target']}.onnx") as runner:
            for batch in run.loader("test", batch_size=64):
                inputs = {name: value.numpy() for name, value in batch.inputs.items()}
                logits = runner.run_named(inputs, ["logits"])["logits"]
                right += int((logits.argmax(1) == batch.labels.numpy()).sum())
                count += len(batch.labels)
        assert row["accuracy"] == right / count
        assert count == result["test_examples"]


def test_what_is_there_is_kept_and_what_changed_is_made_again(
    made: tuple[Path, Path, dict[str, Any]],
) -> None:
    path, output, result = made
    folder = output / "latency"

    def stamps() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.is_file()}

    before = stamps()
    assert run_it(path, output) == result
    assert stamps() == before
    (folder / "masked.onnx.onnx").write_bytes(b"broken")
    changed = path.with_name("changed.yaml")
    changed.write_text(SUITE.replace("share: 0.5", "share: 0.7").replace("[1, 4]", "[4]"))
    again = run_it(changed, output)
    after = stamps()
    moved = {name for name in before if after[name] != before[name]}
    assert {name for name in moved if name.endswith(".onnx")} == {
        "masked.onnx.onnx",
        "shorter.onnx.onnx",
    }
    assert "timing-4-1.json" not in after
    assert "timing-1-1.json" not in moved
    assert "timing-1-4.json" in moved
    assert [row["batch"] for row in again["rows"]] == [4] * 7
    assert again["rows"][4]["sha256"] == result["rows"][4]["sha256"]


def test_the_table_is_read_from_the_result(made: tuple[Path, Path, dict[str, Any]]) -> None:
    _, _, result = made
    table = latency_table(result)
    lines = table.splitlines()
    assert lines[0].count("ms (ratio)") == 2
    assert len([line for line in lines if line.startswith("|")]) == 2 + 7
    plain = result["rows"][0]
    assert f"| {plain['accuracy']:.3f} |" in lines[2]
    assert f"{plain['p50_ms']:.2f} (1.00)" in lines[2]
    assert "INVALID quick" in table


def test_a_latency_result_is_recorded(
    made: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, output, _ = made
    result = json.loads((output / "latency.json").read_text())
    words = ["latency", str(output / "latency.json"), "--command", "make bench"]
    done = subprocess.run(
        [sys.executable, "benchmarks/record.py", *words, "--results", str(tmp_path / "results")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    recorded = json.loads((tmp_path / "results" / "latency.json").read_text())
    assert recorded["rows"] == result["rows"]
    assert recorded["command"] == "make bench"
    assert latency_table(result) in (tmp_path / "results" / "latency.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "form: plain, targets: [onnx,",
            "form: plain, targets: [onnx-int8-static,",
            "ratios are to",
        ),
        ("run: ours, form: masked", "run: plain, form: masked", "has task classify"),
        (
            "run: plain, form: peer, peer: {kind: tr",
            "run: ours, form: peer, peer: {kind: tr",
            "has task distill",
        ),
        ("teacher: ours", "teacher: plain", "has no teacher"),
        ("  - name: ours\n", "  - name: ours\n    overrides: [data.max_length=16]\n", "other data"),
        ("targets: [onnx, onnx-int8-predictor]", "targets: [onnx, none]", "no target 'none'"),
    ],
)
def test_candidates_that_cannot_be_compared_are_refused_before_training(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert old in SUITE
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        run_it(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_checkout_peers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resources.benchmarks_dir() == ROOT / "benchmarks"
    with monkeypatch.context() as installed:
        installed.setattr(resources, "_PACKAGE", tmp_path / "site-packages" / "rekd_edge")
        found = resources.benchmarks_dir()
    monkeypatch.setattr(latency_suite, "benchmarks_dir", lambda: found)
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    with pytest.raises(UsageError, match="not part of the installed package"):
        run_it(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_examples_are_grouped_into_queries() -> None:
    rng = np.random.default_rng(0)
    lengths = [3, 9, 5, 7, 4]
    examples = [
        {
            "input_ids": rng.integers(1, 90, (1, length)),
            "attention_mask": np.ones((1, length), dtype=np.int64),
        }
        for length in lengths
    ]
    made = queries(examples, 2, pad_id=0)
    assert [len(query["input_ids"]) for query in made] == [2, 2]
    assert made[0]["input_ids"].tolist() == queries(examples, 2, pad_id=0)[0]["input_ids"].tolist()
    seen = [int(row.sum()) for query in made for row in query["attention_mask"]]
    assert len(set(seen)) == 4
    assert set(seen) <= set(lengths)
    for query in made:
        sums = query["attention_mask"].sum(axis=1)
        assert query["input_ids"].shape == (2, sums.max())
        assert not query["input_ids"][query["attention_mask"] == 0].any()
    assert [len(query["input_ids"]) for query in queries(examples, 8, pad_id=0)] == [8]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rekd_edge", "bench", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either a bundle or --suite"),
        (["bundle", "--suite", "latency"], "either a bundle or --suite"),
        (["--suite", "latency"], "--suite needs --output"),
        (["--suite", "latncy", "--output", "x"], "no latency suite 'latncy'"),
        (["--suite", "none.yaml", "--output", "x"], "cannot be read"),
        (["--suite", "latency", "--output", "x", "--run", "y"], "only for a bundle"),
        (["--suite", "latency", "--output", "x", "--threads", "0,1"], "distinct whole numbers"),
        (["bundle", "--batch", "8"], "--batch: only for --suite"),
        (["bundle", "--threads", "1,2"], "one number of threads"),
        (["bundle", "--threads", "two"], "distinct whole numbers"),
    ],
)
def test_combinations_without_a_meaning_are_refused(words: list[str], message: str) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_command_runs_a_suite_of_parts_and_reuses_their_runs(
    made: tuple[Path, Path, dict[str, Any]],
) -> None:
    path, output, _ = made
    whole = path.with_name("whole.yaml")
    whole.write_text(
        "schema_version: 1\nname: whole\nparts:\n  - {folder: out, suite: suite.yaml}\n"
    )
    stamps = {run: run.stat().st_mtime_ns for run in output.rglob("run.json")}
    place = path.with_name("found.json")
    done = command(
        *("--suite", str(whole), "--output", str(path.parent), "--threads", "1", "--batch", "2"),
        *("--quick", "--device", "cpu", "--json", str(place)),
    )
    assert done.returncode == 0, done.stderr
    assert "| plain classifier | fp32 |" in done.stdout
    found = json.loads(place.read_text())
    assert {row["batch"] for row in found["rows"]} == {2}
    assert {run: run.stat().st_mtime_ns for run in output.rglob("run.json")} == stamps
