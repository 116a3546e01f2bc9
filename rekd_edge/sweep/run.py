"""A sweep from its plan to its front, in one process or several.

OUTPUT/study.journal  recipe.resolved.yaml  locks/   what processes share
    teacher-HASH/seed-S   trials/HASH/{run, bundle/}   plain-HASH/   the runs
    sweep.json  sweep.md  front.svg  latency.json   the result, written once all trials are finished

A second command on the same folder joins in. An interrupted one goes on where it stopped: nothing
that was finished is trained or measured again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from rekd_edge.bench import BenchReport, BenchSettings
from rekd_edge.compare import TitledListener
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.distill.loop import DivergedError, make_accelerator
from rekd_edge.errors import BackendError, DataError, GateError, RekdEdgeError, UsageError
from rekd_edge.machine import hardware, package_versions
from rekd_edge.run_folder import open_run
from rekd_edge.runners.threads import available_cores
from rekd_edge.sweep.figure import write_front
from rekd_edge.sweep.locks import exclusive
from rekd_edge.sweep.plan import SweepPlan, open_points
from rekd_edge.sweep.report import MEASURED, add_measured, sweep_json, sweep_table, trial_rows
from rekd_edge.sweep.space import digest_of
from rekd_edge.sweep.study import JOURNAL_FILE, LOCKS_FOLDER, TRIALS_FOLDER, SweepStudy
from rekd_edge.sweep.timing import SETTINGS, Plain, Timed, time_trials, train_plain
from rekd_edge.sweep.trial import run_point

RESULT_FILE = "sweep.json"
TABLE_FILE = "sweep.md"
FRONT_FILE = "front.svg"
LATENCY_FILE = "latency.json"
POLL_S = 0.5
GRACE_S = 20.0
"""How long interrupted workers may take to end before they are killed."""

Listeners = Callable[[], AbstractContextManager[TitledListener]]


def run_sweep(
    plan: SweepPlan,
    output: Path,
    *,
    device: str = "auto",
    workers: int = 1,
    listeners: Listeners | None = None,
    settings: BenchSettings = SETTINGS,
) -> dict[str, Any]:
    """Works on all trials of ``plan`` in ``output`` and returns what `sweep.json` holds.

    A trial whose training diverges, whose recipe turns out unusable or whose file fails a gate is
    recorded as failed, with the reason. ``workers`` processes share the cores; ``listeners`` makes
    the progress listener of each, and must be picklable for several.

    Raises:
        UsageError: ``output`` holds something else; the device is not available; a point's data or
            weights cannot be opened.
        BackendError: a worker was killed.
    """
    make_accelerator(plan.base.student.train, device)
    if not (output / JOURNAL_FILE).is_file():
        for _ in open_points(plan):
            pass
    study = SweepStudy(output, plan)
    if workers > 1:
        _work_in_processes(study, device, workers, listeners)
    else:
        with _listening(listeners) as listener:
            work(study, device=device, threads=None, listener=listener)
    with exclusive(output / LOCKS_FOLDER / "result.lock"), _listening(listeners) as listener:
        return _result(study, device, listener, settings)


def _listening(listeners: Listeners | None) -> AbstractContextManager[TitledListener | None]:
    return nullcontext() if listeners is None else listeners()


def work(
    study: SweepStudy, *, device: str, threads: int | None, listener: TitledListener | None
) -> None:
    """Works on one trial after the other until all are finished, by this process or another."""
    while True:
        claim = study.claim()
        if claim is None:
            if not study.busy:
                return
            time.sleep(POLL_S)
            continue
        plan = study.plan
        with claim:
            if listener is not None:
                words = " ".join(claim.overrides)
                listener.retitle(f"trial {claim.number} of {plan.trials}, {words}")
            try:
                figures = run_point(
                    plan.recipe_of(claim.overrides),
                    study.folder / TRIALS_FOLDER / digest_of(claim.overrides),
                    teachers=study.folder,
                    target=plan.target,
                    gates=plan.gates,
                    device=device,
                    threads=threads,
                    listener=listener,
                    alone=lambda folder: exclusive(
                        study.folder / LOCKS_FOLDER / f"{folder.parent.name}-{folder.name}.lock"
                    ),
                )
            except DataError:
                raise
            except (DivergedError, GateError, UsageError) as error:
                study.fail(claim, error.message)
            else:
                study.finish(claim, figures)


def _work_in_processes(
    study: SweepStudy, device: str, workers: int, listeners: Listeners | None
) -> None:
    """Runs ``workers`` processes; the first error of one stops them all."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, available_cores() // workers)
    pairs = [context.Pipe(duplex=False) for _ in range(workers)]
    processes = [
        context.Process(
            target=_serve, args=(study.plan, study.folder, device, threads, listeners, sender)
        )
        for _, sender in pairs
    ]
    try:
        # Ctrl-C reaches the whole group: until a worker can handle it, this process passes it on.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for process in processes:
                process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        while any(process.is_alive() for process in processes):
            for process, (receiver, _) in zip(processes, pairs, strict=True):
                process.join(POLL_S / workers)
                if receiver.poll():
                    raise receiver.recv()
        for receiver, _ in pairs:
            if receiver.poll():
                raise receiver.recv()
    finally:
        _stop(processes)
    if study.busy:
        codes = ", ".join(str(process.exitcode) for process in processes)
        raise BackendError(
            f"the workers ended before the sweep did (exit codes {codes})",
            hint="perhaps memory ran out: run the same command with fewer --workers; finished "
            "trials are kept",
        )


