"""From a trained run to a bundle: convert, check, and only then give it its name.

    run --convert_to_onnx--> fp32 --quantize--> file --check_artefact--> CheckReport
        int8, failed on labels or rationales: --recover--> student --> another file, checked too
        passed: --write_bundle--> OUTPUT
        failed: OUTPUT/../rejected/NAME with the file, reports/check.json and reason.json

Nothing is ever half-written under the final name.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import nn

from rekd_edge.bench import BenchReport, BenchSettings, bench_files
from rekd_edge.bundle import (
    Bundle,
    BundleConfig,
    BundleManifest,
    GateRecord,
    Lineage,
    open_bundle,
    write_bundle,
)
from rekd_edge.bundle.card import is_pair
from rekd_edge.bundle.manifest import WHY_NOT_FILE
from rekd_edge.calibrate.answers import answers_of
from rekd_edge.calibrate.fit import FEWEST_EXAMPLES, calibrate, require_enough
from rekd_edge.calibrate.report import CalibrationReport, report_of
from rekd_edge.calibrate.spec import AbstentionSpec, Calibration
from rekd_edge.check import (
    Accuracy,
    CheckReport,
    GateSet,
    LabelledBatch,
    TextEdges,
    baseline_accuracy,
    check_artefact,
    load_gates,
)
from rekd_edge.check.checker import reading_of
from rekd_edge.check.gates import GateResult
from rekd_edge.check.inputs import examples_of
from rekd_edge.class_wise_files import check_class_wise, class_wise_model, convert_class_wise
from rekd_edge.convert import (
    RecoverySpec,
    TargetSpec,
    convert_to_onnx,
    file_sha256,
    label_metadata,
    load_target,
    quantize,
    weights_sha256,
)
from rekd_edge.convert.pixels import cast_pixels_first
from rekd_edge.convert.to_onnx import METADATA_PREFIX, write_model
from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import Preprocessor, TextPreprocessor, load_preprocessor
from rekd_edge.data.split import Split
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.engines.backend import load_backend, present_device
from rekd_edge.engines.build import BuildListener, build_engines, require_capabilities
from rekd_edge.engines.find import bundle_recipe
from rekd_edge.engines.lint import require_buildable
from rekd_edge.engines.spec import BuildRecipe, build_recipe, profiles_of
from rekd_edge.engines.store import ENGINES_FOLDER, StoredEngine
from rekd_edge.engines.verify import check_engine
from rekd_edge.errors import BackendError, GateError, IntegrityError, UsageError
from rekd_edge.fuse import FusedClassWise, FusedPair, FusedRationalist, PlainClassifier
from rekd_edge.fuse.fused import DeployModel
from rekd_edge.models.build import same_tokens
from rekd_edge.packages.backend import find_compiler
from rekd_edge.packages.build import made_of, package_for, require_runnable
from rekd_edge.packages.store import StoredPackage, find_packages
from rekd_edge.packages.verify import check_package
from rekd_edge.recipe import dump_recipe
from rekd_edge.recipe.schema import Recipe
from rekd_edge.run_folder import RUN_FILE, Run, open_run
from rekd_edge.runners import RuntimeSettings, TorchRunner, file_runner, require_runtime
from rekd_edge.runners.gpu_runner import PROFILE_KEY, require_provider
from rekd_edge.runtime_options import TENSORRT_PROVIDER
from rekd_edge.types import PackageBackend, ProblemType, RuntimeName

if TYPE_CHECKING:
    from rekd_edge.bench.tune import TunePlan, TuneReport
    from rekd_edge.distill.loop import ProgressListener

CHECK_BATCH = 64
BENCH_EXAMPLES = 200
REASON_FILE = "reason.json"
REJECTED_FOLDER = "rejected"
TWINS_FOLDER = "onnx"
TUNE_REPORT = "runtime_settings"
RECOVERY_REPORT = "recovery"
CALIBRATION_REPORT = "calibration"
PACKAGE_REPORT = "package"
RECOVERABLE = frozenset(
    {
        "score",
        "accuracy",
        "worst_class_accuracy",
        "label_agreement",
        "mean_value_error",
        "rationale_exact",
        "rationale_jaccard",
    }
)
"""Metrics that training can mend."""
TWINS = ("plain", "masked")
STUDENT_WEIGHTS = Path("student") / "best" / "model.safetensors"
PARTNER_WEIGHTS = Path("partner") / "best" / "model.safetensors"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Where the artefact ended up. ``path`` is the bundle, or the folder under ``rejected/``;
    ``report`` is None where the file could not even be made; ``twins`` are the comparison files
    written for the benchmark."""

    path: Path
    passed: bool
    reasons: tuple[str, ...]
    report: CheckReport | None
    manifest: BundleManifest | None
    twins: Mapping[str, Path]
    tuning: TuneReport | None = None
    recovery: RecoveryReport | None = None
    calibration: CalibrationReport | None = None
    engines: tuple[StoredEngine, ...] = ()
    package: StoredPackage | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "path": str(self.path),
            "reasons": list(self.reasons),
            "check": None if self.report is None else self.report.to_json(),
            "twins": {name: str(path) for name, path in self.twins.items()},
            "runtime_settings": None if self.tuning is None else self.tuning.to_json(),
            "recovery": None if self.recovery is None else self.recovery.to_json(),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "engines": {e.path.name: e.record.model_dump(mode="json") for e in self.engines},
            "package": None if self.package is None else self.package.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a file reaches on the test split, and the gates that it fails. ``accuracy`` is the
    primary score; that of a single-label classification and all others are shares in 0..1."""

    accuracy: float | None
    label_agreement: float | None
    rationale_exact: float | None
    rationale_jaccard: float | None
    failed_gates: tuple[str, ...]
    mean_value_error: float | None = None
    """Regression."""

    @staticmethod
    def of(report: CheckReport) -> Agreement:
        found = report.metrics
        return Agreement(
            found.get("score"),
            found.get("label_agreement"),
            found.get("rationale_exact"),
            found.get("rationale_jaccard"),
            report.failures,
            found.get("mean_value_error"),
        )


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """A short training after quantization (docs/adr/0016-recovery.md): the file before and after,
    against the fp32 student; ``after`` is None where there was none to check. ``taken`` says
    which of the two was kept, ``why_not`` why it was the first. ``dev_loss`` is the loss on the
    development split in int8, before and after."""

    epochs: float
    learning_rate: float
    before: Agreement
    after: Agreement | None = None
    dev_loss: tuple[float, float] | None = None
    steps: int = 0
    wall_s: float = 0.0
    taken: bool = False
    why_not: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self)}


def export_bundle(
    run: Run,
    *,
    target: str = "onnx",
    output: Path,
    gates: str | None = None,
    force: bool = False,
    twins: bool = True,
    threads: int | None = None,
    tune: bool = False,
    plan: TunePlan | None = None,
    recover: bool | None = None,
    abstention: AbstentionSpec | None = None,
    class_wise: bool | None = None,
    listener: ProgressListener | None = None,
    builds: BuildListener | None = None,
) -> ExportResult:
    """Exports the run's student as a bundle at ``output``.

    ``target`` and ``gates`` are names of shipped files or paths; ``gates`` None takes the
    target's. ``force`` replaces an existing bundle, once the new one has passed. ``twins`` also
    writes ``RUN/onnx/plain.onnx`` and ``masked.onnx``, which `rekd-edge bench` compares with.
    ``tune`` searches runtime settings on the finished file (:mod:`rekd_edge.bench.tune`) and checks
    it again with them; ``threads`` are then those of the bundle, too. ``recover`` trains a
    little where an int8 file fails (:func:`recover_file`); None does as the target says.
    ``listener`` is told of that training, ``builds`` of engines. ``abstention`` is when answers are
    withheld; None takes the target's (:func:`calibrate_file`). ``class_wise`` ships class-wise
    rationales too (:mod:`rekd_edge.class_wise_files`); None where the run has them.

    A failed gate is a result with ``passed`` False. Raises :class:`UsageError` for an unknown
    target, a taken ``output``, a run without a rationalist, a target that cannot carry what is
    asked for, and gates or abstention that are not for its problem type, and :class:`BackendError`
    where an engine cannot be built; nothing is written then.
    """
    spec = load_target(target)
    require_target(run.recipe, spec)
    gate_set = load_gates(gates or spec.gates)
    gate_set.applicable(run.recipe.problem_type)
    require_calibratable(run.recipe.problem_type, abstention or spec.abstention)
    require_free(output, force=force)
    require_enough_dev(run, abstention or spec.abstention)
    if tune:
        require_tunable(spec)
    recovery = recovery_of(spec, recover, run)
    asked = class_wise_model(run, spec, class_wise)
    fused = run.fused()
    with workplace(output) as work:
        file = work / "model.onnx"
        try:
            convert_run(run, fused, spec, file)
        except GateError as error:
            path = reject(work, output, (error.message,), None)
            return ExportResult(path, False, (error.message,), None, None, {})
        if spec.engine is not None:
            version = load_backend(spec.engine.backend).version
            require_buildable(onnx.load(str(file)), engine_recipe(fused, spec, file), version)
        known = measure_baselines(run)
        report = check_file(
            run, file, fused=fused, gates=gate_set, target=spec, threads=threads, baselines=known
        )
        recovered = None
        if recovery is not None and is_recoverable(report):
            report, recovered = recover_file(
                run,
                file,
                report,
                recovery,
                fused=fused,
                gates=gate_set,
                target=spec,
                threads=threads,
                baselines=known,
                listener=listener,
            )
        if not report.passed:
            path = reject(work, output, report.failures, report)
            return ExportResult(path, False, report.failures, report, None, {}, recovery=recovered)
        tuning = None
        if tune:
            report, tuning = tune_file(
                run,
                file,
                report,
                fused=fused,
                gates=gate_set,
                target=spec,
                threads=threads,
                plan=plan,
                baselines=known,
            )
        if asked is not None:
            settings = None if tuning is None else tuning.settings
            try:
                report = add_class_wise(
                    run, asked, fused, report, spec, work, gates=gate_set, settings=settings
                )
            except GateError as error:
                path = reject(work, output, (error.message,), report)
                return ExportResult(path, False, (error.message,), report, None, {}, tuning)
            if not report.passed:
                path = reject(work, output, report.failures, report)
                return ExportResult(path, False, report.failures, report, None, {}, tuning)
        try:
            calibration = calibrate_file(
                run, file, fused=fused, target=spec, asked=abstention or spec.abstention
            )
        except GateError as error:
            path = reject(work, output, (error.message,), report)
            return ExportResult(path, False, (error.message,), report, None, {}, tuning, recovered)
        engines: tuple[StoredEngine, ...] = ()
        if spec.engine is not None:
            try:
                engines = make_engines(
                    run, fused, spec, file, work / ENGINES_FOLDER, gates=gate_set, listener=builds
                )
            except GateError as error:
                path = reject(work, output, (error.message,), report)
                return ExportResult(
                    path, False, (error.message,), report, None, {}, tuning, recovered, calibration
                )
        package = None
        if spec.package is not None:
            try:
                package = make_package(run, fused, spec, file, gates=gate_set, threads=threads)
            except GateError as error:
                path = reject(work, output, (error.message,), report)
                return ExportResult(
                    path, False, (error.message,), report, None, {}, tuning, recovered, calibration
                )
        manifest = bundle_run(
            run,
            fused,
            file,
            report,
            spec,
            output,
            force=force,
            work=work,
            more_reports=None
            if package is None
            else {PACKAGE_REPORT: package.record.model_dump(mode="json")},
            tuning=tuning,
            recovery=recovered,
            calibration=calibration,
            engines=engines,
            class_wise=asked,
        )
    written = export_twins(run, fused=fused, target=spec) if twins else {}
    placed = tuple(replace(e, path=output / ENGINES_FOLDER / e.path.name) for e in engines)
    return ExportResult(
        output,
        True,
        (),
        report,
        manifest,
        written,
        tuning=tuning,
        recovery=recovered,
        calibration=calibration,
        engines=placed,
        package=package,
    )


def require_target(recipe: Recipe, target: TargetSpec) -> None:
    """Raises where ``target`` cannot be made of such a recipe's students or on this machine, before
    anything is trained or converted: as :func:`require_for_pair`, and :class:`BackendError` where
    its runtime, provider, builder or compiler is missing."""
    require_for_pair(recipe, target)
    require_runtime(target.runtime)
    require_provider(target.execution_provider)
    require_engines(target)
    if target.package is not None:
        find_compiler(target.package)


def require_for_pair(recipe: Recipe, target: TargetSpec) -> None:
    """What takes no pair of students: a package, whose exclusion is measured from outside
    (docs/adr/0028), where a pair shows what either student kept, not which of them did
    (:class:`UsageError`), and TensorRT, where no exchange has been run (:class:`BackendError`)."""
    if recipe.task == "classify" or recipe.ensemble is None:
        return
    if target.package is not None:
        raise UsageError(
            f"{target.name!r} compiles one student, and {recipe.name!r} is an ensemble: from "
            "outside a package nobody can check which of the two students kept what",
            hint=f"export with {_FOR_PAIRS}, or train with ensemble: null",
        )
    if target.engine is not None or target.execution_provider == TENSORRT_PROVIDER:
        raise BackendError(
            f"{target.name!r} builds a TensorRT engine, and {recipe.name!r} is an ensemble: its "
            "two students exchange rationales in an If of the graph, and TensorRT has run none",
            hint=f"export with {_FOR_PAIRS}, or train with ensemble: null",
        )


_FOR_PAIRS = "--target onnx, openvino or ort-cuda"


def add_class_wise(
    run: Run,
    asked: FusedClassWise,
    fused: FusedRationalist,
    report: CheckReport,
    target: TargetSpec,
    folder: Path,
    *,
    gates: GateSet,
    settings: RuntimeSettings | None,
) -> CheckReport:
    """Writes ``why_not.onnx`` into ``folder`` and checks it; ``report`` with what came of it."""
    file = folder / WHY_NOT_FILE
    convert_class_wise(run, asked, target, file, artefact_metadata(run, fused))
    return check_class_wise(
        file,
        asked,
        report,
        batches=test_batches(run.data().test, run.preprocessor),
        edges=text_edges(run.preprocessor),
        gates=gates,
        target=target,
        runtime_settings=settings,
    )


def require_engines(target: TargetSpec) -> None:
    """Raises :class:`BackendError` where the target's engines, if any, cannot be built here."""
    if target.engine is not None:
        tensorrt = load_backend(target.engine.backend)
        device = None if tensorrt.backend.builds_ahead else present_device()
        require_capabilities(tensorrt, target.engine, device)


