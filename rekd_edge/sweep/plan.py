"""A recipe, what is tried of it, and how; every point is checked before anything trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rekd_edge.errors import RecipeError, RekdEdgeError, UsageError
from rekd_edge.recipe import dump_recipe, find_recipe, load_recipe
from rekd_edge.recipe.load import InvalidRecipeError
from rekd_edge.recipe.schema import DataSpec, Recipe
from rekd_edge.sweep.space import Overrides, Space

Sampler = Literal["grid", "tpe", "random"]
SAMPLERS: tuple[Sampler, ...] = ("grid", "tpe", "random")
SHOWN_PROBLEMS = 10
MOST_POINTS = 10_000
PREPARING_KEYS = ("max_length", "image_size", "normalisation", "augment")
"""Keys of ``data`` that change how examples are read, not which examples there are."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """``base`` is the recipe without any point's overrides, read from ``file`` with ``overrides``.
    ``trials`` is how many points the samplers other than `grid` try in all."""

    file: Path
    overrides: Overrides
    base: Recipe
    space: Space
    sampler: Sampler
    trials: int
    target: str = "onnx"
    gates: str | None = None

    def recipe_of(self, point: Overrides) -> Recipe:
        """Raises :class:`RecipeError` where the point is no valid recipe of this sweep."""
        recipe = load_recipe(self.file, [*self.overrides, *point])
        if recipe.task == "classify":
            raise RecipeError(
                "a sweep needs a rationale: task is classify", hint="set task: distill or extract"
            )
        if recipe.modality != self.base.modality or _examples(recipe) != _examples(self.base):
            raise RecipeError(
                "its examples are others than the recipe's, so the accuracies cannot be compared",
                hint=f"of `data` a sweep can change {', '.join(PREPARING_KEYS)}",
            )
        return recipe

    def read_from(self, file: Path) -> SweepPlan:
        """The same plan with the base recipe read from ``file``, where it stands resolved."""
        return replace(self, file=file, overrides=())

    def identity(self) -> dict[str, Any]:
        """What a folder's sweep must agree in to be gone on with; ``trials`` may grow."""
        return {
            "recipe": dump_recipe(self.base),
            "grid": self.space.to_json(),
            "sampler": self.sampler,
            "target": self.target,
            "gates": self.gates,
        }


def _examples(recipe: Recipe) -> DataSpec:
    defaults = {key: DataSpec.model_fields[key].default for key in PREPARING_KEYS}
    return recipe.data.model_copy(update=defaults)


def make_plan(
    recipe: Path | str,
    space: Space,
    *,
    overrides: Sequence[str] = (),
    sampler: str | None = None,
    trials: int | None = None,
    target: str = "onnx",
    gates: str | None = None,
) -> SweepPlan:
    """Puts a plan together and checks the recipe of every point (of ranges: every corner).

    ``sampler`` None takes `grid` for lists of values and `tpe` where there are ranges.

    Raises:
        RecipeError: names every point that is no valid recipe.
        UsageError: sampler, ranges and number of trials do not fit together.
    """
    chosen: Sampler = "tpe" if space.has_ranges else "grid"
    if sampler is not None:
        if sampler not in SAMPLERS:
            raise UsageError(
                f"there is no sampler {sampler!r}", hint=f"choose among {', '.join(SAMPLERS)}"
            )
        chosen = sampler
    if len(space) > MOST_POINTS:
        raise UsageError(f"{len(space):,} points are too many (the most is {MOST_POINTS:,})")
    points = list(space.points())
    if chosen == "grid":
        if space.has_ranges:
            raise UsageError("a grid has no ranges", hint="use --sampler tpe or --sampler random")
        if trials is not None:
            raise UsageError(
                "a grid tries every combination", hint="--trials is for --sampler tpe and random"
            )
        trials = len(points)
    elif trials is None or trials < 1:
        raise UsageError(f"--sampler {chosen} needs a number of trials", hint="--trials 30")
    file = find_recipe(recipe)
    words = tuple(overrides)
    plan = SweepPlan(file, words, load_recipe(file, words), space, chosen, trials, target, gates)
    problems: dict[str, list[Overrides]] = {}
    for point in points:
        try:
            plan.recipe_of(point)
        except InvalidRecipeError as error:
            for problem in error.problems:
                problems.setdefault(str(problem), []).append(point)
        except RecipeError as error:
            hint = f" ({error.hint})" if error.hint else ""
            problems.setdefault(f"{error.message}{hint}", []).append(point)
    if problems:
        lines = ["points without a valid recipe:"]
        for problem, bad in list(problems.items())[:SHOWN_PROBLEMS]:
            others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            lines.append(f"{' '.join(bad[0])}{others}: {problem}")
        if len(problems) > SHOWN_PROBLEMS:
            lines.append(f"and {len(problems) - SHOWN_PROBLEMS} more problems")
        raise RecipeError("\n  ".join(lines))
    return plan


def open_points(plan: SweepPlan) -> Iterator[tuple[Overrides, Recipe]]:
    """Opens data and weights of every point (of ranges: every corner) as training would, once for
    all points that differ in training alone, and yields each point that was opened. Gates that are
    not for a point's problem type are refused here.

    Raises:
        RekdEdgeError: as training would, with the point's name before the message.
    """
    from rekd_edge.check import load_gates
    from rekd_edge.convert import load_target
    from rekd_edge.pipeline import plan_run

    gates = load_gates(plan.gates or load_target(plan.target).gates)
    seen: set[str] = set()
    for point in plan.space.points():
        recipe = plan.recipe_of(point)
        gates.applicable(recipe.problem_type)
        models = _models(recipe)
        if models in seen:
            continue
        seen.add(models)
        try:
            plan_run(recipe)
        except RekdEdgeError as error:
            raise type(error)(f"{' '.join(point)}: {error.message}", hint=error.hint) from error
        yield point, recipe


def _models(recipe: Recipe) -> str:
    """What decides whether a recipe's data and models can be built."""
    training = {"train": True, "objective": True}
    exclude: dict[str, Any] = {
        "name": True,
        "description": True,
        "seed": True,
        "rationale_ratio": True,
        "objective": True,
        "student": {"train": True},
        "teacher": training,
    }
    if recipe.rationale_unit == "region":  # of which one has to fit into the budget
        del exclude["rationale_ratio"]
    return recipe.model_dump_json(exclude=exclude)
