"""The recipe reference for people, generated from the JSON Schema (``make docs``)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rekd_edge.recipe.load import shipped_recipes
from rekd_edge.recipe.schema import Recipe

_INTRODUCTION = """\
# Recipe reference

<!-- Generated from the schema by `make docs`: edit rekd_edge/recipe/schema.py, not this file. -->

A recipe is a YAML file (version 1.2, no tags) that says what is trained: data, teacher, student
and objective. `rekd-edge recipe check` reports every problem at once, `rekd-edge recipe show`
prints the resolved recipe, and `rekd-edge recipe schema` prints the JSON Schema for editors.

- `extends: FILE-OR-NAME` starts from another recipe: a file beside this one, or a shipped recipe.
  Mappings merge key by key; lists are replaced whole.
- `--set key.path=value` overrides one value (YAML) on the command line.
- A relative path is relative to the file that states it; in `--set`, to the working folder.
- Unknown keys are errors.

"""


def recipe_reference() -> str:
    """Markdown: one table of keys for each section, in the order of the schema."""
    schema = Recipe.model_json_schema()
    sections = {"Recipe": schema, **_in_order_of_use(schema)}
    parts = [_INTRODUCTION, "Shipped recipes: "]
    parts.append(", ".join(f"`{name}`" for name in shipped_recipes()) + ".\n")
    for name, section in sections.items():
        parts.append(f"\n## {_title(name)}\n\n")
        if description := section.get("description"):
            parts.append(f"{_one_line(description)}\n\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|\n")
        required = section.get("required", [])
        for key, prop in section["properties"].items():
            default = "required" if key in required else _default(prop)
            meaning = _one_line(prop.get("description", "")).replace("|", "\\|")
            parts.append(f"| `{key}` | {_type(prop)} | {default} | {meaning} |\n")
    return "".join(parts)


def _in_order_of_use(schema: dict[str, Any]) -> dict[str, Any]:
    """Sections depth-first as the top section's keys name them."""
    definitions = schema["$defs"]
    found: dict[str, Any] = {}

    def visit(section: dict[str, Any]) -> None:
        for prop in section["properties"].values():
            for name in _references(prop):
                if name not in found:
                    found[name] = definitions[name]
                    visit(definitions[name])

    visit(schema)
    return found


def _references(prop: dict[str, Any]) -> list[str]:
    options = [prop, *prop.get("anyOf", []), *prop.get("allOf", [])]
    return [option["$ref"].rpartition("/")[2] for option in options if "$ref" in option]


def _title(name: str) -> str:
    return "Top level" if name == "Recipe" else name.removesuffix("Spec")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _default(prop: dict[str, Any]) -> str:
    if "default" not in prop:
        return ""
    default = prop["default"]
    if isinstance(default, dict):
        return "see there"
    if default == "":
        return ""
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{json.dumps(default)}`".replace('"', "")


def _type(prop: dict[str, Any]) -> str:
    references = _references(prop)
    null = " or null" if any(o.get("type") == "null" for o in prop.get("anyOf", [])) else ""
    if references:
        title = _title(references[0])
        return f"[{title}](#{title.lower()}){null}"
    options = [option for option in prop.get("anyOf", [prop]) if option.get("type") != "null"]
    return ", ".join(_simple_type(option) for option in options) + null


def _simple_type(option: dict[str, Any]) -> str:
    if "const" in option:
        return f"`{option['const']}`"
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    if option.get("type") == "array":
        return f"list of {_simple_type(option.get('items', {}))}"
    words = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}
    bounds = [
        f"{sign} {option[key]:g}"
        for key, sign in (
            ("exclusiveMinimum", ">"),
            ("minimum", "≥"),
            ("exclusiveMaximum", "<"),
            ("maximum", "≤"),
        )
        if key in option
    ]
    return " ".join([words.get(option.get("type", ""), "any"), ", ".join(bounds)]).strip()


def main() -> None:
    """Write the reference to the file named on the command line, atomically."""
    path = Path(sys.argv[1])
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(recipe_reference(), encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
