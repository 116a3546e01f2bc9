"""``rekd-edge weights RUN --output DIR``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit

if TYPE_CHECKING:
    from rich.console import Console


class RoleOption(StrEnum):
    student = "student"
    partner = "partner"
    teacher = "teacher"


def register(app: typer.Typer) -> None:
    app.command("weights")(weights)


def weights(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write; a new one.")
    ],
    role: Annotated[RoleOption, typer.Option(help="Whose parts.")] = RoleOption.student,
    json_path: JsonOption = None,
) -> None:
    """Write selector and predictor as plain models of transformers or timm (docs/interop.md).

    Each folder is opened again and compared with the trained part first. A part that is no plain
    model is left out, and why is said; where both are, exit 2. Of two students that answer together
    (ensemble) one is written at a time: --role student or partner.
    """
    from transformers.utils.logging import disable_progress_bar

    from rekd_edge.plain_models import write_plain_models
    from rekd_edge.run_folder import open_run

    disable_progress_bar()  # of single files that are read and written in no time
    result = write_plain_models(open_run(run), output, role.value)

    def render(console: Console) -> None:
        for part in result.parts:
            console.print(
                f"{output / part.name}: {part.library} {part.model} "
                f"(largest difference {part.max_difference:.1g})",
                markup=False,
                soft_wrap=True,
            )
        for name, reason in result.left_out.items():
            console.print(f"no {name}: {reason}", markup=False, soft_wrap=True)

    emit(result.to_json(), json_path=json_path, render=render)
