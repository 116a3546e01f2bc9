"""``rekd-edge speed RECIPE``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rekd_edge.cli.console import (
    JsonOption,
    emit,
    require_writable,
    write_json,
    write_text,
)
from rekd_edge.errors import UsageError


def register(app: typer.Typer) -> None:
    app.command("speed")(speed)


def speed(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    settings: Annotated[
        str | None,
        typer.Option(
            "--settings", metavar="NAME,...", help="Only these settings, by name. [all of them]"
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Blocks measured of each setting.")
    ] = 5,
    block_s: Annotated[
        float, typer.Option("--block-s", min=0.0, help="Seconds of a block of steps.")
    ] = 1.5,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes where workers prepare images.")
    ] = 8,
    limit_s: Annotated[
        float | None,
        typer.Option(
            "--limit-s",
            min=1.0,
            help="Seconds from the start of the program after which nothing new is begun.",
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="The recipe's architectures without their weights: as fast."
        ),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in seconds; the figures mean nothing.")
    ] = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="The table as Markdown.")
    ] = None,
    json_path: JsonOption = None,
) -> None:
    """Measure how many examples a second distillation trains on: the published code's settings, and
    what each step away from them gains (docs/training-speed.md).

    The files are written after each setting and each round, so an interruption loses one of those.
    """
    from rekd_edge.recipe import find_recipe, load_recipe

    loaded = load_recipe(find_recipe(recipe), list(overrides or []))
    json_file = None if json_path in (None, "-") else Path(str(json_path))
    for path in (markdown, json_file):
        if path is not None:
            require_writable(path)
    from dataclasses import replace

    import torch

    from rekd_edge.bench.training_speed import (
        SpeedPlan,
        measure_speed,
        speed_table,
        with_random_weights,
    )
    from rekd_edge.cli.console import status_console
    from rekd_edge.machine import running_s

    if device not in {"auto", "cpu", "cuda"}:
        raise UsageError(f"unknown device {device!r}", hint="use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available", hint="use --device cpu or auto")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    plan = SpeedPlan(rounds=rounds, block_s=block_s, workers=workers)
    if kind == "cpu":
        plan = replace(plan, square=1024)
    if quick:
        plan = SpeedPlan.quick()
    plan = replace(plan, limit_s=limit_s, began=time.monotonic() - running_s())
    if settings is not None:
        plan = replace(plan, only=tuple(name.strip() for name in settings.split(",")))
    if random_weights:
        loaded = with_random_weights(loaded)

    def keep(found: dict[str, Any]) -> None:
        if markdown is not None:
            write_text(markdown, speed_table(found))
        if json_file is not None:
            write_json(json_file, found)

    with status_console().status("measuring") as status:
        report = measure_speed(loaded, torch.device(kind), plan, progress=status.update, keep=keep)
    table = speed_table(report)
    keep(report)
    emit(
        report,
        json_path=json_path,
        render=lambda out: out.print(table, markup=False, soft_wrap=True),
    )
