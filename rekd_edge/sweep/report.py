"""What a sweep found: `sweep.json`, its table and its front; every figure is read from the JSON."""

from __future__ import annotations

from collections import Counter
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
    "point",
    "dev",
    "test",
    "p50 ms",
    "to plain",
    "kept",
    "operations",
    "MB",
    "front",
)


def table_rows(content: Mapping[str, Any], *, short: bool = False) -> list[tuple[str, ...]]:
    """The cells under :data:`COLUMNS`: passed trials from the fastest to the slowest, then the
    plain classifiers. ``short`` writes a value a line, and of its key what tells it apart."""
    rows, names = content["rows"], _short_names([axis["key"] for axis in content["grid"]])
    cells = []
    for row in sorted((row for row in rows if not row["failed"]), key=lambda row: row["p50_ms"]):
        ratio = row["ratio_to_plain"]
        pairs = (override.split("=", 1) for override in row["overrides"])
        point = " ".join(row["overrides"])
        if short:
            point = "\n".join(f"{names[key]}={value}" for key, value in pairs)
        cells.append(
            (
                str(row["trial"]),
                point,
                f"{row['dev_accuracy']:.3f}",
                f"{row['test_accuracy']:.3f}",
                f"{row['p50_ms']:.3f}",
                "" if ratio is None else f"{ratio['value']:.2f}",
                f"{row['kept_share']:.2f}",
                f"{row['flops_share']:.2f}",
                f"{row['size_bytes'] / 1e6:.1f}",
                "yes" if row["on_front"] else "",
            )
        )
    for plain in content["plain"]:
        if plain["failed"]:
            continue
        figures = (f"{plain[name]:.3f}" for name in ("dev_accuracy", "test_accuracy", "p50_ms"))
        title = f"plain classifier of {_users(content, plain['name'])}"
        cells.append(("", title, *figures, "1.00", "1.00", "1.00", "", ""))
    return cells


def failures(content: Mapping[str, Any]) -> list[str]:
    """What failed and why, a line each."""
    found = [
        f"trial {row['trial']} ({' '.join(row['overrides'])}) failed: {row['failed']}"
        for row in content["rows"]
        if row["failed"]
    ]
    return found + [
        f"plain classifier of {_users(content, plain['name'])} failed: {plain['failed']}"
        for plain in content["plain"]
        if plain["failed"]
    ]


def _users(content: Mapping[str, Any], plain: str) -> str:
    return ", ".join(str(row["trial"]) for row in content["rows"] if row.get("plain") == plain)


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its shortest end that no other key has."""
    ends = {key: [key.split(".", cut)[-1] for cut in range(key.count("."), -1, -1)] for key in keys}
    counted = Counter(end for some in ends.values() for end in some)
    return {key: next(end for end in some if counted[end] == 1) for key, some in ends.items()}


def sweep_table(content: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for cells in table_rows(content):
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    lines += ["", *(f"- {failure}" for failure in failures(content))]
    return "\n".join(lines).rstrip() + "\n\n" + setting(content) + "\n"


def setting(content: Mapping[str, Any]) -> str:
    """How to read the table, in words."""
    latency, machine = content["latency"], content["hardware"]
    passed = [row for row in content["rows"] if not row["failed"]]
    words = [f"Recipe `{content['recipe']}`, target `{content['target']}`"]
    if passed and latency is not None:
        words.append(
            f"Accuracy of the exported files on {passed[0]['dev_examples']} development and "
            f"{passed[0]['test_examples']} test examples; the front is that of development "
            "accuracy, latency and share of tokens kept, so the test accuracy is the one to quote"
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
