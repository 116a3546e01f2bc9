"""Writes recorded figures into the README, between their marks: the table of accuracies, and the
guide to the methods, whose every line names rows of recorded tables.

python benchmarks/readme.py README.md benchmarks/results
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ACCURACY = "accuracy"
GUIDE = "guide"
RECORDS = ("accuracy", "methods", "black-box", "interactive")
"""Files below the folder of results from which the README is filled."""
GUIDE_LINES: tuple[str, ...] = ()
"""What to choose when; ``{suite|row|column}`` stands for a mean over seeds and its spread."""
ROWS = {
    "plain": "plain classifier",
    "extract": "extraction alone, cheap selector",
    "paper": "REKD as published",
    "full": "REKD, full selector",
    "cheap": "**REKD, cheap selector**",
}
QUALITY = ("rationale shared with teacher", "sufficiency", "comprehensiveness")
FLOPS = ("selector, share of FLOPs", "student, share of FLOPs")


def accuracy_table(result: dict[str, Any]) -> str:
    """Markdown; ``result`` is a record of one or several accuracy suites."""
    lines = [
        f"| data | | test accuracy | {' | '.join(QUALITY)} | selector, student: share of FLOPs |",
        "|---|---|---|---|---|---|---|",
    ]
    for table in result.get("tables", [result]):
        rows = {row["name"]: row["values"] for row in table["rows"]}
        for name, title in ROWS.items():
            if name in rows and rows[name]["test accuracy"] is not None:
                lines.append(f"| {table['data']['name']} | {title} | {_row(name, rows[name])} |")
    return "\n".join(lines)


def _row(name: str, values: dict[str, Any]) -> str:
    accuracy = _cell(values["test accuracy"])
    if name == "paper":
        accuracy += f" (sampled, as published: {_cell(values['as published evaluates'])})"
    flops = [values[title] for title in FLOPS]
    shares = "" if None in flops else ", ".join(f"{share['mean']:.2f}" for share in flops)
    return " | ".join([accuracy, *(_cell(values[title]) for title in QUALITY), shares])


def _cell(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return ""
    spread = summary["spread"]
    return f"{summary['mean']:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def guide(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown; ``tables`` are recorded suites by name."""

    def figure(reference: re.Match[str]) -> str:
        suite, row, column = reference.group(1).split("|")
        values = {one["name"]: one["values"] for one in tables[suite]["rows"]}
        return _cell(values[row][column])

    return "\n".join(re.sub(r"\{([^{}]+)\}", figure, line) for line in GUIDE_LINES)


def filled(page: str, records: Mapping[str, dict[str, Any]]) -> str:
    """``page`` with everything written anew between its marks."""
    tables = {
        str(table.get("suite")): table
        for record in records.values()
        for table in record.get("tables", [record])
    }
    page = _between(page, ACCURACY, accuracy_table(records["accuracy"]))
    return _between(page, GUIDE, guide(tables))


def _between(page: str, mark: str, content: str) -> str:
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in RECORDS
    }


def main() -> None:
    page, recorded = Path(sys.argv[1]), Path(sys.argv[2])
    written = filled(page.read_text(encoding="utf-8"), read_records(recorded))
    temporary = page.with_name(f".{page.name}.new")
    temporary.write_text(written, encoding="utf-8")
    temporary.replace(page)


if __name__ == "__main__":
    main()
