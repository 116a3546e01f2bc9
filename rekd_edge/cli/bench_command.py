"""``rekd-edge bench BUNDLE --threads 1 --json OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads. [those of the bundle's settings, or 1]"),
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
    min_duration_s: Annotated[
        float, typer.Option("--min-duration-s", min=0.0, help="Seconds measured of each file.")
    ] = 10.0,
    min_count: Annotated[
        int, typer.Option("--min-count", min=1, help="Queries measured of each file.")
    ] = 200,
    cold_starts: Annotated[
        int, typer.Option("--cold-starts", min=0, help="Fresh processes started of each file.")
    ] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in seconds; the result is marked INVALID.")
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Measure latency, cold start, memory and size, query by query in turn with the plain
    classifier of the same backbone and the masked select-predict form."""
    from rekd_edge.bench import BenchSettings
    from rekd_edge.cli.console import status_console
    from rekd_edge.export_pipeline import bench_bundle
    from rekd_edge.run_folder import open_run

    settings = BenchSettings(
        min_duration_s=min_duration_s, min_count=min_count, cold_starts=cold_starts
    )
    if quick:
        settings = BenchSettings.quick_look()
    opened = None if run is None else open_run(run)
    with status_console().status("measuring"):
        report = bench_bundle(
            bundle, run=opened, inputs_file=inputs, settings=settings, threads=threads
        )
    emit(report.to_json(), json_path=json_path, render=report.render)
