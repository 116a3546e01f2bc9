"""`rekd-edge distill`: from a recipe to a trained run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rekd_edge.cli.console import JsonOption, emit
from rekd_edge.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rekd_edge.pipeline import RunPlan
    from rekd_edge.run_folder import Run
    from rekd_edge.types import ProblemType


def register(app: typer.Typer) -> None:
    app.command("distill")(distill)


def distill(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The new run folder.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run in --output.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Open data and weights, print the plan, stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int | None, typer.Option(help="Training seed; overrides the recipe's.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Refuse operators that are not reproducible.")
    ] = False,
    json_path: JsonOption = None,
) -> None:
    """Train a teacher rationalist and distill its student."""
    from rekd_edge.recipe import find_recipe, load_recipe

    changes = list(overrides or [])
    if seed is not None:
        changes.append(f"seed={seed}")
    loaded = load_recipe(find_recipe(recipe), changes)
    if dry_run:
        from rekd_edge.pipeline import plan_run

        plan = plan_run(loaded)
        emit(plan.to_json(), json_path=json_path, render=lambda out: _show_plan(out, plan))
        return
    if output is None:
        raise UsageError("--output is missing", hint="name a new folder: --output runs/first")
    from rekd_edge.cli.progress import TrainingProgress
    from rekd_edge.pipeline import set_deterministic, train_run

    set_deterministic(deterministic)
    if os.environ.get("RANK", "0") != "0":  # one of several processes: the first one speaks
        train_run(loaded, output, resume=resume, device=device)
        return
    with TrainingProgress() as progress:
        run = train_run(loaded, output, resume=resume, device=device, listener=progress)
    result = {"run": str(output), "info": run.info, "distill": run.report("distill")}
    fuse = run.report("fuse")
    if fuse is not None:
        result["fuse"] = fuse
    emit(result, json_path=json_path, render=lambda out: _show_run(out, run))


def _show_plan(out: Console, plan: RunPlan) -> None:
    out.print(f"labels: {', '.join(plan.label_names)}")
    for name, count in plan.examples.items():
        out.print(f"{name}: {count} examples")
    for role, count in plan.parameters.items():
        out.print(f"{role}: {count / 1e6:.1f} M parameters")
    for role, source in plan.weights.items():
        out.print(f"{role}: {source['source']}")
    out.print(f"{plan.steps_per_epoch} steps per epoch. Nothing was trained (--dry-run).")


def show_pair(out: Console, pair: Mapping[str, Any]) -> None:
    """What decided between two students (:class:`rekd_edge.evaluate.pair.PairReport` as JSON)."""
    from rich.table import Table

    table = Table(
        "decided by",
        "share",
        "pair right",
        "student",
        "partner",
        title=f"two students: {pair['gain_points']:+.1f} points over the better of them "
        f"(mean of their probabilities: {pair['averaged']:.3f})",
        title_justify="left",
    )
    for case in pair["cases"].values():
        right = (case[name] for name in ("accuracy", "student", "partner"))
        cells = ("-" if value is None else f"{value:.3f}" for value in right)
        table.add_row(case["name"].replace("_", " "), f"{case['share']:.1%}", *cells)
    out.print(table)


def said_of_simulability(share: float, problem: ProblemType) -> str:
    """How far a student answers as its teacher, in words."""
    if problem == "regression":
        return f"R2 {share:.3f} of the test values against the teacher's"
    answers = "answers" if problem == "single_label_classification" else "sets of labels"
    return f"{share:.3f} of the test {answers} are the teacher's"


def show_class_wise(out: Console, found: Mapping[str, Any]) -> None:
    """How far the rationale for each class convinces the predictor of it, as a table."""
    from rich.table import Table

    table = Table(
        "rationale for",
        "says so",
        "random",
        "where not the answer",
        "random",
        "p",
        "p, answer's",
        "p, random",
        "overlap",
        title="class-wise rationales" + ("" if found["above_chance"] else ": not above chance"),
        title_justify="left",
    )
    for one in found["classes"]:
        shares = ("reach", "reach_random", "reach_not_answered", "reach_random_not_answered")
        means = ("probability", "probability_answer", "probability_random", "jaccard_not_answered")
        cells = ("-" if one[key] is None else f"{one[key]:.1%}" for key in shares)
        values = ("-" if one[key] is None else f"{one[key]:.3f}" for key in means)
        table.add_row(one["label"], *cells, *values)
    out.print(table)


def _show_run(out: Console, run: Run) -> None:
    from rich.table import Table

    from rekd_edge.problem import PRIMARY

    distill = run.report("distill") or {}
    tests: dict[str, dict[str, Any]] = {
        role: distill[role]["test"]
        for role in ("teacher", "student", "partner")
        if "test" in distill.get(role, {})
    }
    primary = PRIMARY[run.recipe.problem_type]
    first = next(iter(tests.values()), {primary: 0.0})
    scores = [name for name, v in first.items() if isinstance(v, float) and name != "loss"]
    titles = [f"test {name.replace('_', ' ')}" for name in scores]
    table = Table("model", *titles, "test examples", title=f"{run.recipe.name}")
    for role, test in tests.items():
        table.add_row(role, *(f"{test[name]:.3f}" for name in scores), str(test["examples"]))
    pair = distill.get("pair", {}).get("test")
    if pair is not None:
        table.add_row("pair", f"{pair['accuracy']:.3f}", str(pair["examples"]))
    out.print(table)
    if pair is not None:
        show_pair(out, pair)
    if "class_wise" in distill:
        show_class_wise(out, distill["class_wise"]["test"])
    simulated = run.simulability()
    if simulated is not None:
        share, learned = simulated.with_rationales, "its rationales and answers"
        if share is None:
            share, learned = simulated.without_rationales, "its answers alone"
        found = said_of_simulability(share or 0.0, run.recipe.problem_type)
        out.print(f"simulability: {found}; learned from {learned}")
    for warning in distill.get("warnings", []):
        seen = f"steps {warning['step']} to {warning['last_step']} of {warning['phase']}"
        out.print(f"[yellow]warning[/] {warning['role']}, {seen}: {warning['message']}")
    fuse = run.report("fuse")
    if fuse is not None:
        modes = Table("rationale chosen by", primary, "spread", "kept", title="fuse report")
        for name, mode in fuse["modes"].items():
            # The primary score, under its own name or that of classes.
            key = primary if primary in mode else "accuracy"
            spread = f"{mode[f'{key}_spread']:.3f}" if mode["draws"] > 1 else ""
            modes.add_row(
                name.replace("_", " "),
                f"{mode[key]:.3f}",
                spread,
                f"{mode['kept_share']:.2f}",
            )
        out.print(modes)
        out.print(
            "largest logit difference, masked against gathered: "
            f"{fuse['masked_gathered_difference']:.1e}"
        )
    out.print(f"run folder: {run.path}")