def engine_recipe(fused: FusedRationalist, target: TargetSpec, file: Path) -> BuildRecipe:
    """How the engines of ``file`` are built."""
    assert target.engine is not None
    return build_recipe(
        target.engine,
        fused.io_spec(),
        precision=target.precision,
        onnx_sha256=file_sha256(file),
        max_length=fused.max_length,
    )


def make_engines(
    run: Run,
    fused: FusedRationalist,
    target: TargetSpec,
    file: Path,
    folder: Path,
    *,
    gates: GateSet,
    listener: BuildListener | None = None,
) -> tuple[StoredEngine, ...]:
    """The engines of a checked file, each held to its gates where its GPU is."""
    recipe = engine_recipe(fused, target, file)
    device = present_device()
    tensorrt = load_backend(recipe.backend)
    made = build_engines(file, folder, recipe, tensorrt, device=device, listener=listener)
    return tuple(
        check_engine(
            engine,
            device,
            model=fused,
            io_spec=fused.io_spec(),
            label_names=run.label_names,
            batches=test_batches(run.data().test, run.preprocessor),
            gates=gates,
            edges=text_edges(run.preprocessor),
        )
        for engine in made
    )


def make_package(
    run: Run,
    fused: FusedRationalist,
    target: TargetSpec,
    file: Path,
    *,
    gates: GateSet,
    threads: int | None = None,
) -> StoredPackage:
    """The model of a checked file, compiled for this machine into the user's cache, and held to the
    file's gates; one that fails them does not stay there."""
    assert target.package is not None
    io_spec = fused.io_spec()
    profiles = {}
    if target.sizes is not None:
        profiles = profiles_of(target.sizes, io_spec, fused.max_length)
    wanted = made_of(
        target.package,
        find_compiler(target.package),
        io_spec,
        onnx_sha256=file_sha256(file),
        weights_sha256=weights_sha256(fused),
        profiles=profiles,
        max_length=fused.max_length,
    )
    package = package_for(fused, wanted)
    try:
        return check_package(
            package,
            model=fused,
            io_spec=io_spec,
            label_names=run.label_names,
            batches=test_batches(run.data().test, run.preprocessor),
            gates=gates,
            edges=text_edges(run.preprocessor),
            threads=threads,
        )
    except GateError:
        shutil.rmtree(package.path.parent, ignore_errors=True)
        raise


