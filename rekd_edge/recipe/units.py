"""What ``rationale_unit`` cannot be combined with, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rekd_edge.types import RationaleUnit

if TYPE_CHECKING:
    from rekd_edge.recipe.schema import ObjectiveSpec, RationalistSpec, Recipe

Location = tuple[int | str, ...]

MODALITY_OF = {"word": "text", "sentence": "text", "region": "image"}


def unit_problems(recipe: Recipe) -> Iterator[tuple[Location, str]]:
    """Contradictions between ``rationale_unit``, ``region_size`` and the rest as (where, what)."""
    unit = recipe.rationale_unit
    default = type(recipe).model_fields["region_size"].default
    if unit != "region" and recipe.region_size != default:
        yield ("region_size",), f"has no meaning where rationale_unit is {unit!r}"
    if unit == "token":
        return
    needed = MODALITY_OF[unit]
    if recipe.modality != needed:
        yield ("rationale_unit",), f"{unit!r} needs modality: {needed}, not {recipe.modality}"
        return
    if recipe.task != "classify":
        yield from _objective_problems(("objective",), recipe.objective, unit)
    teacher = recipe.teacher
    if teacher is not None and teacher.run is None and not teacher.is_black_box:
        yield from _objective_problems(("teacher", "objective"), teacher.objective, unit)
    if unit == "region":
        yield from _region_problems(recipe)


def _objective_problems(
    place: Location, objective: ObjectiveSpec, unit: RationaleUnit
) -> Iterator[tuple[Location, str]]:
    form = objective.form
    if form.selection != "exactly_k":
        yield (
            (*place, "selection"),
            f"{form.selection!r} draws each token by itself, which cannot keep a whole {unit}: "
            "use exactly_k, or rationale_unit: token",
        )
    if form.rationale_kd != "centred":
        yield (
            (*place, "rationale_kd"),
            f"{form.rationale_kd!r} compares drawn tokens one by one; whole {unit}s are compared "
            "by 'centred'",
        )


def _region_problems(recipe: Recipe) -> Iterator[tuple[Location, str]]:
    """Where the recipe itself states the patches, whether blocks of them cover the image."""
    roles: list[tuple[Location, RationalistSpec, int]] = [
        (("student",), recipe.student, recipe.data.image_size)
    ]
    if recipe.teacher is not None and recipe.teacher.run is None:
        size = recipe.teacher.image_size or recipe.data.image_size
        roles.append((("teacher",), recipe.teacher, size))
    if recipe.ensemble is not None:
        partner = recipe.ensemble.partner
        roles.append((("ensemble", "partner"), partner, recipe.data.image_size))
    for place, rationalist, image_size in roles:
        patch = rationalist.predictor.patch_size
        if patch is None or image_size % patch:
            continue
        side = image_size // patch
        if side % recipe.region_size:
            yield (
                ("region_size",),
                f"{recipe.region_size} does not divide the {side} x {side} patches of "
                f"{'.'.join(map(str, place))}",
            )
