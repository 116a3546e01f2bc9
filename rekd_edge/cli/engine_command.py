"""``rekd-edge engine BUNDLE``: the TensorRT engine that may run here, built again if need be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from rekd_edge.engines.store import StoredEngine


def register(app: typer.Typer) -> None:
    app.command("engine")(engine)


def engine(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with engines.")],
    sm: Annotated[
        int | None,
        typer.Option("--sm", min=50, help="The GPU: 86 is SM 8.6. [the GPU of this machine]"),
    ] = None,
    build: Annotated[
        bool,
        typer.Option(
            "--build/--no-build",
            help="Build the engine from the bundle's recipe where none fits; it is kept in the "
            "user's cache.",
        ),
    ] = True,
    json_path: JsonOption = None,
) -> None:
    """Name the bundle's TensorRT engine for a GPU, and build it where there is none.

    An engine of another GPU, TensorRT, driver, ONNX file or shape is never named: exit 4.
    """
    from rekd_edge.bundle import open_bundle
    from rekd_edge.cli.progress import BuildProgress
    from rekd_edge.engines.find import engine_for

    with BuildProgress() as progress:
        found = engine_for(
            open_bundle(bundle), compute_capability=sm, build=build, listener=progress
        )

    def render(console: Console) -> None:
        show_engines(console, [found])
        console.print(str(found.path), markup=False, soft_wrap=True)

    result = {"path": str(found.path), "engine": found.record.model_dump(mode="json")}
    emit(result, json_path=json_path, render=render)


def show_engines(console: Console, engines: Iterable[StoredEngine]) -> None:
    """Engines as a table: what they compute in, and what was run of them."""
    from rich.table import Table

    from rekd_edge.engines.store import counted

    table = Table(title="engines", title_justify="left")
    for column in ("engine", "MB", "products", "parity", "accuracy", "latency"):
        table.add_column(column, overflow="fold")
    reasons = {}
    for one in engines:
        record = one.record
        checks = record.checks
        table.add_row(
            one.path.stem,
            f"{record.size_bytes / 1e6:.1f}",
            counted(record.products),
            checks.parity,
            checks.accuracy,
            checks.latency,
        )
        if checks.reason:
            reasons[one.path.stem] = checks.reason
    console.print(table)
    for name, reason in reasons.items():
        console.print(f"{name}: {reason}", markup=False, soft_wrap=True)