def recovery_of(target: TargetSpec, wanted: bool | None, run: Run) -> RecoverySpec | None:
    """How a file of ``target`` is recovered; ``wanted`` None leaves it to the target. A pair of
    students is not: what is trained in int8 is one student against its own fp32 answers.

    Raises :class:`UsageError` where it is wanted and the target is not int8, or the run's students
    answer as a pair.
    """
    if wanted is False:
        return None
    if run.recipe.ensemble is not None:
        if wanted:
            raise UsageError(
                f"--recover trains one student, and {run.path} holds an ensemble",
                hint="leave it out, or train with ensemble: null",
            )
        return None
    if wanted and not target.precision.startswith("int8"):
        raise UsageError(
            f"--recover is for int8, and {target.name!r} is {target.precision}",
            hint="leave it out, or take a target such as onnx-int8",
        )
    return target.recovery or (RecoverySpec() if wanted else None)


def is_recoverable(report: CheckReport) -> bool:
    """Whether every gate that failed is one that training can mend."""
    failed = [gate for gate in report.gates if not gate.passed]
    return bool(failed) and all(
        gate.metric in RECOVERABLE and gate.measured is not None for gate in failed
    )


def recover_file(
    run: Run,
    file: Path,
    report: CheckReport,
    recovery: RecoverySpec,
    *,
    fused: FusedRationalist,
    gates: GateSet,
    target: TargetSpec,
    threads: int | None = None,
    baselines: Mapping[str, Accuracy] | None = None,
    listener: ProgressListener | None = None,
) -> tuple[CheckReport, RecoveryReport]:
    """Trains a copy of the student in the arithmetic of ``file``, which failed its check
    (``report``), makes a file of it and checks that against the same fp32 student.

    ``file`` is replaced only by one that fails fewer gates, or equally many and agrees better,
    and fails none that ``file`` held. The run is not changed.
    """
    from rekd_edge.distill.loop import DivergedError
    from rekd_edge.distill.recovery import recover

    assert target.precision in ("int8-dynamic", "int8-static")
    started = time.monotonic()
    found = RecoveryReport(recovery.epochs, recovery.learning_rate, Agreement.of(report))

    def kept(why_not: str, done: RecoveryReport) -> tuple[CheckReport, RecoveryReport]:
        return report, replace(done, why_not=why_not, wall_s=time.monotonic() - started)

    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".recovery.") as folder:
        try:
            made = recover(
                fused,
                recovery,
                precision=target.precision,
                parts=target.quantize,
                train=run.recipe.student.train,
                examples=run.data().train,
                dev=run.data().dev,
                preprocessor=run.preprocessor.deployed(),
                folder=Path(folder) / "training",
                seed=run.recipe.seed,
                calibration=_calibration(run, target),
                listener=listener,
            )
            found = replace(
                found, steps=made.steps, dev_loss=(made.dev_loss_before, made.dev_loss_after)
            )
            other = Path(folder) / "model.onnx"
            metadata = artefact_metadata(run, made.model) | {"recovery_steps": str(made.steps)}
            convert_run(run, made.model, target, other, metadata)
        except (DivergedError, GateError) as error:  # the first file is still there
            return kept(error.message, found)
        after = check_file(
            run,
            other,
            fused=fused,
            gates=gates,
            target=target,
            threads=threads,
            baselines=baselines,
        )
        found = replace(found, after=Agreement.of(after))
        if not _better(after, report):
            return kept("it is no better", found)
        os.replace(other, file)
    return after, replace(found, taken=True, wall_s=time.monotonic() - started)


