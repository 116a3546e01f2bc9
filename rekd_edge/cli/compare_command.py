"""`rekd-edge compare`: the main job from recipe to bundle, beside the models it must beat."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rekd_edge.cli.console import JsonOption, emit, status_console
from rekd_edge.errors import GateError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rekd_edge.compare import Comparison

BENCH_SECONDS = 5.0
"""Least time that each file is measured; `rekd-edge bench` takes longer."""


def register(app: typer.Typer) -> None:
    app.command("compare")(compare)


def compare(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all runs.")],
    seeds: Annotated[str, typer.Option(help="Training seeds, separated by commas.")] = "0",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key.")
    ] = None,
    export: Annotated[
        bool,
        typer.Option(
            "--export", help="Also export, check and time the first seed's student as a bundle."
        ),
    ] = False,
    simulability: Annotated[
        bool,
        typer.Option(
            "--simulability",
            help="Also train a student of the teacher's answers alone, without its rationales.",
        ),
    ] = False,
    target: Annotated[str, typer.Option(help="Export target.")] = "onnx",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_path: JsonOption = None,
) -> None:
    """Train teacher, plain student, student without teacher and REKD student; compare them.

    Interrupted, it goes on where it stopped; finished parts are not trained again.
    """
    started = time.monotonic()
    wanted = parse_seeds(seeds)
    from rekd_edge.recipe import find_recipe, load_recipe

    loaded = load_recipe(find_recipe(recipe), list(overrides or []))
    from rekd_edge.cli.progress import TrainingProgress
    from rekd_edge.compare import SUMMARY_FILE
    from rekd_edge.compare import compare as run_comparison
    from rekd_edge.distill.checkpoint import write_json

    if export:
        from rekd_edge.convert import load_target
        from rekd_edge.export_pipeline import require_target

        require_target(loaded, load_target(target))
    with TrainingProgress() as progress:
        comparison = run_comparison(
            loaded,
            output,
            seeds=wanted,
            device=device,
            listener=progress,
            simulability=simulability,
        )
    summary = comparison.to_json()
    if export:
        summary |= _export(comparison, output, target)
    summary["wall_s"] = round(time.monotonic() - started, 1)
    write_json(output / SUMMARY_FILE, summary)
    emit(summary, json_path=json_path, render=lambda out: show(out, comparison, summary))


def parse_seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--seeds {text!r} is no list of numbers", hint="for instance --seeds 0,1,2"
        ) from error
    if any(seed < 0 for seed in seeds) or len(set(seeds)) != len(seeds):
        raise UsageError("--seeds must be distinct and not negative")
    return seeds


def _export(comparison: Comparison, output: Path, target: str) -> dict[str, Any]:
    from rekd_edge.bench import BenchSettings
    from rekd_edge.class_wise_files import why_target_cannot
    from rekd_edge.convert import load_target
    from rekd_edge.export_pipeline import bench_bundle, export_bundle

    status = status_console()
    status.print("export and check ...")
    run = comparison.runs[0]
    carries = why_target_cannot(load_target(target)) is None
    result = export_bundle(
        run,
        target=target,
        output=output / "bundle",
        force=True,
        class_wise=None if carries else False,
    )
    if not result.passed:
        raise GateError(
            f"the exported file failed its check: {'; '.join(result.reasons)}",
            hint=f"see {result.path / 'reason.json'}",
        )
    status.print("bench ...")
    bench = bench_bundle(
        output / "bundle", run=run, settings=BenchSettings(min_duration_s=BENCH_SECONDS)
    )
    candidates = bench.to_json()["candidates"]
    ratios = {
        name: 1.0 if name == bench.reference else candidate["ratio"]["value"]
        for name, candidate in candidates.items()
    }
    check = result.to_json()["check"]
    return {
        "latency_ratio": ratios,
        "bench": bench.to_json() | {"candidates": _without_samples(candidates)},
        "check": {"passed": check["passed"], "metrics": check["metrics"], "gates": check["gates"]},
        "bundle": "bundle",
    }


def _without_samples(candidates: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in candidate.items() if key != "samples_ns"}
        for name, candidate in candidates.items()
    }


def show(out: Console, comparison: Comparison, summary: dict[str, Any]) -> None:
    """The table of a comparison."""
    from rich.table import Table

    from rekd_edge.cli.distill_command import said_of_simulability
    from rekd_edge.compare import ANSWERS_TITLE, ROWS

    latency = summary.get("latency_ratio", {})
    shown = {"plain_student": "plain", "rekd_student": "gathered"}
    ratio = summary["rationale_ratio"]
    table = Table(
        "model",
        f"test {comparison.score}",
        "latency",
        title=f"{summary['recipe']}: {summary['examples']['test']} test examples, "
        f"{len(comparison.seeds)} seed(s), rationales of {ratio:.0%}",
        title_justify="left",
    )
    for row in ROWS:
        spread = comparison.spread(row)
        accuracy = f"{comparison.mean(row):.3f}" + (
            f" ± {spread:.3f}" if spread is not None else ""
        )
        timed = latency.get(shown.get(row, ""))
        table.add_row(
            comparison.titles[row], accuracy, f"{timed:.2f}x" if timed is not None else ""
        )
    if comparison.answers_alone:
        alone = comparison.answers_alone
        spread = f" ± {statistics.stdev(alone):.3f}" if len(alone) > 1 else ""
        table.add_row(ANSWERS_TITLE, f"{statistics.fmean(alone):.3f}{spread}", "")
    if "masked" in latency:
        table.add_row("published masking, same selector", "", f"{latency['masked']:.2f}x")
    out.print(table)
    for share, learned in comparison.simulability_means():
        what = said_of_simulability(share, comparison.runs[0].recipe.problem_type)
        out.print(f"simulability, {learned}: {what}")
    gain = comparison.gain()
    points = "points" if comparison.score == "accuracy" else f"hundredths of {comparison.score}"
    out.print(
        f"REKD minus no teacher: {sum(gain) / len(gain) * 100:+.1f} {points}"
        + (f" (per seed: {', '.join(f'{g * 100:+.1f}' for g in gain)})" if len(gain) > 1 else "")
    )
    if latency:
        bench = summary["bench"]
        out.print(
            f"latency: ONNX Runtime, {bench['threads']} thread(s), batch 1, median relative to "
            f"the plain classifier in one interleaved run; {bench['result_validity']}"
            + (f": {bench['result_invalid_reason']}" if bench["result_invalid_reason"] else "")
        )
