"""`rekd-edge export --precision auto`: the fastest precision that keeps what the gates ask for.

Every target that differs from the named one in precision alone is made, checked on the whole test
split and, if it passes its gates, timed beside the others and the plain classifier in one
interleaved run. The fastest is bundled; the others are listed with the reason why not. int8 that
fails on labels or rationales is trained a little first, where its target says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekd_edge.bench import BenchSettings, bench_files
from rekd_edge.check import CheckReport, load_gates
from rekd_edge.check.inputs import examples_of
from rekd_edge.class_wise_files import require_left_out
from rekd_edge.convert import TargetSpec, variants_of
from rekd_edge.errors import GateError, UsageError
from rekd_edge.export_pipeline import (
    BENCH_EXAMPLES,
    ExportResult,
    RecoveryReport,
    bundle_run,
    calibrate_file,
    check_file,
    convert_run,
    export_twins,
    is_recoverable,
    measure_baselines,
    recover_file,
    recovery_of,
    reject,
    require_calibratable,
    require_enough_dev,
    require_free,
    require_target,
    require_tunable,
    test_batches,
    tune_file,
    workplace,
)
from rekd_edge.pareto import dominates
from rekd_edge.run_folder import Run

if TYPE_CHECKING:
    from rekd_edge.calibrate.spec import AbstentionSpec
    from rekd_edge.distill.loop import ProgressListener

AUTO = "auto"
REPORT = "precision"
"""Name of the report in the bundle."""
SETTINGS = BenchSettings(min_duration_s=3.0, min_count=200, cold_starts=0)


@dataclass(frozen=True, slots=True)
class Variant:
    """One precision. Shares of the whole test split, against the torch model; ``accuracy`` is the
    primary score (of a single-label classification its accuracy); ``p50_ms`` and
    ``ratio_to_plain`` only where the gates hold. ``recovery`` is there where its file was trained
    after it had failed. ``why_not`` is empty for the one chosen."""

    target: str
    precision: str
    quantized: tuple[str, ...]
    accuracy: float | None
    label_agreement: float | None
    rationale_exact: float | None
    rationale_jaccard: float | None
    size_bytes: int | None
    failed_gates: tuple[str, ...]
    p50_ms: float | None = None
    ratio_to_plain: float | None = None
    recovery: RecoveryReport | None = None
    on_front: bool = False
    why_not: str = ""

    @property
    def passed(self) -> bool:
        return not self.failed_gates


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """``chosen`` names the target that was bundled, None if no variant holds its gates."""

    variants: tuple[Variant, ...]
    chosen: str | None
    threads: int | None
    validity: str | None

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self)}


def export_fastest(
    run: Run,
    *,
    target: str = "onnx",
    output: Path,
    gates: str | None = None,
    force: bool = False,
    twins: bool = True,
    threads: int | None = None,
    tune: bool = False,
    settings: BenchSettings = SETTINGS,
    recover: bool | None = None,
    abstention: AbstentionSpec | None = None,
    class_wise: bool | None = None,
    listener: ProgressListener | None = None,
) -> tuple[ExportResult, PrecisionReport]:
    """Exports the fastest variant of ``target`` that holds its gates; arguments as
    :func:`~rekd_edge.export_pipeline.export_bundle`, latency at one thread.

    Without any, the one that fails the fewest gates goes to ``rejected/``.
    """
    require_free(output, force=force)
    require_left_out(run, class_wise)
    found_targets = variants_of(target)
    base = found_targets[0]
    problem = run.recipe.problem_type
    for spec in found_targets:
        load_gates(gates or spec.gates).applicable(problem)
        require_calibratable(problem, abstention or spec.abstention)
        require_enough_dev(run, abstention or spec.abstention)
    made = base.engine or base.package
    if made is not None:
        raise UsageError(
            f"--precision auto times files in ONNX Runtime, and {base.name!r} is for "
            f"{made.backend}",
            hint="name a precision by its target, e.g. --target trt-rtx-fp16",
        )
    require_target(run.recipe, base)
    if tune:
        require_tunable(base)
    fused = run.fused()
    specs = {spec.name: spec for spec in found_targets}
    known = measure_baselines(run)
    with workplace(output) as work:
        fp32: Path | None = None
        variants: dict[str, Variant] = {}
        files: dict[str, Path] = {}
        checks: dict[str, CheckReport] = {}
        for name, spec in specs.items():
            file = work / name / "model.onnx"
            file.parent.mkdir()
            try:
                convert_run(run, fused, spec, file, fp32=fp32)
            except GateError as error:
                variants[name] = _refused(spec, error.message)
                continue
            files[name] = file
            if spec.precision == "fp32":
                fp32 = file  # exported once; the others are made from it
            gate_set = load_gates(gates or spec.gates)
            checks[name] = check_file(
                run,
                file,
                fused=fused,
                gates=gate_set,
                target=spec,
                threads=threads,
                baselines=known,
            )
            recovered = None
            is_int8 = spec.precision.startswith("int8")
            recovery = recovery_of(spec, recover, run) if is_int8 else None
            if recovery is not None and is_recoverable(checks[name]):
                checks[name], recovered = recover_file(
                    run,
                    file,
                    checks[name],
                    recovery,
                    fused=fused,
                    gates=gate_set,
                    target=spec,
                    threads=threads,
                    baselines=known,
                    listener=listener,
                )
            variants[name] = _variant(spec, checks[name], recovered)
        written = export_twins(run, fused=fused, target=base) if twins else {}
        passing = {name: files[name] for name in files if variants[name].passed}
        validity = None
        if passing:
            validity = _time(run, passing, written, variants, base, settings)
        chosen = choose(tuple(variants.values()))
        report = PrecisionReport(chosen, _best(chosen), 1, validity)
        if report.chosen is None:
            nearest = min(files, key=lambda name: len(variants[name].failed_gates), default=None)
            reasons = tuple(f"{v.target}: {v.why_not}" for v in report.variants)
            place = reject(
                work if nearest is None else files[nearest].parent,
                output,
                reasons,
                None if nearest is None else checks[nearest],
            )
            found = None if nearest is None else checks[nearest]
            recovered = None if nearest is None else variants[nearest].recovery
            result = ExportResult(place, False, reasons, found, None, {}, recovery=recovered)
            return result, report
        best = report.chosen
        tuning = None
        if tune:
            checks[best], tuning = tune_file(
                run,
                files[best],
                checks[best],
                fused=fused,
                gates=load_gates(gates or specs[best].gates),
                target=specs[best],
                threads=threads,
                baselines=known,
            )
        try:
            calibration = calibrate_file(
                run,
                files[best],
                fused=fused,
                target=specs[best],
                asked=abstention or specs[best].abstention,
            )
        except GateError as error:
            reasons = (f"{best}: {error.message}",)
            place = reject(files[best].parent, output, reasons, checks[best])
            return ExportResult(place, False, reasons, checks[best], None, {}, tuning), report
        manifest = bundle_run(
            run,
            fused,
            files[best],
            checks[best],
            specs[best],
            output,
            force=force,
            work=work,
            more_reports={REPORT: report.to_json()},
            tuning=tuning,
            recovery=variants[best].recovery,
            calibration=calibration,
        )
    result = ExportResult(
        output,
        True,
        (),
        checks[best],
        manifest,
        written,
        tuning,
        variants[best].recovery,
        calibration,
    )
    return result, report


def choose(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Marks the front (no other variant is at least as fast, as accurate and as true to the
    rationale, and better in one of them) and says of each but the fastest why it was not taken."""
    timed = [one for one in variants if one.passed and one.p50_ms is not None]
    fastest = min(timed, key=lambda one: _milliseconds(one), default=None)
    marked = []
    for one in variants:
        if not one.passed:
            marked.append(replace(one, why_not="; ".join(one.failed_gates)))
            continue
        if one not in timed:
            marked.append(replace(one, why_not="not timed"))
            continue
        better = next((other for other in timed if _dominates(other, one)), None)
        why_not = ""
        if better is not None:
            why_not = f"off the front: {better.target} is as good in everything, and better"
        elif one is not fastest and fastest is not None:
            why_not = f"slower than {fastest.target}"
        marked.append(replace(one, on_front=better is None, why_not=why_not))
    return tuple(marked)


