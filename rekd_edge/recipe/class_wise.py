"""What class-wise rationales ask of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from rekd_edge.recipe.schema import Recipe


def class_wise_problems(recipe: Recipe) -> Iterator[str]:
    """Why ``class_wise_rationales: true`` cannot be had."""
    if not recipe.class_wise_rationales:
        return
    if recipe.task == "classify":
        yield "needs a selector; `task: classify` trains a plain classifier"
    elif recipe.ensemble is not None:
        yield "is for one student: which of two would have to be convinced is not defined"
    elif recipe.problem_type != "single_label_classification":
        yield "asks of one class of several why it is not the answer"
    elif recipe.rationale_unit != "token":
        yield f"chooses single tokens or patches, not a {recipe.rationale_unit} at a time"
    elif recipe.student.selector.resolution < 1:
        yield (
            "needs hidden states of the predictor's patches; a selector that sees a smaller image "
            "has none (set student.selector.resolution: 1)"
        )
