"""``rekd-edge evaluate RUN``: how good a run's rationales are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit, status_console
from rekd_edge.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rekd_edge.evaluate_pipeline import QualityReport


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="RUN",
            help="Another run over the same data, e.g. of another seed. May be given repeatedly.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    judge: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A run that lends its judge. [this run's teacher, or its student]",
        ),
    ] = None,
    lexicon: Annotated[
        bool | None,
        typer.Option(help="Compare with the lexicon proxy. [for English sentiment sets]"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure so many examples, drawn by class. [all]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_path: JsonOption = None,
) -> None:
    """Measure a run's rationales: faithfulness, agreement with gold, mask-only probe, stability.

    Writes RUN/reports/quality.json (quality-SPLIT.json for another split than test).
    """
    if split != "train" and split != "dev" and split != "test":
        raise UsageError(f"--split {split!r}: no such split", hint="use train, dev or test")
    from rekd_edge.evaluate_pipeline import evaluate_run
    from rekd_edge.run_folder import open_run

    opened = open_run(run)
    others = [open_run(other) for other in against or []]
    lender = None if judge is None else open_run(judge)
    with status_console().status("evaluating"):
        report = evaluate_run(
            opened,
            against=others,
            split=split,
            judge_run=lender,
            lexicon=lexicon,
            limit=limit,
            device=device,
        )
    emit(report.to_json(), json_path=json_path, render=lambda out: show(out, report))


def show(out: Console, report: QualityReport) -> None:
    """The table of a report."""
    from rich.table import Table

    from rekd_edge.cli.distill_command import said_of_simulability

    table = Table(
        "measure",
        "value",
        "beside",
        title=f"{report.recipe}, seed {report.seed}: {report.examples} {report.split} examples, "
        f"rationales of {report.kept_share:.1%}",
        title_justify="left",
    )
    for name, score in report.scores.items():
        table.add_row(name.replace("_", " "), f"{score:.3f}", "")
    numbers = report.problem_type == "regression"
    classes = report.problem_type == "single_label_classification"
    apart = "distance in deviations" if numbers else ""
    simulated = report.simulability
    if simulated is not None:
        for name, share in (
            ("simulability, test split", simulated.with_rationales),
            ("simulability, from the teacher's answers alone", simulated.without_rationales),
        ):
            if share is not None:
                said = said_of_simulability(share, report.problem_type)
                table.add_row(name, f"{share:.3f}", "answers as the teacher's" if classes else said)
    scores = report.faithfulness.scores
    if scores is not None:
        at_random = "random rationale "
        table.add_row(
            "sufficiency (low is good)",
            f"{scores.sufficiency:.3f}",
            at_random + f"{scores.random_sufficiency:.3f}",
        )
        table.add_row(
            "comprehensiveness (high is good)",
            f"{scores.comprehensiveness:.3f}",
            at_random + f"{scores.random_comprehensiveness:.3f}",
        )
        table.add_row("AOPC sufficiency", f"{scores.aopc_sufficiency:.3f}", apart)
        table.add_row("AOPC comprehensiveness", f"{scores.aopc_comprehensiveness:.3f}", apart)
    probe = report.probe
    known = f"prior {probe.prior:.3f}"
    if probe.length_accuracy is not None:
        known += f", from the length {probe.length_accuracy:.3f}"
    table.add_row(
        f"{'value' if numbers else 'label'} from the mask's shape",
        f"{probe.accuracy:.3f}",
        f"{known}; {probe.excess_points:+.1f} ± {probe.standard_error_points:.1f} points",
    )
    for gold in (*report.gold, *report.class_wise_gold):
        if gold.scores is None:
            table.add_row(gold.name, "", "no example has gold tokens that the model reads")
            continue
        found = gold.scores
        macro = f"macro {found.token_macro.f1:.3f}, "
        chance = f"{macro}gold share {found.gold_share:.3f}"
        table.add_row(f"{gold.name}: token F1", f"{found.token_micro.f1:.3f}", chance)
        table.add_row(
            f"{gold.name}: IOU F1",
            f"{found.iou_micro.f1:.3f}",
            f"macro {found.iou_macro.f1:.3f}, mean IoU {found.mean_iou:.3f}",
        )
        table.add_row(
            f"{gold.name}: AUPRC", f"{found.auprc:.3f}", f"{found.examples} examples with gold"
        )
    noise = report.stability.selector_noise
    table.add_row(
        "Jaccard, selector's noise",
        f"{noise.jaccard:.3f}",
        f"equal {noise.exact:.1%}, chance {noise.chance_jaccard:.3f}",
    )
    for other in report.stability.runs:
        beside = other.overlap
        keys = other.differs_in
        more = f" and {len(keys) - 2} more" if len(keys) > 3 else ""
        changed = ", ".join(keys[: 2 if more else 3]) + more if keys else "nothing"
        table.add_row(
            f"Jaccard with {Path(other.run).name} (seed {other.seed})",
            f"{beside.jaccard:.3f}",
            f"equal {beside.exact:.1%}, chance {beside.chance_jaccard:.3f}; differs in {changed}",
        )
    together = report.stability.all_runs
    if together is not None and len(report.stability.runs) > 1:
        table.add_row("Jaccard, all pairs of runs", f"{together.jaccard:.3f}", "")
    out.print(table)
    if report.pair is not None:
        from rekd_edge.cli.distill_command import show_pair

        show_pair(out, report.pair.to_json())
    if report.class_wise is not None:
        from rekd_edge.cli.distill_command import show_class_wise

        show_class_wise(out, report.class_wise.to_json())
    if report.faithfulness.judge is not None and scores is not None:
        answer = {
            "single_label_classification": "y is the class",
            "multi_label_classification": "y is the set of labels",
            "regression": "distances are from the value",
        }[report.problem_type]
        out.print(
            f"judged by: {report.faithfulness.judge}, the predictor after its warm-up on random "
            f"subsets ({report.score} on the whole input {scores.judge_accuracy:.3f}); {answer} "
            "that it predicts there"
        )
    for note in report.notes:
        out.print(f"note: {note}", markup=False)
