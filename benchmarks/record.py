"""Turns the result of a comparison, a suite or a latency suite into a recorded one: NAME.json and
its table NAME.md.

python benchmarks/record.py movie-review-snippets runs/demo/summary.json --command "make demo"
python benchmarks/record.py accuracy runs/text/suite.json runs/cifar10/suite.json \\
    --command "rekd-edge suite ..." --command "rekd-edge suite ..."
python benchmarks/record.py latency runs/accuracy-text/latency.json \\
    runs/accuracy-cifar10-cpu/latency.json --command "make bench" --command "make bench"

Several results make one record: NAME.json then holds them as `tables`.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROWS = {
    "teacher": ("teacher rationalist", None),
    "plain_student": ("plain student, all tokens", "plain"),
    "extract_student": ("student without teacher", None),
    "rekd_student": ("**REKD student**", "gathered"),
}


def table(summary: dict[str, Any]) -> str:
    """The result as Markdown; every figure is read from ``summary``."""
    if "latency_suite" in summary:
        from rekd_edge.latency_suite import latency_table

        return f"{latency_table(summary)}\n{summary['date']}. `{summary['command']}`\n"
    if "faithfulness" in summary:
        return quality_table(summary)
    if "suite" in summary:
        from rekd_edge.suite import suite_table

        return f"{suite_table(summary)}\n{summary['date']}. `{summary['command']}`\n"
    latency = summary.get("latency_ratio", {})
    candidates = summary.get("bench", {}).get("candidates", {})
    lines = ["| model | test accuracy | latency | p50 ms |", "|---|---|---|---|"]
    for row, (title, timed) in ROWS.items():
        spread = summary["accuracy_spread"][row]
        accuracy = f"{summary['accuracy'][row]:.3f}" + (f" ± {spread:.3f}" if spread else "")
        lines.append(f"| {title} | {accuracy} | {_latency(latency, candidates, timed)} |")
    if "masked" in latency:
        title = "published masking, same selector"
        lines.append(f"| {title} | | {_latency(latency, candidates, 'masked')} |")
    gains = ", ".join(f"{gain * 100:+.1f}" for gain in summary["rekd_minus_extract_per_seed"])
    hardware = summary["hardware"]
    facts = [
        f"Recipe `{summary['recipe']}`, ratio {summary['rationale_ratio']}, "
        f"{summary['examples']['test']} test examples, seeds {summary['seeds']} "
        "(mean ± sample standard deviation).",
        f"REKD minus no teacher, points per seed: {gains}.",
        f"{hardware['processor']}, {hardware['cores']} cores, {summary['date']}, "
        f"torch {summary['versions']['torch']}, "
        f"onnxruntime {summary['versions'].get('onnxruntime', '-')}. `{summary['command']}`",
    ]
    if latency:
        bench = summary["bench"]
        facts.append(
            f"Latency: ONNX Runtime, {bench['threads']} thread, batch 1, median relative to the "
            f"plain student in one interleaved run over {bench['input_count']} test inputs "
            f"({bench['result_validity']}); first seed."
        )
    return "\n".join(lines) + "\n\n" + "\n".join(facts) + "\n"


def quality_table(report: dict[str, Any]) -> str:
    """What `rekd-edge evaluate RUN --against OTHER...` found of the rationales of several runs."""
    lines = ["| beside | shared (Jaccard) | the same | by chance |", "|---|---|---|---|"]
    for other in report["stability"]["runs"]:
        overlap = other["overlap"]
        lines.append(
            f"| {other['run']} | {overlap['jaccard']:.3f} | {overlap['exact']:.3f} "
            f"| {overlap['chance_jaccard']:.3f} |"
        )
    facts = [
        f"Rationales of `{report['run']}` (recipe `{report['recipe']}`, ratio "
        f"{report['rationale_ratio']}) on {report['examples']} examples of the {report['split']} "
        "split beside those of other runs."
    ]
    for gold in report["gold"]:
        if gold["scores"] is not None:
            scores = gold["scores"]
            facts.append(
                f"Against {gold['name']}: token F1 {scores['token_macro']['f1']:.3f}, span F1 "
                f"{scores['iou_macro']['f1']:.3f}, AUPRC {scores['auprc']:.3f}; "
                f"{scores['gold_share']:.3f} of the tokens are gold."
            )
    facts.append(f"{report['date']}. `{report['command']}`")
    return "\n".join(lines) + "\n\n" + "\n".join(facts) + "\n"


def portable(report: dict[str, Any]) -> dict[str, Any]:
    """``report`` with runs named by row and seed instead of by the path where they lay."""
    others = report["stability"]["runs"]
    judged = report["faithfulness"]
    for held, key in ((report, "run"), (judged, "judge"), *((other, "run") for other in others)):
        words = str(held[key]).split(" ")
        held[key] = " ".join([*words[:-1], "/".join(Path(words[-1]).parts[-2:])])
    return report


def _latency(latency: dict[str, float], candidates: dict[str, Any], name: str | None) -> str:
    if name is None or name not in latency:
        return "|"
    median = candidates[name]["result_50_percentile_latency_ns"] / 1e6
    return f"{latency[name]:.2f}x | {median:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("summaries", type=Path, nargs="+", metavar="summary")
    parser.add_argument(
        "--command", action="append", required=True, help="what made it; once for each summary"
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if len(options.command) != len(options.summaries):
        parser.error(f"{len(options.summaries)} summaries, {len(options.command)} --command")
    tables = []
    for path, command in zip(options.summaries, options.command, strict=True):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if "faithfulness" in summary:
            summary = portable(summary)
        summary["command"] = command
        summary["date"] = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
        tables.append(summary)
    options.results.mkdir(exist_ok=True)
    twin = options.results / f"{options.name}.json"
    content = tables[0] if len(tables) == 1 else {"name": options.name, "tables": tables}
    twin.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = f"# {options.name}\n"
    for summary in tables:
        name = summary["data"]["name"] if "data" in summary else summary["recipe"]
        title = f"\n## {name}\n" if len(tables) > 1 else ""
        text += f"{title}\n{table(summary)}"
    (options.results / f"{options.name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
