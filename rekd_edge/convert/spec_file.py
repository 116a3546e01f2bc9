"""Reads the small YAML files under ``export/``: targets and gates.

They are parsed like recipes (safe YAML, no tags, no duplicate keys); all problems of a file are
reported at once, with file, line and key.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from rekd_edge.errors import RecipeError, UsageError
from rekd_edge.recipe.document import MAX_BYTES, Located, dotted, parse

Model = TypeVar("Model", bound=BaseModel)


def find_spec(name_or_path: str, folder: Path, what: str) -> Path:
    """A path to an existing YAML file, or the shipped ``folder/NAME.yaml``.

    Raises :class:`UsageError` with the names that exist.
    """
    shipped = sorted(path.stem for path in folder.glob("*.yaml"))
    if name_or_path in shipped:
        return folder / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise UsageError(
            f"the {what} file {path} does not exist",
            hint=f"shipped {what}s: {', '.join(shipped)}",
        )
    near = difflib.get_close_matches(name_or_path, shipped, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    raise UsageError(
        f"there is no {what} {name_or_path!r}{guess}",
        hint=f"shipped {what}s: {', '.join(shipped)}; or give the path of a .yaml file",
    )


def read_spec(path: Path, model: type[Model], what: str) -> Model:
    """The validated content of one YAML file; :class:`RecipeError` lists every problem."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: larger than {MAX_BYTES} bytes; this is no {what} file")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a UTF-8 text file") from error
    except FileNotFoundError as error:
        raise UsageError(f"the {what} file {path} does not exist") from error
    tree, problems = parse(text, source=str(path), folder=path.parent)
    if problems or tree is None:
        raise RecipeError(_message(what, [str(problem) for problem in problems]))
    try:
        return model.model_validate(tree.plain())
    except ValidationError as error:
        lines = [_describe(item, tree, model) for item in error.errors()]
        raise RecipeError(_message(what, lines)) from None


def _message(what: str, lines: list[str]) -> str:
    head = f"this {what} file is invalid"
    return "\n  ".join([f"{head}:", *lines]) if len(lines) != 1 else f"{head}: {lines[0]}"


def _describe(item: Mapping[str, object], tree: Located, model: type[BaseModel]) -> str:
    location = tuple(item["loc"])  # type: ignore[arg-type]
    place = tree.at(location).place
    key = dotted(location)
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden" and location:
        near = difflib.get_close_matches(str(location[-1]), _all_fields(model), n=1)
        message = "unknown key" + (f" (did you mean {near[0]!r}?)" if near else "")
    return f"{place}: {key + ': ' if key else ''}{message}"


def _all_fields(model: type[BaseModel]) -> list[str]:
    """Field names of a model and of the models nested in its definitions."""
    schema = model.model_json_schema()
    names = list(schema.get("properties", {}))
    for definition in schema.get("$defs", {}).values():
        names += list(definition.get("properties", {}))
    return names