def _better(after: CheckReport, before: CheckReport) -> bool:
    """Both were held to the same gates, in the same order."""
    broken = [not a.passed and b.passed for a, b in zip(after.gates, before.gates, strict=True)]
    if any(broken):
        return False

    def rank(report: CheckReport) -> tuple[float, ...]:
        names = ("rationale_exact", "rationale_jaccard", "label_agreement", "score")
        found = (report.metrics.get(name, 0.0) for name in names)
        return (-len(report.failures), *found, -report.metrics.get("mean_value_error", 0.0))

    return rank(after) > rank(before)


def tune_file(
    run: Run,
    file: Path,
    report: CheckReport,
    *,
    fused: FusedRationalist,
    gates: GateSet,
    target: TargetSpec,
    threads: int | None = None,
    plan: TunePlan | None = None,
    baselines: Mapping[str, Accuracy] | None = None,
) -> tuple[CheckReport, TuneReport]:
    """Searches settings for a file that has passed its check (``report``), on examples of the test
    split, and checks it again with what was found; settings that do not pass are not taken."""
    from rekd_edge.bench.tune import tune

    require_tunable(target)
    held = list(test_batches(run.data().test, run.preprocessor))
    examples = examples_of(held, BENCH_EXAMPLES)
    found = tune(
        file,
        examples,
        gates=gates,
        threads=threads,
        provider=target.execution_provider,
        plan=plan,
        reading=reading_of(run.recipe.problem_type, held),
    )
    if found.settings.is_default:
        return report, found
    checked = check_file(
        run,
        file,
        fused=fused,
        gates=gates,
        target=target,
        runtime_settings=found.settings,
        baselines=baselines,
    )
    if checked.passed:
        return checked, found
    why_not = "; ".join(checked.failures)
    return report, replace(found, settings=RuntimeSettings(), why_not=why_not)


def require_tunable(target: TargetSpec) -> None:
    """Raises :class:`UsageError` where there is nothing to search."""
    on_cpu = (target.runtime, target.execution_provider) == ("onnxruntime", "CPUExecutionProvider")
    if not on_cpu or target.engine is not None:
        runtime = target.runtime if target.engine is None else target.engine.backend
        if target.engine is None and target.runtime == "onnxruntime":
            runtime = target.execution_provider
        raise UsageError(
            f"--tune searches settings of ONNX Runtime on the CPU, and {target.name!r} is for "
            f"{runtime}",
            hint="leave --tune out, or take a target for ONNX Runtime",
        )


