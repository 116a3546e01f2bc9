"""``rekd-edge check BUNDLE``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit
from rekd_edge.errors import GateError


def register(app: typer.Typer) -> None:
    app.command("check")(check)


def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The run it was made from. [looked for in the folders above]"),
    ] = None,
    gates: Annotated[
        str | None,
        typer.Option("--gates", help="Gates of export/gates by name, or a file. [the target's]"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads. [the bundle's, or all cores]")
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Leave a bundle that fails where it is, not in rejected/."),
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Hold a bundle to the torch model it was made from, on the whole test split.

    If a gate fails, the bundle is moved to rejected/ beside it with reason.json, exit 3.
    """
    from rekd_edge.cli.console import status_console
    from rekd_edge.export_pipeline import check_bundle
    from rekd_edge.run_folder import open_run

    opened = None if run is None else open_run(run)
    with status_console().status("checking"):
        report, place = check_bundle(
            bundle, run=opened, gates=gates, threads=threads, reject_failed=not keep
        )
    emit({**report.to_json(), "path": str(place)}, json_path=json_path, render=report.render)
    if not report.passed:
        raise GateError(
            "the bundle failed its check:\n  " + "\n  ".join(report.failures),
            hint=f"the bundle is in {place}",
        )
