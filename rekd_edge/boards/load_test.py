"""The load test of a bundle (``export/runtime/python/rekd_bench.py``) on a board."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rekd_edge.bench.load import EXAMPLES_FILE, LoadReport, program_path
from rekd_edge.boards.openssh import SshBoard
from rekd_edge.boards.report import checked_report
from rekd_edge.boards.session import BoardFacts, BoardJob, run_on_board, untrue
from rekd_edge.bundle import Bundle, open_bundle
from rekd_edge.bundle.manifest import (
    CARD_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    RECIPE_FILE,
    REPORTS_FOLDER,
)
from rekd_edge.bundle.runtime import runtime_path
from rekd_edge.errors import UsageError

REPORT = "report.json"
REQUEST = "request.json"
QUIET_S = 900.0
"""The program says something every few seconds while it measures; a first answer may take 300 s."""
_ECHOED = ("scenario", "mode", "scope", "batch", "threads", "provider", "idle_gap_ms")
"""Of the request, what the report says at its top level too."""
_STAYS = (f"{REPORTS_FOLDER}/", "engines/", "runtime/")
"""Parts of a bundle that its answers do not need. The programs are this package's own."""


def run_load_test_on_board(
    board: SshBoard,
    bundle: Path,
    examples: Path,
    request: Mapping[str, Any],
    *,
    progress: Callable[[str], None] = lambda line: None,
    inspect: Callable[[BoardFacts], None] = lambda facts: None,
) -> LoadReport:
    """As ``run_load_test``, there. ``inspect`` sees the board before anything is copied.

    Raises what :func:`~rekd_edge.boards.session.run_on_board` does.
    """
    opened = open_bundle(bundle)
    job = load_test_job(opened, examples, request)
    _, content = run_on_board(board, job, progress=progress, inspect=inspect)
    copied = job.files[f"bundle/{MANIFEST_FILE}"]
    assert isinstance(copied, bytes)
    promised = {
        **{key: request[key] for key in _ECHOED if request.get(key) is not None},
        "model_sha256": {f.path: f.sha256 for f in opened.manifest.files}[MODEL_FILE],
        "manifest_sha256": hashlib.sha256(copied).hexdigest(),
        "inputs_sha256": hashlib.sha256((examples / EXAMPLES_FILE).read_bytes()).hexdigest(),
    }
    try:
        document = checked_report(content, promised, request)
    except ValueError as error:
        raise untrue(board, str(error)) from error
    whole = hashlib.sha256((opened.folder / MANIFEST_FILE).read_bytes()).hexdigest()
    return LoadReport({**document, "manifest_sha256": whole})


def load_test_job(bundle: Bundle, examples: Path, request: Mapping[str, Any]) -> BoardJob:
    """The manifest that goes along lists what goes along, so that the board's runtime verifies
    every byte of it."""
    if request.get("loadgen"):
        raise UsageError(
            "MLCommons' LoadGen drives measurements on this machine alone",
            hint="measure the board without it; the rules are the same",
        )
    needed = [file for file in bundle.manifest.files if _is_needed(file.path)]
    manifest = bundle.manifest.model_copy(update={"files": tuple(needed)})
    files: dict[str, Path | bytes] = {
        f"program/{path.name}": path for path in (program_path(), runtime_path())
    }
    files[f"bundle/{MANIFEST_FILE}"] = manifest.model_dump_json(indent=2).encode() + b"\n"
    files |= {f"bundle/{file.path}": bundle.folder / file.path for file in needed}
    files |= {f"examples/{path.name}": path for path in sorted(examples.iterdir())}
    files[REQUEST] = json.dumps(dict(request)).encode()
    program = f"program/{program_path().name}"
    options = ("--examples", "examples", "--request", REQUEST, "--report", REPORT)
    reads = "tokenizers" if bundle.manifest.modality == "text" else "PIL"
    return BoardJob(
        files=files,
        command=(program, "bundle", *options),
        report=REPORT,
        imports=("numpy", bundle.config.runtime, reads),
        quiet_s=QUIET_S + float(request.get("idle_gap_ms") or 0) / 1e3,
    )


def _is_needed(path: str) -> bool:
    return path not in (CARD_FILE, RECIPE_FILE) and not path.startswith(_STAYS)
