"""``rekd-edge bench BUNDLE --scenario NAME``: what its options ask of the load test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekd_edge.cli.console import require_writable
from rekd_edge.errors import UsageError

if TYPE_CHECKING:
    from rekd_edge.bench import BenchReport
    from rekd_edge.bench.load import LoadReport
    from rekd_edge.cli.place import Place
    from rekd_edge.run_folder import Run


def load_request(
    options: Mapping[str, Any], *, batch: tuple[int, ...] | None, **others: Any
) -> dict[str, Any]:
    """The request of ``rekd_bench.py`` from the options that only a load test has, by their names.
    Raises :class:`UsageError` for a name that is none; the program checks the rest."""
    from rekd_edge.bench.load import MODES, SCENARIOS

    if batch is not None and len(batch) > 1:
        raise UsageError("a load test has one number of examples in a run", hint="--batch 8")
    return {
        "schema_version": 1,
        "scenario": _chosen("--scenario", options["--scenario"], SCENARIOS),
        "mode": _chosen("--mode", options["--mode"] or "performance", MODES),
        "scope": options["--scope"] or "compute",
        "batch": batch[0] if batch else 1,
        "idle_gap_ms": options["--idle-gap-ms"] or 0.0,
        "official": bool(options["--official"]),
        "target_latency_ms": options["--target-latency-ms"],
        "loadgen": bool(options["--loadgen"]),
        **others,
    }


def _chosen(option: str, name: str, names: Mapping[str, str]) -> str:
    if name not in names:
        raise UsageError(f"{option} {name} is not known", hint=f"one of {', '.join(names)}")
    return names[name]


def measure_load(
    bundle: Path,
    request: Mapping[str, Any],
    run: Run | None,
    inputs: Path | None,
    json_path: str | None,
    progress: Callable[[str], None],
    place: Place,
) -> LoadReport:
    """LoadGen's logs go beside ``json_path``, where that is a file."""
    from rekd_edge.bench.load import LOGS_SUFFIX, require_place_for_logs
    from rekd_edge.export_pipeline import BENCH_EXAMPLES
    from rekd_edge.load_pipeline import load_examples, load_test

    logs = None
    if json_path is not None and json_path != "-":
        report = Path(json_path)
        require_writable(report)
        if request["loadgen"]:
            logs = report.with_name(f"{report.stem}{LOGS_SUFFIX}")
            require_place_for_logs(logs)
    whole = request["mode"] == "AccuracyOnly" or request["official"]
    examples = load_examples(
        bundle, run=run, inputs_file=inputs, limit=None if whole else BENCH_EXAMPLES
    )
    return load_test(
        bundle,
        request,
        examples,
        logs=logs,
        progress=progress,
        board=place.board,
        inspect=place.inspect,
    )


def missed_target(report: BenchReport | LoadReport) -> tuple[str, ...]:
    """That the latency asked for has not been reached, where one was."""
    from rekd_edge.bench.load import LoadReport

    missed = report.missed_target if isinstance(report, LoadReport) else None
    return () if missed is None else (missed,)
