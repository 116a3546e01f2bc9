"""What a recipe may combine with a method, and what is refused with the reason."""

from __future__ import annotations

import pytest

from rekd_edge.errors import RecipeError
from rekd_edge.recipe import load_recipe
from rekd_edge.recipe.form import PRESETS
from rekd_edge.recipe.methods import METHOD_KEYS, METHODS
from rekd_edge.recipe.schema import ObjectiveSpec


def load(recipe: str, *overrides: str) -> None:
    load_recipe(recipe, ["task=extract", *overrides])


def test_a_method_brings_the_selection_of_its_paper() -> None:
    assert ObjectiveSpec().form == PRESETS["deploy"]
    assert ObjectiveSpec(method="rnp").form.selection == "bernoulli"
    assert ObjectiveSpec(method="a2r").form.selection == "exactly_k"
    assert ObjectiveSpec(method="n2r", selection="exactly_k").form.selection == "exactly_k"
    assert ObjectiveSpec(method="rnp").form.masking == "exclude"


def test_every_key_of_a_method_is_read_by_some_and_documented() -> None:
    read = {key for method in METHODS.values() for key in method.keys}
    assert read == set(METHOD_KEYS)
    fields = ObjectiveSpec.model_fields
    assert all(fields[key].description for key in METHOD_KEYS)


@pytest.mark.parametrize("recipe", ["smoke/text", "smoke/image"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in {"rekd", "fr"}])
def test_methods_are_valid_on_texts_and_images(recipe: str, method: str) -> None:
    load(recipe, f"objective.method={method}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective.method=fr"], "student.selector.kind: must be 'shared' for method 'fr'"),
        (
            ["objective.method=n2r", "student.selector.kind=shared"],
            "student.selector.kind: 'shared' cannot train method 'n2r': its selector moves",
        ),
        (
            ["objective.method=a2r", "objective.selection=bernoulli"],
            "objective.selection: 'bernoulli' cannot train method 'a2r'",
        ),
        (
            ["objective.method=n2r", "objective.selection=reinforce"],
            "'reinforce' is for rnp, fr",
        ),
        (["objective.selection=hard_kuma"], "'hard_kuma' cannot train method 'rekd'"),
        (["objective.lambda_norm=2"], "objective.lambda_norm: has no meaning for method 'rekd'"),
        (
            ["objective.method=n2r", "objective.norm_ratio=0.5"],
            "objective.norm_ratio: has no meaning where selection is 'bernoulli'",
        ),
        (
            [
                "objective.method=n2r",
                "objective.selection=exactly_k",
                "objective.norm_ratio=0.1",
            ],
            "objective.norm_ratio: is below rationale_ratio (0.2)",
        ),
        (["objective.norm_ratio=0.5"], "it is read by n2r, mmi_n2r"),
        (
            ["objective.method=a2r", "objective.noise_share=0.2"],
            "objective.noise_share: has no meaning for method 'a2r'; it is read by nir",
        ),
        (
            ["objective.method=rnp", "objective.name=paper"],
            "objective.name: 'paper' is the published form of REKD",
        ),
        (
            ["objective.method=rnp", "objective.masking=zero"],
            "objective.masking: must be 'exclude'",
        ),
        (
            ["objective.method=rnp", "objective.evaluation=sampled"],
            "objective.evaluation: must be 'top_k'",
        ),
        (
            ["objective.method=rnp", "objective.teacher_prediction=student_mask"],
            "objective.teacher_prediction: must be 'own_rationale' or 'full_input'",
        ),
        (
            ["objective.method=rnp", "objective.lambda_select=1"],
            "objective.lambda_select: is for method 'rekd'; the papers' own penalty is "
            "lambda_sparsity",
        ),
        (
            [
                "objective.method=rnp",
                "objective.selection=exactly_k",
                "objective.lambda_sparsity=1",
            ],
            "objective.lambda_sparsity: has no meaning where selection is 'exactly_k'",
        ),
        (
            [
                "objective.method=rnp",
                "objective.selection=hard_kuma",
                "objective.lambda_sparsity=1",
            ],
            "finds the weight of its count by itself",
        ),
        (
            ["objective.method=a2i", "student.train.selector_learning_rate=0"],
            "student.train.selector_learning_rate: 0 keeps the selector",
        ),
        (
            ["objective.method=a2i", "student.train.gradient_accumulation=2"],
            "student.train.gradient_accumulation: must be 1 for method 'a2i'",
        ),
        (
            ["objective.method=inter_rat", "student.selector.head_width=8"],
            "student.selector.head_width: has no meaning for method 'inter_rat'",
        ),
        (
            ["objective.method=nir", "objective.estimator=perturbed"],
            "objective.estimator: has no meaning for method 'nir': its selection has no gradient",
        ),
        (["objective.method=nr2"], "objective.method"),
    ],
)
def test_what_cannot_be_combined_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("smoke/text", *overrides)
    assert said in str(caught.value)


def test_the_teacher_is_checked_with_its_own_parts() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("smoke/text", ["teacher.objective.method=fr"])
    assert "teacher.selector.kind: must be 'shared'" in str(caught.value)


def test_a_soft_predictor_needs_states_of_each_patch() -> None:
    with pytest.raises(RecipeError) as caught:
        load("smoke/image", "objective.method=a2r", "student.selector.resolution=0.5")
    assert "student.selector.resolution: must be 1 for method 'a2r'" in str(caught.value)
