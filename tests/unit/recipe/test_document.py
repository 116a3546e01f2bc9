from __future__ import annotations

from pathlib import Path

import pytest

from rekd_edge.recipe.document import Located, Place, dotted, locate, merge, parse

HERE = Path("/somewhere")


def parsed(text: str) -> tuple[Located | None, list[str]]:
    tree, problems = parse(text, source="r.yaml", folder=HERE)
    return tree, [str(problem) for problem in problems]


def values(text: str) -> object:
    tree, problems = parsed(text)
    assert not problems
    assert tree is not None
    return tree.plain()


def test_yaml_1_2_scalars() -> None:
    text = "a: 1e-5\nb: no\nc: 2020-01-01\nd: on\ne: ~\nf: 0.5\ng: 1:30\nh: true\ni: '5'"
    assert values(text) == {
        "a": 1e-5,
        "b": "no",
        "c": "2020-01-01",
        "d": "on",
        "e": None,
        "f": 0.5,
        "g": "1:30",
        "h": True,
        "i": "5",
    }


def test_lines_of_keys_and_items() -> None:
    tree, _ = parsed("a: 1\nb:\n  c: 2\n  d:\n    - 3\n    - 4\n")
    assert tree is not None
    lines = {
        dotted(where): tree.at(where).place.line
        for where in (("a",), ("b",), ("b", "c"), ("b", "d"), ("b", "d", 1))
    }
    assert lines == {"a": 1, "b": 2, "b.c": 3, "b.d": 4, "b.d[1]": 6}


def test_at_stops_at_the_deepest_known_node() -> None:
    tree, _ = parsed("a:\n  b: [1]\n")
    assert tree is not None
    assert tree.at(("a", "missing", "x")).place.line == 1
    assert tree.at(("a", "b", 7)).place.line == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "r.yaml:1: the document is empty"),
        ("a: 1\nb: [1, 2\nc: 3\n", "r.yaml:3: not valid YAML"),
        ("a: 1\na: 2\n", "r.yaml:2: a: given twice (first on line 1)"),
        ("a: {b: 1, b: 2}", "r.yaml:1: a.b: given twice"),
        ("a: !!python/object/apply:os.system [x]", "r.yaml:1: a: YAML tags are not allowed"),
        ("a: !secret x", "r.yaml:1: a: YAML tags are not allowed"),
        ("base: &b {x: 1}\nc:\n  <<: *b\n", "r.yaml:3: c: keys must be plain words"),
        ("? [1, 2]\n: 3", "r.yaml:1: keys must be plain words"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("a: !!int x", "'x' is not a valid int"),
    ],
)
def test_refused_documents(text: str, problem: str) -> None:
    _, problems = parsed(text)
    assert len(problems) == 1
    assert problem in problems[0]


def test_alias_bomb_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    _, problems = parsed("\n".join(lines))
    assert any("too large" in problem for problem in problems)


def test_merge_is_deep_and_replaces_lists() -> None:
    base = locate({"a": {"x": 1, "y": [1, 2]}, "b": 1}, Place("base", 1, HERE))
    top = locate({"a": {"y": [3]}, "b": {"c": 1}}, Place("top", 1, HERE))
    merged = merge(base, top)
    assert merged.plain() == {"a": {"x": 1, "y": [3]}, "b": {"c": 1}}
    assert merged.at(("a", "x")).place.source == "base"
    assert merged.at(("a", "y", 0)).place.source == "top"
