"""``rekd-edge costs --output DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    app.command("costs")(costs)


def costs(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Where the figures go; resumes there."),
    ],
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads per operator.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny models and few points; the figures mean nothing.")
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Draw how latency and memory grow with ratio, length or image size, batch and depth, beside
    what the machine can do at best. Random weights; takes the better part of an hour."""
    from rekd_edge.bench.cost_figures import draw_costs, require_matplotlib
    from rekd_edge.bench.costs import full_plan, measure_costs, quick_plan
    from rekd_edge.cli.console import status_console

    require_matplotlib()
    plan = quick_plan(threads) if quick else full_plan(threads)
    with status_console().status("measuring") as status:
        report = measure_costs(plan, output, progress=status.update)
    figures = draw_costs(report, output)

    def render(console: Console) -> None:
        console.print((output / "costs.md").read_text(encoding="utf-8"), markup=False)
        for path in figures:
            console.print(str(path), markup=False)

    emit(report, json_path=json_path, render=render)