@contextmanager
def workplace(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that is gone afterwards."""
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.export.", dir=output.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def convert_run(
    run: Run | None,
    model: DeployModel,
    target: TargetSpec,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    fp32: Path | None = None,
) -> None:
    """``model`` as a file of the target's precision; what is no student has one part only. Without
    a ``run`` there must be ``metadata``, and no data to calibrate with (`int8-static`). ``fp32`` is
    the same model's file in fp32, where there is one already."""
    if target.precision == "fp32" or fp32 is None:
        if metadata is None:
            assert isinstance(model, FusedRationalist)
            assert run is not None
            metadata = artefact_metadata(run, model)
        metadata = {**metadata, **profile_metadata(model, target)}
        exported = path if target.precision == "fp32" else path.with_name(f"{path.stem}.fp32.onnx")
        convert_to_onnx(model, model.io_spec(), exported, target=target, metadata=metadata)
    else:
        exported = fp32
    if target.precision == "fp32":
        fit_engine(path, target)
        return
    try:
        parts = target.quantize if isinstance(model, FusedRationalist) else ("predictor",)
        quantize(
            exported,
            path,
            precision=target.precision,
            parts=parts,
            calibration=[] if run is None else _calibration(run, target),
            target=target.name,
        )
    finally:
        if exported != fp32:
            exported.unlink(missing_ok=True)
    fit_engine(path, target)


def profile_metadata(model: DeployModel, target: TargetSpec) -> dict[str, str]:
    """The sizes that TensorRT is to serve inside ONNX Runtime, which opens the file knowing nothing
    of its target."""
    if target.sizes is None or target.package is not None:
        return {}
    found = profiles_of(target.sizes, model.io_spec(), model.max_length)
    content = {name: profile.model_dump() for name, profile in found.items()}
    return {PROFILE_KEY.removeprefix(METADATA_PREFIX): json.dumps(content, sort_keys=True)}


def fit_engine(path: Path, target: TargetSpec) -> None:
    """Gives a file for TensorRT the form of graph that it takes."""
    if target.engine is not None or target.execution_provider == TENSORRT_PROVIDER:
        proto = onnx.load(str(path))
        if cast_pixels_first(proto):
            write_model(proto, path)


def _calibration(run: Run, target: TargetSpec) -> list[dict[str, np.ndarray]]:
    """The training examples from which `int8-static` takes its ranges; none for the others."""
    if target.precision != "int8-static":
        return []
    batches = test_batches(run.data().train, run.preprocessor)
    return examples_of(batches, target.calibration_examples)


def check_bundle(
    folder: Path,
    *,
    run: Run | None = None,
    gates: str | None = None,
    threads: int | None = None,
    reject_failed: bool = True,
) -> tuple[CheckReport, Path]:
    """Checks a finished bundle against the run it was made from; also says where the bundle is
    now: a bundle that fails is moved to ``rejected/`` beside it, with ``reason.json``.

    ``run`` None looks for the run in the folders above the bundle (:func:`find_run`). Raises
    :class:`IntegrityError` for a bundle that is not whole, :class:`UsageError` where the run is
    not found or is not the bundle's, and :class:`GateError` where the bundle describes its model
    otherwise than the run (it is rejected too).
    """
    bundle = open_bundle(folder)
    if (folder / ENGINES_FOLDER).is_dir():
        bundle_recipe(bundle)
    run = find_run(bundle) if run is None else run
    _require_same_run(bundle, run)
    target = load_target(bundle.manifest.target)
    gate_set = load_gates(gates or target.gates)
    gate_set.applicable(run.recipe.problem_type)
    fused = run.fused()
    wrong = _contradictions(bundle, run, fused, target)
    if not wrong:
        wrong = _miscalibrated(bundle, run, fused, target)
    if wrong:
        place = reject(folder, folder, wrong, None) if reject_failed else folder
        raise GateError(
            f"{folder} contradicts the run {run.path}:\n  " + "\n  ".join(wrong),
            hint=f"export the bundle again; this one is in {place}",
        )
    report = check_file(
        run,
        bundle.model_path,
        fused=fused,
        gates=gate_set,
        target=target,
        threads=threads,
        runtime_settings=bundle.config.runtime_settings,
    )
    asked = None if bundle.why_not_path is None else run.fused_class_wise()
    if bundle.why_not_path is not None and asked is not None:
        report = check_class_wise(
            bundle.why_not_path,
            asked,
            report,
            batches=test_batches(run.data().test, run.preprocessor),
            edges=text_edges(run.preprocessor),
            gates=gate_set,
            target=target,
            runtime_settings=bundle.config.runtime_settings,
        )
    if report.passed or not reject_failed:
        return report, folder
    return report, reject(folder, folder, report.failures, report)


def bench_bundle(
    folder: Path,
    *,
    run: Run | None = None,
    inputs_file: Path | None = None,
    settings: BenchSettings | None = None,
    threads: int | None = None,
) -> BenchReport:
    """Measures a bundle's file beside the plain classifier of the same backbone and the masked
    select-predict form.

    Inputs are examples of the run's test split, or those of ``inputs_file`` (one text a line, or
    an ``.npz`` of model inputs). All files run with the bundle's runtime settings; ``threads``
    None takes theirs, or 1 where the bundle has none. Without a run there is nothing to compare
    with, and the report says so. Raises :class:`UsageError` where there are neither inputs nor a
    run.
    """
    bundle = open_bundle(folder)
    notes: list[str] = []
    if run is None:
        try:
            run = find_run(bundle)
        except UsageError:
            if inputs_file is None:
                raise
            notes.append("no run was found, so there is no plain or masked form to compare with")
    files = {"gathered": bundle.model_path}
    if run is not None:
        _require_same_run(bundle, run)
        twins = _existing_twins(run, bundle)
        if not twins:
            twins = export_twins(run, target=load_target(bundle.manifest.target))
        files |= twins
        notes += _twin_notes(run)
    stored = bundle.config.runtime_settings
    if threads is None and stored is None:
        threads = 1
    if inputs_file is not None:
        examples = read_inputs(inputs_file, load_preprocessor(folder))
        source = f"{inputs_file.name}, given with --inputs"
    else:
        assert run is not None
        examples = examples_of(test_batches(run.data().test, run.preprocessor), BENCH_EXAMPLES)
        source = f"test split of {run.data().source.get('name', run.recipe.data.source)}"
    target = load_target(bundle.manifest.target)
    elsewhere: dict[str, tuple[RuntimeName | PackageBackend, str]] = {}
    if target.package is not None:
        package, why_not = _package_of(bundle, target)
        if package is None:
            notes.append(f"{why_not}: export the run here with --target {target.name}")
        else:
            name = f"gathered-{target.package.backend}"
            files[name] = package.path
            elsewhere[name] = (target.package.backend, target.package.device)
    if bundle.config.runtime == "openvino":
        files["gathered-onnxruntime"] = bundle.model_path
        elsewhere["gathered-onnxruntime"] = ("onnxruntime", "CPUExecutionProvider")
    return bench_files(
        files,
        examples,
        settings=settings,
        threads=threads,
        provider=target.execution_provider,
        runtime=bundle.config.runtime,
        runtime_settings=stored,
        elsewhere=elsewhere,
        reference="plain" if "plain" in files else None,
        inputs_source=source,
        notes=notes,
    )


def _package_of(bundle: Bundle, target: TargetSpec) -> tuple[StoredPackage | None, str]:
    """The package of a bundle's model that this machine may run, or why there is none."""
    assert target.package is not None
    wanted = (target.package.backend, target.package.device)
    why_not = f"no package of {target.package.backend} for this machine"
    for package in find_packages(file_sha256(bundle.model_path)):
        mine = package.record.made_of
        if (mine.backend, mine.device) != wanted:
            continue
        try:
            require_runnable(package)
        except BackendError as error:
            why_not = error.message
            continue
        return package, ""
    return None, why_not


def export_twins(
    run: Run, *, fused: FusedRationalist | None = None, target: TargetSpec | None = None
) -> dict[str, Path]:
    """Writes ``RUN/onnx/plain.onnx`` and ``masked.onnx``: the plain classifier of the student's
    predictor backbone on all tokens, and the published two-pass form; for a target of lower
    precision the plain classifier in that precision too; of a pair, ``student.onnx``, the first
    student alone. For latency comparison; they are not
    checked and not shipped."""
    from rekd_edge.fuse.fused import masked_form

    fused = run.fused() if fused is None else fused
    spec = load_target("onnx") if target is None else target
    plain = run.plain()
    trained = plain is not None
    if plain is None:
        plain = PlainClassifier(
            fused.predictor, label_names=fused.label_names, max_length=fused.max_length
        ).eval()
        plain.reads_pixels = fused.reads_pixels
    folder = run.path / TWINS_FOLDER
    folder.mkdir(exist_ok=True)
    student = student_sha256(run)
    models: dict[str, tuple[DeployModel, str]] = {
        "plain": (plain, "trained" if trained else "the student predictor's weights"),
        "masked": (masked_form(fused), "the student's weights"),
    }
    if isinstance(fused, FusedPair):
        models["student"] = (fused.alone(), "the student's weights")
    in_fp32 = spec.model_copy(update={"precision": "fp32"})
    written: dict[str, Path] = {}
    for name, (model, weights) in models.items():
        metadata = {"recipe": run.recipe.name, "weights": weights, "student_sha256": student}
        written[name] = folder / f"{name}.onnx"
        convert_run(run, model, in_fp32, written[name], metadata)
        if name == "plain" and spec.precision != "fp32":
            written[f"plain-{spec.precision}"] = folder / f"plain-{spec.precision}.onnx"
            convert_run(run, model, spec, written[f"plain-{spec.precision}"], metadata)
    return written


def _existing_twins(run: Run, bundle: Bundle) -> dict[str, Path]:
    """The twins on disk, if all are there and belong to the bundle's student."""
    names = [*TWINS]
    if is_pair(bundle.config):
        names.append("student")
    if bundle.config.precision != "fp32":
        names.append(f"plain-{bundle.config.precision}")
    found = {name: run.path / TWINS_FOLDER / f"{name}.onnx" for name in names}
    for path in found.values():
        if not path.is_file():
            return {}
        made_from = _metadata(path).get("rekd_edge.student_sha256")
        if made_from != bundle.manifest.lineage.checkpoint_sha256:
            return {}
    return found


def _twin_notes(run: Run) -> list[str]:
    weights = _metadata(run.path / TWINS_FOLDER / "plain.onnx").get("rekd_edge.weights", "")
    if weights == "trained":
        return []
    return [
        "plain has the same backbone, run on all tokens with the student predictor's weights: its "
        "latency is meant, its answers are not"
    ]


def _metadata(path: Path) -> dict[str, str]:
    model = onnx.load(str(path), load_external_data=False)
    return {item.key: item.value for item in model.metadata_props}


def check_file(
    run: Run,
    file: Path,
    *,
    fused: FusedRationalist,
    gates: GateSet,
    target: TargetSpec,
    threads: int | None = None,
    runtime_settings: RuntimeSettings | None = None,
    baselines: Mapping[str, Accuracy] | None = None,
) -> CheckReport:
    """One ONNX file against the run's fused student on the whole test split; the teacher and a
    trained plain classifier, where the run has them, are measured on it too, unless
    ``baselines`` says what they reach."""
    return check_artefact(
        file,
        model=fused,
        io_spec=fused.io_spec(),
        label_names=run.label_names,
        batches=test_batches(run.data().test, run.preprocessor),
        gates=gates,
        edges=text_edges(run.preprocessor),
        baselines=measure_baselines(run) if baselines is None else baselines,
        provider=target.execution_provider,
        threads=threads,
        runtime=target.runtime,
        runtime_settings=runtime_settings,
    )


def calibrate_file(
    run: Run,
    file: Path,
    *,
    fused: FusedRationalist,
    target: TargetSpec,
    asked: AbstentionSpec | None,
) -> CalibrationReport | None:
    """Temperature and thresholds of one file, from its own answers to the development split, and
    what they are worth on the test split. None where that split is too small and nothing is asked,
    and for a regression, which has no probabilities.

    Raises :class:`UsageError` where it is too small for what is asked, or a regression is asked,
    :class:`GateError` where that cannot be had.
    """
    problem = run.recipe.problem_type
    require_calibratable(problem, asked)
    if problem == "regression":
        return None
    data = run.data()
    if asked is None and len(data.dev) < FEWEST_EXAMPLES:
        return None
    splits = [list(test_batches(split, run.preprocessor)) for split in (data.dev, data.test)]
    provider = target.execution_provider
    with file_runner(file, runtime=target.runtime, threads=1, provider=provider) as runner:
        dev, test = (answers_of(runner, batches, problem) for batches in splits)
    dev_torch = test_torch = None
    if asked is not None and asked.rationale_risk is not None:
        names = tuple(tensor.name for tensor in fused.io_spec().inputs)
        with TorchRunner(fused, names, threads=1) as reference:
            dev_torch, test_torch = (answers_of(reference, batches, problem) for batches in splits)
    fitted = calibrate(dev, asked, dev_torch)
    return report_of(fitted, dev, test, dev_reference=dev_torch, test_reference=test_torch)


def require_calibratable(problem: ProblemType, asked: AbstentionSpec | None) -> None:
    """Raises :class:`UsageError` where abstention is asked of a regression."""
    if problem == "regression" and asked is not None:
        raise UsageError(
            "a regression answers with numbers, and nothing says how sure it is of them: no answer "
            "can be withheld for being unsure",
            hint="leave --coverage, --risk and --rationale-risk (and the target's abstention) out",
        )


def test_batches(
    split: Split,
    preprocessor: Preprocessor,
    teacher: Preprocessor | None = None,  # noqa: PT028
) -> Iterator[LabelledBatch]:
    """The whole split as deployed models read it, as numpy batches in an order that never
    changes; ``teacher`` adds the inputs of a teacher that reads otherwise."""
    deployed = preprocessor.deployed()
    if teacher is not None and deployed is preprocessor and same_tokens(teacher, preprocessor):
        teacher = None
    loader = make_loader(split, deployed, batch_size=CHECK_BATCH, shuffle=False, teacher=teacher)
    for batch in loader:
        others = {} if batch.teacher is None else {"teacher": _arrays(batch.teacher.inputs)}
        yield LabelledBatch(_arrays(batch.inputs), batch.labels.numpy(), others)


def _arrays(inputs: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in inputs.items()}


def text_edges(preprocessor: Preprocessor) -> TextEdges | None:
    if not isinstance(preprocessor, TextPreprocessor):
        return None
    special = preprocessor.special_ids
    return TextEdges(special["cls"], special["sep"], special["pad"], preprocessor.max_length)


def require_enough_dev(run: Run, asked: AbstentionSpec | None) -> None:
    """Raises :class:`UsageError` where answers are to be withheld and the development split is too
    small to say which, before anything is converted."""
    if asked is not None:
        require_enough(len(run.data().dev))


def measure_baselines(run: Run) -> dict[str, Accuracy]:
    """What the teacher and the trained plain classifier reach on the test split."""
    functions: dict[str, Any] = {}
    teacher = run.teacher()
    if teacher is not None:
        functions["teacher"] = _mapping_logits(teacher)
    plain = run.plain()
    if plain is not None:
        functions["plain"] = _positional_logits(plain)
    batches = test_batches(run.data().test, run.preprocessor, run.teacher_preprocessor)
    return baseline_accuracy(functions, batches, run.label_names, run.recipe.problem_type)


def _mapping_logits(model: nn.Module) -> Any:
    model.eval()

    def logits(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return model({name: torch.from_numpy(v) for name, v in inputs.items()}).numpy()

    return logits


def _positional_logits(model: PlainClassifier) -> Any:
    names = [tensor.name for tensor in model.io_spec().inputs]

    def logits(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return model(*(torch.from_numpy(inputs[name]) for name in names))[0].numpy()

    return logits


def artefact_metadata(run: Run, fused: FusedRationalist) -> dict[str, str]:
    """What the file says about itself, under ``rekd_edge.`` keys."""
    numerator, denominator = fused.rationale_ratio_fraction
    partner = run.path / PARTNER_WEIGHTS
    second = {"partner_sha256": file_sha256(partner)} if isinstance(fused, FusedPair) else {}
    if fused.problem_type != "single_label_classification":
        second["problem_type"] = fused.problem_type
    if fused.rationale_unit != "token":
        second["rationale_unit"] = fused.rationale_unit
    return second | {
        "recipe": run.recipe.name,
        "modality": fused.modality,
        "labels": label_metadata(fused.label_names),
        "rationale_ratio": f"{numerator}/{denominator}",
        "weights_sha256": weights_sha256(fused),
        "student_sha256": student_sha256(run),
    }


def student_sha256(run: Run) -> str:
    path = run.path / STUDENT_WEIGHTS
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", hint="train the run again")
    return file_sha256(path)


def require_free(output: Path, *, force: bool) -> None:
    """Raises :class:`UsageError` unless ``output`` may be written."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"{output} is a file", hint="name a folder for the bundle")
    if not any(output.iterdir()):
        return
    if not (output / "manifest.json").is_file():
        raise UsageError(f"{output} exists and is no bundle", hint="name a new folder")
    if not force:
        raise UsageError(
            f"{output} already holds a bundle", hint="name a new folder, or use --force"
        )


def bundle_config(
    run: Run,
    fused: FusedRationalist,
    target: TargetSpec,
    runtime_settings: RuntimeSettings | None = None,
    calibration: Calibration | None = None,
    class_wise: FusedClassWise | None = None,
) -> BundleConfig:
    """What a bundle of this run says about its model."""
    preprocessor = run.preprocessor
    special = dict(preprocessor.special_ids) if isinstance(preprocessor, TextPreprocessor) else {}
    return BundleConfig.create(
        modality=fused.modality,
        problem_type=fused.problem_type,
        label_names=run.label_names,
        rationale_ratio=fused.rationale_ratio,
        rationale_ratio_fraction=fused.rationale_ratio_fraction,
        rationale_unit=fused.rationale_unit,
        region_size=fused.region_size,
        io_spec=fused.io_spec(),
        opset=target.opset,
        ir_version=target.ir_version,
        precision=target.precision,
        runtime=target.runtime,
        runtime_settings=runtime_settings,
        calibration=calibration,
        image_size=fused.image_size,
        patch_size=fused.patch_size,
        max_length=fused.max_length,
        special_ids=special,
        why_not=None if class_wise is None else class_wise.io_spec(),
    )


def bundle_run(
    run: Run,
    fused: FusedRationalist,
    file: Path,
    report: CheckReport,
    target: TargetSpec,
    output: Path,
    *,
    force: bool,
    work: Path,
    more_reports: Mapping[str, dict[str, Any]] | None = None,
    tuning: TuneReport | None = None,
    recovery: RecoveryReport | None = None,
    calibration: CalibrationReport | None = None,
    engines: Sequence[StoredEngine] = (),
    class_wise: FusedClassWise | None = None,
) -> BundleManifest:
    """Writes the bundle of a checked file, by way of the folder ``work`` if one is replaced;
    ``class_wise`` is the model of the ``why_not.onnx`` beside it."""
    accuracy = {_ACCURACY_NAMES[name]: a.overall for name, a in report.accuracy.items()}
    reports = {"check": report.to_json(), **(more_reports or {})}
    if recovery is not None:
        reports[RECOVERY_REPORT] = recovery.to_json()
    if calibration is not None:
        reports[CALIBRATION_REPORT] = calibration.to_json()
    settings = None
    if tuning is not None:
        reports[TUNE_REPORT] = tuning.to_json()
        settings = None if tuning.settings.is_default else tuning.settings
    for name in ("distill", "fuse"):
        found = run.report(name)
        if found is not None:
            reports[name] = found
    replaced = force and output.exists()
    place = work / "bundle" if replaced else output
    manifest = write_bundle(
        place,
        onnx=file,
        preprocessor=run.preprocessor.deployed(),
        label_names=run.label_names,
        config=bundle_config(
            run,
            fused,
            target,
            settings,
            None if calibration is None else calibration.calibration,
            class_wise,
        ),
        recipe_yaml=dump_recipe(run.recipe),
        lineage=_lineage(run),
        reports=reports,
        gates=gate_records(report),
        accuracy=accuracy,
        accuracy_per_class=report.accuracy["onnx"].per_class,
        target=target.name,
        engines=engines,
        why_not=None if class_wise is None else file.with_name(WHY_NOT_FILE),
    )
    if replaced:
        old = work / "old"
        os.replace(output, old)
        try:
            os.replace(place, output)
        except BaseException:
            os.replace(old, output)
            raise
    return manifest


_ACCURACY_NAMES = {
    "onnx": "student_onnx",
    "torch": "student",
    "teacher": "teacher",
    "plain": "plain",
}


def _lineage(run: Run) -> Lineage:
    stated = run.info.get("weights", {})
    weights = {
        f"{role} {part}": str(source["source"] if isinstance(source, Mapping) else source)
        for role, parts in stated.items()
        if isinstance(parts, Mapping)
        for part, source in parts.items()
    }
    return Lineage(
        recipe_name=run.recipe.name,
        description=run.recipe.description,
        seed=run.recipe.seed,
        task=run.recipe.task,
        data={key: str(value) for key, value in run.data().source.items()},
        weights=weights,
        checkpoint_sha256=student_sha256(run),
    )


def gate_records(report: CheckReport) -> list[GateRecord]:
    """All gates of a check as the manifest keeps them, those of ``why_not.onnx`` last."""
    found = [gate_record(gate) for gate in report.gates]
    if report.class_wise is not None:
        found += [
            gate_record(gate).model_copy(update={"name": f"why_not {gate.metric}"})
            for gate in report.class_wise.gates
        ]
    return found


def gate_record(gate: GateResult) -> GateRecord:
    """A gate's result as the manifest keeps it."""
    against = f" vs {gate.reference}" if gate.reference else ""
    return GateRecord(
        name=gate.metric,
        metric=gate.metric,
        goal=f"{gate.goal} {gate.value:g}{against}",
        value=gate.measured,
        passed=gate.passed,
        detail=gate.reason,
    )


def reject(folder: Path, final: Path, reasons: Sequence[str], report: CheckReport | None) -> Path:
    """Moves ``folder`` to ``rejected/`` beside ``final`` and says why in ``reason.json``.

    An earlier rejection of the same name is kept; the new one gets a number.
    """
    place = final.parent / REJECTED_FOLDER
    place.mkdir(exist_ok=True)
    path, number = place / final.name, 1
    while path.exists():
        number += 1
        path = place / f"{final.name}-{number}"
    reason = {
        "schema_version": 1,
        "rejected": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "name": final.name,
        "reasons": list(reasons),
        "check": None if report is None else report.to_json(),
    }
    write_json(folder / REASON_FILE, reason)
    os.replace(folder, path)
    path.chmod(0o755)
    return path


def find_run(bundle: Bundle) -> Run:
    """The run above a bundle's folder whose student is the bundle's.

    Bundles hold no absolute paths; a run is looked for in the folders above and recognised by
    the sha256 of its student. Raises :class:`UsageError` if there is none.
    """
    wanted = bundle.manifest.lineage.checkpoint_sha256
    for folder in bundle.folder.resolve().parents:
        weights = folder / STUDENT_WEIGHTS
        if not (folder / RUN_FILE).is_file() or not weights.is_file():
            continue
        if wanted is not None and file_sha256(weights) == wanted:
            return open_run(folder)
    raise UsageError(
        f"the run that {bundle.folder} was made from is not in the folders above it",
        hint="name it with --run RUN (bench also takes --inputs FILE instead)",
    )


def _require_same_run(bundle: Bundle, run: Run) -> None:
    if student_sha256(run) != bundle.manifest.lineage.checkpoint_sha256:
        raise UsageError(
            f"{bundle.folder} was not made from {run.path}: the student's weights differ",
            hint="name the right run with --run, or export again",
        )


def _contradictions(
    bundle: Bundle, run: Run, fused: FusedRationalist, target: TargetSpec
) -> tuple[str, ...]:
    """Where a bundle's description of its model is not true of the run: with other class names
    or another preparation of the input, a right file gives wrong answers."""
    found = []
    stated_config = bundle.config
    asked = None if stated_config.why_not is None else run.fused_class_wise()
    expected = bundle_config(
        run, fused, target, stated_config.runtime_settings, stated_config.calibration, asked
    )
    if stated_config.schema_version < expected.schema_version <= 2:  # bundles before calibration
        expected = expected.model_copy(update={"schema_version": stated_config.schema_version})
    for name in BundleConfig.model_fields:
        stated, true = getattr(stated_config, name), getattr(expected, name)
        if stated != true:
            found.append(f"config.json says {name} is {stated}, the run {true}")
    if load_preprocessor(bundle.folder).fingerprint != run.preprocessor.fingerprint:
        found.append("the bundle prepares its input otherwise than the run")
    return tuple(found)


def _miscalibrated(
    bundle: Bundle, run: Run, fused: FusedRationalist, target: TargetSpec
) -> tuple[str, ...]:
    """Where temperature or thresholds are not what the file's own answers to the development split
    give, by more than another processor's rounding moves them."""
    stated = bundle.config.calibration
    if stated is None:
        return ()
    found = calibrate_file(run, bundle.model_path, fused=fused, target=target, asked=stated.asked)
    assert found is not None  # its split was large enough when the bundle was made
    wrong = []
    for name, tolerance in _CALIBRATION_TOLERANCE.items():
        mine, true = getattr(stated, name), getattr(found.calibration, name)
        agree = mine == true
        if mine is not None and true is not None:
            agree = abs(mine - true) <= tolerance * max(abs(true), 1e-3)
        if not agree:
            wrong.append(f"config.json says {name} is {mine}, the development split gives {true}")
    return tuple(wrong)


_CALIBRATION_TOLERANCE = {
    "temperature": 0.05,
    "confidence_threshold": 0.02,
    "margin_threshold": 0.05,
}
"""Relative."""


def read_inputs(path: Path, preprocessor: Preprocessor) -> list[dict[str, np.ndarray]]:
    """Single examples from a text file (one a line), an image, a folder of images, or an ``.npz``
    with the model's inputs, ``[example, ...]`` each.

    Raises :class:`UsageError` where the file cannot be used.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.suffix == ".npz":
        return _stored_examples(path)
    if isinstance(preprocessor, TextPreprocessor):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, IsADirectoryError) as error:
            raise UsageError(f"{path} is not a UTF-8 text file") from error
        texts = [line for line in lines if line.strip()]
        if not texts:
            raise UsageError(f"{path} holds no text")
        return [preprocessor.encode([text]) for text in texts]
    from rekd_edge.data.images import IMAGE_SUFFIXES, rgb_from_file

    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UsageError(f"{path} holds no images")
    return [preprocessor.encode([rgb_from_file(file)]) for file in files]


def _stored_examples(path: Path) -> list[dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} is not a .npz file of plain arrays: {error}") from error
    counts = {len(array) for array in arrays.values() if array.ndim}
    if len(counts) != 1 or not all(array.ndim for array in arrays.values()) or counts == {0}:
        raise UsageError(f"{path} must hold arrays with one and the same number of examples")
    return [
        {name: array[row : row + 1] for name, array in arrays.items()}
        for row in range(counts.pop())
    ]
