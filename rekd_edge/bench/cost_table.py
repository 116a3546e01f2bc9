"""The curves of :mod:`rekd_edge.bench.costs` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNITS = {
    "ratio": "share kept",
    "tokens": "tokens",
    "image_size": "pixels a side",
    "batch": "examples",
    "depth": "blocks",
}


def cost_table(report: Mapping[str, Any]) -> str:
    """One table for each curve, under what was measured and how to read it."""
    machine, plan = report["machine"], report["plan"]
    lines = [
        "# How cost grows",
        "",
        f"{machine['cpu']}, {plan['threads']} thread(s), ONNX Runtime "
        f"{machine.get('onnxruntime', '?')}, fp32, random weights, "
        f"{'QUICK: these figures mean nothing' if report['quick'] else _dates(report)}.",
        "",
        "*Gathered* is the fused rationalist, *plain* the classifier of the same predictor that "
        "reads everything. Milliseconds are medians, each row from one interleaved run. *Of "
        "bound*: the time that the form's matrix products would take at the peak of that run (the "
        "faster of a large square and the widest layer, alone), over the time that it took. "
        "*Other*: the share of the operators' time that is neither a product with weights nor "
        "attention. *MB*: the peak of a fresh process.",
    ]
    for curve in report["curves"]:
        lines += ["", f"## {curve['modality']}: {curve['axis'].replace('_', ' ')}", ""]
        lines += [f"Elsewhere {_base(curve)}.", ""]
        head = ("gathered ms", "plain ms", "ratio", "of bound", "plain: of bound")
        head += ("other", "plain: other", "MB", "plain: MB", "peak GFLOP/s", "GB/s")
        lines.append(f"| {UNITS[curve['axis']]} | " + " | ".join(head) + " |")
        lines.append("|" + "---|" * (len(head) + 1))
        lines += [_row(point, curve["axis"]) for point in curve["points"]]
    return "\n".join(lines) + "\n"


def _base(curve: Mapping[str, Any]) -> str:
    point = curve["points"][0]["point"]
    stated = {"ratio": "ratio {}", "batch": "batch {}", "depth": "{} blocks"}
    stated |= {"tokens": "{} tokens"} if curve["modality"] == "text" else {"image_size": "{} px"}
    return ", ".join(
        form.format(f"{point[name]:g}") for name, form in stated.items() if name != curve["axis"]
    )


def _row(point: Mapping[str, Any], axis: str) -> str:
    mine, plain = point["forms"]["gathered"], point["forms"]["plain"]
    ratio, limits = mine["ratio_to_plain"], point["limits"]
    cells = (
        f"{point['point'][axis]:g}",
        f"{mine['latency_ms']['p50']:.2f}",
        f"{plain['latency_ms']['p50']:.2f}",
        f"{ratio['value']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
        f"{mine['share_of_bound']:.2f}",
        f"{plain['share_of_bound']:.2f}",
        f"{mine['time_shares']['other']:.2f}",
        f"{plain['time_shares']['other']:.2f}",
        _megabytes(mine["peak_rss_bytes"]),
        _megabytes(plain["peak_rss_bytes"]),
        f"{limits['peak_gflops_per_s']:.0f}",
        f"{limits['bandwidth_gb_per_s']:.1f}",
    )
    return "| " + " | ".join(cells) + " |"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"


def _dates(report: Mapping[str, Any]) -> str:
    days = sorted({point["date"][:10] for c in report["curves"] for point in c["points"]})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
