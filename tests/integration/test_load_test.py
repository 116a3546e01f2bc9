"""The load test of whole bundles: in this process, as the program that boards run, and from the
command line."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from rekd_edge.bench.baseline import values_of
from rekd_edge.bench.load import (
    LoadReport,
    histogram,
    program_path,
    run_load_test,
    write_examples,
)
from rekd_edge.cli.app import app
from rekd_edge.errors import GateError, IntegrityError, UsageError
from rekd_edge.load_pipeline import load_examples, load_test
from tests.bench_program import QUICKLY, load_program, request, write_texts
from tests.signals import not_ignored

program = load_program()
TEXTS = [
    "a gorgeous, witty film",
    "dull",
    "one of the worst films of this or of any other year, and long",
    "a cast that deserves better than this script",
    "it works",
]
LABELS = [2, 0, 0, 1, 2]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "examples", TEXTS, LABELS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 256, (70, 90, 3), dtype=np.uint8) for _ in range(3)]
    assert write_examples(folder, pixels, [0, 1, 0]) == 3
    return folder


def without_samples(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if "sample" not in key}


@pytest.mark.parametrize("scope", ["compute", "end_to_end"])
@pytest.mark.parametrize(
    ("scenario", "count", "batch"),
    [("SingleStream", 64, 1), ("MultiStream", 662, 1), ("MultiStream", 10, 8), ("Offline", 30, 4)],
)
def test_every_scenario_measures(
    scenario: str, count: int, batch: int, scope: str, text_bundle: Path, texts: Path
) -> None:
    asked = request(scenario, scope=scope, batch=batch, min_query_count=count)
    report = program.run(text_bundle, texts, asked)
    json.dumps(report, allow_nan=False)
    assert (report["scenario"], report["scope"], report["batch"]) == (scenario, scope, batch)
    assert report["mode"] == "PerformanceOnly"
    assert report["result_min_queries_met"]
    assert report["result_min_duration_met"]
    width = {"SingleStream": 1, "MultiStream": 8, "Offline": batch}[scenario]
    assert len(report["samples_ns"]) * width == report["result_sample_count"] >= count
    assert report["result_query_count"] == (1 if scenario == "Offline" else count)
    assert min(report["samples_ns"]) > 0
    assert sum(report["samples_ns"]) <= report["result_duration_ns"]
    percentiles = [
        report[f"result_{name}_percentile_latency_ns"]
        for name in ("50", "90", "95", "97", "99", "99.9")
    ]
    assert percentiles == sorted(percentiles)
    if scenario == "Offline":
        rate = report["result_samples_per_second"]
        # To the answer of the last example, not to the end of the program's own work.
        assert (
            1e9 * 32 / report["result_duration_ns"] <= rate <= 1e9 * 32 / sum(report["samples_ns"])
        )
    else:
        assert percentiles[0] in report["samples_ns"]
        assert report["early_stopping_met"] is (count >= 64 and batch == 1)
        ordered = sorted(report["samples_ns"])
        expected = ordered[-1] if report["early_stopping_met"] else None
        assert report["early_stopping_latency_ns"] == expected
    words = "text to label and rationale" if scope == "end_to_end" else "prepared arrays"
    assert report["scope_in_words"].startswith(words)
    assert ("filled up to the longest" in report["scope_in_words"]) is (batch > 1)
    manifest = json.loads((text_bundle / "manifest.json").read_text())
    (model,) = (entry for entry in manifest["files"] if entry["path"] == "model.onnx")
    assert report["model_sha256"] == model["sha256"]


def test_images_are_measured_in_both_scopes(image_bundle: Path, images: Path) -> None:
    reports = {
        scope: program.run(
            image_bundle, images, request("SingleStream", scope=scope, min_query_count=20)
        )
        for scope in ("compute", "end_to_end")
    }
    medians = {s: one["result_50_percentile_latency_ns"] for s, one in reports.items()}
    assert medians["end_to_end"] > medians["compute"]  # decoding and resizing come on top
    assert reports["end_to_end"]["scope_in_words"].startswith("image file to label and rationale")
    assert "early stopping needs 64 queries, not 20" in reports["compute"]["result_invalid_reason"]


def test_more_examples_than_memory_holds_are_refused(
    image_bundle: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 10 kB\n")
    small = program.Machine(tmp_path)
    asked = request("SingleStream", min_query_count=1)
    with pytest.raises(program.InputError, match=r"3 examples, prepared, take .* half of the"):
        program.run(image_bundle, images, asked, machine=small)
    for others in ({"scope": "end_to_end"}, {"mode": "AccuracyOnly"}):
        asked = request("SingleStream", min_query_count=1, **others)
        assert program.run(image_bundle, images, asked, machine=small)["input_count"] == 3


def test_every_query_is_asked_equally_often(text_bundle: Path, texts: Path) -> None:
    report = program.run(text_bundle, texts, request("SingleStream", min_query_count=100))
    asked = report["sample_examples"]
    assert sorted(asked[:5]) == [0, 1, 2, 3, 4]
    assert asked == asked[:5] * (len(asked) // 5)
    again = program.run(text_bundle, texts, request("SingleStream", min_query_count=5, seed=1))
    assert again["sample_examples"] != asked[:5]


@pytest.mark.parametrize("scope", ["compute", "end_to_end"])
@pytest.mark.parametrize(
    ("scenario", "batch"), [("SingleStream", 1), ("MultiStream", 1), ("Offline", 3)]
)
def test_accuracy_mode_answers_each_example_once_as_the_runtime_does(
    scenario: str, batch: int, scope: str, text_bundle: Path, texts: Path
) -> None:
    asked = request(scenario, mode="AccuracyOnly", scope=scope, batch=batch)
    report = program.run(text_bundle, texts, asked)
    quality = report["quality"]
    model = program.runtime.Rationalist.load(text_bundle, threads=1)
    answers = model.predict(TEXTS)
    names = list(model.config.label_names)
    predicted = [names.index(answer.label) for answer in answers]
    assert quality["predicted"] == predicted
    right = sum(mine == given for mine, given in zip(predicted, LABELS, strict=True))
    assert quality["accuracy"] == pytest.approx(right / 5)
    assert quality["coverage"] == 1.0
    assert quality["abstained"] == [False] * 5
    for answer, digest in zip(answers, quality["digests"], strict=True):
        tokens = {token for span in answer.rationale for token in getattr(span, "tokens", ())}
        length = answer.candidates + 2  # [CLS] and [SEP]
        kept = [position in tokens for position in range(length)]
        assert digest == program.answer_digest(names.index(answer.label), kept)
    assert report["result_validity"] == "VALID"
    assert report["result_query_count"] is None
    assert report["samples_ns"] == []
    values = values_of(report)
    assert values["accuracy"] == pytest.approx(100 * right / 5)
    assert values["coverage"] == 100.0
    assert "p90_latency_ms" not in values


def test_withheld_answers_lower_the_coverage(
    text_bundle: Path, texts: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(text_bundle, tmp_path / "bundle"))
    _calibrate(bundle, {"confidence_threshold": 1.0, "margin_threshold": None})
    report = program.run(bundle, texts, request("SingleStream", mode="AccuracyOnly"))
    quality = report["quality"]
    assert quality["abstained_count"] == 5
    assert quality["coverage"] == 0.0
    assert quality["accuracy_of_answered"] is None
    assert quality["accuracy"] is not None


def _calibrate(bundle: Path, thresholds: dict[str, Any]) -> None:
    """Puts thresholds into ``config.json``, and its new hash into the manifest."""
    import hashlib

    config = json.loads((bundle / "config.json").read_text())
    config["schema_version"] = 2
    config["calibration"] = {"method": "temperature", "temperature": 1.0, **thresholds}
    content = json.dumps(config).encode()
    (bundle / "config.json").write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "config.json":
            digest = hashlib.sha256(content).hexdigest()
            entry |= {"sha256": digest, "size_bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_unlabelled_examples_have_no_accuracy(text_bundle: Path, tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "examples", TEXTS)
    report = program.run(text_bundle, folder, request("Offline", mode="AccuracyOnly"))
    assert report["quality"]["accuracy"] is None
    assert report["quality"]["reason"] == "the examples have no labels"
    assert "accuracy" not in values_of(report)


def test_a_pause_between_queries_is_no_part_of_a_latency(text_bundle: Path, texts: Path) -> None:
    report = program.run(
        text_bundle, texts, request("SingleStream", min_query_count=20, idle_gap_ms=20)
    )
    assert report["result_duration_ns"] > 20 * 20e6
    assert report["result_50_percentile_latency_ns"] < 20e6


def test_a_batch_needs_a_graph_that_takes_one(
    text_bundle: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.runtime.Rationalist, "takes_batches", property(lambda self: False))
    with pytest.raises(program.InputError, match="takes one example at a time"):
        program.run(text_bundle, texts, request("Offline", batch=2))


# --- the program, as it runs on a board -------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The program and the runtime, copied to where nothing else of this project is."""
    folder = tmp_path / "board"
    folder.mkdir()
    for name in ("rekd_bench.py", "rekd_runtime.py"):
        shutil.copy(program_path().with_name(name), folder)
    return folder / "rekd_bench.py"