def _milliseconds(variant: Variant) -> float:
    return float("inf") if variant.p50_ms is None else variant.p50_ms


def _dominates(left: Variant, right: Variant) -> bool:
    mine, theirs = (
        (-_milliseconds(one), one.accuracy or 0.0, one.rationale_exact or 0.0)
        for one in (left, right)
    )
    return dominates(mine, theirs)


def _best(variants: Sequence[Variant]) -> str | None:
    return next((one.target for one in variants if one.passed and not one.why_not), None)


def _time(
    run: Run,
    passing: Mapping[str, Path],
    twins: Mapping[str, Path],
    variants: dict[str, Variant],
    target: TargetSpec,
    settings: BenchSettings,
) -> str:
    """Latency of the passing files in one interleaved run; whether the run is valid."""
    files = dict(passing)
    if "plain" in twins:
        files["plain"] = twins["plain"]
    examples = examples_of(test_batches(run.data().test, run.preprocessor), BENCH_EXAMPLES)
    measured = bench_files(
        files,
        examples,
        settings=settings,
        threads=1,
        provider=target.execution_provider,
        reference="plain" if "plain" in files else None,
    )
    for name in passing:
        candidate = measured.candidates[name]
        variants[name] = replace(
            variants[name],
            p50_ms=candidate.latency_ns["50"] / 1e6,
            ratio_to_plain=None if candidate.ratio is None else candidate.ratio.value,
        )
    return "VALID" if measured.valid else "INVALID"


def _variant(
    spec: TargetSpec, report: CheckReport, recovery: RecoveryReport | None = None
) -> Variant:
    found = report.metrics
    return Variant(
        target=spec.name,
        precision=spec.precision,
        quantized=() if spec.precision == "fp32" else spec.quantize,
        accuracy=found.get("score"),
        label_agreement=found.get("label_agreement"),
        rationale_exact=found.get("rationale_exact"),
        rationale_jaccard=found.get("rationale_jaccard"),
        size_bytes=report.size_bytes,
        failed_gates=report.failures,
        recovery=recovery,
    )


def _refused(spec: TargetSpec, why: str) -> Variant:
    return Variant(spec.name, spec.precision, spec.quantize, None, None, None, None, None, (why,))
