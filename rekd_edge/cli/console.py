"""How commands speak: people read Rich tables, machines read JSON, and never both at once.

Data goes to standard output, progress and errors to standard error, so that
``rekd-edge ... --json - | jq`` always works.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rekd_edge.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="PATH|-",
        help="Write the result as JSON to a file; '-' prints only JSON on standard output.",
    ),
]
"""The ``--json`` option that every command takes: ``json_path: JsonOption = None``."""


def console() -> Console:
    """Standard output, for results."""
    from rich.console import Console

    return Console(highlight=False)


def status_console() -> Console:
    """Standard error, for progress, notes and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def emit(
    result: Mapping[str, Any], *, json_path: str | None, render: Callable[[Console], None]
) -> None:
    """Show ``result``: with ``json_path`` ``-`` as JSON only; otherwise ``render`` prints the
    human view, and a given ``json_path`` also receives the JSON (atomically).

    Raises :class:`UsageError` where the folder of ``json_path`` does not exist or is no folder.
    """
    if json_path == "-":
        sys.stdout.write(to_json(result))
        sys.stdout.flush()
        return
    if json_path is not None:
        write_json(Path(json_path), result)
    render(console())


def to_json(result: Mapping[str, Any]) -> str:
    """Strict JSON with a final newline. Paths become strings, numpy scalars and arrays become
    numbers and lists, and NaN or infinity (which JSON does not know) become null."""
    return json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write :func:`to_json` to ``path``; a reader never sees a half-written file."""
    write_text(path, to_json(result))


def require_writable(path: Path) -> None:
    """Raises :class:`UsageError` where no file can be written at ``path``."""
    if not path.parent.is_dir():
        raise UsageError(
            f"cannot write {path}: {path.parent} is not a folder",
            hint="create the folder first",
        )
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder", hint="name a file")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    require_writable(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
