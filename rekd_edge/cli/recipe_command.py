"""``rekd-edge recipe init|list|check|show|schema``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rekd_edge.cli.console import JsonOption, emit
from rekd_edge.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file or the name of a shipped recipe.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Override a value (YAML); repeat for more.",
    ),
]


def register(app: typer.Typer) -> None:
    commands = typer.Typer(
        help="Write, check and show recipes.", no_args_is_help=True, rich_markup_mode=None
    )
    commands.command("init")(init_recipe)
    commands.command("list")(list_recipes)
    commands.command("check")(check_recipes)
    commands.command("show")(show_recipe)
    commands.command("schema")(show_schema)
    app.add_typer(commands, name="recipe")


def init_recipe(
    output: Annotated[
        Path, typer.Argument(metavar="FILE", help="The recipe file to write, e.g. my.yaml.")
    ],
    template: Annotated[
        str, typer.Option("--from", metavar="NAME", help="The shipped recipe to start from.")
    ] = "own-data/text-csv",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json_path: JsonOption = None,
) -> None:
    """Copy a shipped recipe, comments included, as the start of your own."""
    import os

    from rekd_edge.recipe import find_recipe

    source = find_recipe(template)
    if output.is_dir() or not output.parent.is_dir():
        raise UsageError(
            f"cannot write {output}: "
            + ("it is a folder" if output.is_dir() else f"{output.parent} is not a folder"),
            hint="name a file in a folder that exists",
        )
    if output.exists() and not force:
        raise UsageError(f"{output} exists already", hint="use --force to replace it")
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        temporary.write_bytes(source.read_bytes())
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)

    def render(console: Console) -> None:
        console.print(f"wrote {output} (a copy of {template})", soft_wrap=True)
        console.print(f"next: edit it, then `rekd-edge recipe check {output}`", soft_wrap=True)

    emit({"path": output, "template": template}, json_path=json_path, render=render)


def list_recipes(json_path: JsonOption = None) -> None:
    """Name the shipped recipes."""
    from rekd_edge.recipe import load_recipe, shipped_recipes
    from rekd_edge.resources import recipes_dir

    rows = []
    for name in shipped_recipes():
        # Templates name files that do not exist yet; loading does not need them.
        recipe = load_recipe(recipes_dir() / f"{name}.yaml")
        rows.append(
            {
                "name": name,
                "task": recipe.task,
                "modality": recipe.modality,
                "description": recipe.description,
            }
        )

    def render(console: Console) -> None:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row(row["name"], row["description"])
        console.print(table)

    emit({"recipes": rows}, json_path=json_path, render=render)


def check_recipes(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE...", help="Recipe files or names of shipped recipes."),
    ],
    overrides: SetOption = None,
    json_path: JsonOption = None,
) -> None:
    """Say whether recipes are valid, with every problem; exit code 2 where one is not."""
    from rekd_edge.recipe import InvalidRecipeError, find_recipe, load_recipe

    rows: list[dict[str, Any]] = []
    for name in recipes:
        row: dict[str, Any] = {"recipe": name, "path": None, "passed": False, "problems": []}
        try:
            row["path"] = find_recipe(name)
            load_recipe(row["path"], overrides or ())
            row["passed"] = True
        except InvalidRecipeError as error:
            row["problems"] = [
                {
                    "file": problem.place.source,
                    "line": problem.place.line,
                    "key": problem.key,
                    "message": problem.message,
                }
                for problem in error.problems
            ]
            row["text"] = [str(problem) for problem in error.problems]
        except RecipeError as error:
            row["problems"] = [{"file": name, "line": None, "key": "", "message": str(error)}]
            row["text"] = [str(error)]
        rows.append(row)
    texts = [row.pop("text", []) for row in rows]
    passed = all(row["passed"] for row in rows)

    def render(console: Console) -> None:
        for row, problems in zip(rows, texts, strict=True):
            console.print(f"{row['recipe']}: {'ok' if row['passed'] else 'INVALID'}", markup=False)
            for problem in problems:
                console.print(f"  {problem}", markup=False, soft_wrap=True)

    emit({"passed": passed, "recipes": rows}, json_path=json_path, render=render)
    if not passed:
        raise typer.Exit(RecipeError.exit_code)


def show_recipe(
    recipe: RecipeArgument, overrides: SetOption = None, json_path: JsonOption = None
) -> None:
    """Print the resolved recipe: inherited, overridden, with all defaults."""
    from rekd_edge.recipe import dump_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or ())

    def render(console: Console) -> None:
        console.out(dump_recipe(loaded), end="", highlight=False)

    emit(loaded.model_dump(mode="json"), json_path=json_path, render=render)


def show_schema(json_path: JsonOption = None) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from rekd_edge.cli.console import to_json
    from rekd_edge.recipe import recipe_json_schema

    schema = recipe_json_schema()

    def render(console: Console) -> None:
        console.out(to_json(schema), end="", highlight=False)

    emit(schema, json_path=json_path, render=render)
