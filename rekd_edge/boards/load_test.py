"""The load test of a bundle (``export/runtime/python/rekd_bench.py``) as a job for a board."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rekd_edge.boards.session import BoardJob
from rekd_edge.bundle import Bundle
from rekd_edge.bundle.manifest import CARD_FILE, MANIFEST_FILE, RECIPE_FILE, REPORTS_FOLDER
from rekd_edge.bundle.runtime import runtime_path
from rekd_edge.errors import UsageError

REPORT = "report.json"
REQUEST = "request.json"
QUIET_S = 900.0
"""The program says something every few seconds while it measures; a first answer may take 300 s."""
_STAYS = (f"{REPORTS_FOLDER}/", "engines/", "runtime/")
"""Parts of a bundle that its answers do not need. The programs are this package's own."""


def load_test_job(
    bundle: Bundle, examples: Mapping[str, Path | bytes], request: Mapping[str, Any]
) -> BoardJob:
    """``examples`` are the files of the program's example folder, by name. The manifest that goes
    along lists what goes along, so that the board's runtime verifies every byte of it."""
    if request.get("loadgen"):
        raise UsageError(
            "MLCommons' LoadGen drives measurements on this machine alone",
            hint="measure the board without --loadgen; the rules are the same",
        )
    needed = [file for file in bundle.manifest.files if _is_needed(file.path)]
    manifest = bundle.manifest.model_copy(update={"files": tuple(needed)})
    programs = runtime_path().parent
    files: dict[str, Path | bytes] = {
        f"program/{name}": programs / name for name in ("rekd_bench.py", "rekd_runtime.py")
    }
    files[f"bundle/{MANIFEST_FILE}"] = manifest.model_dump_json(indent=2).encode() + b"\n"
    files |= {f"bundle/{file.path}": bundle.folder / file.path for file in needed}
    files |= {f"examples/{name}": content for name, content in examples.items()}
    files[REQUEST] = json.dumps(dict(request)).encode()
    command = ("program/rekd_bench.py", "bundle", "--examples", "examples")
    reads = "tokenizers" if bundle.manifest.modality == "text" else "PIL"
    return BoardJob(
        files=files,
        command=(*command, "--request", REQUEST, "--report", REPORT),
        report=REPORT,
        imports=("numpy", bundle.config.runtime, reads),
        quiet_s=QUIET_S + float(request.get("idle_gap_ms") or 0) / 1e3,
    )


def _is_needed(path: str) -> bool:
    return path not in (CARD_FILE, RECIPE_FILE) and not path.startswith(_STAYS)


def manifest_sha256(bundle: Bundle) -> str:
    """Of the whole bundle's manifest; the report names that of the part that was copied."""
    return hashlib.sha256((bundle.folder / MANIFEST_FILE).read_bytes()).hexdigest()
