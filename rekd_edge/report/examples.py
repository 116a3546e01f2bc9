"""Which examples are shown, and a rationale beside the one it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rekd_edge.report.content import Box, Span
from rekd_edge.report.kinds import Kind, kind_for
from rekd_edge.report.statistics import Answers, jaccard

State = Literal["none", "both", "only", "missing", "kept"]
"""``kept``: in the rationale, where there is nothing to compare with; ``both``: in both;
``only``: in this one alone; ``missing``: in the other one alone."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a text in one state."""

    text: str
    state: State


def joined(found: Sequence[Segment]) -> tuple[Segment, ...]:
    """Pieces of one state with nothing but blanks between them as one piece, as where whole words
    or sentences are kept."""
    pieces: list[Segment] = []
    for piece in found:
        blank = len(pieces) > 1 and pieces[-1].state == "none" and not pieces[-1].text.strip()
        if blank and pieces[-2].state == piece.state:
            text = pieces[-2].text + pieces[-1].text + piece.text
            pieces[-2:] = [Segment(text, piece.state)]
        else:
            pieces.append(piece)
    return tuple(pieces)


def segments(text: str, mine: Sequence[Span], other: Sequence[Span] | None) -> tuple[Segment, ...]:
    """The text cut where the state changes."""
    here = _covered(len(text), mine)
    there = here if other is None else _covered(len(text), other)
    codes = here * 2 + there
    states: dict[int, State] = {0: "none", 1: "missing", 2: "only", 3: "both"}
    if other is None:
        states[3] = "kept"
    cuts = np.flatnonzero(np.diff(codes)) + 1
    starts, ends = [0, *cuts.tolist()], [*cuts.tolist(), len(text)]
    return tuple(
        Segment(text[start:end], states[int(codes[start])])
        for start, end in zip(starts, ends, strict=True)
        if end > start
    )


def _covered(length: int, spans: Sequence[Span]) -> np.ndarray:
    covered = np.zeros(length, dtype=np.int64)
    for span in spans:
        covered[span.start : span.end] = 1
    return covered


def visible(text: str) -> str:
    """Control characters other than line end and tab as pictures, and the characters that turn the
    direction of a text round (bidirectional overrides) as a box."""

    def picture(character: str) -> str:
        code = ord(character)
        if code < 32 and character not in "\n\t":
            return chr(0x2400 + code)
        turned = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
        return "\ufffd" if 127 <= code < 160 or 0xD800 <= code < 0xE000 or turned else character

    return "".join(map(picture, text))


def compare_boxes(
    mine: Sequence[Box], other: Sequence[Box] | None
) -> tuple[tuple[Box, State], ...]:
    """Patches of both rationales with their states; a patch is in the other rationale where at
    least half of its area is."""
    if other is None:
        return tuple((box, "kept") for box in mine)
    found: list[tuple[Box, State]] = []
    for box in mine:
        found.append((box, "both" if _share_inside(box, other) >= 0.5 else "only"))
    for box in other:
        if _share_inside(box, mine) < 0.5:
            found.append((box, "missing"))
    return tuple(found)


def _share_inside(box: Box, others: Sequence[Box]) -> float:
    area = 0.0
    for one in others:
        width = min(box.x + box.width, one.x + one.width) - max(box.x, one.x)
        height = min(box.y + box.height, one.y + one.height) - max(box.y, one.y)
        area += max(width, 0.0) * max(height, 0.0)
    return area / (box.width * box.height)


@dataclass(frozen=True, slots=True)
class Choice:
    """Examples of one group: indices in the order in which they are shown."""

    key: str
    title: str
    explanation: str
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """``model`` is compared with ``other``; ``same_tokens``: whether their rationales can be, token
    by token. ``deployed``: it is a file."""

    model: str
    other: str
    same_tokens: bool
    deployed: bool


def choose(
    answers: Mapping[str, Answers],
    *,
    primary: str,
    compared: Sequence[Compared],
    count: int,
) -> tuple[Choice, ...]:
    """At most ``count`` examples in four groups, none twice. The sample is drawn by class (by
    label, over the range of values) and the same each time."""
    first = answers[primary]
    kind = kind_for(first.problem)
    taken: set[int] = set()

    def pick(order: Sequence[int], share: int) -> tuple[int, ...]:
        room = min(share, count - len(taken))
        chosen = [int(index) for index in order if int(index) not in taken][:room]
        taken.update(chosen)
        return tuple(chosen)

    part = -(-count // 4)
    worst, order = kind.worst(first, primary)
    fragile = np.flatnonzero(np.isfinite(first.margin))
    fragile = fragile[np.argsort(first.margin[fragile], kind="stable")]
    groups = [
        Choice("wrong", worst.title, worst.explanation, pick(order.tolist(), part)),
        Choice(
            "fragile",
            "Most fragile rationales",
            f"Where the last kept and the first dropped piece of {primary} are nearly tied: a "
            "small change may give another rationale.",
            pick(fragile.tolist(), part),
        ),
        Choice(
            "different",
            "Where the models differ most",
            kind.different,
            pick(_most_different(kind, answers, compared), part),
        ),
    ]
    sample = pick(_in_turn(kind, first, taken), count)
    groups.append(Choice("sample", kind.sample.title, kind.sample.explanation, sample))
    return tuple(group for group in groups if group.indices)


def _most_different(
    kind: Kind, answers: Mapping[str, Answers], compared: Sequence[Compared]
) -> list[int]:
    """Example indices, the largest difference first; equal examples are left out. What a file
    changes weighs four times what a student does otherwise than its teacher."""
    total = np.zeros(len(next(iter(answers.values())).labels))
    for pair in compared:
        mine, theirs = answers[pair.model], answers[pair.other]
        differs = kind.differs(mine, theirs)
        if pair.same_tokens:
            kept = zip(mine.kept, theirs.kept, strict=True)
            differs = differs + [1 - jaccard(a, b) for a, b in kept]
        total += differs * (4 if pair.deployed else 1)
    order = np.argsort(-total, kind="stable")
    return [int(index) for index in order if total[index] > 0]


def _in_turn(kind: Kind, first: Answers, taken: set[int]) -> list[int]:
    """What is left: a random one of each class, then another of each, and so on."""
    rng = np.random.default_rng(SEED)
    shuffled = rng.permutation(len(first.labels))
    left = shuffled[[int(index) not in taken for index in shuffled]]
    queues = [iter(queue.tolist()) for queue in kind.queues(first, left)]
    found: dict[int, None] = {}
    while queues:
        for queue in list(queues):
            unseen = next((index for index in queue if index not in found), None)
            if unseen is None:
                queues.remove(queue)
            else:
                found[unseen] = None
    return list(found)
