"""What a teacher that is no rationalist cannot be combined with, and why."""

from __future__ import annotations

from collections.abc import Iterator

from rekd_edge.recipe.schema import Recipe, ScaffoldSpec

Location = tuple[int | str, ...]

READS_ATTENTION = ("attention", "scaffold")


def black_box_problems(recipe: Recipe) -> Iterator[tuple[Location, str]]:
    """Contradictions between ``teacher.rationale`` and the rest as (where, what)."""
    teacher = recipe.teacher
    if teacher is None:
        return
    if teacher.rationale != "scaffold" and teacher.scaffold != ScaffoldSpec():
        found = f"has no meaning where teacher.rationale is {teacher.rationale!r}"
        yield ("teacher", "scaffold"), found
    if not teacher.is_black_box or recipe.task != "distill":
        return
    if teacher.rationale in READS_ATTENTION and teacher.predictor.patch_size is not None:
        yield (
            ("teacher", "rationale"),
            f"{teacher.rationale!r} reads attention, and a convolutional teacher has none: use "
            "mask_gradient or gradient_x_input",
        )
    form = recipe.objective.form
    if form.teacher_prediction != "full_input":
        yield (
            ("objective", "teacher_prediction"),
            f"must be 'full_input', not {form.teacher_prediction!r}: a plain black box was never "
            "trained on a part of its input",
        )
    if form.rationale_kd != "centred":
        yield (
            ("objective", "rationale_kd"),
            f"must be 'centred', not {form.rationale_kd!r}: a black box has no selection logits to "
            "draw from",
        )
