"""``rekd-edge export RUN --target onnx --output BUNDLE``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit
from rekd_edge.errors import GateError

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    app.command("export")(export_run)


def export_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="BUNDLE", help="The bundle folder to write."),
    ],
    target: Annotated[
        str, typer.Option("--target", help="A target of export/targets by name, or a file.")
    ] = "onnx",
    gates: Annotated[
        str | None,
        typer.Option("--gates", help="Gates of export/gates by name, or a file. [the target's]"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads. [all available cores]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing bundle once the new one passes.")
    ] = False,
    twins: Annotated[
        bool,
        typer.Option(
            "--twins/--no-twins",
            help="Also write RUN/onnx/plain.onnx and masked.onnx, which bench compares with.",
        ),
    ] = True,
    json_path: JsonOption = None,
) -> None:
    """Convert the student to ONNX, check it on real data and write the bundle.

    If a gate fails, no bundle is written: the file goes to rejected/ with reason.json, exit 3.
    """
    from rekd_edge.cli.console import status_console
    from rekd_edge.export_pipeline import export_bundle
    from rekd_edge.run_folder import open_run

    opened = open_run(run)
    with status_console().status("converting and checking"):
        result = export_bundle(
            opened,
            target=target,
            output=output,
            gates=gates,
            force=force,
            twins=twins,
            threads=threads,
        )

    def render(console: Console) -> None:
        if result.report is not None:
            result.report.render(console)
        if result.passed:
            console.print(f"bundle: {result.path}", markup=False)

    emit(result.to_json(), json_path=json_path, render=render)
    if not result.passed:
        raise GateError(
            "the export was refused:\n  " + "\n  ".join(result.reasons),
            hint=f"the file and the reason are in {result.path}",
        )