def _stop(processes: list[Any]) -> None:
    until = time.monotonic() + GRACE_S
    while any(process.is_alive() for process in processes):
        for process in processes:
            if process.is_alive() and process.pid is not None:
                if time.monotonic() > until:
                    process.kill()
                else:
                    os.kill(process.pid, signal.SIGINT)
        for process in processes:
            process.join(GRACE_S / 10)


def _serve(
    plan: SweepPlan,
    folder: Path,
    device: str,
    threads: int,
    listeners: Listeners | None,
    answer: Connection,
) -> None:
    """A worker process."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(threads)
        with _listening(listeners) as listener:
            work(SweepStudy(folder, plan), device=device, threads=threads, listener=listener)
    except KeyboardInterrupt:
        os._exit(130)  # a second interrupt must not find this one half-handled
    except RekdEdgeError as error:
        answer.send(error)
    except Exception:
        answer.send(RuntimeError(f"a worker failed:\n{traceback.format_exc()}"))


def _result(
    study: SweepStudy, device: str, listener: TitledListener | None, settings: BenchSettings
) -> dict[str, Any]:
    """The result as it stands in the folder if it is of these trials, else measured now."""
    folder, plan = study.folder, study.plan
    rows = trial_rows(study.finished())
    stored = folder / RESULT_FILE
    if stored.is_file():
        content = json.loads(stored.read_text(encoding="utf-8"))
        if [_without_measured(row) for row in content["rows"]] == rows:
            return content
    passed = {row["trial"]: folder / row["folder"] for row in rows if not row["failed"]}
    plains: dict[str, Plain] = {}
    timed: dict[int, Timed] = {}
    plain_ms: dict[str, float] = {}
    latency: BenchReport | None = None
    facts: dict[str, Any] = {}
    if passed:
        recipes = {row["trial"]: plan.recipe_of(tuple(row["overrides"])) for row in rows}
        plain_of, plains = train_plain(
            {number: recipes[number] for number in passed},
            plan.base,
            folder,
            target=plan.target,
            device=device,
            listener=listener,
        )
        timed, plain_ms, latency = time_trials(
            passed, plain_of, plains, target=plan.target, settings=settings
        )
        add_measured(rows, timed)
        write_json(folder / LATENCY_FILE, latency.to_json())
        facts["data"] = open_run(next(iter(passed.values()))).info.get("data", {})
    facts |= {"versions": package_versions(), "hardware": hardware()}
    content = sweep_json(plan, rows, plains, plain_ms, latency, facts)
    table = folder / f".{TABLE_FILE}.tmp"
    table.write_text(sweep_table(content), encoding="utf-8")
    table.replace(folder / TABLE_FILE)
    write_front(content, folder / FRONT_FILE)
    write_json(stored, content)
    return content


def _without_measured(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in MEASURED}
