"""Measures several ONNX files in one run, a few queries at a time in turn.

One round gives every file the same examples, in an order that rotates from round to round, so
that drift of the clock, other load and the length of the examples hit all alike.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rekd_edge.bench.report import BenchReport, BenchSettings, CandidateReport, ColdStart
from rekd_edge.bench.timing import (
    describe_machine,
    latency_percentiles,
    ratio_of_medians,
)
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.runners import file_runner, resolve_threads
from rekd_edge.types import PackageBackend, RuntimeName

if TYPE_CHECKING:
    from rekd_edge.runners.settings import RuntimeSettings

Inputs = Mapping[str, np.ndarray]
COLD_START_TIMEOUT_S = 120
FEWEST = 20
"""Queries that each candidate answers, however long they take."""


def bench_files(
    files: Mapping[str, Path],
    inputs: Sequence[Inputs] | Mapping[str, Sequence[Inputs]],
    *,
    settings: BenchSettings | None = None,
    threads: int | None = 1,
    provider: str = "CPUExecutionProvider",
    runtime: RuntimeName = "onnxruntime",
    runtime_settings: RuntimeSettings | None = None,
    elsewhere: Mapping[str, tuple[RuntimeName | PackageBackend, str]] | None = None,
    reference: str | None = None,
    inputs_source: str = "given by the caller",
    notes: Sequence[str] = (),
) -> BenchReport:
    """Latency, cold start, memory and size of each file.

    ``inputs`` are queries of one and the same number of examples, ``[batch, ...]`` each, used in
    turn; a mapping holds those of each file, the same examples prepared in different ways.
    ``reference`` names the file that ratios are to; by default there are none. A file may take
    fewer inputs than given. ``threads`` None takes those of ``runtime_settings``, which hold for
    every file. ``elsewhere`` names files that another runtime and provider run.

    Raises :class:`UsageError` for no files, no inputs, unequal ones or an unknown reference, and
    :class:`BackendError` where a file does not load or run.
    """
    settings = settings or BenchSettings()
    examples = inputs if isinstance(inputs, Mapping) else dict.fromkeys(files, inputs)
    counts = {len(examples.get(name, ())) for name in files}
    if not files or 0 in counts:
        raise UsageError("a benchmark needs at least one file and one input")
    if len(counts) > 1:
        raise UsageError("every file of a benchmark needs the same number of inputs")
    if reference is not None and reference not in files:
        raise UsageError(f"the reference {reference!r} is none of {', '.join(files)}")
    sizes = {len(v) for queries in examples.values() for query in queries for v in query.values()}
    if len(sizes) != 1:
        raise UsageError(f"queries of one size are needed, not of {sorted(sizes)} examples")
    stored = None if runtime_settings is None else runtime_settings.threads
    threads = resolve_threads(threads, stored)
    names = list(files)
    engines: dict[str, tuple[RuntimeName | PackageBackend, str]] = dict.fromkeys(
        names, (runtime, provider)
    )
    engines |= elsewhere or {}
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(counts.pop())
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(
                file_runner(
                    path,
                    runtime=engines[name][0],
                    threads=threads,
                    provider=engines[name][1],
                    settings=runtime_settings,
                )
            )
            for name, path in files.items()
        }
        outputs = {name: tuple(runner.output_names) for name, runner in runners.items()}
        providers = {name: tuple(runner.providers) for name, runner in runners.items()}
        placed = {name: runner.placement for name, runner in runners.items()}
        starts = {name: runner.start_options for name, runner in runners.items()}
        for i in range(settings.warmup_count):
            for name in names:
                runners[name].run_named(examples[name][order[i % len(order)]], outputs[name])
        shuffled = {name: [examples[name][i] for i in order] for name in names}
        samples = measure_in_turn(runners, outputs, shuffled, settings)
    requests = {
        name: {
            "runtime": engines[name][0],
            "threads": threads,
            "provider": engines[name][1],
            "settings": None if runtime_settings is None else runtime_settings.model_dump(),
            "queries": max(1, settings.rss_queries),
            **starts[name],
        }
        for name in names
    }
    first = {name: shuffled[name][0] for name in names}
    cold = cold_starts(files, first, settings.cold_starts, requests)
    reports: dict[str, CandidateReport] = {}
    for name in names:
        mine = samples[name]
        ratio = None
        if reference is not None:
            ratio = ratio_of_medians(mine, samples[reference], seed=settings.seed)
        reports[name] = CandidateReport(
            size_bytes=files[name].stat().st_size,
            sha256=_sha256(files[name]),
            providers=providers[name],
            placement=placed[name],
            query_count=int(mine.size),
            duration_ns=int(mine.sum()),
            mean_latency_ns=int(mine.mean()),
            min_latency_ns=int(mine.min()),
            max_latency_ns=int(mine.max()),
            latency_ns=latency_percentiles(mine),
            ratio=ratio,
            cold_start=cold.get(name),
            samples_ns=tuple(int(value) for value in mine),
        )
    return BenchReport(
        candidates=reports,
        reference=reference,
        threads=threads,
        batch=sizes.pop(),
        provider=provider,
        runtime=runtime,
        runtime_settings={} if runtime_settings is None else runtime_settings.differences(),
        settings=settings,
        inputs=inputs_source,
        input_count=len(order),
        invalid_reasons=_invalid_reasons(reports, settings),
        machine=describe_machine(),
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        notes=tuple(notes),
    )


class Measured(Protocol):
    """A runner, or anything else whose calls can be timed like one's."""

    def run_named(self, inputs: Inputs, outputs: Sequence[str]) -> dict[str, np.ndarray]: ...


