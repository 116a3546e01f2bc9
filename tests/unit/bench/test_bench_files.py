"""The benchmark runs real files, keeps its samples, and says when it is not valid."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rekd_edge.bench import BenchSettings, bench_files
from rekd_edge.bench.measure import FEWEST, in_turn, measure_in_turn
from rekd_edge.check import LabelledBatch
from rekd_edge.check.inputs import examples_of
from rekd_edge.convert import OnnxArtefact, convert_to_onnx, load_target
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.fuse import PlainClassifier
from rekd_edge.fuse.fused import FusedRationalist, masked_form

SHORT = BenchSettings(min_duration_s=0.0, min_count=12, warmup_count=2, cold_starts=0)


@pytest.fixture(scope="module")
def files(
    tiny_text: FusedRationalist,
    tiny_text_onnx: OnnxArtefact,
    tiny_plain: PlainClassifier,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("twins")
    made = {"gathered": tiny_text_onnx.path}
    for name, model in (("plain", tiny_plain), ("masked", masked_form(tiny_text))):
        path = folder / f"{name}.onnx"
        convert_to_onnx(model, model.io_spec(), path, target=load_target("onnx"), metadata={})
        made[name] = path
    return made


@pytest.fixture
def examples(text_batches: list[LabelledBatch]) -> list[dict[str, np.ndarray]]:
    return examples_of(text_batches, 5)


def test_time_is_limited_and_what_is_missing_is_said(
    files: dict[str, Path], examples: list[dict[str, np.ndarray]]
) -> None:
    calls: list[str] = []

    def answer(name: str, query: int, counted: bool) -> int:
        calls.append(name)
        time.sleep(0.002)
        return 2_000_000

    settings = BenchSettings(min_duration_s=0.0, min_count=10_000, max_duration_s=0.2)
    found = in_turn(["a", "b"], settings, answer)
    assert found["a"].size == found["b"].size
    assert FEWEST <= found["a"].size <= 100
    # Each answers a few in any case, and no more than asked for.
    for most, asked, count in ((0.0, 10_000, 21), (0.0, 6, 6), (60.0, 6, 6)):
        settings = BenchSettings(min_duration_s=0.0, min_count=asked, max_duration_s=most)
        assert in_turn(["a", "b"], settings, answer)["b"].size == count
    settings = BenchSettings(
        min_duration_s=60.0, min_count=50, max_duration_s=0.0, warmup_count=1, cold_starts=0
    )
    report = bench_files({"plain": files["plain"]}, examples, settings=settings, threads=1)
    assert report.invalid_reasons == ("plain: fewer than 50 queries", "plain: less than 60 s")


def test_three_files_in_one_run_as_ratios(
    files: dict[str, Path], examples: list[dict[str, np.ndarray]]
) -> None:
    report = bench_files(files, examples, settings=SHORT, reference="plain", threads=1)
    assert report.valid
    assert list(report.candidates) == ["gathered", "plain", "masked"]
    plain = report.candidates["plain"]
    assert plain.ratio is not None
    assert (plain.ratio.value, plain.ratio.low, plain.ratio.high) == (1.0, 1.0, 1.0)
    for item in report.candidates.values():
        assert item.query_count == len(item.samples_ns) == 12
        assert item.providers == ("CPUExecutionProvider",)
        assert 0 < item.latency_ns["50"] <= item.latency_ns["90"] <= item.latency_ns["99"]
        assert item.size_bytes > 0


def test_the_json_has_loadgen_names_and_raw_samples(
    files: dict[str, Path], examples: list[dict[str, np.ndarray]]
) -> None:
    report = bench_files(files, examples, settings=SHORT, inputs_source="a test").to_json()
    json.dumps(report, allow_nan=False)
    assert report["scenario"] == "SingleStream"
    assert report["result_validity"] == "VALID"
    assert report["result_min_queries_met"] is True
    assert report["inputs"] == "a test"
    assert report["threads"] == 1
    candidate = report["candidates"]["gathered"]
    assert candidate["result_query_count"] == 12
    assert len(candidate["samples_ns"]) == 12
    for name in ("50", "90", "95", "97", "99", "99.9"):
        assert candidate[f"result_{name}_percentile_latency_ns"] > 0


def test_a_quick_look_is_marked_invalid(
    files: dict[str, Path], examples: list[dict[str, np.ndarray]]
) -> None:
    settings = BenchSettings(
        min_duration_s=0.0, min_count=3, warmup_count=0, cold_starts=0, quick=True
    )
    report = bench_files({"a": files["plain"]}, examples, settings=settings)
    assert not report.valid
    assert report.to_json()["result_invalid_reason"] == "quick"


class _Runner:
    """Records who was asked, in order; as much of a runner as the loop needs."""

    def __init__(self, name: str, asked: list[tuple[str, int]]) -> None:
        self.name = name
        self.asked = asked

    def run_named(self, inputs: dict[str, int], _: tuple[str, ...]) -> None:
        self.asked.append((self.name, inputs["id"]))


def test_files_take_turns_on_the_same_input_in_rotating_order() -> None:
    asked: list[tuple[str, int]] = []
    runners = {name: _Runner(name, asked) for name in "abc"}
    outputs: dict[str, tuple[str, ...]] = dict.fromkeys("abc", ())
    inputs = {name: [{"id": 0}, {"id": 1}] for name in "abc"}
    settings = BenchSettings(min_duration_s=0.0, min_count=4, turn_count=1)
    samples = measure_in_turn(runners, outputs, inputs, settings)  # type: ignore[arg-type]
    rounds = [asked[start : start + 3] for start in range(0, 12, 3)]
    assert ["".join(name for name, _ in each) for each in rounds] == ["abc", "bca", "cab", "abc"]
    assert [each[0][1] for each in rounds] == [0, 1, 0, 1]
    assert all(len({i for _, i in each}) == 1 for each in rounds)
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_the_first_query_of_a_turn_is_not_counted() -> None:
    asked: list[tuple[str, int]] = []
    runners = {name: _Runner(name, asked) for name in "ab"}
    outputs: dict[str, tuple[str, ...]] = dict.fromkeys("ab", ())
    inputs = {name: [{"id": i} for i in range(3)] for name in "ab"}
    settings = BenchSettings(min_duration_s=0.0, min_count=3, turn_count=2)
    samples = measure_in_turn(runners, outputs, inputs, settings)  # type: ignore[arg-type]
    turns = [asked[start : start + 3] for start in range(0, 12, 3)]
    assert [[name for name, _ in turn] for turn in turns] == [[n] * 3 for n in "abba"]
    assert [[i for _, i in turn] for turn in turns] == [[1, 0, 1]] * 2 + [[0, 2, 0]] * 2
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4}


def test_minimum_duration_and_count_are_both_met(
    files: dict[str, Path], examples: list[dict[str, np.ndarray]]
) -> None:
    settings = BenchSettings(min_duration_s=0.2, min_count=2, warmup_count=0, cold_starts=0)
    report = bench_files({"a": files["plain"]}, examples, settings=settings)
    measured = report.candidates["a"]
    assert measured.duration_ns >= 0.2e9
    assert measured.query_count > 2


def test_a_cold_start_is_a_fresh_process(
    files: dict[str, Path], examples: list[dict[str, np.ndarray]]
) -> None:
    settings = BenchSettings(min_duration_s=0.0, min_count=1, warmup_count=0, cold_starts=2)
    cold = bench_files({"a": files["gathered"]}, examples, settings=settings).candidates["a"]
    assert cold.cold_start is not None
    assert len(cold.cold_start.time_to_first_answer_ns) == 2
    for i in range(2):
        parts = (
            cold.cold_start.import_ns[i]
            + cold.cold_start.load_ns[i]
            + cold.cold_start.first_query_ns[i]
        )
        assert cold.cold_start.time_to_first_answer_ns[i] > parts
        peak = cold.cold_start.peak_rss_bytes[i]
        assert peak is not None
        # numpy and onnxruntime, but not torch: well below half a gigabyte.
        assert 10e6 < peak < 5e8


def test_the_fresh_process_loads_no_torch() -> None:
    code = (
        "import sys, rekd_edge.bench.first_answer; "
        "print(sorted({'torch', 'transformers', 'pydantic', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_may_read_the_same_examples_prepared_in_different_ways(
    files: dict[str, Path], examples: list[dict[str, np.ndarray]]
) -> None:
    shorter = [{name: array[:, :4] for name, array in example.items()} for example in examples]
    chosen = {"plain": files["plain"], "short": files["plain"]}
    report = bench_files(chosen, {"plain": examples, "short": shorter}, settings=SHORT)
    assert report.input_count == len(examples)
    assert set(report.candidates) == {"plain", "short"}


def test_misuse_and_broken_files_are_named(
    files: dict[str, Path], examples: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="at least one file"):
        bench_files({}, examples)
    with pytest.raises(UsageError, match="same number of inputs"):
        bench_files(files, {"gathered": examples, "plain": examples, "masked": examples[1:]})
    with pytest.raises(UsageError, match="none of gathered, plain, masked"):
        bench_files(files, examples, reference="other")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"x")
    with pytest.raises(BackendError, match="cannot load"):
        bench_files({"a": broken}, examples, settings=SHORT)
