"""``rekd-edge report RUN|BUNDLE... --output report.html``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit, require_writable, status_console, write_text
from rekd_edge.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|BUNDLE...", help="Finished runs and bundles over the same test data."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The HTML file to write.")
    ],
    bench: Annotated[
        list[Path] | None,
        typer.Option(
            "--bench",
            metavar="FILE",
            help="A --json FILE of `rekd-edge bench BUNDLE`. May be given repeatedly.",
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Test examples that are shown, at most.")
    ] = 40,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Run the models on so many test examples, by class. [all]"),
    ] = None,
    max_size_mb: Annotated[
        float, typer.Option(min=0.1, help="Largest file; examples are left out to keep to it.")
    ] = 5.0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json_path: JsonOption = None,
) -> None:
    """Write one HTML file for people: where a model comes from, how often it is right and fast, and
    what teacher, student and files looked at in real test examples.

    The file needs no network and holds no script. What was not measured is shown as such.
    """
    require_writable(output)
    if output.exists() and not force:
        raise UsageError(f"{output} exists", hint="name a new file, or use --force")
    from rich.text import Text

    from rekd_edge.report_pipeline import build_report

    with status_console().status("reading") as status:
        made = build_report(
            paths,
            benches=bench or [],
            examples=examples,
            limit=limit,
            max_size_mb=max_size_mb,
            progress=lambda text: status.update(Text(text)),
        )
    write_text(output, made.page)

    def show(out: Console) -> None:
        size = len(made.page.encode()) / 1e6
        for note in made.content.notes:
            out.print(f"note: {note}", markup=False)
        out.print(
            f"{output}: {size:.2f} MB, {made.content.examples} examples, "
            f"{len(made.content.results)} models",
            markup=False,
            soft_wrap=True,
        )

    emit(made.to_json() | {"path": str(output)}, json_path=json_path, render=show)
