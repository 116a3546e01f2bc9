"""``rekd-edge bench BUNDLE --threads 1 --json OUT``, with ``--scenario NAME`` a load test, and
``rekd-edge bench --suite NAME``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rekd_edge.cli.console import JsonOption, emit, require_writable, write_text
from rekd_edge.errors import GateError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rekd_edge.bench.baseline import Baseline, BundleRecord, Rule, Verdict

Number = TypeVar("Number", int, float)


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="A bundle folder.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            metavar="FILE|NAME",
            help="A latency suite instead of a bundle: a file, or a name in benchmarks/suites.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Suite: folder for runs and results.")
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads",
            help="Threads; suite: several, as 1,2. [those of the bundle's settings, or 1]",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            help="Suite: examples in a query, as 1,8. Multi-stream and offline: in one run. [1]",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The run it was made from. [looked for in the folders above]"),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs",
            metavar="FILE",
            help="Texts (one a line), images or an .npz of model inputs. [the run's test split]",
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario",
            help="A load test of the bundle alone, in MLPerf LoadGen's terms: single-stream, "
            "multi-stream or offline.",
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            "--scope", help="Scenario: compute, or end_to_end with preprocessing. [compute]"
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="Scenario: performance or accuracy. [performance]"),
    ] = None,
    official: Annotated[
        bool,
        typer.Option("--official", help="Scenario: 600 s and LoadGen's number of queries."),
    ] = False,
    idle_gap_ms: Annotated[
        float | None,
        typer.Option("--idle-gap-ms", min=0.0, help="Scenario: pause between two queries. [0]"),
    ] = None,
    target_latency_ms: Annotated[
        float | None,
        typer.Option(
            "--target-latency-ms",
            help="Scenario: exit 3 where the target percentile is above this.",
        ),
    ] = None,
    loadgen: Annotated[
        bool,
        typer.Option("--loadgen", help="Scenario: driven by MLCommons' LoadGen, if installed."),
    ] = False,
    min_duration_s: Annotated[
        float | None,
        typer.Option("--min-duration-s", min=0.0, help="Seconds measured of each file. [10]"),
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option("--min-count", min=1, help="Queries measured of each file. [200]"),
    ] = None,
    max_duration_s: Annotated[
        float | None,
        typer.Option(
            "--max-duration-s",
            min=0.0,
            help="Suite: seconds by the clock for each file, after which a timing ends at 20 "
            "queries; what is then missing makes it INVALID.",
        ),
    ] = None,
    limit_s: Annotated[
        float | None,
        typer.Option(
            "--limit-s",
            min=0.0,
            help="Suite with on_device: seconds from the start of this process after which nothing "
            "more is begun; another call goes on.",
        ),
    ] = None,
    cold_starts: Annotated[
        int | None,
        typer.Option("--cold-starts", min=0, help="Fresh processes started of each file. [3]"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in seconds; the result is marked INVALID.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="A board to measure on, ssh://user@board (docs/boards.md). "
            "Suite: what trains, and where a suite with on_device is timed: auto, cpu, cuda. "
            "[auto]",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME|FILE",
            help="Measure as a device profile says and exit 3 above its budgets "
            "(rekd-edge devices).",
        ),
    ] = None,
    known_hosts: Annotated[
        Path | None,
        typer.Option("--known-hosts", metavar="FILE", help="Board: host keys that are accepted."),
    ] = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", metavar="FILE", help="Board: a key to log in.")
    ] = None,
    remote_python: Annotated[
        str | None,
        typer.Option("--remote-python", help="Board: Python there, by name or path. [python3]"),
    ] = None,
    remote_folder: Annotated[
        str | None,
        typer.Option("--remote-folder", help="Board: where the work folder is made. [/tmp]"),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", metavar="FILE", help="An earlier --json FILE of bench, for --fail-on."
        ),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="RULE",
            help='Exit 3 if it is so, e.g. "p90_latency_ms>+5%", "accuracy<-0.5" (against the '
            'baseline) or "size_mb>30". May be given repeatedly.',
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="The rules as JUnit XML.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="The rules as Markdown.")
    ] = None,
    json_path: JsonOption = None,
) -> None:
    """Measure latency, cold start, memory and size, query by query in turn with the plain
    classifier of the same backbone and the masked select-predict form.

    With --scenario: the bundle alone, without torch, query after query as MLPerf LoadGen asks them.
    With --device or --profile too; the scenario is then single-stream, or the profile's.
    With --suite: train what the suite names, and time every alternative beside the plain
    classifier, with the accuracy of each file.
    """
    if (bundle is None) == (suite is None):
        raise UsageError("bench takes either a bundle or --suite", hint="rekd-edge bench --help")
    from rekd_edge.cli.place import is_address, open_place

    place = open_place(
        device if is_address(device) else None,
        profile,
        known_hosts=known_hosts,
        identity=identity,
        remote_python=remote_python,
        remote_folder=remote_folder,
    )
    counts = _counts("--threads", threads)
    gating = {"--baseline": baseline, "--junit": junit, "--markdown": markdown}
    load_options = {
        "--scenario": scenario,
        "--scope": scope,
        "--mode": mode,
        "--official": official or None,
        "--idle-gap-ms": idle_gap_ms,
        "--target-latency-ms": target_latency_ms,
        "--loadgen": loadgen or None,
    }
    if suite is not None:
        foreign = {"--run": run, "--inputs": inputs, "--cold-starts": cold_starts}
        foreign |= gating | {"--fail-on": fail_on or None, "--profile": profile}
        foreign |= {"--device ssh://...": place.board}
        _refuse(foreign, "a bundle, not for --suite")
        if output is None:
            raise UsageError("--suite needs --output, the folder for its runs and results")
        _refuse(load_options, "--scenario")
        sizes = _counts("--batch", batch)
        _bench_suite(
            suite,
            output,
            {"threads": counts, "batch": sizes, "device": device or "auto", "limit_s": limit_s},
            (_or(min_duration_s, 10.0), _or(min_count, 200), max_duration_s, quick),
            json_path,
        )
        return
    assert bundle is not None
    limits = {"--max-duration-s": max_duration_s, "--limit-s": limit_s}
    _refuse({"--output": output, "--device": None if place.board else device} | limits, "--suite")
    if counts is not None and len(counts) > 1:
        raise UsageError("a bundle is measured at one number of threads", hint="--threads 1")
    if not fail_on:
        _refuse(gating, "use with --fail-on")
    from rekd_edge.cli.load_test import load_request, measure_load, missed_target

    request = None
    if scenario is None and not place:
        _refuse({"--batch": batch}, "--suite and --scenario")
        _refuse(load_options, "--scenario")
    else:
        asked = place.load_options(load_options, counts[0] if counts else None)
        request = load_request(
            asked,
            threads=asked["--threads"],
            batch=_counts("--batch", batch),
            min_duration_s=min_duration_s,
            min_query_count=min_count,
            cold_starts=cold_starts,
            quick=quick,
        )
    record, rules, before = _opened_gates(
        bundle, fail_on or [], baseline, (junit, markdown), elsewhere=place.board is not None
    )
    from rich.markup import escape

    from rekd_edge.bench import BenchSettings
    from rekd_edge.cli.console import status_console
    from rekd_edge.export_pipeline import bench_bundle
    from rekd_edge.run_folder import open_run

    settings = BenchSettings(
        min_duration_s=_or(min_duration_s, 10.0),
        min_count=_or(min_count, 200),
        cold_starts=_or(cold_starts, 3),
    )
    if quick:
        settings = BenchSettings.quick_look()
    opened = None if run is None else open_run(run)
    with status_console().status("measuring") as status:
        if request is not None:
            report = measure_load(
                *(bundle, request, opened, inputs, json_path),
                progress=lambda line: status.update(escape(line)),
                place=place,
            )
        else:
            report = bench_bundle(
                bundle,
                run=opened,
                inputs_file=inputs,
                settings=settings,
                threads=counts[0] if counts else None,
            )
    document = report.to_json() | {"bundle": record.model_dump()}
    try:
        budgets = place.judge(bundle, report)
    except UsageError:
        emit(document, json_path=json_path, render=report.render)
        raise
    failures = (*missed_target(report), *(item.broken_by for item in budgets if item.broken_by))
    document |= place.to_json(budgets)

    def show(out: Console) -> None:
        report.render(out)
        place.render(budgets, out)

    if not rules:
        emit(document, json_path=json_path, render=show)
        _require_none(failures)
        return
    from rekd_edge.bench.baseline import judge
    from rekd_edge.bench.verdict_output import render

    try:
        if before is not None and place.board is not None:
            before.require_comparable(rules, machine=document["machine"], data=record.data)
        verdict = judge(rules, document, before)
    except UsageError:
        emit(document, json_path=json_path, render=show)
        raise

    def show_all(out: Console) -> None:
        show(out)
        render(verdict, out)

    emit(document | {"rules": verdict.to_json()}, json_path=json_path, render=show_all)
    _write_verdict(verdict, junit, markdown)
    _require_none((*verdict.failures, *failures))


def _require_none(failures: Sequence[str]) -> None:
    if failures:
        raise GateError("the benchmark broke its rules:\n  " + "\n  ".join(failures))


def _or(value: Number | None, otherwise: Number) -> Number:
    return otherwise if value is None else value


def _opened_gates(
    bundle: Path,
    fail_on: list[str],
    baseline: Path | None,
    outputs: tuple[Path | None, ...],
    *,
    elsewhere: bool,
) -> tuple[BundleRecord, tuple[Rule, ...], Baseline | None]:
    """Everything about the rules that can be wrong before anything is measured. ``elsewhere``: the
    machine is not known yet."""
    from rekd_edge.bench.baseline import BundleRecord, parse_rules, read_baseline
    from rekd_edge.bench.timing import describe_machine
    from rekd_edge.bundle import open_bundle

    rules = parse_rules(fail_on)
    before = None if baseline is None else read_baseline(baseline)
    for path in outputs:
        if path is not None:
            require_writable(path)
    opened = open_bundle(bundle)
    record = BundleRecord.of(
        name=opened.manifest.name,
        target=opened.manifest.target,
        precision=opened.config.precision,
        data=opened.manifest.lineage.data,
        check=opened.reports().get("check"),
    )
    relative = [rule.text for rule in rules if rule.change is not None]
    if before is not None:
        machine = before.document["machine"] if elsewhere else describe_machine()
        before.require_comparable(rules, machine=machine, data=record.data)
    elif relative:
        raise UsageError(
            f"--fail-on {relative[0]!r} is a difference, and there is no --baseline",
            hint="add --baseline FILE, or write a limit without a sign, as size_mb>30",
        )
    return record, rules, before


def _write_verdict(verdict: Verdict, junit: Path | None, markdown: Path | None) -> None:
    from rekd_edge.bench import verdict_output

    for path, form in ((junit, verdict_output.junit_xml), (markdown, verdict_output.markdown)):
        if path is not None:
            write_text(path, form(verdict))


def _bench_suite(
    name: str,
    output: Path,
    options: dict[str, Any],
    length: tuple[float, int, float | None, bool],
    json_path: str | None,
) -> None:
    from dataclasses import replace

    from rekd_edge.machine import running_s
    from rekd_edge.recipe.latency_file import load_latency
    from rekd_edge.recipe.suite_file import row_recipes

    parts = load_latency(_suite_file(name))
    recipes = {folder: row_recipes(spec, file.parent) for folder, (spec, file) in parts.items()}
    from rekd_edge.bench import BenchSettings
    from rekd_edge.cli.progress import TrainingProgress
    from rekd_edge.latency_suite import run_latency, table_of

    min_duration_s, min_count, max_duration_s, quick = length
    settings = BenchSettings(
        min_duration_s=min_duration_s,
        min_count=min_count,
        max_duration_s=max_duration_s,
        cold_starts=0,
    )
    if quick:
        settings = replace(BenchSettings.quick_look(), cold_starts=0)
    results, tables = [], []
    limit_s = options.pop("limit_s")
    with TrainingProgress() as progress:
        for number, (folder, (spec, _)) in enumerate(parts.items()):
            if limit_s is not None:  # what a part leaves goes to those after it
                options["limit_s"] = (limit_s - running_s()) / (len(parts) - number)
            results.append(
                run_latency(
                    spec,
                    recipes[folder],
                    output / folder,
                    settings=settings,
                    listener=progress,
                    **options,
                )
            )
            tables.append(table_of(results[-1]))
    if any(result.get("unfinished") for result in results):
        tables.append(f"stopped after {limit_s:g} s; run it again to go on")
    found = results[0] if len(results) == 1 else {"name": name, "tables": results}
    text = "\n".join(tables)
    emit(found, json_path=json_path, render=lambda out: out.print(text, markup=False))


def _suite_file(name: str) -> Path:
    """A path to a file, or NAME of the checkout's `benchmarks/suites`."""
    from rekd_edge.resources import benchmarks_dir

    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = benchmarks_dir()
    if folder is None:
        raise UsageError(
            f"suites are not part of the installed package, so {name!r} is not known",
            hint="give the path of a suite file, or run from a checkout of the repository",
        )
    known = sorted(path.stem for path in (folder / "suites").glob("latency*.yaml"))
    if name not in known:
        raise UsageError(f"there is no latency suite {name!r}", hint=f"one of {', '.join(known)}")
    return folder / "suites" / f"{name}.yaml"


def _counts(option: str, text: str | None) -> tuple[int, ...] | None:
    """Positive whole numbers, separated by commas."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words) or len(set(words)) < len(
        words
    ):
        raise UsageError(f"{option} {text}: distinct whole numbers from 1 are needed, as 1,2")
    return tuple(int(word) for word in words)


def _refuse(options: Mapping[str, object], belongs_to: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: only for {belongs_to}")
