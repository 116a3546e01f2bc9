"""`rekd-edge suite`: a table of variants of one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rekd_edge.cli.console import JsonOption, emit
from rekd_edge.errors import GateError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rekd_edge.recipe.suite_file import RowSpec, SuiteSpec


def register(app: typer.Typer) -> None:
    app.command("suite")(suite)


def suite(
    file: Annotated[Path, typer.Argument(help="A suite file (benchmarks/suites).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all runs.")],
    seeds: Annotated[
        str | None, typer.Option(help="Training seeds, separated by commas; the suite's if none.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="Names of rows to train, separated by commas; all if none.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key in every row."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every row's recipe and list the rows.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_path: JsonOption = None,
) -> None:
    """Train variants of one recipe over the same seeds and print them as a table.

    Interrupted, it goes on where it stopped; a finished run is not trained again. A run that
    diverges is reported, and the others go on; the exit code is then 3.
    """
    from rekd_edge.recipe.suite_file import load_suite, row_recipes

    spec = load_suite(file)
    spec = spec.model_copy(update={"overrides": (*spec.overrides, *(overrides or []))})
    spec = spec.model_copy(update={"rows": _rows(rows, spec)})
    recipes = row_recipes(spec, file.parent)
    if dry_run:
        plan: dict[str, Any] = {row.name: list(row.overrides) for row in spec.rows}
        emit({"rows": plan}, json_path=json_path, render=lambda out: _show_plan(out, plan))
        return
    from rekd_edge.cli.compare_command import parse_seeds
    from rekd_edge.cli.progress import TrainingProgress
    from rekd_edge.suite import TABLE_FILE, run_suite

    chosen = parse_seeds(seeds) if seeds is not None else None
    with TrainingProgress() as progress:
        result = run_suite(spec, recipes, output, seeds=chosen, device=device, listener=progress)
    table = (output / TABLE_FILE).read_text(encoding="utf-8")
    emit(result.to_json(), json_path=json_path, render=lambda out: out.print(table, markup=False))
    if not result.passed:
        failed = [row for row, failures in result.failures.items() if failures]
        raise GateError(
            f"runs diverged in {', '.join(failed)}", hint=f"see {output / 'suite.json'}"
        )


def _rows(text: str | None, spec: SuiteSpec) -> tuple[RowSpec, ...]:
    rows = spec.rows
    if text is None:
        return rows
    known, names = [row.name for row in rows], [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"--rows names no row of the suite: {', '.join(unknown)}",
            hint=f"rows: {', '.join(known)}",
        )
    stated = [row.model_copy(update={"against": row.against or known[0]}) for row in rows]
    chosen = tuple(row for row in stated if row.name in names)
    needed = [(row.against, f"row {row.name!r} is compared with") for row in chosen]
    needed += [(spec.judge, "the suite's judge is"), (spec.simulated, "what is simulated is")]
    if spec.shared_warmup:
        needed.append((known[0], "the shared warm-up is that of"))
    for name, why in needed:
        if name is not None and name not in names:
            raise UsageError(
                f"{why} {name!r}, which --rows leaves out", hint=f"add it: --rows {name},{text}"
            )
    return chosen


def _show_plan(out: Console, plan: dict[str, Any]) -> None:
    for name, overrides in plan.items():
        out.print(f"{name}: {' '.join(overrides) or '(as the recipe)'}", markup=False)
    out.print(f"{len(plan)} rows with valid recipes. Nothing was trained (--dry-run).")
