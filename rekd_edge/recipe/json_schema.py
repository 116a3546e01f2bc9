"""The recipe schema for editors (JSON Schema, draft 2020-12)."""

from __future__ import annotations

import copy
from typing import Any

from rekd_edge.recipe.schema import Recipe

_EXTENDS = {
    "type": "string",
    "title": "Extends",
    "description": "A recipe file (relative to this one) or a shipped recipe to start from. "
    "Mappings merge key by key, lists are replaced.",
}
_OVERLAY = "Overlay"
_REFERENCE = "#/$defs/"


def recipe_json_schema() -> dict[str, Any]:
    """A schema that accepts complete recipes, and incomplete ones where ``extends`` is given.

    ``$defs`` holds each section twice: as it is, and as ``<Section>Overlay`` in which nothing is
    required.
    """
    recipe = Recipe.model_json_schema()
    complete = recipe.pop("$defs")
    complete["Recipe"] = recipe
    overlays = {f"{name}{_OVERLAY}": _as_overlay(section) for name, section in complete.items()}
    overlay = overlays[f"Recipe{_OVERLAY}"]
    overlay["properties"] = {"extends": _EXTENDS, **overlay["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rekd-edge recipe",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": f"{_REFERENCE}Recipe{_OVERLAY}"},
        "else": {"$ref": f"{_REFERENCE}Recipe"},
        "$defs": {**complete, **overlays},
    }


def _as_overlay(section: dict[str, Any]) -> dict[str, Any]:
    overlay = copy.deepcopy(section)
    overlay.pop("required", None)
    return _renamed(overlay)


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: f"{item}{_OVERLAY}" if key == "$ref" else _renamed(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    return value
