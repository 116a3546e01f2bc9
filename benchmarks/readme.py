"""Writes recorded figures into pages, between their marks: the table of accuracies, the guide to
the methods, whose every line names rows of recorded tables, and the tables of methods.

python benchmarks/readme.py benchmarks/results README.md docs/methods.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORDS = (
    "accuracy",
    "methods",
    "method-costs",
    "black-box",
    "black-box-answers",
    "black-box-one-seed",
    "interactive",
    "n2r-images",
)
"""Files below the folder of results from which pages are filled."""
GUIDE_LINES = (
    "- *A teacher that can be trained on rationales:* REKD, the default: "
    "{accuracy-text|cheap|test accuracy}, extraction alone {accuracy-text|extract|test accuracy}.",
    "- *No teacher:* `task: extract`, selector warmed up on mask gradients: "
    "{methods-snippets|warmed-up|test accuracy}, trained from scratch by RNP "
    "{methods-snippets|rnp|test accuracy}.",
    "- *A plain classifier as teacher, and unlabelled texts:* its answers to them, with `transfer` "
    "and the student's own mask gradients: "
    "{black-box-answers|black-box-predictions-transfer|test accuracy}, extraction alone "
    "{black-box-answers|extract|test accuracy}. Its explanations beside add nothing to that: "
    "`scaffold` {black-box|black-box-scaffold-transfer|test accuracy}, `gradient_x_input` "
    "{black-box|black-box-gradient-x-input-transfer|test accuracy}.",
    "- *A plain classifier, and no more texts than it had:* it teaches nothing: "
    "{black-box-one-seed|black-box-predictions|test accuracy} from its answers, "
    "{black-box-one-seed|black-box-scaffold|test accuracy} with its attention.",
    "- *Half the weights to ship:* `method: fr`, one encoder for both: "
    "{methods-snippets|fr|test accuracy}; F1 of objects {methods-images|fr|patch F1}, but all "
    "blocks read the whole image.",
    "- *From scratch, and to find the evidence itself:* `nir` or `a2r`, half of RNP's cost: F1 of "
    "the deciding sentence {methods|nir|token F1}, {methods|a2r|token F1} (RNP "
    "{methods|rnp|token F1}), of objects on images {methods-images|nir|patch F1}, "
    "{methods-images|a2r|patch F1} (RNP {methods-images|rnp|patch F1}).",
    "- *The same, not from scratch:* a selector of mask gradients finds more of objects "
    "({methods-images|warmed-up|patch F1}), less of sentences ({methods|warmed-up|token F1}).",
    "- *N2R:* finds more of objects than RNP with `selection: exactly_k` and `norm_ratio: 0.5`: F1 "
    "{n2r-images|n2r|patch F1}, RNP {n2r-images|rnp|patch F1} drawn and "
    "{n2r-images|rnp-k|patch F1} with exactly k; as published {methods-images|n2r|patch F1}, of "
    "sentences {methods|n2r|token F1} (with its task loss, `mmi_n2r`, {methods|mmi-n2r|token F1}).",
    "- *Not the older estimators for texts:* HardKuma {methods-snippets|hard-kuma|test accuracy}, "
    "REINFORCE {methods-snippets|reinforce|test accuracy}; on images HardKuma's F1 is "
    "{methods-images|hard-kuma|patch F1}.",
    "- *Room for two students:* `ensemble: interactive` {interactive|pair|pair}, the first alone "
    "{interactive|pair|student alone}; one of twice the depth {interactive|double|student alone}.",
)
"""What to choose when; ``{suite|row|column}`` stands for a mean over seeds and its spread."""
ROWS = {
    "plain": "plain classifier",
    "extract": "extraction alone, cheap selector",
    "paper": "REKD as published",
    "full": "REKD, full selector",
    "cheap": "**REKD, cheap selector**",
}
COMPARED = "for comparison: "
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
    """Markdown; ``tables`` are records by name, or by that of the suite where one holds several."""

    def figure(reference: re.Match[str]) -> str:
        suite, row, column = reference.group(1).split("|")
        values = {one["name"]: one["values"] for one in tables[suite]["rows"]}
        return _cell(values[row][column])

    return "\n".join(re.sub(r"\{([^{}]+)\}", figure, line) for line in GUIDE_LINES)


METHOD_COLUMNS = {
    "test accuracy": "test accuracy",
    "{gold} F1": "{gold} F1",
    "mean IoU": "mean IoU",
    "AUPRC": "AUPRC",
    "sufficiency": "sufficiency",
    "comprehensiveness": "comprehensiveness",
    "as the plain classifier": "simulability",
    "mask-only probe": "mask-only probe",
}
"""Columns of a table of methods, and those of the suite."""


def methods_table(result: Mapping[str, Any], costs: Mapping[str, float]) -> str:
    """Markdown; ``result`` is a record of one suite of methods, ``costs`` the processor time of a
    method's step as multiples of RNP's, by the method's title."""
    values = result["rows"][0]["values"]
    gold = next(title for title in values if title.endswith(" F1")).removesuffix(" F1")
    titles = [title.format(gold=gold) for title in METHOD_COLUMNS]
    columns = [column.format(gold=gold) for column in METHOD_COLUMNS.values()]
    lines = [f"| | {' | '.join(titles)} | step |", f"|---|{'---|' * len(titles)}---|"]
    for row in result["rows"]:
        title = str(row["title"])
        if title.startswith(COMPARED):
            title = f"*{title.removeprefix(COMPARED)}*"
        cells = [_cell(row["values"][column]) for column in columns]
        cost = costs.get(str(row["title"]).partition(" (")[0])
        lines.append(f"| {title} | {' | '.join(cells)} | {'' if cost is None else f'{cost:.2f}'} |")
    chance = next(
        row["values"]["share that is gold"]
        for row in result["rows"]
        if row["values"]["share that is gold"] is not None
    )
    prior = next(
        row["values"]["label prior"]
        for row in result["rows"]
        if row["values"]["label prior"] is not None
    )
    seeds = len(result["seeds"])
    lines += [
        "",
        f"{result['test_examples']} test examples, ratio {result['rationale_ratio']}, {seeds} "
        f"seed{'s' if seeds > 1 else ''}; {_cell(chance)} of the tokens are gold, "
        f"the label's prior is {_cell(prior)}.",
    ]
    return "\n".join(lines)


def filled(page: str, records: Mapping[str, dict[str, Any]]) -> str:
    """``page`` with everything written anew between its marks."""
    tables = {
        str(table["suite"]) if "tables" in record else name: table
        for name, record in records.items()
        for table in record.get("tables", [record])
    }
    costs = records["method-costs"]["ratio_to_rnp"]
    contents = {
        "accuracy": accuracy_table(records["accuracy"]),
        "guide": guide(tables),
        **{
            str(table["suite"]): methods_table(table, costs)
            for table in records["methods"]["tables"]
        },
    }
    for mark, content in contents.items():
        if f"<!-- {mark} -->" in page:
            page = _between(page, mark, content)
    return page


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
    records = read_records(Path(sys.argv[1]))
    for page in (Path(name) for name in sys.argv[2:]):
        written = filled(page.read_text(encoding="utf-8"), records)
        temporary = page.with_name(f".{page.name}.new")
        temporary.write_text(written, encoding="utf-8")
        temporary.replace(page)


if __name__ == "__main__":
    main()
