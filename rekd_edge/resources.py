"""Finds the files that ship with the package: ``recipes/`` and ``export/``.

An installed wheel carries them under ``rekd_edge/_resources/``; a checkout (also one installed
in editable mode) has them beside the package.
"""

from __future__ import annotations

from pathlib import Path

from rekd_edge.errors import IntegrityError

_PACKAGE = Path(__file__).resolve().parent


def recipes_dir() -> Path:
    """The folder of shipped recipes, ``<task>/<name>.yaml``."""
    return _shipped("recipes")


def export_dir() -> Path:
    """The folder with ``targets/``, ``gates/`` and ``runtime/``."""
    return _shipped("export")


def benchmarks_dir() -> Path | None:
    """The repository's ``benchmarks/``; None outside a checkout, for it is not shipped."""
    folder = _PACKAGE.parent / "benchmarks"
    in_checkout = (_PACKAGE.parent / "pyproject.toml").is_file() and folder.is_dir()
    return folder if in_checkout else None


def _shipped(name: str) -> Path:
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    installed = _PACKAGE / "_resources" / name
    if installed.is_dir():
        return installed
    raise IntegrityError(
        f"the shipped folder {name!r} is missing from this installation of rekd-edge",
        hint="reinstall the package",
    )