def command(script: Path, bundle: Path, examples: Path, **fields: Any) -> list[str]:
    asked = {"schema_version": 1, "scenario": "SingleStream", **QUICKLY, **fields}
    (script.parent / "request.json").write_text(json.dumps(asked))
    return [
        *(sys.executable, str(script), str(bundle), "--examples", str(examples)),
        *("--request", str(script.parent / "request.json")),
        *("--report", str(script.parent / "report.json")),
    ]


def clean_environment(threads: int = 1) -> dict[str, str]:
    """``threads`` of numpy's BLAS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}


def launch(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, capture_output=True, text=True, cwd=cwd, env=clean_environment(), timeout=120
    )


def test_the_program_writes_a_whole_report(alone: Path, text_bundle: Path, texts: Path) -> None:
    words = command(alone, text_bundle, texts, min_query_count=70, cold_starts=2)
    done = launch(words, alone.parent)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.splitlines() == [
        "SingleStream, PerformanceOnly, compute, 5 examples",
        "cold start 1 of 2",
        "cold start 2 of 2",
    ]
    report = json.loads((alone.parent / "report.json").read_text())
    cold = report["cold_start"]
    assert len(cold["time_to_first_answer_ns"]) == 2
    for number, total in enumerate(cold["time_to_first_answer_ns"]):
        parts = sum(cold[key][number] for key in ("import_ns", "load_ns", "first_query_ns"))
        assert 0 < parts < total < 120e9
    # A process of numpy and onnxruntime, not of torch.
    assert 20e6 < report["peak_rss_bytes"] < 200e6
    assert report["peak_rss_bytes"] == max(cold["peak_rss_bytes"])
    names = {path.name for path in alone.parent.iterdir()}
    assert names - {"__pycache__"} == {
        "rekd_bench.py",
        "rekd_runtime.py",
        "request.json",
        "report.json",
    }


@pytest.mark.parametrize(
    ("fields", "exit_code", "said"),
    [
        ({"threads": 0}, 2, "threads 0 is not from 1 to 4096"),
        ({"seed": -1}, 2, "seed -1 is not from 0"),
        ({"scenario": "Online"}, 2, "scenario 'Online' is none of"),
        ({"provider": "NoneExecutionProvider"}, 4, "this onnxruntime has no NoneExecutionProvider"),
    ],
)
def test_what_cannot_be_used_is_one_message(
    fields: dict[str, Any],
    exit_code: int,
    said: str,
    alone: Path,
    text_bundle: Path,
    texts: Path,
) -> None:
    done = launch(command(alone, text_bundle, texts, **fields), alone.parent)
    assert done.returncode == exit_code
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert not (alone.parent / "report.json").exists()


def test_a_changed_bundle_a_missing_folder_and_bad_json_are_refused(
    alone: Path, text_bundle: Path, texts: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(text_bundle, tmp_path / "bundle"))
    (bundle / "labels.json").write_text("[]")
    done = launch(command(alone, bundle, texts), alone.parent)
    assert (done.returncode, "labels.json" in done.stderr) == (6, True)
    words = command(alone, text_bundle, texts)
    words[-1] = str(tmp_path / "nowhere" / "report.json")
    done = launch(words, alone.parent)
    assert (done.returncode, "cannot write" in done.stderr) == (2, True)
    words = command(alone, text_bundle, texts)
    (alone.parent / "request.json").write_text("{")
    done = launch(words, alone.parent)
    assert (done.returncode, "not JSON" in done.stderr) == (2, True)


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


@pytest.fixture
def started(
    alone: Path, text_bundle: Path, texts: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program for a long run; whatever is left of it ends with the test."""
    running: list[subprocess.Popen[str]] = []

    def start(blas_threads: int = 1, **fields: Any) -> subprocess.Popen[str]:
        words = command(alone, text_bundle, texts, **fields)
        environment = clean_environment(blas_threads)
        with not_ignored():
            running.append(
                subprocess.Popen(
                    words, stderr=subprocess.PIPE, text=True, cwd=alone.parent, env=environment
                )
            )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("when", ["measuring", "cold start"])
