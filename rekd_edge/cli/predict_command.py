"""``rekd-edge predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    app.command("predict")(predict)


def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="A text, @FILE with a text, an image file, or - for one input a line.",
        ),
    ],
    threads: Annotated[
        int | None,
        typer.Option(help="Threads. [the bundle's settings, or the cores open to this process]"),
    ] = None,
    overlay: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Images: where <name>.rationale.png goes.", show_default=True
        ),
    ] = Path(),
    no_overlay: Annotated[
        bool, typer.Option("--no-overlay", help="Images: write no picture.")
    ] = False,
    why_not: Annotated[
        bool,
        typer.Option(
            "--why-not",
            help="Also show the best case for each other class, and what the model says from it.",
        ),
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Answer texts or images from a bundle and show what each answer was read from.

    Uses the runtime that is copied into bundles; code inside the bundle is not executed.
    """
    import sys

    from rekd_edge.bundle.runtime import load_runtime, runtime_errors

    runtime = load_runtime()
    with runtime_errors():
        model, predictions = runtime.answer(
            bundle,
            inputs,
            threads=threads,
            overlay=None if no_overlay else overlay,
            stdin=sys.stdin,
            why_not=why_not,
        )
    for line in runtime.notices(predictions):
        print(line, file=sys.stderr)

    def render(console: Console) -> None:
        color = runtime.use_color(sys.stdout)
        described = (runtime.describe(prediction, color=color) for prediction in predictions)
        print("\n\n".join(described))

    emit(runtime.result_document(model, predictions), json_path=json_path, render=render)
