"""The entry point: collects the commands and turns failures into messages and exit codes.

Exit codes are documented in :mod:`rekd_edge.errors`.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rekd_edge import __version__
from rekd_edge.errors import RekdEdgeError

COMMAND_MODULES = (
    "recipe_command",
    "data_command",
    "distill_command",
    "compare_command",
    "suite_command",
    "sweep_command",
    "evaluate_command",
    "export_command",
    "weights_command",
    "engine_command",
    "check_command",
    "bench_command",
    "devices_command",
    "report_command",
    "costs_command",
    "speed_command",
    "predict_command",
    "doctor_command",
)
"""Modules of this package with a ``register(app)``, in the order in which help lists them."""

EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
TRACEBACK_VARIABLE = "REKD_EDGE_TRACEBACK"


class _InPipelineOrder(TyperGroup):
    """Lists the commands in the order in which a user meets them."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = [name.removesuffix("_command") for name in COMMAND_MODULES]
        return sorted(self.commands, key=order.index)


app = typer.Typer(
    name="rekd-edge",
    cls=_InPipelineOrder,
    help="Distill models that show their evidence, and put them on edge devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing Rich's Markdown would double the start-up time
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        print(f"rekd-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def _register_commands() -> None:
    for name in COMMAND_MODULES:
        importlib.import_module(f"{__package__}.{name}").register(app)


_register_commands()


def main() -> None:
    """Run the command line and end the process with a documented exit code."""
    try:
        app(prog_name="rekd-edge")
    except RekdEdgeError as error:
        _fail(f"error: {error}", error.exit_code, error)
    except KeyboardInterrupt as error:
        _fail("interrupted", EXIT_INTERRUPTED, error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" while writing {error.filename}" if error.filename else ""
            _fail(
                f"error: the disk is full{where}\n  hint: free some space and run the command "
                "again; files that were finished are kept, none is half-written",
                EXIT_USAGE,
                error,
            )
        _fail_unexpected(error)
    except Exception as error:
        _fail_unexpected(error)


def _fail_unexpected(error: BaseException) -> None:
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    _fail(
        f"unexpected: {what} (a bug: please report it; run with {TRACEBACK_VARIABLE}=1 for "
        "details)",
        EXIT_UNEXPECTED,
        error,
    )


def _fail(message: str, exit_code: int, error: BaseException) -> None:
    sys.stdout.flush()
    if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
        traceback.print_exception(error)
    print(message, file=sys.stderr)
    raise SystemExit(exit_code)
