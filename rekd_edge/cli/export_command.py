"""``rekd-edge export RUN --target onnx --output BUNDLE``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit
from rekd_edge.errors import GateError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rekd_edge.calibrate.spec import AbstentionSpec
    from rekd_edge.export_pipeline import ExportResult, RecoveryReport
    from rekd_edge.packages.store import StoredPackage
    from rekd_edge.precision_pipeline import PrecisionReport
    from rekd_edge.run_folder import Run

AUTO = "auto"


def register(app: typer.Typer) -> None:
    app.command("export")(export_run)


def export_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="BUNDLE", help="The bundle folder to write."),
    ],
    target: Annotated[
        str, typer.Option("--target", help="A target of export/targets by name, or a file.")
    ] = "onnx",
    precision: Annotated[
        str | None,
        typer.Option(
            help="auto: the fastest of the target's precisions that holds its gates. [the target's]"
        ),
    ] = None,
    gates: Annotated[
        str | None,
        typer.Option("--gates", help="Gates of export/gates by name, or a file. [the target's]"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads. [all available cores]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing bundle once the new one passes.")
    ] = False,
    twins: Annotated[
        bool,
        typer.Option(
            "--twins/--no-twins",
            help="Also write RUN/onnx/plain.onnx and masked.onnx, which bench compares with.",
        ),
    ] = True,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Search the runtime's settings (threads, optimisation, memory) on the finished "
            "file; with --threads those are kept.",
        ),
    ] = False,
    recover: Annotated[
        bool | None,
        typer.Option(
            "--recover/--no-recover",
            help="Train a little in int8 where an int8 file fails on labels, rationales or "
            "accuracy. [as the target says]",
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(help="Share of inputs to answer; the least sure are withheld. [all]"),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(help="Share of wrong answers not to be exceeded; withholds what it must."),
    ] = None,
    rationale_risk: Annotated[
        float | None,
        typer.Option(help="Share of rationales other than the torch model's not to be exceeded."),
    ] = None,
    class_wise: Annotated[
        bool | None,
        typer.Option(
            "--why-not/--no-why-not",
            help="Ship class-wise rationales too (docs/why-not.md). [where the run has them]",
        ),
    ] = None,
    json_path: JsonOption = None,
) -> None:
    """Convert the student to ONNX, check it on real data and write the bundle, with TensorRT
    engines where the target asks for them.

    If a gate fails, no bundle is written: the file goes to rejected/ with reason.json, exit 3.
    """
    abstention = _abstention(coverage, risk, rationale_risk)
    if precision not in (None, AUTO):
        raise UsageError(
            f"--precision {precision!r}: only 'auto' is searched for",
            hint="a precision of its own is a target, e.g. --target onnx-int8",
        )
    from rekd_edge.cli.engine_command import show_engines
    from rekd_edge.cli.progress import ExportProgress
    from rekd_edge.export_pipeline import export_bundle
    from rekd_edge.problem import PRIMARY, SCORE_TITLES
    from rekd_edge.run_folder import open_run

    opened = open_run(run)
    if precision is not None:
        _export_fastest(
            opened,
            output,
            target,
            gates,
            threads,
            force,
            twins,
            tune,
            recover,
            abstention,
            class_wise,
            json_path,
        )
        return
    with ExportProgress("converting and checking") as progress:
        result = export_bundle(
            opened,
            target=target,
            output=output,
            gates=gates,
            force=force,
            twins=twins,
            threads=threads,
            tune=tune,
            recover=recover,
            abstention=abstention,
            class_wise=class_wise,
            listener=progress,
            builds=progress.builds,
        )
    score = SCORE_TITLES[PRIMARY[opened.recipe.problem_type]]

    def render(console: Console) -> None:
        if result.report is not None:
            result.report.render(console)
        if result.recovery is not None:
            show_recovery(console, target, result.recovery, score)
        show_tuning(console, result)
        if result.calibration is not None:
            result.calibration.render(console)
        if result.engines:
            show_engines(console, result.engines)
        if result.package is not None:
            show_package(console, result.package)
        if result.passed:
            console.print(f"bundle: {result.path}", markup=False)

    emit(result.to_json(), json_path=json_path, render=render)
    if not result.passed:
        raise GateError(
            "the export was refused:\n  " + "\n  ".join(result.reasons),
            hint=f"the file and the reason are in {result.path}",
        )


def _export_fastest(
    run: Run,
    output: Path,
    target: str,
    gates: str | None,
    threads: int | None,
    force: bool,
    twins: bool,
    tune: bool,
    recover: bool | None,
    abstention: AbstentionSpec | None,
    class_wise: bool | None,
    json_path: str | None,
) -> None:
    from rekd_edge.cli.progress import ExportProgress
    from rekd_edge.precision_pipeline import export_fastest
    from rekd_edge.problem import PRIMARY, SCORE_TITLES

    with ExportProgress("converting, checking and timing every precision") as progress:
        result, found = export_fastest(
            run,
            target=target,
            output=output,
            gates=gates,
            force=force,
            twins=twins,
            threads=threads,
            tune=tune,
            recover=recover,
            abstention=abstention,
            class_wise=class_wise,
            listener=progress,
        )

    def render(console: Console) -> None:
        show(console, found, SCORE_TITLES[PRIMARY[run.recipe.problem_type]])
        show_tuning(console, result)
        if result.calibration is not None:
            result.calibration.render(console)
        if result.passed:
            console.print(f"bundle: {result.path} ({found.chosen})", markup=False)

    content = result.to_json() | {"precision": found.to_json()}
    emit(content, json_path=json_path, render=render)
    if not result.passed:
        raise GateError(
            "no precision holds its gates:\n  " + "\n  ".join(result.reasons),
            hint=f"the nearest file and the reasons are in {result.path}",
        )


def _abstention(
    coverage: float | None, risk: float | None, rationale_risk: float | None
) -> AbstentionSpec | None:
    """What the options ask for; None leaves it to the target."""
    if (coverage, risk, rationale_risk) == (None, None, None):
        return None
    from pydantic import ValidationError

    from rekd_edge.calibrate.spec import AbstentionSpec

    try:
        return AbstentionSpec(coverage=coverage, risk=risk, rationale_risk=rationale_risk)
    except ValidationError as error:
        problems = (
            " ".join(["--" + "-".join(map(str, one["loc"])).replace("_", "-")] * bool(one["loc"]))
            + f" {one['msg']}"
            for one in error.errors()
        )
        raise UsageError("; ".join(problem.strip() for problem in problems)) from error


def show_package(console: Console, package: StoredPackage) -> None:
    """One line: what was compiled, where it lies, and what was checked of it."""
    made, checks = package.record.made_of, package.record.checks
    console.print(
        f"package of {made.backend} for {made.device}, {package.record.size_bytes / 1e6:.1f} MB, "
        f"compiled in {package.record.build_s:.0f} s: parity {checks.parity}, accuracy "
        f"{checks.accuracy}, exclusion {checks.exclusion}\n  {package.path} (not in the bundle)",
        markup=False,
        soft_wrap=True,
    )


def show_recovery(console: Console, target: str, recovery: RecoveryReport, score: str) -> None:
    """One line: what the training after quantization did to the file."""
    parts = []
    for what, name in (
        ("labels", "label_agreement"),
        ("rationales", "rationale_exact"),
        (score, "accuracy"),
    ):
        after = None if recovery.after is None else getattr(recovery.after, name)
        parts.append(f"{what} {_cell(getattr(recovery.before, name), '.4f')} -> ")
        parts[-1] += _cell(after, ".4f")
    outcome = "taken" if recovery.taken else f"not taken: {recovery.why_not}"
    console.print(
        f"{target}: trained in int8 for {recovery.steps} steps, {recovery.wall_s:.0f} s: "
        f"{', '.join(parts)} ({outcome})",
        markup=False,
    )


def show_tuning(console: Console, result: ExportResult) -> None:
    """One line: what the search for runtime settings has taken, and what it gained."""
    found = result.tuning
    if found is None:
        return
    changed = ", ".join(f"{name} {value}" for name, value in found.settings.differences().items())
    line = f"runtime settings: {changed or 'the defaults'}"
    if found.why_not:
        line += f" ({found.why_not})"
    elif found.confirmation is not None:
        ratio = found.confirmation
        line += f" ({ratio.value:.2f} of the default's time, {ratio.low:.2f}-{ratio.high:.2f})"
    console.print(line, markup=False)


def show(console: Console, report: PrecisionReport, score: str) -> None:
    """The variants as a table; ``score`` is what their primary score is called."""
    from rich.table import Table

    table = Table(
        title=f"precision: {report.chosen or 'none'} (latency at 1 thread, batch 1, "
        f"{report.validity or 'not measured'})",
        title_justify="left",
    )
    for column in ("target", score, "labels", "rationale exact", "MB", "p50 ms", "to plain"):
        table.add_column(column, justify="left" if column == "target" else "right")
    table.add_column("")
    for one in report.variants:
        cells = (
            _cell(one.accuracy, ".4f"),
            _cell(one.label_agreement, ".4f"),
            _cell(one.rationale_exact, ".4f"),
            _cell(None if one.size_bytes is None else one.size_bytes / 1e6, ".1f"),
            _cell(one.p50_ms, ".2f"),
            _cell(one.ratio_to_plain, ".2f"),
        )
        table.add_row(one.target, *cells, one.why_not or "chosen")
    console.print(table)
    for one in report.variants:
        if one.recovery is not None:
            show_recovery(console, one.target, one.recovery, score)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
