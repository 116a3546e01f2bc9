"""What each ``problem_type`` cannot be combined with, and why."""

from __future__ import annotations

from collections.abc import Iterator

from rekd_edge.recipe.methods import METHODS
from rekd_edge.recipe.schema import ObjectiveSpec, Recipe
from rekd_edge.types import ProblemType

Location = tuple[int | str, ...]

BUNDLED_PROBLEMS: dict[str, ProblemType] = {
    "movie-review-ratings": "regression",
    "cifar10-objects": "multi_label_classification",
}
"""Bundled sets that are about something else than one class."""

_OF_ONE_CLASS = ("multi_label_classification", "regression")
_REFUSED: dict[str, tuple[tuple[ProblemType, ...], str]] = {
    "a2i": (_OF_ONE_CLASS, "its attacker looks for tokens that speak for another class"),
    "inter_rat": (_OF_ONE_CLASS, "it adjusts for the share of each class, of which one is right"),
    "a2r": (("regression",), "it compares two answers as distributions (Jensen-Shannon)"),
    "nir": (("regression",), "it compares two answers as distributions (Jensen-Shannon)"),
}
"""``objective.method`` -> the problem types that it cannot train, and why."""


def problem_type_problems(recipe: Recipe) -> Iterator[tuple[Location, str]]:
    """Contradictions between ``problem_type`` and the rest as (where, what)."""
    kind, source = recipe.problem_type, recipe.data.source
    columns = recipe.data.label_columns
    own = BUNDLED_PROBLEMS.get(source)
    if own not in {None, kind}:
        yield ("problem_type",), f"must be {own!r}, not {kind!r}, for data.source {source!r}"
    if not columns:
        yield ("data", "label_column"), "names no column"
    if len(set(columns)) < len(columns):
        yield ("data", "label_column"), "names a column twice"
    if kind == "single_label_classification":
        if len(columns) > 1:
            yield (
                ("data", "label_column"),
                "names several columns, but one class has one: set problem_type to "
                "multi_label_classification (0 and 1 each) or regression (numbers)",
            )
        return
    yield from _data_problems(recipe, columns)
    if recipe.ensemble is not None:
        yield (
            ("ensemble",),
            f"has no meaning for problem_type {kind!r}: two students exchange rationales where "
            "their classes differ, and the surer of them wins",
        )
    for location, objective in _objectives(recipe):
        refused, why = _REFUSED.get(objective.method, ((), ""))
        if kind in refused:
            able = ", ".join(
                method for method in METHODS if kind not in _REFUSED.get(method, ((), ""))[0]
            )
            yield (
                (*location, "method"),
                f"{objective.method!r} cannot train problem_type {kind!r}: {why}; use {able}",
            )
    if kind == "regression":
        yield from _warmup_problems(recipe)


def _data_problems(recipe: Recipe, columns: tuple[str, ...]) -> Iterator[tuple[Location, str]]:
    kind, data = recipe.problem_type, recipe.data
    if data.source in {"image-folder", "eraser"}:
        yield (
            ("data", "source"),
            f"{data.source!r} gives each example one class; for problem_type {kind!r} name a table "
            "(csv, jsonl, parquet) or huggingface",
        )
    if data.labels is None:
        return
    if kind == "regression":
        yield ("data", "labels"), "names classes; a regression's numbers are named by label_column"
    elif len(columns) > 1:
        yield ("data", "labels"), "has no meaning where label_column names a column for each label"


def _objectives(recipe: Recipe) -> Iterator[tuple[Location, ObjectiveSpec]]:
    yield ("objective",), recipe.objective
    if recipe.teacher is not None and not recipe.teacher.is_black_box:
        yield ("teacher", "objective"), recipe.teacher.objective


def _warmup_problems(recipe: Recipe) -> Iterator[tuple[Location, str]]:
    rationalists = {"student": recipe.student, "teacher": recipe.teacher}
    for role, spec in rationalists.items():
        if spec is not None and spec.train.warmup.selector == "value_regression":
            yield (
                (role, "train", "warmup", "selector"),
                "'value_regression' finds signed values, and the lowest matter to a regression as "
                "much as the highest, which alone are kept: use mask_gradient or occlusion",
            )
