"""What a sweep tries: recipe keys with lists of values (`--grid`) or ranges (`--search`)."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rekd_edge.errors import UsageError
from rekd_edge.recipe.document import parse

GRID_EXAMPLE = "for instance --grid rationale_ratio=0.1,0.2"
SEARCH_EXAMPLE = "for instance --search student.train.learning_rate=1e-5..1e-3:log"
LOG = ":log"

Overrides = tuple[str, ...]
"""`key.path=value` over the sweep's recipe, as `--set` takes them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A key and its values, each as `--set` writes it."""

    key: str
    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        return self.values


@dataclass(frozen=True, slots=True)
class Range:
    """A key and the numbers between ``low`` and ``high``, both included; ``whole``: integers."""

    key: str
    low: float
    high: float
    whole: bool
    log: bool

    @property
    def ends(self) -> tuple[str, ...]:
        return written(self.low), written(self.high)


@dataclass(frozen=True, slots=True)
class Space:
    """Axes by key, sorted: the order in which they were given decides nothing."""

    axes: tuple[Choice | Range, ...]

    @property
    def has_ranges(self) -> bool:
        return any(isinstance(axis, Range) for axis in self.axes)

    def __len__(self) -> int:
        """How many :meth:`points` there are."""
        return math.prod(len(axis.ends) for axis in self.axes)

    def points(self) -> Iterator[Overrides]:
        """Every combination of values; of a range its two ends."""
        for values in itertools.product(*(axis.ends for axis in self.axes)):
            yield self.overrides(
                {axis.key: value for axis, value in zip(self.axes, values, strict=True)}
            )

    def overrides(self, values: Mapping[str, Any]) -> Overrides:
        """A point as overrides; ``values`` by key: text as `--set` writes it, or a number."""
        return tuple(f"{axis.key}={written(values[axis.key])}" for axis in self.axes)

    def to_json(self) -> list[dict[str, Any]]:
        return [json.loads(json.dumps(asdict(axis))) for axis in self.axes]


def written(value: Any) -> str:
    """A number as YAML reads it back to the same number; text as it is."""
    return value if isinstance(value, str) else json.dumps(value)


def digest_of(overrides: Overrides) -> str:
    """Names the folder of a point."""
    return hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:12]


def parse_space(grid: Sequence[str], search: Sequence[str]) -> Space:
    """From the words of `--grid KEY=V1,V2` and `--search KEY=low..high[:log]`.

    Raises:
        UsageError: a word that cannot be read, a value or a key that is given twice, or a key
            inside another one.
    """
    axes: list[Choice | Range] = [*map(_choice, grid), *map(_range, search)]
    if not axes:
        raise UsageError("there is nothing to sweep over", hint=GRID_EXAMPLE)
    keys = sorted(axis.key for axis in axes)
    for left, right in itertools.pairwise(keys):
        if left == right:
            raise UsageError(
                f"{left} is swept over twice", hint="give all of its values in one --grid"
            )
    for left, right in itertools.permutations(keys, 2):
        if right.startswith(f"{left}."):
            raise UsageError(f"{right} lies inside {left}: sweep over one of the two")
    return Space(tuple(sorted(axes, key=lambda axis: axis.key)))


def _choice(word: str) -> Choice:
    key, text = _key(word, "--grid", GRID_EXAMPLE)
    tree, problems = parse(f"[{text}]", source=f"--grid {word}", folder=Path(), line=None)
    values = None if tree is None or problems else tree.plain()
    if not isinstance(values, list):
        what = problems[0].message if problems else "not a list of values"
        raise UsageError(f"--grid {word}: {what}", hint=GRID_EXAMPLE)
    if not values:
        raise UsageError(f"--grid {word}: no value is given", hint=GRID_EXAMPLE)
    try:
        texts = tuple(_as_set_writes(value) for value in values)
    except ValueError as error:
        raise UsageError(f"--grid {word}: a value is not a finite number") from error
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise UsageError(f"--grid {word}: {', '.join(twice)} is given twice")
    return Choice(key, texts)


def _as_set_writes(value: Any) -> str:
    if isinstance(value, str):
        tree, problems = parse(value, source="", folder=Path(), line=None) if value else (None, [])
        if tree is not None and not problems and tree.plain() == value and value == value.strip():
            return value
    return json.dumps(value, allow_nan=False)


def _range(word: str) -> Range:
    key, text = _key(word, "--search", SEARCH_EXAMPLE)
    log = text.endswith(LOG)
    low_text, dots, high_text = text.removesuffix(LOG).partition("..")
    try:
        if not dots:
            raise ValueError
        whole = all(part.strip().lstrip("+-").isdecimal() for part in (low_text, high_text))
        low, high = (int(part) if whole else float(part) for part in (low_text, high_text))
    except ValueError as error:
        raise UsageError(
            f"--search {word}: a range is written low..high", hint=SEARCH_EXAMPLE
        ) from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"--search {word}: {low_text} must be below {high_text}")
    if log and low <= 0:
        raise UsageError(f"--search {word}: a logarithmic range starts above 0")
    return Range(key, low, high, whole, log)


def _key(word: str, option: str, example: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise UsageError(f"{option} {word}: is written KEY=VALUES", hint=example)
    return key, text.strip()
