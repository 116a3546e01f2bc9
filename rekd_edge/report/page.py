"""One self-contained HTML file: no script, no network, and a policy in it that forbids both."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rekd_edge.calibrate.probabilities import ECE_BINS
from rekd_edge.errors import UsageError
from rekd_edge.report import charts
from rekd_edge.report.content import (
    Answer,
    Bench,
    Box,
    Confidence,
    Example,
    Front,
    ModelResult,
    ReportContent,
    Span,
    Timing,
    Training,
    ValueFigures,
)
from rekd_edge.report.examples import Segment, State, compare_boxes, joined, segments, visible
from rekd_edge.report.kinds import kind_for, number
from rekd_edge.report.statistics import wilson_interval

TEMPLATE, STYLE = "page.html.j2", "style.css"
FOLDER = Path(__file__).resolve().parent
LONGEST_TEXT = 4_000
"""Characters of a text that are shown."""
MOST_CLASSES = 20
"""More classes than this get a list of confusions instead of a table."""
MOST_CONFUSIONS = 30
MOST_DOTS = 1_000
"""Examples that a figure of values shows."""
MOST_TARGETS = 6
"""Targets that have figures."""
MOST_PLACES = 8
"""Patches or regions whose places are said in words below a picture."""
ERROR_QUANTILES = (5, 25, 50, 75, 95)
"""Percent."""
_PROBABILITIES = {
    True: "Probabilities of files are those that their runtimes give, calibrated where the bundle "
    "says how; those of teacher and student are not calibrated.",
    False: "Probabilities are the models' own, not calibrated.",
}
"""By whether there are files."""
CASE_WORDS = {
    "agree": "both students give this answer",
    "first_convinces": "they disagreed, and only the rationale of the student convinced the other",
    "partner_convinces": "they disagreed, and only the rationale of the partner convinced the "
    "other",
    "confidence": "they disagreed, and both rationales convinced the other or neither did; the "
    "surer one answers",
}
"""What decided between two students (docs/ensemble.md)."""
_HASH = re.compile(r"^[0-9a-f]{64}$")
_PIECES = {"token": "tokens", "patch": "patches", "region": "regions"}
"""What rationales are counted in, one and several."""


def fit_page(content: ReportContent, *, max_bytes: int) -> tuple[str, ReportContent]:
    """The page, and what it shows: where it would be larger than ``max_bytes``, examples are left
    out, the last of each group first, and the page says so.

    Raises:
        UsageError: it is too large without any example.
    """
    everything, notes = content.examples, content.notes
    page = render_page(content)
    while len(page.encode()) > max_bytes and content.examples:
        longest = max(len(group.examples) for group in content.groups)
        groups = tuple(
            replace(group, examples=group.examples[: longest // 2]) for group in content.groups
        )
        groups = tuple(group for group in groups if group.examples)
        content = replace(content, groups=groups)
        note = (
            f"{everything - content.examples} of {everything} examples were left out to keep this "
            f"page under {max_bytes / 1e6:g} MB."
        )
        content = replace(content, notes=(*notes, note))
        page = render_page(content)
    if len(page.encode()) > max_bytes:
        raise UsageError(
            f"the page has {len(page.encode()) / 1e6:.1f} MB without any example, more than "
            f"{max_bytes / 1e6:g} MB",
            hint="allow more with --max-size-mb, or name fewer bundles",
        )
    return page, content


def render_page(content: ReportContent) -> str:
    """``content`` as HTML. Every text in it is escaped, and no character of it steers a reader's
    screen (:func:`~rekd_edge.report.examples.visible`)."""
    kind = kind_for(content.problem)
    style = (FOLDER / STYLE).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            content=content,
            policy=policy,
            style=Markup(style),  # noqa: S704 - the package's own file, and hashed in the policy
            template=kind.template,
            scored=kind.format,
            units=_units(content),
            primary=content.result(content.primary),
            timed=_timed(content),
            bins=ECE_BINS,
            calibrated=any(found is not None for _, found in content.calibrations),
            probabilities=_PROBABILITIES[bool(content.calibrations)],
            withheld=any(
                answer.withheld
                for group in content.groups
                for example in group.examples
                for answer in example.answers
            ),
            interval=wilson_interval,
            confusion_table=_confusion_table,
            confusions=_confusions,
            most_classes=MOST_CLASSES,
            text_segments=functools.partial(text_segments, whole=content.unit != "token"),
            rows=rows,
            boxes=_boxes,
            pieces_of=lambda example, answer: _PIECES[_piece(example, answer)],
            difference=functools.partial(difference, whole=content.unit != "token"),
            decided=functools.partial(decided, whole=content.unit != "token"),
            two_answer=any(
                answer.decision
                for group in content.groups
                for example in group.examples
                for answer in example.answers
            ),
            left_out=_left_out,
            dev_chart=functools.partial(_dev_chart, score=kind.score, percent=kind.in_percent),
            loss_charts=_loss_charts,
            timing_chart=_timing_chart,
            front_chart=functools.partial(_front_chart, score=kind.score, percent=kind.in_percent),
            risk_chart=_risk_chart,
            calibration_chart=_calibration_chart,
            label_calibration_chart=_label_calibration_chart,
            value_chart=_value_chart,
            error_chart=_error_chart,
            error_quantiles=_error_quantiles,
            quantiles=ERROR_QUANTILES,
            most_dots=MOST_DOTS,
            most_targets=MOST_TARGETS,
        )
    )
    return visible(page)


def _units(content: ReportContent) -> dict[str, str]:
    """Words for the input, for what is scored, and for what is kept and counted."""
    token = "token" if content.modality == "text" else "patch"
    piece = "region" if content.unit == "region" else token
    counted = {"piece": piece, "pieces": _PIECES[piece], "tokens": _PIECES[token]}
    return {"input": content.modality, **counted}


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "number": number,
        "signed": _signed,
        "fact": _fact,
        "data_uri": _data_uri,
        "margin": _margin,
        "place": _place,
        "count": lambda value: f"{value:,}",
    }
    return environment


def text_segments(
    example: Example, answer: Answer, longest: int | None = LONGEST_TEXT, *, whole: bool = False
) -> tuple[Segment, ...]:
    """The example's text up to ``longest`` characters, marked with this answer's rationale;
    ``whole``: whether words or sentences are kept whole, and so marked whole."""
    assert example.text is not None
    other = _reference(example, answer)
    found = segments(
        example.text[:longest],
        [part for part in answer.evidence if isinstance(part, Span)],
        None if other is None else [part for part in other.evidence if isinstance(part, Span)],
    )
    return joined(found) if whole else found


def rows(example: Example) -> tuple[tuple[Answer, ...], ...]:
    """Answers of one label from one rationale together, each beside what it is compared with."""
    found: list[list[Answer]] = []
    for answer in example.answers:
        for group in found:
            same = group[0].label == answer.label and group[0].evidence == answer.evidence
            if same and answer.reference in {one.model for one in group}:
                group.append(answer)
                break
        else:
            found.append([answer])
    return tuple(map(tuple, found))


def _left_out(example: Example) -> int:
    """Characters of the text that are not shown."""
    return max(0, len(example.text or "") - LONGEST_TEXT)


def _boxes(example: Example, answer: Answer) -> tuple[tuple[Box, State], ...]:
    other = _reference(example, answer)
    return compare_boxes(
        [part for part in answer.evidence if isinstance(part, Box)],
        None if other is None else [part for part in other.evidence if isinstance(part, Box)],
    )


def _piece(example: Example, answer: Answer) -> str:
    """What its rationale is counted in."""
    if example.text is not None:
        return "token"
    return "region" if answer.regions else "patch"


def _counted(count: int, piece: str) -> str:
    return f"{count} {piece if count == 1 else _PIECES[piece]}"


def _reference(example: Example, answer: Answer) -> Answer | None:
    return next((one for one in example.answers if one.model == answer.reference), None)


def difference(example: Example, answer: Answer, *, whole: bool = False) -> str:
    """In words, how this rationale differs from the one it is compared with; empty without one."""
    other = _reference(example, answer)
    if other is None:
        return ""
    if example.text is None:
        states = [state for _, state in _boxes(example, answer)]
        only, missing = states.count("only"), states.count("missing")
        mine, theirs = _piece(example, answer), _piece(example, other)
        if mine != theirs:
            if not only and not missing:
                return f"about the same area as {other.model}"
            counts = f"{_counted(only, mine)} only here, {_counted(missing, theirs)} not here"
            return f"against {other.model}: {counts}"
        if not only and not missing:
            return f"same {_PIECES[mine]} as {other.model}"
        return f"against {other.model}: {only} only here, {missing} not here"
    found = text_segments(example, answer, longest=None, whole=whole)
    parts = [
        f"{words}: {', '.join(quoted)}"
        for words, state in (("only here", "only"), ("not here", "missing"))
        if (quoted := [f"“{s.text.strip()}”" for s in found if s.state == state and s.text.strip()])
    ]
    if not parts:
        return f"same words as {other.model}"
    return f"against {other.model}: {'; '.join(parts)}"


def decided(example: Example, answer: Answer, *, whole: bool = False) -> tuple[str, str]:
    """Of an answer of two students the case, and in words what decided, whose answer it is, and
    what the other one alone kept."""
    found = answer.decision
    assert found is not None
    who, other = {
        True: ("the student", "the partner"),
        False: ("the partner", "the student"),
        None: ("one of them (the file does not say which)", "the other one"),
    }[found.by_student]
    if not found.other:
        kept = f"{other} kept nothing else"
    elif example.text is None:
        kept = f"{_counted(len(found.other), _piece(example, answer))} kept by {other} alone"
        if len(found.other) <= MOST_PLACES:
            places = [_place(part) for part in found.other if isinstance(part, Box)]
            kept = f"{kept}: {', '.join(places)}"
    else:
        spans = [part for part in found.other if isinstance(part, Span)]
        parts = segments(example.text, spans, None)
        quoted = [
            f"“{s.text.strip()}”" for s in (joined(parts) if whole else parts) if s.state == "kept"
        ]
        kept = f"kept by {other} alone: {', '.join(quoted)}"
    said = f"{CASE_WORDS[found.case]}; answered by {who}; {kept}"
    return found.case.replace("_", " "), said


def _confusion_table(result: ModelResult) -> list[list[tuple[int, int]]]:
    """Counts with the step (0..8) of their share in the row."""
    assert result.counts is not None
    sums = result.counts.sum(axis=1)
    return [
        [(int(value), round(8 * value / total) if total else 0) for value in row]
        for row, total in zip(result.counts, sums, strict=True)
    ]


def _confusions(result: ModelResult, label_names: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """(label, answer, count) of the commonest wrong answers."""
    assert result.counts is not None
    found = [
        (label_names[i], label_names[j], int(count))
        for (i, j), count in _cells(result)
        if i != j and count
    ]
    return sorted(found, key=lambda item: -item[2])[:MOST_CONFUSIONS]


def _cells(result: ModelResult) -> list[tuple[tuple[int, int], int]]:
    assert result.counts is not None
    rows, columns = result.counts.shape
    return [((i, j), int(result.counts[i, j])) for i in range(rows) for j in range(columns)]


def _loss_charts(training: Training) -> list[Markup]:
    return [
        charts.line_chart(
            f"{training.title}, {phase.name}: training loss",
            [charts.Series(phase.name, phase.steps, phase.losses)],
            x_label=f"step of {phase.name}",
            y_label="training loss",
            description=f"From {phase.losses[0]:.3g} at step {phase.steps[0]} to "
            f"{phase.losses[-1]:.3g} at step {phase.steps[-1]}.",
        )
        for phase in training.phases
        if len(phase.steps) > 1
    ]


def _dev_chart(training: Training, *, score: str, percent: bool) -> Markup:
    points = "; ".join(
        f"{name}: " + ", ".join(f"{a:.3f} at step {s}" for s, a in zip(steps, values, strict=True))
        for name, steps, values in training.dev
    )
    return charts.line_chart(
        f"{training.title}: {score} on the development split",
        [charts.Series(name, steps, values, marked=True) for name, steps, values in training.dev],
        x_label="step of the phase",
        y_label=f"{score} on development examples",
        description=points,
        percent=percent,
    )


def _timing_chart(bench: Bench) -> Markup:
    medians = "; ".join(f"{t.name}: median {t.quantiles[3]:.3g} ms" for t in bench.timings)
    return charts.timing_chart("Latency of one query", bench.timings, medians)


def _front_chart(front: Front, *, score: str, percent: bool) -> Markup:
    points = "; ".join(
        f"{rank} {p.name}: {f'{p.accuracy:.1%}' if percent else f'{p.accuracy:.3f}'} "
        f"in {p.latency_ms:.3g} ms"
        for rank, p in enumerate(front.points, 1)
    )
    title = f"{score[0].upper()}{score[1:]} against latency"
    return charts.front_chart(title, front.points, points, score=score, percent=percent)


def _risk_chart(found: tuple[Confidence, ...]) -> Markup:
    described = "; ".join(
        f"{one.model}: {one.risk_at(0.5):.1%} wrong in the surest half, "
        f"{one.risk_at(1.0):.1%} in all"
        for one in found
    )
    return charts.line_chart(
        "Errors among the surest answers",
        [
            charts.Series(one.model, [x for x, _ in one.points], [y for _, y in one.points])
            for one in found
        ],
        x_label="share of examples answered, the surest first",
        y_label="wrong answers among them",
        description=described,
        bounds=(0.0, None),
        percent=True,
        x_percent=True,
    )


def _calibration_chart(found: tuple[Confidence, ...]) -> Markup:
    return _reliability_chart(
        found, "Probability and accuracy", "mean probability of the answers", "of them right"
    )


def _label_calibration_chart(found: tuple[Confidence, ...]) -> Markup:
    return _reliability_chart(
        found, "Probability of a label and how often it is there", "mean probability", "are there"
    )


def _reliability_chart(
    found: tuple[Confidence, ...], title: str, x_label: str, y_label: str
) -> Markup:
    described = "; ".join(f"{one.model}: error {one.calibration_error:.3f}" for one in found)
    return charts.line_chart(
        title,
        [
            charts.Series(
                one.model,
                [b.confidence for b in one.bins if b.confidence is not None],
                [b.accuracy for b in one.bins if b.accuracy is not None],
                marked=True,
            )
            for one in found
        ],
        x_label=x_label,
        y_label=y_label,
        description=described,
        bounds=(0.0, 1.0),
        percent=True,
        x_percent=True,
        diagonal=True,
    )


def _value_chart(name: str, found: ValueFigures) -> Markup:
    """Dots of value against truth, thinned out evenly over the range of the truth."""
    order = np.argsort(found.truth, kind="stable")
    quarters = [part for part in np.array_split(order, 4) if len(part)]
    described = "; ".join(
        f"mean truth {number(float(found.truth[part].mean()))}, "
        f"mean value {number(float(found.found[part].mean()))}"
        for part in quarters
    )
    shown = order
    if len(order) > MOST_DOTS:
        shown = order[np.linspace(0, len(order) - 1, MOST_DOTS).round().astype(int)]
    return charts.dot_chart(
        f"{found.name}, value of {name} against the truth",
        found.truth[shown].tolist(),
        found.found[shown].tolist(),
        x_label="true value",
        y_label="value",
        description=f"By quarters of the examples, the lowest truth first: {described}.",
    )


def _error_chart(name: str, found: ValueFigures) -> Markup:
    """How many examples have which error, in bars of equal width about 0."""
    error = found.error
    reach = float(np.abs(error).max()) or 1.0
    counts, edges = np.histogram(error, bins=21, range=(-reach, reach))
    said = ", ".join(
        f"{share} % at most {_signed(value)}"
        for share, value in zip(ERROR_QUANTILES, _error_quantiles(found), strict=True)
    )
    return charts.bar_chart(
        f"{found.name}, errors of {name}",
        edges.tolist(),
        counts.tolist(),
        x_label="value minus truth",
        y_label="examples",
        description=f"Of {len(error):,} examples {said}.",
    )


def _error_quantiles(found: ValueFigures) -> list[float]:
    return [float(value) for value in np.percentile(found.error, ERROR_QUANTILES)]


def _signed(value: float) -> str:
    """A difference, with its sign."""
    return number(value) if value < 0 or not math.isfinite(value) else f"+{number(value)}"


def _timed(content: ReportContent) -> tuple[Bench, Timing] | None:
    """The first benchmark of the primary model, and its line in it."""
    found = (
        (bench, timing)
        for bench in content.benches
        for timing in bench.timings
        if timing.name == content.primary
    )
    return next(found, None)


def _margin(margin: float) -> str:
    return f"margin {margin:.3g}" if math.isfinite(margin) else "nothing was dropped"


def _place(box: Box) -> str:
    """The middle of a patch or region."""
    x, y = (box.x + box.width / 2) * 100, (box.y + box.height / 2) * 100
    return f"at {x:.0f} % from the left and {y:.0f} % from the top"


def _percent(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f} %"


def _fact(value: str) -> Markup:
    if not value:
        return Markup('<span class="absent">not recorded</span>')
    if _HASH.match(value):
        return Markup('<code class="hash">{}</code>').format(value)
    return Markup("{}").format(value)


def _data_uri(picture: Any) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.content).decode()}"
