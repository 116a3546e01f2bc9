"""The front as a picture: accuracy against latency, with the rationale's size as colour and size.

The same figures give the same bytes, so a picture under version control changes with its data.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rekd_edge.errors import BackendError
from rekd_edge.pareto import on_front

try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError as error:
    raise BackendError(
        "drawing a front needs the package matplotlib", hint="pip install 'rekd-edge[sweep]'"
    ) from error

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "rekd-edge",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
PLAIN_COLOUR, LINE_COLOUR = "#c0392b", "#555555"


def draw_front(content: Mapping[str, Any]) -> bytes:
    """`sweep.json` as an SVG; points carry their trial's number."""
    passed = sorted(
        (row for row in content["rows"] if not row["failed"]), key=lambda row: row["p50_ms"]
    )
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the bytes
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.add_subplot()
        _draw_trials(figure, axes, passed)
        _draw_plain(axes, content)
        validity = (content["latency"] or {}).get("result_validity", "not measured")
        axes.set_title(f"{content['recipe']} ({content['target']}, {validity})", loc="left")
        axes.set_xlabel("median latency, ms (1 thread, one example a query)")
        axes.set_ylabel("accuracy, development split")
        axes.margins(0.12)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", frameon=False, fontsize=9)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()


def _draw_trials(figure: Figure, axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    x, y, kept = ([row[name] for row in rows] for name in ("p50_ms", "dev_accuracy", "kept_share"))
    front = [row for row in rows if row["on_front"]]
    step = on_front([(row["dev_accuracy"], -row["p50_ms"]) for row in rows])
    stairs = [row for row, on in zip(rows, step, strict=True) if on]
    axes.plot(
        [row["p50_ms"] for row in stairs],
        [row["dev_accuracy"] for row in stairs],
        drawstyle="steps-post",
        color=LINE_COLOUR,
        linewidth=1.2,
        zorder=2,
        label="front of accuracy and latency",
    )
    axes.vlines(
        [row["p50_ms"] for row in front],
        [row["dev_accuracy"] for row in front],
        [row["test_accuracy"] for row in front],
        color=LINE_COLOUR,
        linewidth=0.8,
        linestyle=":",
        zorder=2,
    )
    axes.scatter(
        [row["p50_ms"] for row in front],
        [row["test_accuracy"] for row in front],
        marker="_",
        s=50,
        color=LINE_COLOUR,
        zorder=3,
        label="its test accuracy",
    )
    points = axes.scatter(
        x,
        y,
        s=[40 + 260 * share for share in kept],
        c=kept,
        cmap="viridis",
        vmin=0.0,
        vmax=max(*kept, 0.01),
        edgecolors=["black" if row["on_front"] else "none" for row in rows],
        linewidths=1.4,
        alpha=[1.0 if row["on_front"] else 0.45 for row in rows],
        zorder=4,
    )
    axes.scatter(
        [],
        [],
        s=80,
        facecolors="none",
        edgecolors="black",
        linewidths=1.4,
        label="on the front of all three",
    )
    for row in rows:
        axes.annotate(
            str(row["trial"]),
            (row["p50_ms"], row["dev_accuracy"]),
            xytext=(-7, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            zorder=5,
        )
    figure.colorbar(points, ax=axes, label="share of tokens kept")


def _draw_plain(axes: Any, content: Mapping[str, Any]) -> None:
    drawn = [plain for plain in content["plain"] if plain["p50_ms"] is not None]
    if not drawn:
        return
    axes.scatter(
        [plain["p50_ms"] for plain in drawn],
        [plain["dev_accuracy"] for plain in drawn],
        marker="D",
        s=55,
        color=PLAIN_COLOUR,
        zorder=4,
        label="plain classifier",
    )
    for plain in drawn if len(drawn) > 1 else []:
        users = [row["trial"] for row in content["rows"] if row.get("plain") == plain["name"]]
        axes.annotate(
            f"of {', '.join(map(str, users[:6]))}{' ...' if len(users) > 6 else ''}",
            (plain["p50_ms"], plain["dev_accuracy"]),
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=PLAIN_COLOUR,
        )


def write_front(content: Mapping[str, Any], path: Path) -> None:
    """Writes :func:`draw_front` atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(draw_front(content))
    temporary.replace(path)
