"""What a sweep found: `sweep.json`, its table and its front; every figure is read from the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rekd_edge.bench import BenchReport
from rekd_edge.pareto import on_front
from rekd_edge.sweep.plan import SweepPlan
from rekd_edge.sweep.space import digest_of
from rekd_edge.sweep.study import TRIALS_FOLDER, FinishedTrial
from rekd_edge.sweep.timing import Plain, Timed

MEASURED = ("p50_ms", "ratio_to_plain", "timed_as", "plain", "on_front")
"""Keys of a row that come from the timing of all trials together."""
FRONT = "dev_accuracy (high), p50_ms (low), kept_share (low)"


def trial_rows(trials: Sequence[FinishedTrial]) -> list[dict[str, Any]]:
    """The rows without what is measured at the end."""
    return [
        {
            "trial": trial.number,
            "overrides": list(trial.overrides),
            "folder": f"{TRIALS_FOLDER}/{digest_of(trial.overrides)}",
            "failed": trial.failed,
            **(trial.figures or {}),
        }
        for trial in trials
    ]


def add_measured(rows: Sequence[dict[str, Any]], timed: Mapping[int, Timed]) -> None:
    """Adds latency and the front to the rows of the trials that passed."""
    passed = [row for row in rows if row["trial"] in timed]
    for row in passed:
        row |= asdict(timed[row["trial"]])
    fronts = on_front([(row["dev_accuracy"], -row["p50_ms"], -row["kept_share"]) for row in passed])
    for row, front in zip(passed, fronts, strict=True):
        row["on_front"] = front


def sweep_json(
    plan: SweepPlan,
    rows: Sequence[dict[str, Any]],
    plains: Mapping[str, Plain],
    plain_ms: Mapping[str, float],
    latency: BenchReport | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "recipe": plan.base.name,
        "grid": plan.space.to_json(),
        "sampler": plan.sampler,
        "target": plan.target,
        "gates": plan.gates,
        "front": FRONT,
        "rows": list(rows),
        "plain": [_plain_row(plain, plain_ms.get(name)) for name, plain in plains.items()],
        "latency": None if latency is None else _without_candidates(latency),
        **facts,
    }


def _plain_row(plain: Plain, p50_ms: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": plain.name, "failed": plain.failed, "p50_ms": p50_ms}
    if plain.dev is not None and plain.test is not None:
        row |= {"dev_accuracy": plain.dev.accuracy, "test_accuracy": plain.test.accuracy}
    return row


def _without_candidates(latency: BenchReport) -> dict[str, Any]:
    return {name: value for name, value in latency.to_json().items() if name != "candidates"}


COLUMNS = (
    "trial",
    "overrides",
    "dev accuracy",
    "test accuracy",
    "p50 ms",
    "to plain",
    "operations",
    "kept",
    "MB",
    "front",
)


def table_rows(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells under :data:`COLUMNS`: passed trials from the fastest to the slowest, the plain
    classifiers, and the trials that failed with the reason in the last cell."""
    rows = content["rows"]
    cells = []
    for row in sorted((row for row in rows if not row["failed"]), key=lambda row: row["p50_ms"]):
        ratio = row["ratio_to_plain"]
        cells.append(
            (
                str(row["trial"]),
                " ".join(row["overrides"]),
                f"{row['dev_accuracy']:.3f}",
                f"{row['test_accuracy']:.3f}",
                f"{row['p50_ms']:.3f}",
                "" if ratio is None else f"{ratio['value']:.2f}",
                f"{row['flops_share']:.2f}",
                f"{row['kept_share']:.2f}",
                f"{row['size_bytes'] / 1e6:.1f}",
                "yes" if row["on_front"] else "",
            )
        )
    for plain in content["plain"]:
        users = [str(row["trial"]) for row in rows if row.get("plain") == plain["name"]]
        title = f"plain classifier of {', '.join(users)}"
        if plain["failed"]:
            cells.append(("", title, *[""] * 7, plain["failed"]))
            continue
        figures = (f"{plain['dev_accuracy']:.3f}", f"{plain['test_accuracy']:.3f}")
        cells.append(
            ("", title, *figures, f"{plain['p50_ms']:.3f}", "1.00", "1.00", "1.00", "", "")
        )
    for row in rows:
        if row["failed"]:
            blank = [""] * (len(COLUMNS) - 3)
            failed = f"failed: {row['failed']}"
            cells.append((str(row["trial"]), " ".join(row["overrides"]), *blank, failed))
    return cells


def sweep_table(content: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for cells in table_rows(content):
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n\n" + setting(content) + "\n"


def setting(content: Mapping[str, Any]) -> str:
    """How to read the table, in words."""
    latency, machine = content["latency"], content["hardware"]
    passed = [row for row in content["rows"] if not row["failed"]]
    words = [f"Recipe `{content['recipe']}`, target `{content['target']}`"]
    if passed and latency is not None:
        words.append(
            f"{passed[0]['dev_examples']} development and {passed[0]['test_examples']} test "
            "examples, measured on the exported files; the front is that of development accuracy, "
            "latency and share of tokens kept"
        )
        validity = latency["result_validity"]
        if latency["result_invalid_reason"]:
            validity += f" ({latency['result_invalid_reason']})"
        words.append(
            f"Latency: {latency['threads']} thread, one example a query, all files in one "
            f"interleaved run, {validity}"
        )
    words.append(f"{machine['processor']}, {machine['cores']} cores")
    return ".\n".join(words) + "."
