"""Open a bundle and prove that it is whole.

The checks themselves live in the runtime that ships inside every bundle
(``export/runtime/python/rekd_runtime.py``), so that a device and this package apply the same
rules; what comes on top here is the full schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rekd_edge.bundle.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    RECIPE_FILE,
    REPORTS_FOLDER,
    WHY_NOT_FILE,
    BundleConfig,
    BundleManifest,
)
from rekd_edge.bundle.runtime import load_runtime, runtime_errors
from rekd_edge.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle folder."""

    folder: Path
    manifest: BundleManifest
    config: BundleConfig

    @property
    def model_path(self) -> Path:
        return self.folder / MODEL_FILE

    @property
    def why_not_path(self) -> Path | None:
        """The file for class-wise rationales, where there is one."""
        return None if self.config.why_not is None else self.folder / WHY_NOT_FILE

    @property
    def recipe_path(self) -> Path:
        return self.folder / RECIPE_FILE

    def reports(self) -> dict[str, dict[str, Any]]:
        """Name to content of every file under ``reports/``."""
        folder = self.folder / REPORTS_FOLDER
        return {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.json"))
        }


def open_bundle(folder: Path) -> Bundle:
    """Verify ``folder`` (see :func:`verify_bundle`) and read its ``config.json``."""
    manifest = verify_bundle(folder)
    try:
        config = BundleConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except ValidationError as error:
        raise _malformed(folder / CONFIG_FILE, error) from error
    return Bundle(folder=folder, manifest=manifest, config=config)


def verify_bundle(folder: Path) -> BundleManifest:
    """Check every file of the bundle against its manifest and return the manifest.

    Raises :class:`UsageError` where ``folder`` is no folder, and :class:`IntegrityError` where
    the manifest is missing, malformed or of a newer schema, names a path that is absolute,
    climbs out or leads out through a symbolic link, and where a file is missing, changed or
    not listed.
    """
    runtime = load_runtime()
    with runtime_errors():
        document = runtime.verify_bundle(folder)
    try:
        return BundleManifest.model_validate(document)
    except ValidationError as error:
        raise _malformed(folder / MANIFEST_FILE, error) from error


def _malformed(path: Path, error: ValidationError) -> IntegrityError:
    problems = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'document'}: {problem['msg']}"
        for problem in error.errors()
    )
    return IntegrityError(
        f"{path} does not follow the bundle format: {problems}",
        hint="export the bundle again",
    )
