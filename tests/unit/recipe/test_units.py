"""Which recipes can keep whole words, sentences or regions."""

from __future__ import annotations

import pytest

from rekd_edge.recipe import InvalidRecipeError, load_recipe


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("smoke/image", ["rationale_unit=word"], "'word' needs modality: text, not image"),
        ("smoke/text", ["rationale_unit=region"], "'region' needs modality: image, not text"),
        ("smoke/text", ["rationale_unit=paragraph"], "must be one of 'token', 'word'"),
        ("smoke/text", ["region_size=3"], "no meaning where rationale_unit is 'token'"),
        ("smoke/image", ["rationale_unit=region", "region_size=1"], "greater than or equal to 2"),
        (
            "smoke/text",
            ["rationale_unit=word", "objective.selection=bernoulli"],
            r"objective\.selection: 'bernoulli' draws each token by itself",
        ),
        (
            "smoke/text",
            ["rationale_unit=word", "teacher.objective.name=paper"],
            r"teacher\.objective\.selection: 'bernoulli' draws each token by itself",
        ),
        (
            "methods/movie-review-snippets",
            ["rationale_unit=sentence"],
            "draws each token by itself, which cannot keep a whole sentence",
        ),
        (
            "smoke/text",
            ["rationale_unit=sentence", "objective.rationale_kd=noiseless"],
            "'noiseless' compares drawn tokens one by one",
        ),
        (
            "smoke/image-conv",
            ["rationale_unit=region", "region_size=3"],
            "3 does not divide the 4 x 4 patches of student",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    name: str, changes: list[str], message: str
) -> None:
    with pytest.raises(InvalidRecipeError, match=message):
        load_recipe(name, changes)


def test_what_can_be_is_taken() -> None:
    assert load_recipe("smoke/text").rationale_unit == "token"
    draws = ["rationale_unit=word", "objective.selection=bernoulli", "task=classify"]
    assert load_recipe("smoke/text", draws).rationale_unit == "word"
    regions = load_recipe("smoke/image-conv", ["rationale_unit=region"])
    assert (regions.rationale_unit, regions.region_size) == ("region", 2)
