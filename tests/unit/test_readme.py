"""The README prints what is recorded."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.readme import with_table

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_holds_the_recorded_accuracies() -> None:
    recorded = ROOT / "benchmarks" / "results" / "accuracy.json"
    result = json.loads(recorded.read_text(encoding="utf-8"))
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(page, result) == page, "run `make docs`"
    result["tables"][0]["rows"][0]["values"]["test accuracy"]["mean"] += 0.01
    assert with_table(page, result) != page
