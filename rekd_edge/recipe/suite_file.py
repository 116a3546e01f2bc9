"""A suite: variants of one recipe that are trained over the same seeds and compared in a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from rekd_edge.errors import RecipeError
from rekd_edge.recipe.document import MAX_BYTES, Problem, dotted, parse
from rekd_edge.recipe.load import InvalidRecipeError, find_recipe, load_recipe
from rekd_edge.recipe.schema import Recipe, Spec

REPORTS = ("distill", "fuse", "flops", "quality", "simulability")
"""Reports of a run that a column can read: those of training and fusing, the operations alone,
what `rekd-edge evaluate` says of its rationales, and how often it answers as a plain classifier."""
ROW_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SpecT = TypeVar("SpecT", bound=Spec)


class RowSpec(Spec):
    """One variant of the suite's recipe."""

    name: str = Field(pattern=ROW_NAME)
    """Names the row's folder."""
    title: str = ""
    """What the table calls it; empty: the name."""
    recipe: str | None = None
    """Another recipe than the suite's, as `recipe` there."""
    overrides: tuple[str, ...] = ()
    """`key.path=value` over the suite's recipe, as `--set` of the commands."""
    against: str | None = None
    """The row that this one is compared with; null: the first."""


class ColumnSpec(Spec):
    """One figure of each run."""

    title: str = Field(min_length=1)
    value: str = Field(pattern=rf"^({'|'.join(REPORTS)})(\.[A-Za-z0-9_]+)+$")
    """Where it stands in the run's reports, e.g. `distill.student.test.accuracy`; a number in it
    counts the places of a list."""


class VariantsSpec(Spec):
    """Variants of one recipe."""

    schema_version: Literal[1]
    name: str = Field(pattern=ROW_NAME)
    description: str = ""
    recipe: str
    """A recipe file, relative to this one, or the name of a shipped recipe."""
    overrides: tuple[str, ...] = ()
    """Overrides of all rows."""
    rows: tuple[RowSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> VariantsSpec:
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rows with one name: {', '.join(twice)}")
        return self


class SuiteSpec(VariantsSpec):
    """Rows by columns (figures of their runs), over the same seeds."""

    seeds: tuple[int, ...] = Field(min_length=1)
    columns: tuple[ColumnSpec, ...] = Field(min_length=1)
    """The first column is the one that rows are compared by."""
    judge: str | None = None
    """For columns of `quality`: the first row's name. Its run of the same seed lends the judge of
    all rationales, and they are compared with those of its teacher."""
    judged_examples: int | None = Field(default=None, ge=1)
    """So many test examples, drawn by class, are enough for `quality`; null: all."""
    simulated: str | None = None
    """For columns of `simulability`: a row of `task: classify`. The share of test examples in which
    a row's student answers as that classifier of the same seed, which is trained first."""

    shared_warmup: bool = False
    """Rows whose predictors would be warmed up as the first row's, on the same data, take that one
    (`warmup.predictor_run`). What comes later is compared from one and the same start."""

    @model_validator(mode="after")
    def _consistent(self) -> SuiteSpec:
        names = [row.name for row in self.rows]
        judged = [column for column in self.columns if column.value.startswith("quality.")]
        if judged and self.judge is None:
            raise ValueError(f"column {judged[0].title!r} needs `judge`, the name of a row")
        if self.judge is not None and self.judge != names[0]:
            raise ValueError(f"judge {self.judge!r} must be the first row, here {names[0]!r}")
        asked = [column for column in self.columns if column.value.startswith("simulability.")]
        if asked and self.simulated is None:
            raise ValueError(f"column {asked[0].title!r} needs `simulated`, the name of a row")
        if self.simulated is not None and self.simulated not in names:
            raise ValueError(f"simulated {self.simulated!r} is no row")
        for row in self.rows:
            if row.against is not None and row.against not in names:
                raise ValueError(f"row {row.name!r} is compared with {row.against!r}, no row")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds must be distinct and not negative")
        return self


def load_suite(path: Path) -> SuiteSpec:
    """Reads a suite file; the recipes of its rows are :func:`row_recipes`.

    Raises:
        RecipeError: the file cannot be read; it lists every problem with its line.
    """
    return read_suite_file(path, SuiteSpec)


def read_suite_file(path: Path, model: type[SpecT]) -> SpecT:
    """The validated content of a suite file; errors as :func:`load_suite`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path} is larger than {MAX_BYTES:,} bytes: not a suite")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text") from error
    tree, problems = parse(text, source=os.fspath(path), folder=path.parent.absolute())
    if tree is not None and not problems:
        try:
            return model.model_validate(tree.plain())
        except ValidationError as error:
            for item in error.errors(include_url=False):
                location = item["loc"]
                place = tree.at(location).place
                problems.append(Problem(place, dotted(location), item["msg"]))
    raise RecipeError("\n  ".join(["the suite is invalid:", *map(str, problems)]))


def row_recipes(
    suite: VariantsSpec, folder: Path, overrides: Sequence[str] = ()
) -> dict[str, Recipe]:
    """The recipe of each row by name; ``overrides`` come after the suite's, before the row's.

    Raises:
        RecipeError: lists what is wrong with any of them.
    """
    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    for row in suite.rows:
        name = row.recipe or suite.recipe
        beside = folder / name
        file = beside if beside.is_file() else find_recipe(name)
        try:
            recipes[row.name] = load_recipe(file, [*suite.overrides, *overrides, *row.overrides])
        except InvalidRecipeError as error:
            problems += [f"row {row.name}: {problem}" for problem in error.problems]
    simulated = getattr(suite, "simulated", None)
    if simulated in recipes and recipes[simulated].task != "classify":
        problems.append(f"row {simulated}: what is simulated must be a classifier (task=classify)")
    if problems:
        raise RecipeError("\n  ".join(["rows without a valid recipe:", *problems]))
    return recipes


def figure(summary: Mapping[str, Any], *, signed: bool = False) -> str:
    """A mean over seeds and its spread, as tables show it."""
    mean = f"{summary['mean']:+.3f}" if signed else f"{summary['mean']:.3f}"
    return mean if summary["spread"] is None else f"{mean} ± {summary['spread']:.3f}"
