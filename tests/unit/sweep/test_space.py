"""What `--grid` and `--search` mean, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekd_edge.errors import UsageError
from rekd_edge.recipe.load import load_recipe
from rekd_edge.sweep.space import Choice, Range, digest_of, parse_space, written


def test_a_grid_is_every_combination_by_sorted_key() -> None:
    space = parse_space(["student.predictor.depth=1,2", "rationale_ratio=.1, 2e-1"], [])
    assert list(space.points()) == [
        ("rationale_ratio=0.1", "student.predictor.depth=1"),
        ("rationale_ratio=0.1", "student.predictor.depth=2"),
        ("rationale_ratio=0.2", "student.predictor.depth=1"),
        ("rationale_ratio=0.2", "student.predictor.depth=2"),
    ]
    assert len(space) == 4
    other_order = parse_space(["rationale_ratio=0.1,0.2", "student.predictor.depth=1,2"], [])
    assert other_order == space


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("a=one,two", ("one", "two")),
        ("a=true,null", ("true", "null")),
        ('a="1",1', ('"1"', "1")),
        ("a=[x, y],[z]", ('["x", "y"]', '["z"]')),
        ("a={b: 1},{b: 2}", ('{"b": 1}', '{"b": 2}')),
        ("a=package:all-MiniLM,random:bert-tiny", ("package:all-MiniLM", "random:bert-tiny")),
        ("a.b = 1 ", ("1",)),
    ],
)
def test_values_are_written_as_set_writes_them(word: str, values: tuple[str, ...]) -> None:
    (axis,) = parse_space([word], []).axes
    assert isinstance(axis, Choice)
    assert axis.values == values


@pytest.mark.parametrize(
    ("word", "axis"),
    [
        ("a=1..4", Range("a", 1, 4, whole=True, log=False)),
        ("a=1..4:log", Range("a", 1, 4, whole=True, log=True)),
        ("a=-2..2", Range("a", -2, 2, whole=True, log=False)),
        ("a=0.1..0.5", Range("a", 0.1, 0.5, whole=False, log=False)),
        ("a=1e-5..1e-3:log", Range("a", 1e-5, 1e-3, whole=False, log=True)),
    ],
)
def test_ranges(word: str, axis: Range) -> None:
    space = parse_space([], [word])
    assert space.axes == (axis,)
    assert [point[0] for point in space.points()] == [f"a={end}" for end in axis.ends]


@pytest.mark.parametrize(
    ("grid", "search", "message"),
    [
        ([], [], "nothing to sweep over"),
        (["rationale_ratio"], [], "written KEY=VALUES"),
        (["=1,2"], [], "written KEY=VALUES"),
        (["a..b=1"], [], "written KEY=VALUES"),
        (["a="], [], "no value is given"),
        (["a=1,,2"], [], "not valid YAML"),
        (["a=[1,2"], [], "not valid YAML"),
        (["a=.inf"], [], "not a finite number"),
        (["a=0.1,.1"], [], "0.1 is given twice"),
        (["a=1", "a=2"], [], "a is swept over twice"),
        (["a=1"], ["a=1..2"], "a is swept over twice"),
        (["a={b: 1}", "a.b=1", "a-b=2"], [], "a.b lies inside a"),
        ([], ["a=1"], "written low..high"),
        ([], ["a=x..y"], "written low..high"),
        ([], ["a=2..1"], "2 must be below 1"),
        ([], ["a=0..nan"], "must be below nan"),
        ([], ["a=0..1:log"], "starts above 0"),
    ],
)
def test_what_is_refused(grid: list[str], search: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_space(grid, search)


@given(st.floats(min_value=1e-12, max_value=1.0, allow_subnormal=False))
def test_a_number_is_written_so_that_a_recipe_reads_it_back(value: float) -> None:
    override = f"student.train.learning_rate={written(value)}"
    assert load_recipe("smoke/text", [override]).student.train.learning_rate == value


def test_a_digest_names_a_point_and_no_other() -> None:
    points = list(parse_space(["a=1,2,12", "b=1,2"], []).points())
    assert len({digest_of(point) for point in points}) == 6
    assert digest_of(("a=1", "b=2")) == "55c420c0f44e"
