"""YAML documents that know where every value was written.

A :class:`Located` tree is plain data with a :class:`Place` (file and line) at each node, so that
merging (``extends``) and overriding (``--set``) keep the origin of every value for messages.
YAML 1.2, safe subset: no tags, no duplicate keys, no merge keys, string keys only.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written. ``folder`` is what relative paths in it are relative to."""

    source: str
    line: int | None
    folder: Path

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, and at which key (dotted; empty for the whole file)."""

    place: Place
    key: str
    message: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.place}: {key}{self.message}"


@dataclass(frozen=True, slots=True)
class Located:
    """A value and its place; mappings and lists hold further :class:`Located` values."""

    value: Any
    place: Place

    def plain(self) -> Any:
        """The value without places, as ordinary dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def at(self, location: tuple[int | str, ...]) -> Located:
        """The deepest node on the way to ``location``."""
        node = self
        for part in location:
            children: Any = node.value
            if isinstance(children, list):
                children = dict(enumerate(children))
            if not isinstance(children, dict) or part not in children:
                break
            node = children[part]
        return node


def merge(base: Located, top: Located) -> Located:
    """``top`` over ``base``: mappings merge key by key, everything else (lists too) is replaced."""
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged = dict(base.value)
    for key, item in top.value.items():
        merged[key] = merge(merged[key], item) if key in merged else item
    return Located(merged, top.place)


def locate(value: Any, place: Place) -> Located:
    """Plain data as a :class:`Located` tree that lies at one place."""
    if isinstance(value, Mapping):
        return Located({str(key): locate(item, place) for key, item in value.items()}, place)
    if isinstance(value, list | tuple):
        return Located([locate(item, place) for item in value], place)
    return Located(value, place)


def parse(
    text: str, *, source: str, folder: Path, line: int | None = 1
) -> tuple[Located | None, list[Problem]]:
    """Parse one YAML document. Returns the tree (None where nothing could be read) and every
    problem found. ``line`` None leaves line numbers out (for text that is not from a file)."""
    numbered = line is not None
    start = Place(source, line, folder)
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = mark.line + 1 if numbered and mark is not None else line
        return None, [Problem(Place(source, at, folder), "", f"not valid YAML: {_words(error)}")]
    except YAMLError as error:
        what = str(error).strip().splitlines()[0]
        return None, [Problem(start, "", f"not valid YAML: {what}")]
    except RecursionError:
        return None, [Problem(start, "", "nested too deeply")]
    if node is None:
        return None, [Problem(start, "", "the document is empty")]
    builder = _Builder(source=source, folder=folder, numbered=numbered, constructor=yaml)
    tree = builder.build(node, (), 0)
    return tree, builder.problems


def _words(error: MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    return " ".join(", ".join(parts).split()) or "syntax error"


@dataclass(slots=True)
class _Builder:
    source: str
    folder: Path
    numbered: bool
    constructor: YAML
    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def build(self, node: Node, location: tuple[int | str, ...], depth: int) -> Located:
        place = self._place(node)
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_VALUES:
            if self.count <= MAX_VALUES + 1 or depth > MAX_DEPTH:
                self._report(place, location, "nested too deeply or too large")
            self.count = MAX_VALUES + 1
            return Located(None, place)
        if isinstance(node, MappingNode):
            return self._mapping(node, location, depth, place)
        if isinstance(node, SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                if self.count > MAX_VALUES:
                    break
                items.append(self.build(item, (*location, index), depth + 1))
            self._check_tag(node, "seq", place, location)
            return Located(items, place)
        return Located(self._scalar(node, place, location), place)

    def _mapping(
        self, node: MappingNode, location: tuple[int | str, ...], depth: int, place: Place
    ) -> Located:
        self._check_tag(node, "map", place, location)
        items: dict[str, Located] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if self.count > MAX_VALUES:
                break
            key_place = self._place(key_node)
            if not isinstance(key_node, ScalarNode) or str(key_node.tag) == f"{_TAG}merge":
                self._report(
                    key_place, location, "keys must be plain words (use `extends` to inherit)"
                )
                continue
            key = str(key_node.value)
            where = (*location, key)
            if key in items:
                first = f" (first on line {lines[key]})" if self.numbered else ""
                self._report(key_place, where, f"given twice{first}")
                continue
            lines[key] = key_node.start_mark.line + 1
            built = self.build(value_node, where, depth + 1)
            # The line of a key is what a person looks for, also where its value starts later.
            items[key] = Located(built.value, key_place)
        return Located(items, place)

    def _scalar(self, node: Node, place: Place, location: tuple[int | str, ...]) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        if kind in ("null", "bool", "int", "float"):
            try:
                return self.constructor.constructor.construct_object(node)
            except (ValueError, YAMLError):
                self._report(place, location, f"{node.value!r} is not a valid {kind}")
                return None
        if kind in ("str", "timestamp", "value"):
            return str(node.value)
        self._report(place, location, f"YAML tags are not allowed in recipes ({node.tag})")
        return None

    def _check_tag(
        self, node: Node, kind: str, place: Place, location: tuple[int | str, ...]
    ) -> None:
        if str(node.tag) != f"{_TAG}{kind}":
            self._report(place, location, f"YAML tags are not allowed in recipes ({node.tag})")

    def _place(self, node: Node) -> Place:
        return Place(self.source, node.start_mark.line + 1 if self.numbered else None, self.folder)

    def _report(self, place: Place, location: tuple[int | str, ...], message: str) -> None:
        self.problems.append(Problem(place, dotted(location), message))


def dotted(location: tuple[int | str, ...]) -> str:
    """A location as people write it: ``student.selector.weights[0]``."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
