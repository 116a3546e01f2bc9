"""Which recipes a plain black box can be the teacher of."""

from __future__ import annotations

import pytest

from rekd_edge.recipe import InvalidRecipeError, load_recipe

WHOLE = "objective.teacher_prediction=full_input"


def test_a_black_box_needs_no_selector_and_a_rationalist_does() -> None:
    changes = ["teacher.selector=null", WHOLE]
    with pytest.raises(InvalidRecipeError, match=r"teacher\.selector"):
        load_recipe("smoke/text", changes)
    recipe = load_recipe("smoke/text", [*changes, "teacher.rationale=attention"])
    assert recipe.teacher is not None
    assert recipe.teacher.is_black_box


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["teacher.rationale=attention"], "must be 'full_input', not 'own_rationale'"),
        (
            ["teacher.rationale=mask_gradient", WHOLE, "objective.rationale_kd=noiseless"],
            "has no selection logits to draw from",
        ),
        (["teacher.scaffold.steps=5"], "no meaning where teacher.rationale is 'rationalist'"),
        (["teacher.rationale=saliency"], "must be one of"),
        (["teacher.rationale=scaffold", WHOLE, "teacher.scaffold.steps=0"], "greater than"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(changes: list[str], message: str) -> None:
    with pytest.raises(InvalidRecipeError, match=message):
        load_recipe("smoke/text", changes)


@pytest.mark.parametrize("rationale", ["attention", "scaffold"])
def test_attention_of_a_convolution_is_refused(rationale: str) -> None:
    changes = [f"teacher.rationale={rationale}", WHOLE, "teacher.predictor.patch_size=16"]
    with pytest.raises(InvalidRecipeError, match="reads attention, and a convolutional teacher"):
        load_recipe("smoke/image", changes)
    kept = load_recipe("smoke/image", ["teacher.rationale=gradient_x_input", *changes[1:]])
    assert kept.teacher is not None