def measure_in_turn(
    runners: Mapping[str, Measured],
    outputs: Mapping[str, Sequence[str]],
    inputs: Mapping[str, Sequence[Inputs]],
    settings: BenchSettings,
) -> dict[str, np.ndarray]:
    """Nanoseconds of each counted query by name; sample i of all is the same input."""

    def answer(name: str, query: int, counted: bool) -> int:
        given = inputs[name][query % len(inputs[name])]
        start = time.perf_counter_ns()
        runners[name].run_named(given, outputs[name])
        return time.perf_counter_ns() - start

    return in_turn(list(runners), settings, answer)


def in_turn(
    names: Sequence[str],
    settings: BenchSettings,
    answer: Callable[[str, int, bool], int],
    *,
    on_failure: Callable[[str, Exception], None] | None = None,
) -> dict[str, np.ndarray]:
    """Calls ``answer(name, query, counted)``, which answers nanoseconds, for all ``names`` in turns
    that rotate from round to round; those of the counted queries.

    With ``on_failure`` one that raises costs itself alone: that is told, and the others go on."""
    samples: dict[str, list[int]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0)
    need_ns = settings.min_duration_s * 1e9
    turn = settings.turn_count
    round_number = 0
    began = time.monotonic()

    def wanted() -> bool:
        answered = round_number * turn
        met = answered >= settings.min_count and min(spent[name] for name in samples) >= need_ns
        if met or settings.max_duration_s is None or answered < min(FEWEST, settings.min_count):
            return not met
        return time.monotonic() - began < settings.max_duration_s * len(samples)

    while samples and wanted():
        shift = round_number % len(names)
        queries = range(round_number * turn, (round_number + 1) * turn)
        for name in (*names[shift:], *names[:shift]):
            if name not in samples:
                continue
            try:
                if turn > 1:
                    answer(name, queries[-1], False)
                found = [answer(name, query, True) for query in queries]
            except Exception as error:
                if on_failure is None:
                    raise
                del samples[name]
                on_failure(name, error)
            else:
                samples[name] += found
                spent[name] += sum(found)
        round_number += 1
    return {name: np.asarray(values, dtype=np.int64) for name, values in samples.items()}


def _invalid_reasons(
    reports: Mapping[str, CandidateReport], settings: BenchSettings
) -> tuple[str, ...]:
    reasons = ["quick"] if settings.quick else []
    for name, report in reports.items():
        if report.query_count < settings.min_count:
            reasons.append(f"{name}: fewer than {settings.min_count} queries")
        if report.duration_ns < settings.min_duration_s * 1e9:
            reasons.append(f"{name}: less than {settings.min_duration_s:g} s")
    return tuple(reasons)


def cold_starts(
    files: Mapping[str, Path],
    inputs: Mapping[str, Inputs],
    repetitions: int,
    requests: Mapping[str, Mapping[str, Any]],
) -> dict[str, ColdStart]:
    """Each file in fresh processes, in turn. ``requests`` by name are those of
    :mod:`rekd_edge.bench.first_answer`."""
    if repetitions < 1:
        return {}
    runs: dict[str, list[dict[str, int]]] = {name: [] for name in files}
    with tempfile.TemporaryDirectory(prefix="rekd-edge-bench-") as folder:
        stored = {name: Path(folder) / f"{i}.npz" for i, name in enumerate(files)}
        for name, place in stored.items():
            np.savez(place, allow_pickle=False, **inputs[name])
        for _ in range(repetitions):
            for name, path in files.items():
                runs[name].append(_first_answer(path, stored[name], requests[name]))

    def column(name: str, key: str) -> tuple[int, ...]:
        return tuple(run[key] for run in runs[name])

    return {
        name: ColdStart(
            time_to_first_answer_ns=column(name, "total_ns"),
            import_ns=column(name, "import_ns"),
            load_ns=column(name, "load_ns"),
            first_query_ns=column(name, "first_query_ns"),
            peak_rss_bytes=column(name, "peak_rss_bytes"),
            rss_before_model_bytes=column(name, "rss_before_model_bytes"),
        )
        for name in files
    }


def _first_answer(model: Path, stored: Path, request: Mapping[str, Any]) -> dict[str, int]:
    command = [
        sys.executable,
        "-m",
        "rekd_edge.bench.first_answer",
        str(model.resolve()),
        str(stored),
        json.dumps(request),
    ]
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    launched = time.monotonic_ns()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COLD_START_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": search},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"{model.name}: no first answer within {COLD_START_TIMEOUT_S} s"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"{model.name}: a fresh process could not answer: {last}")
    answer = json.loads(done.stdout)
    answer["total_ns"] = answer["answered_at_ns"] - launched
    return answer


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