@pytest.mark.parametrize("blas_threads", [1, 2])
def test_a_signal_ends_it_at_once_and_leaves_nothing(
    number: signal.Signals,
    when: str,
    blas_threads: int,
    alone: Path,
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    if when == "measuring":
        process = started(blas_threads, min_duration_s=300)
    else:
        process = started(blas_threads, min_query_count=1, cold_starts=100)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("SingleStream")
    children: list[psutil.Process] = []
    if when == "cold start":
        process.stderr.readline()
        children = wait_for(psutil.Process(process.pid).children)
    before = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - before < 10
    assert process.stderr.read().endswith("interrupted\n")
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    left = {path.name for path in alone.parent.iterdir()} - {"__pycache__"}
    assert left == {"rekd_bench.py", "rekd_runtime.py", "request.json"}


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_it_ends_where_nobody_reads_its_progress(
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    process = started(min_duration_s=300)
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    process.stderr = None
    assert process.wait(timeout=60) == 130


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_disturbed_run_is_invalid(alone: Path, text_bundle: Path, texts: Path) -> None:
    """On one core with a process that never rests."""
    core = str(min(os.sched_getaffinity(0)))
    busy = subprocess.Popen(["taskset", "-c", core, sys.executable, "-c", "while True: pass"])
    try:
        words = command(alone, text_bundle, texts, min_duration_s=4)
        done = launch(["taskset", "-c", core, *words], alone.parent)
    finally:
        busy.kill()
        busy.wait()
    assert done.returncode == 0, done.stderr
    report = json.loads((alone.parent / "report.json").read_text())
    assert report["result_validity"] == "INVALID"
    assert "does not hold still" in report["result_invalid_reason"]
    assert "waited for a core" in report["result_invalid_reason"]
    assert not report["stability"]["held_still"]


# --- MLCommons' LoadGen -----------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream", "Offline"])
def test_loadgen_drives_the_same_system_and_agrees(
    scenario: str, alone: Path, text_bundle: Path, texts: Path
) -> None:
    pytest.importorskip("mlperf_loadgen")
    words = command(
        alone,
        text_bundle,
        texts,
        scenario=scenario,
        loadgen=True,
        min_duration_s=0.5,
        min_query_count=662,
        samples_per_query=2,
        warmup_count=20,
    )
    done = launch(words, alone.parent)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    report = json.loads((alone.parent / "report.json").read_text())
    told = report["loadgen"]
    assert told["result_validity"] == "VALID"
    assert told["effective_scenario"] == scenario
    assert report["driver"] == "MLCommons LoadGen"
    assert told["result_query_count"] == report["result_query_count"]
    for flag in ("result_min_duration_met", "result_min_queries_met", "early_stopping_met"):
        assert told[flag] is report[flag] is True
    # LoadGen's clock runs from its own call to its own reading of the answer: a little longer.
    assert report["result_min_latency_ns"] <= told["result_min_latency_ns"] * 1.001
    for name in ("50", "90"):
        key = f"result_{name}_percentile_latency_ns"
        assert report[key] == pytest.approx(told[key], rel=0.15)
    if scenario == "Offline":
        rate = told["result_samples_per_second"]
        assert report["result_samples_per_second"] == pytest.approx(rate, rel=0.05)
    else:
        said = told["early_stopping_result"].split("Would discard ")[1].split()[0]
        percentile = report["target_latency_percentile"]
        count = report["result_query_count"]
        assert program.allowed_overlatency(count, percentile) == int(said) + 1
    logs = alone.parent / "report.loadgen"
    assert "Result is : VALID" in (logs / "mlperf_log_summary.txt").read_text()
    assert {path.name for path in logs.iterdir()} == {
        "mlperf_log_accuracy.json",
        "mlperf_log_detail.txt",
        "mlperf_log_summary.txt",
    }


def test_loadgens_accuracy_mode_gives_the_same_answers(
    alone: Path, text_bundle: Path, texts: Path
) -> None:
    pytest.importorskip("mlperf_loadgen")
    words = command(alone, text_bundle, texts, loadgen=True, mode="AccuracyOnly")
    done = launch(words, alone.parent)
    assert done.returncode == 0, done.stderr
    report = json.loads((alone.parent / "report.json").read_text())
    own = program.run(text_bundle, texts, request("SingleStream", mode="AccuracyOnly"))
    assert report["quality"] == own["quality"]
    log = json.loads((alone.parent / "report.loadgen/mlperf_log_accuracy.json").read_text())
    logged = {
        entry["qsl_idx"]: int.from_bytes(bytes.fromhex(entry["data"]), "little") for entry in log
    }
    assert [logged[number] for number in range(5)] == own["quality"]["predicted"]


def test_an_input_that_fails_under_loadgen_ends_with_its_message(
    alone: Path, text_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mlperf_loadgen")
    folder = write_texts(tmp_path / "examples", [*TEXTS, " \u200b "])
    words = command(alone, text_bundle, folder, loadgen=True, scope="end_to_end", warmup_count=0)
    done = launch(words, alone.parent)
    assert done.returncode == 2
    assert "example 6" in done.stderr
    assert not any("loadgen" in path.name for path in alone.parent.iterdir())
    assert not any(path.name.startswith(".") for path in alone.parent.iterdir())


def test_what_is_in_the_way_of_the_logs_is_left_alone(
    alone: Path, text_bundle: Path, texts: Path, lines: Path, tmp_path: Path
) -> None:
    mine = alone.parent / "report.loadgen" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    done = launch(command(alone, text_bundle, texts, loadgen=True), alone.parent)
    assert (done.returncode, "is in the way" in done.stderr) == (2, True)
    words = ["--scenario", "offline", "--loadgen", "--inputs", str(lines)]
    result = command_line(str(text_bundle), *words, "--json", str(alone.parent / "report.json"))
    assert isinstance(result.exception, UsageError)
    assert "is in the way" in str(result.exception)
    assert mine.read_text() == "mine"


def test_the_command_keeps_loadgens_logs_of_the_last_run(
    text_bundle: Path, lines: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mlperf_loadgen")
    out = tmp_path / "load.json"
    words = ["--scenario", "offline", "--loadgen", "--quick", "--cold-starts", "0"]
    words += ["--min-duration-s", "0.2", "--inputs", str(lines), "--json", str(out)]
    first = command_line(str(text_bundle), *words)
    assert first.exit_code == 0, first.output
    summary = tmp_path / "load.loadgen" / "mlperf_log_summary.txt"
    before = summary.read_text()
    done = command_line(str(text_bundle), *words)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    rate = f"Samples per second: {report['loadgen']['result_samples_per_second']:.6g}"
    assert rate in summary.read_text()
    assert summary.read_text() != before
    assert "driven by MLCommons LoadGen" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "load.json",
        "load.loadgen",
        "texts.txt",
    }


def test_without_loadgen_it_says_what_to_install(
    alone: Path, text_bundle: Path, texts: Path
) -> None:
    (alone.parent / "mlperf_loadgen.py").write_text("raise ImportError('not here')")
    done = launch(command(alone, text_bundle, texts, loadgen=True), alone.parent)
    assert done.returncode == 4
    assert "pip install mlcommons-loadgen" in done.stderr


# --- the command line -------------------------------------------------------------------------


def command_line(*words: str) -> Result:
    return CliRunner().invoke(app, ["bench", *words])


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def test_the_command_writes_json_and_a_table(
    text_bundle: Path, lines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "load.json"
    words = ["--scenario", "single-stream", "--quick", "--inputs", str(lines), "--json", str(out)]
    done = command_line(str(text_bundle), *words)
    assert done.exit_code == 0, done.output
    assert "INVALID: quick" in done.stdout
    assert "latency of a query in ms" in done.stdout
    report = json.loads(out.read_text())
    assert report["inputs"] == "texts.txt, given with --inputs"
    assert report["threads"] == 1
    assert report["bundle"]["name"] == report["name"] == "tiny"
    assert report["request"]["quick"] is True
    assert report["cold_start"]["peak_rss_bytes"][0] < 200e6


def test_a_missed_target_is_a_gate(text_bundle: Path, lines: Path) -> None:
    words = ["--scenario", "multi-stream", "--quick", "--cold-starts", "0", "--inputs", str(lines)]
    done = command_line(str(text_bundle), *words, "--target-latency-ms", "0.000001")
    assert isinstance(done.exception, GateError)
    assert "above the target of 1e-06 ms" in str(done.exception)


def test_rules_hold_a_load_test_to_an_earlier_one(
    text_bundle: Path, lines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "before.json"
    words = ["--scenario", "offline", "--mode", "accuracy", "--inputs", str(lines)]
    done = command_line(str(text_bundle), *words, "--json", str(out))
    assert done.exit_code == 0, done.output
    rules = ["--baseline", str(out), "--fail-on", "coverage<-1", "--fail-on", "size_mb>+1%"]
    files = ["--junit", str(tmp_path / "j.xml"), "--markdown", str(tmp_path / "m.md")]
    done = command_line(str(text_bundle), *words, *rules, *files)
    assert done.exit_code == 0, done.output
    assert "all 2 held" in done.stdout
    assert (tmp_path / "j.xml").is_file()


def test_two_kinds_of_benchmark_are_not_compared(
    text_bundle: Path, lines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "before.json"
    words = ["--inputs", str(lines), "--min-duration-s", "0", "--min-count", "64"]
    done = command_line(str(text_bundle), *words, "--cold-starts", "0", "--json", str(out))
    assert done.exit_code == 0, done.output
    rules = ["--baseline", str(out), "--fail-on", "p50_latency_ms>+500%"]
    done = command_line(str(text_bundle), *words, "--scenario", "single-stream", *rules)
    assert isinstance(done.exception, UsageError)
    assert "report None there, 'load-test' here" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scope", "compute"], "--scope: only for --scenario"),
        (["--official"], "--official: only for --scenario"),
        (["--batch", "2"], "--batch: only for --suite and --scenario"),
        (["--scenario", "server"], "--scenario server is not known"),
        (["--scenario", "offline", "--mode", "best"], "--mode best is not known"),
        (["--scenario", "offline", "--batch", "2,4"], "one number of examples"),
        (["--scenario", "offline", "--scope", "x"], "scope 'x' is none of"),
        (["--scenario", "offline", "--official", "--quick"], "official or quick, not both"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], said: str, text_bundle: Path, lines: Path
) -> None:
    done = command_line(str(text_bundle), "--inputs", str(lines), *words)
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_examples_come_as_texts_or_images_not_as_arrays(
    text_bundle: Path, image_bundle: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "arrays.npz", input_ids=np.ones((1, 3)))
    with pytest.raises(UsageError, match="starts from texts or images"):
        load_examples(text_bundle, inputs_file=tmp_path / "arrays.npz")
    with pytest.raises(UsageError, match="does not exist"):
        load_examples(text_bundle, inputs_file=tmp_path / "none")
    with pytest.raises(UsageError, match="not in the folders above"):
        load_examples(text_bundle)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.JPG", "JPEG")
    found = load_examples(image_bundle, inputs_file=tmp_path)
    assert found.examples == [tmp_path / "a.JPG"]
    report = load_test(
        image_bundle,
        {"schema_version": 1, "scenario": "Offline", "quick": True, "cold_starts": 0},
        found,
    )
    assert report.document["input_count"] == 1
    assert report.document["inputs"] == f"{tmp_path.name}, given with --inputs"


def test_what_the_program_says_becomes_an_error_of_this_package(
    text_bundle: Path, texts: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(text_bundle, tmp_path / "bundle"))
    (bundle / "labels.json").write_text("[]")
    with pytest.raises(IntegrityError) as caught:
        run_load_test(bundle, texts, {"schema_version": 1, "scenario": "Offline"})
    assert caught.value.hint == "copy or export the bundle again"


def test_a_report_is_shown_whole() -> None:
    from rich.console import Console

    assert histogram([1_000_000]) == "1.000 ms █"
    bars = histogram([10**6] * 190 + [3 * 10**6] * 9 + [10**9])
    assert bars.startswith("1.000 ms █ ")
    assert bars.endswith("▁ 3.000 ms (99 %)")
    report = {
        "report": "load-test",
        "scenario": "SingleStream",
        "mode": "PerformanceOnly",
        "scope": "compute",
        "scope_in_words": "prepared arrays",
        "driver": "own",
        "result_validity": "VALID",
        "result_invalid_reason": "",
        "threads": 2,
        "runtime": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "quality": None,
        "samples_per_query": 1,
        "result_query_count": 3,
        "result_sample_count": 3,
        **{f"result_{n}_percentile_latency_ns": 10**6 for n in ("50", "90", "95", "97", "99")},
        "result_99.9_percentile_latency_ns": 10**6,
        "result_mean_latency_ns": 10**6,
        "result_max_latency_ns": 10**6,
        "samples_ns": [10**6] * 3,
        "early_stopping_latency_ns": None,
        "target_latency_percentile": 90,
        "loadgen_difference": -0.002,
        "inputs": "a [list] of texts",
        "input_count": 3,
        "cold_start": None,
        "peak_rss_bytes": 123_000_000,
        "machine": {"governor": "schedutil"},
        "state": {
            "clock_mhz": {"before": 1500.0, "min": 1400.0, "after": 1500.0, "source": "cpufreq"},
            "temperatures_c": {"after": {"zone0": 61.5}},
            "energy": {
                "source": "INA3221",
                "energy_per_query_j": 0.0123,
                "mean_power_w": 4.5,
                "counted": ["VDD_IN"],
            },
        },
    }
    console = Console(width=120, file=io.StringIO())
    LoadReport(report, notes=("one note",)).render(console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "90th percentile of the samples taken here: -0.20% from LoadGen's",
        "a [list] of texts (3)",
        "peak RSS: 123 MB",
        "1500 MHz before, 1400 at least, 1500 after (cpufreq, governor schedutil)",
        "at most 62 degrees",
        "energy: 12.3 mJ a query, 4.50 W (INA3221: VDD_IN)",
        "note: one note",
    ):
        assert part in shown


def test_the_script_that_repeats_finds_the_spread(text_bundle: Path, lines: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "repeat.py"))
    asked = {"schema_version": 1, "scenario": "SingleStream", **QUICKLY, "min_query_count": 64}
    found = script["repeat"](text_bundle, load_examples(text_bundle, inputs_file=lines), asked, 2)
    medians = [run["result_50_percentile_latency_ns"] for run in found["runs"]]
    assert len(medians) == 2
    assert found["p50_spread"] == pytest.approx(abs(medians[0] - medians[1]) / (sum(medians) / 2))
    assert found["input_count"] == len(TEXTS)
    assert json.dumps(found, allow_nan=False)
