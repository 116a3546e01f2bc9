"""The README prints what is recorded."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.readme import GUIDE_LINES, filled, read_records

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_holds_the_recorded_figures() -> None:
    records = read_records(ROOT / "benchmarks" / "results")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(page, records) == page, "run `make docs`"
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert filled(methods, records) == methods, "run `make docs`"
    for name in ("accuracy", "methods"):
        row = records[name]["tables"][0]["rows"][0]
        row["values"]["test accuracy"]["mean"] += 0.01
        changed = filled(page, records)
        assert changed != page
        page = changed


def test_every_line_of_the_guide_is_backed_by_a_row() -> None:
    lines = [line for line in GUIDE_LINES if line.startswith("- ")]
    assert len(lines) == 10
    assert all(re.search(r"\{[^{}|]+\|[^{}|]+\|[^{}|]+\}", line) for line in lines)
