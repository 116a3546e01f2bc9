"""The curves of :mod:`rekd_edge.bench.costs` as SVG files, the same bytes for the same figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rekd_edge.bench.cost_table import UNITS
from rekd_edge.errors import BackendError

COLOURS = {"gathered": "#0072B2", "plain": "#D55E00"}
"""Told apart by all forms of colour blindness (Okabe and Ito)."""
MARKERS = {"gathered": "o", "plain": "s"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "rekd-edge",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def require_matplotlib() -> None:
    """Raises :class:`BackendError` without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "drawing needs the package matplotlib", hint="pip install 'rekd-edge[figures]'"
        ) from error


def draw_costs(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """One file for each curve, and ``roofline.svg``; returns their paths."""
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    written = []
    with mpl.rc_context(STYLE):
        for curve in report["curves"]:
            figure = Figure(figsize=(10.5, 3.2), layout="constrained")
            _curve(figure.subplots(1, 3), curve)
            written.append(folder / f"{curve['modality']}-{curve['axis']}.svg")
            _save(figure, written[-1])
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        _roofline(figure.subplots(), report)
        written.append(folder / "roofline.svg")
        _save(figure, written[-1])
    return written


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _curve(panels: Sequence[Any], curve: Mapping[str, Any]) -> None:
    latency, memory, shares = panels
    points, axis = curve["points"], curve["axis"]
    across = [point["point"][axis] for point in points]

    def values(form: str, name: str) -> list[float]:
        return [point["forms"][form][name] for point in points]

    for form, colour in COLOURS.items():
        look = {"color": colour, "marker": MARKERS[form], "markersize": 4}
        spread = [point["forms"][form]["latency_ms"] for point in points]
        latency.plot(across, [one["p50"] for one in spread], label=form, **look)
        low, high = ([one[name] for one in spread] for name in ("p10", "p90"))
        latency.fill_between(across, low, high, color=colour, alpha=0.15, linewidth=0)
        bound = values(form, "bound_ms")
        latency.plot(across, bound, color=colour, linestyle=":", label=f"{form}: products at peak")
        resident = [point["forms"][form]["peak_rss_bytes"] for point in points]
        if None not in resident:
            memory.plot(across, [size / 1e6 for size in resident], label=form, **look)
        shares.plot(across, values(form, "share_of_bound"), label=f"{form}: of bound", **look)
        other = [point["forms"][form]["time_shares"]["other"] for point in points]
        shares.plot(across, other, color=colour, linestyle="--", label=f"{form}: other time")
    titles = ("latency, ms", "peak memory, MB", "share")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, loc="left")
        panel.set_xlabel(UNITS[axis])
        panel.set_xscale("log", base=2)
        panel.set_xticks(across, [f"{value:g}" for value in across])
        panel.minorticks_off()
    latency.set_yscale("log")
    memory.set_ylim(bottom=0)
    shares.set_ylim(0, 1)
    latency.legend(fontsize=7, frameon=False)
    shares.legend(fontsize=7, frameon=False)


def _roofline(panel: Any, report: Mapping[str, Any]) -> None:
    """Operations a second over operations a byte of the products' operands. The roof is the median
    of what was measured beside the points."""
    points = {
        tuple(point["point"].values()): point
        for curve in report["curves"]
        for point in curve["points"]
    }
    peak = median([point["limits"]["peak_gflops_per_s"] for point in points.values()])
    bandwidth = median([point["limits"]["bandwidth_gb_per_s"] for point in points.values()])
    for form, colour in COLOURS.items():
        for modality, filled in (("text", True), ("image", False)):
            chosen = [
                p["forms"][form] for p in points.values() if p["point"]["modality"] == modality
            ]
            if not chosen:
                continue
            panel.scatter(
                [one["flops"] / one["product_bytes"] for one in chosen],
                [one["gflops_per_s"] for one in chosen],
                s=18,
                marker=MARKERS[form],
                facecolor=colour if filled else "none",
                edgecolor=colour,
                label=f"{form}, {modality}",
            )
    panel.set_xscale("log")
    panel.set_yscale("log")
    knee = peak / bandwidth
    left, right = panel.get_xlim()
    low, high = (10.0 ** math.floor(math.log10(min(left, knee / 2)))), max(right, knee * 4)
    panel.plot([low, knee, high], [low * bandwidth, peak, peak], color="black", linewidth=1)
    panel.annotate(f"matrix products: {peak:.0f} GFLOP/s", (knee, peak * 1.05), fontsize=8)
    middle = math.sqrt(low * knee)
    panel.annotate(
        f"memory: {bandwidth:.1f} GB/s ", (middle, middle * bandwidth), fontsize=8, ha="right"
    )
    panel.set_xlabel("operations a byte of the products' operands")
    panel.set_ylabel("GFLOP/s")
    panel.legend(fontsize=7, frameon=False, loc="lower right")
