"""Bundles whose ``config.json`` says something else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

CALIBRATION: dict[str, Any] = {
    "method": "temperature",
    "temperature": 2.5,
    "confidence_threshold": None,
    "margin_threshold": None,
    "asked": {"coverage": 0.5, "risk": None, "rationale_risk": None, "confidence": 0.9},
    "split": "dev",
    "examples": 200,
}


def with_config(bundle: Path, folder: Path, **changes: Any) -> Path:
    """A copy whose config.json has ``changes``, with its digest in the manifest."""
    shutil.copytree(bundle, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "config.json").read_bytes()
    for entry in manifest["files"]:
        if entry["path"] == "config.json":
            entry["sha256"] = hashlib.sha256(content).hexdigest()
            entry["size_bytes"] = len(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
