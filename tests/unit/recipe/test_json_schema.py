from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from rekd_edge.recipe import find_recipe, recipe_json_schema, shipped_recipes


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = recipe_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_match(name: str, validator: jsonschema.Draft202012Validator) -> None:
    content: Any = YAML(typ="safe", pure=True).load(find_recipe(name))
    validator.validate(content)


@pytest.mark.parametrize(
    "content",
    [
        {"extends": "smoke/text", "student": {"train": {"epoch": 2}}},
        {"extends": "smoke/text", "rationale_ratio": 0},
        {"schema_version": 1, "name": "a", "modality": "text"},
        {"extends": 3},
    ],
)
def test_bad_recipes_do_not_match(
    content: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    assert not validator.is_valid(content)


def test_every_reference_resolves() -> None:
    schema = recipe_json_schema()

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [ref for item in value.values() for ref in references(item)]
        if isinstance(value, list):
            return [ref for item in value for ref in references(item)]
        return []

    found = references(schema)
    assert found
    for reference in found:
        assert reference.removeprefix("#/$defs/") in schema["$defs"]
