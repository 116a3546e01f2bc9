"""From a file (and overrides) to a :class:`Recipe`, with every problem reported at once."""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from rekd_edge.errors import RecipeError
from rekd_edge.recipe.check import find_problems
from rekd_edge.recipe.document import MAX_BYTES, Located, Place, Problem, dotted, merge, parse
from rekd_edge.recipe.schema import SCHEMA_VERSION, Recipe
from rekd_edge.resources import recipes_dir

SUFFIXES = (".yaml", ".yml")
EXTENDS = "extends"
ROLES = (("teacher",), ("student",), ("ensemble", "partner"))
PATH_KEYS = (
    ("data", "path"),
    ("data", "test_path"),
    ("transfer", "path"),
    ("teacher", "run"),
    *((*role, "train", "warmup", "predictor_run") for role in ROLES),
)
"""Values that are paths, relative to the file that states them."""
WEIGHTS_KEYS = tuple(
    (*role, part, "weights") for role in ROLES for part in ("selector", "predictor")
)
PATH_PREFIX = "path:"


class InvalidRecipeError(RecipeError):
    """A recipe that cannot be used; ``problems`` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(
            sorted(
                problems, key=lambda p: (p.place.line is None, p.place.source, p.place.line or 0)
            )
        )
        count = len(self.problems)
        title = "the recipe is invalid" if count == 1 else f"the recipe has {count} problems"
        super().__init__("\n  ".join([f"{title}:", *map(str, self.problems)]))


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, inherit, override and validate a recipe.

    ``path`` is a file or the name of a shipped recipe. ``overrides`` are ``key.path=value`` with
    values in YAML; a list is replaced whole. A relative path inside a recipe is relative to the
    file that states it (in an override: to the working folder) and is absolute in the result.

    Raises :class:`InvalidRecipeError` (a :class:`RecipeError`) that lists every problem as
    ``file:line: key: what``.
    """
    file = find_recipe(path)
    problems: list[Problem] = []
    tree = _read_chain(file, (), problems)
    for override in overrides:
        tree = _apply_override(tree, override, problems)
    if tree is None:
        raise InvalidRecipeError(problems)
    if not isinstance(tree.value, dict):
        problems.append(Problem(tree.place, "", "a recipe must be a mapping of keys to values"))
        raise InvalidRecipeError(problems)

    version = tree.value.get("schema_version")
    if version is not None and type(version.value) is int and version.value > SCHEMA_VERSION:
        newer = (
            f"this recipe is written for schema {version.value}, this rekd-edge reads up to "
            f"{SCHEMA_VERSION}: upgrade rekd-edge"
        )
        raise InvalidRecipeError([*problems, Problem(version.place, "schema_version", newer)])

    tree = _absolute_paths(tree)
    try:
        recipe = Recipe.model_validate(tree.plain())
    except ValidationError as error:
        known = {(problem.place, problem.key) for problem in problems}
        for problem in _explain(error, tree):
            if (problem.place, problem.key) not in known:
                problems.append(problem)
        raise InvalidRecipeError(problems) from None
    problems += [
        Problem(tree.at(location).place, dotted(location), message)
        for location, message in find_problems(recipe)
    ]
    if problems:
        raise InvalidRecipeError(problems)
    return recipe


