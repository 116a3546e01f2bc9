"""Writes the recorded accuracies into the README, between its marks.

python benchmarks/readme.py README.md benchmarks/results/accuracy.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- accuracy -->", "<!-- end of accuracy -->"
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


def with_table(page: str, result: dict[str, Any]) -> str:
    """``page`` with the table written anew between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{accuracy_table(result)}\n{END}{after}"


def main() -> None:
    page, recorded = Path(sys.argv[1]), Path(sys.argv[2])
    result = json.loads(recorded.read_text(encoding="utf-8"))
    written = with_table(page.read_text(encoding="utf-8"), result)
    temporary = page.with_name(f".{page.name}.new")
    temporary.write_text(written, encoding="utf-8")
    temporary.replace(page)


if __name__ == "__main__":
    main()
