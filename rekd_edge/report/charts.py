"""Small charts as inline SVG: no script, no fonts, no styles of their own (the page's classes).

All are 360 units wide, so that a phone shows them at about the size they are drawn for; several
stand side by side on a wide screen. Series differ by dash and marker, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rekd_edge.report.content import FrontPoint, Timing

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 24.0, 40.0
MOST_POINTS = 200


@dataclass(frozen=True, slots=True)
class Series:
    """A line; ``marked`` draws a mark at each point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale between two ends, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    percent: bool = False

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round values inside the axis, four or so."""
        step = _round_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def label(self, value: float) -> str:
        if self.percent:
            return f"{value * 100:.4g} %"
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e5 else f"{value:.4g}"


def _round_step(step: float) -> float:
    power = 10 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999)


def _axis(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    bounds: tuple[float | None, float | None] = (None, None),
    percent: bool = False,
) -> Axis:
    low = min(values) if bounds[0] is None else bounds[0]
    high = max(values) if bounds[1] is None else bounds[1]
    if high - low < 1e-12:
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    room = (high - low) * 0.06
    low = low - room if bounds[0] is None else low
    high = high + room if bounds[1] is None else high
    return Axis(low, high, start, end, percent)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    description: str,
    bounds: tuple[float | None, float | None] = (None, None),
    percent: bool = False,
    x_percent: bool = False,
    diagonal: bool = False,
) -> Markup:
    """Lines over a common axis. ``bounds`` fixes the ends of y; ``diagonal`` draws y = x."""
    thinned = [_thinned(one) for one in series]
    xs = [x for one in thinned for x in one.x]
    ys = [y for one in thinned for y in one.y]
    x_bounds = (0.0, 1.0) if x_percent else (min(0.0, *xs) if len(xs) > 1 else None, None)
    x = _axis(xs, LEFT, WIDTH - RIGHT, bounds=x_bounds, percent=x_percent)
    y = _axis(ys, HEIGHT - BOTTOM, TOP, bounds=bounds, percent=percent)
    parts = [_frame(x, y, x_label, y_label)]
    if diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        parts.append(
            Markup('<path class="diagonal" d="M{} {}L{} {}"/>').format(
                *map(_n, (x.place(low), y.place(low), x.place(high), y.place(high)))
            )
        )
    for position, one in enumerate(thinned):
        style = f"s{position % 4}"
        points = [(x.place(a), y.place(b)) for a, b in zip(one.x, one.y, strict=True)]
        path = "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in points)
        parts.append(Markup('<path class="line {}" d="{}"/>').format(style, path))
        if one.marked:
            parts += [_mark(position, a, b) for a, b in points]
    return _svg(title, description, parts, HEIGHT) + _key([one.name for one in series])


def _thinned(series: Series) -> Series:
    if len(series.x) <= MOST_POINTS:
        return series
    step = math.ceil(len(series.x) / MOST_POINTS)
    keep = sorted({*range(0, len(series.x), step), len(series.x) - 1})
    return Series(
        series.name, [series.x[i] for i in keep], [series.y[i] for i in keep], series.marked
    )


def front_chart(
    title: str,
    points: Sequence[FrontPoint],
    description: str,
    *,
    score: str = "accuracy",
    percent: bool = True,
) -> Markup:
    """The score against latency; points carry the number of their row in the table beside it. The
    stairs join what nothing else beats."""
    height = 280.0
    x = _axis([0.0, *(p.latency_ms for p in points)], LEFT, WIDTH - RIGHT, bounds=(0.0, None))
    accuracies = [p.accuracy for p in points]
    room = max(0.01, (max(accuracies) - min(accuracies)) * 0.2)
    low = min(accuracies) - room
    ends = (low if min(accuracies) < 0 else max(0.0, low), min(1.0, max(accuracies) + room))
    y = _axis(accuracies, height - BOTTOM, TOP, bounds=ends, percent=percent)
    parts = [_frame(x, y, "median latency, ms (left is faster)", score, height)]
    stairs = sorted((p.latency_ms, p.accuracy) for p in points if p.on_front)
    if stairs:
        path = f"M{_n(x.place(stairs[0][0]))} {_n(y.place(stairs[0][1]))}"
        for latency, accuracy in stairs[1:]:
            path += f"H{_n(x.place(latency))}V{_n(y.place(accuracy))}"
        path += f"H{_n(WIDTH - RIGHT)}"
        parts.append(Markup('<path class="stairs" d="{}"/>').format(path))
    for number, point in enumerate(points, 1):
        a, b = x.place(point.latency_ms), y.place(point.accuracy)
        kind = "ours" if point.ours else "other"
        kind += " front" if point.on_front else ""
        if point.ours:
            parts.append(
                Markup('<circle class="point {}" cx="{}" cy="{}" r="6"/>').format(
                    kind, _n(a), _n(b)
                )
            )
        else:
            parts.append(
                Markup('<rect class="point {}" x="{}" y="{}" width="11" height="11"/>').format(
                    kind, _n(a - 5.5), _n(b - 5.5)
                )
            )
        # The label stands on the side that has room.
        left = a > WIDTH - RIGHT - 24
        parts.append(
            Markup('<text class="number" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                _n(a - 10 if left else a + 10), _n(b - 8), "end" if left else "start", number
            )
        )
    return _svg(title, description, parts, height)


def dot_chart(
    title: str,
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    description: str,
) -> Markup:
    """A dot for each pair over one scale for both axes, and the line y = x."""
    height = 300.0
    every = [*xs, *ys]
    x = _axis(every, LEFT, WIDTH - RIGHT)
    y = _axis(every, height - BOTTOM, TOP)
    ends = map(_n, (x.place(x.low), y.place(x.low), x.place(x.high), y.place(x.high)))
    # A line of next to no length with round ends is a dot, and shorter than a circle.
    path = "".join(f"M{_n(x.place(a))} {_n(y.place(b))}h.01" for a, b in zip(xs, ys, strict=True))
    parts = [
        _frame(x, y, x_label, y_label, height),
        Markup('<path class="diagonal" d="M{} {}L{} {}"/>').format(*ends),
        Markup('<path class="dots" d="{}"/>').format(path),
    ]
    return _svg(title, description, parts, height)


def bar_chart(
    title: str,
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    x_label: str,
    y_label: str,
    description: str,
) -> Markup:
    """A bar of each count between its two ``edges``, one more of these; a line marks 0."""
    height = 300.0
    x = _axis(edges, LEFT, WIDTH - RIGHT)
    y = _axis([0.0, *counts], height - BOTTOM, TOP, bounds=(0.0, None))
    parts = [_frame(x, y, x_label, y_label, height)]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, top = x.place(low), y.place(count)
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
                *map(_n, (left, top, max(0.5, x.place(high) - left), y.start - top))
            )
        )
    if x.low <= 0 <= x.high:
        parts.append(
            Markup('<path class="diagonal" d="M{} {}V{}"/>').format(
                *map(_n, (x.place(0.0), y.start, y.end))
            )
        )
    return _svg(title, description, parts, height)


def timing_chart(title: str, timings: Sequence[Timing], description: str) -> Markup:
    """A bar for each file: 5 to 95 % of its queries (thin), the middle half (thick), the median."""
    row = 46.0
    height = 12 + row * len(timings) + BOTTOM
    largest = max(t.quantiles[6] for t in timings)
    x = _axis([0.0, largest], 8.0, WIDTH - RIGHT, bounds=(0.0, None))
    parts = [_x_axis(x, "milliseconds for one query", height)]
    for position, timing in enumerate(timings):
        y = 12 + row * position
        _, low, first, median, third, high, top = map(x.place, timing.quantiles)
        middle = y + 29
        parts.append(
            Markup(
                '<text class="name" x="8" y="{}">{}</text>'
                '<path class="range" d="M{} {}H{}"/><rect class="half" x="{}" y="{}" width="{}" '
                'height="14"/><path class="median" d="M{} {}V{}"/>'
                '<path class="tail" d="M{} {}V{}"/>'
            ).format(
                _n(y + 14),
                _short(timing.name, 46),
                *map(_n, (low, middle, high, first, middle - 7, max(1.0, third - first))),
                *map(_n, (median, middle - 10, middle + 10, top, middle - 4, middle + 4)),
            )
        )
    return _svg(title, description, parts, height)


def _frame(x: Axis, y: Axis, x_label: str, y_label: str, height: float = HEIGHT) -> Markup:
    parts = [_x_axis(x, x_label, height)]
    for tick in y.ticks:
        place = _n(y.place(tick))
        parts.append(
            Markup(
                '<path class="grid" d="M{} {}H{}"/><text class="tick" x="{}" y="{}" '
                'text-anchor="end">{}</text>'
            ).format(
                _n(LEFT),
                place,
                _n(WIDTH - RIGHT),
                _n(LEFT - 5),
                _n(y.place(tick) + 4),
                y.label(tick),
            )
        )
    parts.append(Markup('<text class="axis" x="2" y="10">{}</text>').format(y_label))
    return Markup("").join(parts)


def _x_axis(x: Axis, label: str, height: float) -> Markup:
    bottom = height - BOTTOM
    parts = [
        Markup('<path class="base" d="M{} {}H{}"/>').format(_n(x.start), _n(bottom), _n(x.end))
    ]
    for tick in x.ticks:
        place = x.place(tick)
        anchor = "end" if place > WIDTH - 20 else "middle"
        parts.append(
            Markup(
                '<path class="base" d="M{} {}v4"/><text class="tick" x="{}" y="{}" '
                'text-anchor="{}">{}</text>'
            ).format(_n(place), _n(bottom), _n(place), _n(bottom + 17), anchor, x.label(tick))
        )
    middle = _n((x.start + x.end) / 2)
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            middle, _n(height - 5), label
        )
    )
    return Markup("").join(parts)


def _mark(position: int, x: float, y: float) -> Markup:
    shape = position % 4
    if shape == 0:
        return Markup('<circle class="mark s0" cx="{}" cy="{}" r="4"/>').format(_n(x), _n(y))
    if shape == 1:
        return Markup('<rect class="mark s1" x="{}" y="{}" width="8" height="8"/>').format(
            _n(x - 4), _n(y - 4)
        )
    turned = -1 if shape == 2 else 1
    path = f"M{_n(x - 5)} {_n(y - 4 * turned)}h10l-5 {_n(9 * turned)}z"
    return Markup('<path class="mark s{}" d="{}"/>').format(shape, path)


def _key(names: Sequence[str]) -> Markup:
    if len(names) < 2:
        return Markup("")
    items = [
        Markup(
            '<li><svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">'
            '<path class="line s{}" d="M1 6H33"/>{}</svg>{}</li>'
        ).format(position % 4, _mark(position, 17, 6), name)
        for position, name in enumerate(names)
    ]
    return Markup('<ul class="key">{}</ul>').format(Markup("").join(items))


def _svg(title: str, description: str, parts: Sequence[Markup], height: float) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(_n(WIDTH), _n(height), f"{title}. {description}", Markup("").join(parts))


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _n(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
