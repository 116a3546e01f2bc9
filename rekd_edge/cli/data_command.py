"""``rekd-edge data list|fetch|show``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rekd_edge.cli.console import JsonOption, emit, status_console
from rekd_edge.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rekd_edge.data.fetch import PinnedArchive


def register(app: typer.Typer) -> None:
    commands = typer.Typer(
        help="List, fetch and show data sets and weights.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    commands.command("list")(list_data)
    commands.command("fetch")(fetch_data)
    commands.command("show")(show_data)
    app.add_typer(commands, name="data")


def list_data(json_path: JsonOption = None) -> None:
    """Name the bundled sets, the kinds of own data and the packaged weights."""
    from rekd_edge.data.catalogue import BUNDLED_SETS, OWN_DATA
    from rekd_edge.data.storage import cache_dir
    from rekd_edge.models.weights import PACKAGES

    sets = [
        {
            "name": bundled.name,
            "modality": bundled.modality,
            "problem_type": bundled.problem,
            "summary": bundled.summary,
            **_archive_facts(*bundled.archives),
        }
        for bundled in BUNDLED_SETS.values()
    ]
    weights = [
        {"name": f"package:{name}", "modality": modality, **_archive_facts(archive)}
        for name, (modality, archive) in PACKAGES.items()
    ]
    own = [{"name": name, "summary": summary} for name, summary in OWN_DATA.items()]

    def render(console: Console) -> None:
        from rich.table import Table

        for title, rows in (("data sets", sets), ("weights", weights)):
            table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
            for column in ("name", "kind", "MB", "cached", "licence", ""):
                table.add_column(
                    column,
                    justify="right" if column == "MB" else "left",
                    no_wrap=column == "name",
                    min_width=22 if column == "name" else None,
                )
            for row in rows:
                table.add_row(
                    row["name"],
                    row["modality"],
                    f"{row['size_bytes'] / 1e6:.0f}",
                    "yes" if row["cached"] else "no",
                    row["licence"],
                    row.get("summary", ""),
                )
            console.print(table)
            console.print()
        table = Table(title="own data", title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("source")
        table.add_column("")
        for row in own:
            table.add_row(row["name"], row["summary"])
        console.print(table)
        console.print(f"\ncache: {cache_dir()}", soft_wrap=True)

    emit(
        {"sets": sets, "weights": weights, "own_data": own, "cache": cache_dir()},
        json_path=json_path,
        render=render,
    )


def fetch_data(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Data sets, or weights as package:NAME, of `data list`."
        ),
    ],
    json_path: JsonOption = None,
) -> None:
    """Download and verify, so that later commands need no network."""
    import difflib

    from rekd_edge.data.catalogue import BUNDLED_SETS
    from rekd_edge.data.fetch import fetch, is_cached
    from rekd_edge.models.weights import PACKAGES, prepare_package

    known: dict[str, tuple[PinnedArchive, ...]]
    known = {name: bundled.archives for name, bundled in BUNDLED_SETS.items()}
    known |= {f"package:{name}": (archive,) for name, (_, archive) in PACKAGES.items()}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"nothing to fetch is called {name!r}"
                + (f" (did you mean {close[0]!r}?)" if close else ""),
                hint=f"one of {', '.join(known)}",
            )
    rows: list[dict[str, Any]] = []
    status = status_console()
    wanted = [(name, archive) for name in dict.fromkeys(names) for archive in known[name]]
    for name, archive in wanted:
        was_cached = is_cached(archive)
        verb = "verifying" if was_cached else "fetching"
        with status.status(f"{verb} {archive.label} ({archive.size_bytes / 1e6:.0f} MB)"):
            path = fetch(archive)
            if name.startswith("package:"):
                prepare_package(name.removeprefix("package:"))
        rows.append({"name": name, "path": path, "downloaded": not was_cached})

    def render(console: Console) -> None:
        for row in rows:
            verb = "downloaded" if row["downloaded"] else "already there"
            console.print(f"{row['name']}: {verb}, verified: {row['path']}", soft_wrap=True)

    emit({"fetched": rows}, json_path=json_path, render=render)


def show_data(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME|RECIPE", help="A bundled set, or a recipe and its data."),
    ],
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="Training examples to show of each class.")
    ] = 1,
    read_all: Annotated[
        bool, typer.Option("--read-all", help="Read every example, to find damaged ones now.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a value of the recipe."),
    ] = None,
    json_path: JsonOption = None,
) -> None:
    """Show splits, classes and examples, as training would see them."""
    import numpy as np

    from rekd_edge.data.catalogue import BUNDLED_SETS
    from rekd_edge.data.load import class_counts, load_data, load_source, target_ranges
    from rekd_edge.recipe import load_recipe
    from rekd_edge.recipe.schema import DataSpec

    status = status_console()
    with status.status(f"reading {name}"):
        if name in BUNDLED_SETS:
            if overrides:
                raise UsageError("--set is for recipes")
            bundled = BUNDLED_SETS[name]
            problem = bundled.problem
            data = load_source(DataSpec(source=name), bundled.modality, problem)
        else:
            from rekd_edge.recipe import find_recipe

            recipe = load_recipe(find_recipe(name), overrides or ())
            data, problem = load_data(recipe), recipe.problem_type
        splits = (data.train, data.dev, data.test)
        if read_all:
            for split in splits:
                for index in range(len(split)):
                    split.raw(index)
    shown: dict[str, list[str]] = {}
    numbers = problem == "regression"
    for label, label_name in enumerate(data.label_names):
        labels = data.train.labels
        if numbers:  # the lowest and the highest
            order = labels[:, label].argsort(kind="stable")
            chosen = np.concatenate([order[:examples], order[len(order) - examples :]])
        else:
            here = labels == label if labels.ndim == 1 else labels[:, label] > 0
            chosen = np.flatnonzero(here)[:examples]
        shown[label_name] = [_describe(data.train.raw(int(index))) for index in chosen]
    measure = target_ranges if numbers else class_counts
    counts = {split.name: measure(split, data.label_names) for split in splits}

    def said(found: Any) -> str:
        if not isinstance(found, dict):
            return str(found)
        return (
            f"{found['mean']:.3g} ± {found['deviation']:.3g}, {found['min']:g} to {found['max']:g}"
        )

    def render(console: Console) -> None:
        from rich.markup import escape
        from rich.table import Table

        for key, value in data.source.items():
            console.print(f"{key}: {value}", soft_wrap=True, markup=False)
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("number" if numbers else "class")
        for split in splits:
            table.add_column(split.name, justify="right")
        for label_name in data.label_names:
            table.add_row(
                escape(label_name), *(said(counts[split.name][label_name]) for split in splits)
            )
        table.add_row("all", *(str(len(split)) for split in splits))
        console.print(table)
        for label_name, texts in shown.items():
            for text in texts:
                console.print(f"{label_name}: {text}", markup=False)

    emit(
        {"source": data.source, "ranges" if numbers else "counts": counts, "examples": shown},
        json_path=json_path,
        render=render,
    )


def _archive_facts(archive: PinnedArchive, *beside: PinnedArchive) -> dict[str, Any]:
    """Facts of the main archive; ``size_bytes`` and ``cached`` are of all of them."""
    from rekd_edge.data.fetch import is_cached

    return {
        "package": archive.package,
        "version": archive.version,
        "registry": archive.registry,
        "sha256": archive.sha256,
        "size_bytes": sum(one.size_bytes for one in (archive, *beside)),
        "licence": archive.licence,
        "cached": all(is_cached(one) for one in (archive, *beside)),
    }


def _describe(raw: Any) -> str:
    if isinstance(raw, str):
        return raw if len(raw) <= 200 else raw[:199] + "…"
    height, width = raw.shape[:2]
    return f"{width}x{height} pixels, mean {raw.mean() / 255:.2f}"
