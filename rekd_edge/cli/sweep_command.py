"""`rekd-edge sweep`: many students of one recipe, and which are worth having."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rekd_edge.cli.console import JsonOption, emit
from rekd_edge.errors import GateError

if TYPE_CHECKING:
    from rich.console import Console

    from rekd_edge.cli.progress import TrainingProgress
    from rekd_edge.sweep.plan import SweepPlan


def register(app: typer.Typer) -> None:
    app.command("sweep")(sweep)


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the sweep.")],
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V1,V2", help="A recipe key and its values."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search", metavar="KEY=LOW..HIGH[:log]", help="A recipe key and its range of numbers."
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="grid (every combination), tpe or random. [grid; tpe with --search]"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all, for --sampler tpe and random.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key in every trial."),
    ] = None,
    target: Annotated[str, typer.Option(help="Export target.")] = "onnx",
    gates: Annotated[
        str | None,
        typer.Option("--gates", help="Gates of export/gates by name, or a file. [the target's]"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every point, open its data and weights, stop.")
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Train a student for every point, export and time them, and draw the Pareto front.

    Interrupted, it goes on where it stopped; the same command in a second terminal joins in. A
    trial that diverges or whose file fails a gate is reported and is not on the front; the exit
    code is 3 where no trial passes.
    """
    from rekd_edge.sweep.plan import make_plan, open_points
    from rekd_edge.sweep.space import parse_space

    space = parse_space(grid or [], search or [])
    plan = make_plan(
        recipe,
        space,
        overrides=overrides or [],
        sampler=sampler,
        trials=trials,
        target=target,
        gates=gates,
    )
    if dry_run:
        for _ in open_points(plan):
            pass
        points = {"points": [list(point) for point in space.points()], "trials": plan.trials}
        emit(points, json_path=json_path, render=lambda out: _show_plan(out, plan))
        return
    import functools

    from rekd_edge.cli.progress import TrainingProgress
    from rekd_edge.convert import load_target
    from rekd_edge.export_pipeline import require_target
    from rekd_edge.sweep.run import run_sweep

    require_target(plan.base, load_target(target))

    listeners: functools.partial[TrainingProgress] = functools.partial(
        TrainingProgress, bars=workers == 1
    )
    content = run_sweep(plan, output, device=device, workers=workers, listeners=listeners)
    emit(content, json_path=json_path, render=lambda out: show(out, content, output))
    if all(row["failed"] for row in content["rows"]):
        raise GateError("no trial passed", hint=f"the reasons are in {output / 'sweep.md'}")


def _show_plan(out: Console, plan: SweepPlan) -> None:
    for point in plan.space.points():
        out.print(" ".join(point), markup=False, soft_wrap=True)
    kind = "corners of the ranges" if plan.space.has_ranges else "points"
    out.print(
        f"{len(plan.space)} {kind}, {plan.trials} trials ({plan.sampler}). "
        "Nothing was trained (--dry-run)."
    )


def show(out: Console, content: dict[str, Any], output: Path) -> None:
    """The trials as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from rekd_edge.sweep.report import COLUMNS, failures, setting, table_rows

    hidden = ("operations", "MB")  # they stand in sweep.md
    table = Table(title=f"sweep of {content['recipe']}", title_justify="left", box=SIMPLE_HEAD)
    for name in COLUMNS:
        if name not in hidden:
            table.add_column(name, justify="left" if name == "point" else "right", overflow="fold")
    for cells in table_rows(content, short=True):
        shown = [cell for name, cell in zip(COLUMNS, cells, strict=True) if name not in hidden]
        table.add_row(*map(escape, shown), style="bold" if cells[-1] else None)
    out.print(table)
    for failure in failures(content):
        out.print(failure, markup=False)
    out.print(setting(content), markup=False)
    out.print(f"front: {output / 'front.svg'}", markup=False, soft_wrap=True)