def find_recipe(name_or_path: Path | str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one (``text/long-reviews``).

    Raises :class:`RecipeError` with the nearest names where there is none.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{path} is a folder, not a recipe", hint="name a .yaml file")
    shipped = _find_shipped(os.fspath(name_or_path))
    if shipped is not None:
        return shipped
    names = shipped_recipes()
    close = difflib.get_close_matches(_strip_suffix(os.fspath(name_or_path)), names, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else None
    raise RecipeError(
        f"there is no recipe {os.fspath(name_or_path)!r}: neither a file nor a shipped recipe",
        hint=hint or "`rekd-edge recipe list` names the shipped recipes",
    )


def shipped_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted: ``text/movie-review-snippets``..."""
    root = recipes_dir()
    return tuple(
        sorted(_strip_suffix(p.relative_to(root).as_posix()) for p in root.rglob("*.yaml"))
    )


def _strip_suffix(name: str) -> str:
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _find_shipped(name: str) -> Path | None:
    name = _strip_suffix(name).removeprefix("recipes/")
    return recipes_dir() / f"{name}.yaml" if name in shipped_recipes() else None


def _read_chain(file: Path, seen: tuple[Path, ...], problems: list[Problem]) -> Located | None:
    """Read ``file`` and everything that it extends; None where ``file`` cannot be read."""
    tree = _read(file, problems)
    if tree is None or not isinstance(tree.value, dict) or EXTENDS not in tree.value:
        return tree
    items = dict(tree.value)
    extends = items.pop(EXTENDS)
    tree = Located(items, tree.place)
    if not isinstance(extends.value, str) or not extends.value:
        problems.append(Problem(extends.place, EXTENDS, "must be a file or a shipped recipe"))
        return tree
    beside = file.parent / Path(extends.value).expanduser()
    try:
        base_file = beside if beside.is_file() else find_recipe(extends.value)
    except RecipeError as error:
        hint = f" ({error.hint})" if error.hint else ""
        problems.append(Problem(extends.place, EXTENDS, f"{error.message}{hint}"))
        return tree
    chain = (*seen, file.resolve())
    if base_file.resolve() in chain:
        names = " -> ".join(_display(link) for link in (*chain, base_file))
        problems.append(Problem(extends.place, EXTENDS, f"recipes extend each other: {names}"))
        return tree
    base = _read_chain(base_file, chain, problems)
    return tree if base is None else merge(base, tree)


def _read(file: Path, problems: list[Problem]) -> Located | None:
    source = _display(file)
    place = Place(source, None, file.parent)
    try:
        data = file.read_bytes()
    except OSError as error:
        problems.append(Problem(place, "", f"cannot be read: {error.strerror or error}"))
        return None
    if len(data) > MAX_BYTES:
        problems.append(Problem(place, "", f"larger than {MAX_BYTES:,} bytes: not a recipe"))
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        problems.append(Problem(Place(source, line, file.parent), "", "not UTF-8 text"))
        return None
    tree, found = parse(text, source=source, folder=file.parent.absolute())
    problems += found
    return tree


def _display(file: Path) -> str:
    """``file`` as a person would write it: relative where it lies below the working folder."""
    try:
        return os.fspath(file.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return os.fspath(file)


def _apply_override(tree: Located | None, override: str, problems: list[Problem]) -> Located | None:
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    place = Place(f"--set {override}", None, Path.cwd())
    if not equals or not all(keys):
        problems.append(Problem(place, "", "an override is written key.path=value"))
        return tree
    if keys[0] == EXTENDS:
        problems.append(Problem(place, EXTENDS, "can only be stated in a recipe file"))
        return tree
    if text.strip():
        value, found = parse(text, source=place.source, folder=place.folder, line=None)
    else:
        value, found = Located(None, place), []
    problems += found
    if value is None or found or tree is None:
        return tree
    try:
        return _with_value(tree, keys, value, place)
    except _NotAMappingError as error:
        problems.append(Problem(place, str(error), "holds a value, not keys to override"))
        return tree


class _NotAMappingError(Exception):
    pass


def _with_value(
    tree: Located, keys: Sequence[str], value: Located, place: Place, *, above: str = ""
) -> Located:
    if not keys:
        return value
    if tree.value is None:
        tree = Located({}, place)
    if not isinstance(tree.value, dict):
        raise _NotAMappingError(above)
    key, *rest = keys
    child = tree.value.get(key, Located(None, place))
    where = f"{above}.{key}" if above else key
    items = {**tree.value, key: _with_value(child, rest, value, place, above=where)}
    return Located(items, tree.place)


def _absolute_paths(tree: Located) -> Located:
    for location in PATH_KEYS:
        node = _get(tree, location)
        if node is not None and isinstance(node.value, str) and node.value:
            made = Located(_absolute(node.value, node.place), node.place)
            tree = _with_value(tree, location, made, node.place)
    for location in WEIGHTS_KEYS:
        node = _get(tree, location)
        if node is not None and isinstance(node.value, list):
            made = Located([_absolute_weights(item) for item in node.value], node.place)
            tree = _with_value(tree, location, made, node.place)
    return tree


def _get(tree: Located, location: Sequence[str]) -> Located | None:
    node = tree
    for key in location:
        if not isinstance(node.value, dict) or key not in node.value:
            return None
        node = node.value[key]
    return node


def _absolute(value: str, place: Place) -> str:
    return os.path.normpath(place.folder / Path(value).expanduser())


def _absolute_weights(item: Located) -> Located:
    text = item.value
    if not isinstance(text, str) or not text.startswith(PATH_PREFIX) or text == PATH_PREFIX:
        return item
    return Located(PATH_PREFIX + _absolute(text.removeprefix(PATH_PREFIX), item.place), item.place)


def _explain(error: ValidationError, tree: Located) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        location = item["loc"]
        node = tree.at(location)
        yield Problem(node.place, dotted(location), _explain_one(item, location))


def _explain_one(item: Any, location: tuple[int | str, ...]) -> str:
    kind, given = item["type"], item["input"]
    if kind == "extra_forbidden":
        return f"unknown key{_did_you_mean(str(location[-1]), _fields_at(location[:-1]))}"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        options = _choices_at(location)
        listed = ", ".join(repr(option) for option in options) or item["ctx"]["expected"]
        meant = _did_you_mean(str(given), [str(option) for option in options])
        return f"must be one of {listed}, not {given!r}{meant}"
    if kind == "string_type" and isinstance(given, bool | int | float):
        return f"must be text, not {given!r} (put it in quotes)"
    if given is None:
        return "is empty, but a value is needed"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a mapping of keys to values, not {given!r}"
    if kind == "tuple_type":
        return f"must be a list, not {given!r}"
    if kind == "too_short":
        return f"needs at least {item['ctx']['min_length']} item(s)"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if isinstance(given, dict | list):
        return item["msg"]
    return f"{item['msg'][:1].lower()}{item['msg'][1:]}, not {given!r}"


def _did_you_mean(given: str, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, options, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _annotation_at(location: Sequence[int | str]) -> Any:
    annotation: Any = Recipe
    for part in location:
        model = _as_model(annotation)
        if model is not None and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
        else:
            return None
    return annotation


def _fields_at(location: Sequence[int | str]) -> list[str]:
    model = _as_model(_annotation_at(location))
    if model is None:
        return []
    return [*model.model_fields, *([] if location else [EXTENDS])]


def _choices_at(location: Sequence[int | str]) -> list[Any]:
    annotation = _annotation_at(location)
    return list(typing.get_args(annotation)) if typing.get_origin(annotation) is Literal else []


def _as_model(annotation: Any) -> type[BaseModel] | None:
    """The model of ``Model`` or ``Model | None``."""
    options: tuple[Any, ...] = (annotation,)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        options = typing.get_args(annotation)
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None
