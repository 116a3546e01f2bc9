"""The latency table: every alternative as a file, its accuracy, and all of them timed together.

OUTPUT/ROW/seed-S and OUTPUT/teacher-HASH/seed-S are runs, as in `rekd-edge suite`.
OUTPUT/latency/NAME.TARGET.onnx are the files, NAME.TARGET.json what was measured of each,
NAME/ the training of a peer, timing-T-B.json one interleaved run with its samples.
OUTPUT/latency.json and latency.md are the table.

What is there is kept as long as it was made from the same weights, settings, versions and code.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rekd_edge import __version__
from rekd_edge.bench import BenchReport, BenchSettings, bench_files
from rekd_edge.bench.timing import ratio_of_medians
from rekd_edge.check import LabelledBatch, differences
from rekd_edge.check.compare import concatenate
from rekd_edge.check.inputs import examples_of, queries
from rekd_edge.compare import TitledListener
from rekd_edge.convert import TargetSpec, file_sha256, load_target
from rekd_edge.data.preprocess import TextPreprocessor
from rekd_edge.device_suite import device_table, run_on_device
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.errors import UsageError
from rekd_edge.export_pipeline import (
    BENCH_EXAMPLES,
    CHECK_BATCH,
    convert_run,
    student_sha256,
    test_batches,
)
from rekd_edge.fuse import FusedRationalist
from rekd_edge.fuse.folds import apply_folds
from rekd_edge.fuse.fused import DeployModel
from rekd_edge.fuse.report import mean_tokens, model_flops
from rekd_edge.machine import (
    hardware,
    imported_onnxruntime,
    onnxruntime_of,
    package_versions,
)
from rekd_edge.models.build import same_tokens
from rekd_edge.models.rationalist import Classifier, Rationalist
from rekd_edge.problem import PRIMARY, SCORE_TITLES, penalised, scores
from rekd_edge.recipe.latency_file import RESULT_FOLDER, CandidateSpec, LatencySpec, PeerSpec
from rekd_edge.recipe.schema import Recipe
from rekd_edge.resources import benchmarks_dir
from rekd_edge.run_folder import Run, open_run
from rekd_edge.runners import OnnxRunner, TorchRunner
from rekd_edge.suite import row_run
from rekd_edge.types import OUTPUTS, Outputs, alone

RESULT_FILE = "latency.json"
TABLE_FILE = "latency.md"
SETTINGS = BenchSettings(cold_starts=0)
EXPORTING = ("convert", "fuse", "models", "selection")
"""Folders of the package whose code decides what is in a file."""


@dataclass(frozen=True, slots=True)
class CandidateFile:
    """One file of the table. ``accuracy`` is that of this very file on the whole test split in ONNX
    Runtime. ``rationale_*`` compare its rationales with those of its own fp32 torch student; None
    where there is no rationale. ``flops_share`` is relative to the plain classifier."""

    name: str
    title: str
    form: str
    target: str
    precision: str
    sha256: str
    size_bytes: int
    examples: int
    accuracy: float
    rationale_exact: float | None
    rationale_jaccard: float | None
    flops_share: float
    strength: float | None
    trained: bool
    """Whether its weights were trained for this form."""

    @property
    def label(self) -> str:
        return f"{self.name}.{self.target}"


def run_latency(
    spec: LatencySpec,
    recipes: Mapping[str, Recipe],
    output: Path,
    *,
    threads: Sequence[int] | None = None,
    batch: Sequence[int] | None = None,
    settings: BenchSettings = SETTINGS,
    device: str = "auto",
    limit_s: float | None = None,
    listener: TitledListener | None = None,
) -> dict[str, Any]:
    """Trains the rows, makes and measures the files, times them, and writes the table. A suite with
    ``on_device`` is timed on ``device`` instead (:mod:`rekd_edge.device_suite`), for about
    ``limit_s``.

    Raises:
        UsageError: candidates that cannot be compared or made, peers outside a checkout, or a limit
            for a suite without ``on_device``.
        GateError: a file cannot be exported, or is not in the precision asked for.
    """
    if spec.on_device is not None:
        return run_on_device(
            spec,
            recipes,
            output,
            batch=batch,
            settings=settings,
            device=device,
            limit_s=limit_s,
            listener=listener,
        )
    if limit_s is not None:
        raise UsageError(f"a limit of time is for suites with on_device, and {spec.name} has none")
    table = _Table(spec, recipes, output, device, listener)
    table.require_sense()
    files = [
        table.file(candidate, load_target(target))
        for candidate in spec.candidates
        for target in candidate.targets
    ]
    rows: list[dict[str, Any]] = []
    validity: dict[str, str] = {}
    dates: list[str] = []
    for count in threads or spec.threads:
        for size in batch or spec.batch:
            if listener is not None:
                listener.retitle(f"timing, {count} thread(s), batch {size}")
            timing = table.timing(files, count, size, settings)
            validity[f"threads {count}, batch {size}"] = " ".join(
                [timing["result_validity"], timing["result_invalid_reason"]]
            ).strip()
            dates.append(timing["date"])
            rows += table.rows(files, timing)
    plain = table.run(spec.reference.run)
    result = {
        "latency_suite": spec.name,
        "description": spec.description,
        "recipe": spec.recipe,
        "overrides": list(spec.overrides),
        "seed": spec.seed,
        "reference": f"{spec.reference.name}.{load_target(spec.reference.targets[0]).name}",
        "data": plain.info.get("data", {}),
        "test_examples": len(plain.data().test),
        "score": SCORE_TITLES[PRIMARY[plain.recipe.problem_type]],
        "rows": rows,
        "settings": asdict(settings) | {"accuracy_batch": CHECK_BATCH},
        "validity": validity,
        "timed": max(dates),
        "versions": package_versions(),
        "onnxruntime": imported_onnxruntime(),
        "hardware": hardware(),
    }
    write_json(output / RESULT_FILE, result)
    (output / TABLE_FILE).write_text(latency_table(result), encoding="utf-8")
    return result


class _Table:
    def __init__(
        self,
        spec: LatencySpec,
        recipes: Mapping[str, Recipe],
        output: Path,
        device: str,
        listener: TitledListener | None,
    ) -> None:
        self.spec = spec
        self.recipes = recipes
        self.output = output
        self.folder = output / RESULT_FOLDER
        self.device = device
        self.listener = listener
        self._runs: dict[str, Run] = {}
        self._batches: list[LabelledBatch] | None = None
        self._answers: dict[str, list[Outputs]] = {}
        self._peers: dict[str, tuple[DeployModel, float]] = {}
        self._fp32: dict[str, Path] = {}
        self._plain_flops: int | None = None

    def require_sense(self) -> None:
        """Raises UsageError for what can be seen before anything is trained."""
        spec, recipes = self.spec, self.recipes
        reference = load_target(spec.reference.targets[0])
        if reference.precision != "fp32":
            raise UsageError(
                f"ratios are to {spec.reference.name!r} in {reference.precision}",
                hint="name an fp32 target first there",
            )
        base = recipes[spec.reference.run]
        for candidate in spec.candidates:
            recipe = recipes[candidate.run]
            for target in candidate.targets:
                load_target(target)
            kind, like = ((r.modality, r.problem_type) for r in (recipe, base))
            if recipe.data != base.data or kind != like:
                raise UsageError(
                    f"candidate {candidate.name!r} has other data than {spec.reference.name!r}"
                )
            plain = recipe.task == "classify"
            if plain != (candidate.form in {"plain", "peer"}):
                raise UsageError(
                    f"candidate {candidate.name!r} is {candidate.form}, and the row "
                    f"{candidate.run!r} has task {recipe.task}",
                    hint="plain and peer take a row of task classify, the others one of a student",
                )
            if candidate.peer is not None:
                self._require_teacher(candidate.name, candidate.peer)
        if any(candidate.form == "peer" for candidate in spec.candidates):
            _peer_modules()

    def _require_teacher(self, name: str, peer: PeerSpec) -> None:
        row = None if peer.fine_tune is None else peer.fine_tune.teacher
        if row is None:
            return
        recipe = self.recipes[row]
        if recipe.task != "distill" or recipe.teacher is None:
            raise UsageError(f"candidate {name!r}: the row {row!r} has no teacher")
        if recipe.teacher.objective.form.masking == "zero":
            raise UsageError(
                f"candidate {name!r}: the teacher of row {row!r} was trained on zeroed embeddings",
                hint="name a row whose teacher excludes what it drops",
            )

    def run(self, row: str) -> Run:
        """The finished run of a row."""
        if row not in self._runs:
            if self.listener is not None:
                self.listener.retitle(f"seed {self.spec.seed}, {row}")
            recipe = self.recipes[row].model_copy(update={"seed": self.spec.seed})
            self._runs[row] = row_run(recipe, row, self.output, self.device, self.listener)
        return self._runs[row]

    def batches(self) -> list[LabelledBatch]:
        """The whole test split, which all candidates share."""
        if self._batches is None:
            run = self.run(self.spec.reference.run)
            self._batches = list(test_batches(run.data().test, run.preprocessor))
        return self._batches

    def file(self, candidate: CandidateSpec, target: TargetSpec) -> CandidateFile:
        """The candidate's file for a target, with what was measured of it; made where it is not
        there, or was made from something else."""
        run = self.run(candidate.run)
        if not same_tokens(run.preprocessor, self.run(self.spec.reference.run).preprocessor):
            raise UsageError(
                f"candidate {candidate.name!r} reads other tokens than the plain classifier"
            )
        stem = f"{candidate.name}.{target.name}"
        file, known = self.folder / f"{stem}.onnx", self.folder / f"{stem}.json"
        source = self._source(candidate, target, run)
        if file.is_file() and known.is_file():
            stated = json.loads(known.read_text(encoding="utf-8"))
            if stated["source"] == source and stated["file"]["sha256"] == file_sha256(file):
                made = CandidateFile(**stated["file"])
                return self._remember(replace(made, title=candidate.title or candidate.name))
        if self.listener is not None:
            self.listener.retitle(f"exporting {stem}")
        self.folder.mkdir(parents=True, exist_ok=True)
        known.unlink(missing_ok=True)
        model, strength = self._model(candidate, run)
        metadata = {"recipe": run.recipe.name, "candidate": candidate.name}
        convert_run(run, model, target, file, metadata, fp32=self._fp32.get(candidate.name))
        tokens = self._mean_tokens()
        answered = self._measure(file, target, candidate, run)
        parts = (
            "" if set(target.quantize) == {"selector", "predictor"} else "+".join(target.quantize)
        )
        whole = target.precision == "fp32" or candidate.form != "gathered" or not parts
        made = CandidateFile(
            name=candidate.name,
            title=candidate.title or candidate.name,
            form=candidate.form,
            target=target.name,
            precision=target.precision if whole else f"{target.precision} ({parts})",
            sha256=file_sha256(file),
            size_bytes=file.stat().st_size,
            flops_share=model_flops(model, tokens) / self._whole_flops(tokens),
            strength=strength,
            trained=_trained_as(candidate, run.recipe),
            **answered,
        )
        write_json(known, {"source": source, "file": asdict(made)})
        return self._remember(made)

    def _remember(self, made: CandidateFile) -> CandidateFile:
        if made.precision == "fp32":  # exported once; other precisions are made from it
            self._fp32[made.name] = self.folder / f"{made.label}.onnx"
        return made

    def _source(self, candidate: CandidateSpec, target: TargetSpec, run: Run) -> str:
        """A digest of everything that the file and its accuracy follow from."""
        facts: dict[str, Any] = {
            "form": candidate.form,
            "target": target.model_dump(mode="json", exclude={"recovery"}),
            "student": student_sha256(run),
            "plain": student_sha256(self.run(self.spec.reference.run)),
            "recipe": run.recipe.model_dump(mode="json"),
            "versions": package_versions() | {"rekd-edge": __version__},
            "code": export_code(),
        }
        if candidate.peer is not None:
            facts["peer"] = self._peer_source(candidate.peer, run)
        return _digest(facts)

    def _peer_source(self, peer: PeerSpec, run: Run) -> dict[str, Any]:
        build, _ = _peer_modules()
        code = sorted(Path(str(build.__file__)).parent.glob("*.py"))
        facts: dict[str, Any] = {
            "peer": peer.model_dump(mode="json"),
            "plain": student_sha256(run),
            "code": {path.name: file_sha256(path) for path in code},
            "data": run.recipe.data.model_dump(mode="json"),
        }
        if peer.fine_tune is not None and peer.fine_tune.teacher is not None:
            facts["teacher"] = _teacher_sha256(self.run(peer.fine_tune.teacher))
        return facts

    def _model(self, candidate: CandidateSpec, run: Run) -> tuple[DeployModel, float | None]:
        """What the candidate exports, and the strength of a peer."""
        if candidate.form == "gathered":
            return run.fused(), None
        if candidate.form == "masked":
            return run.masked(), None
        if candidate.form == "plain":
            plain = run.plain()
            assert plain is not None
            return plain, None
        if candidate.name not in self._peers:
            self._peers[candidate.name] = self._peer(candidate, run)
        return self._peers[candidate.name]

    def _peer(self, candidate: CandidateSpec, run: Run) -> tuple[DeployModel, float]:
        build, training = _peer_modules()
        peer = candidate.peer
        assert peer is not None
        built = build.build_peer(
            run.classifier().predictor,
            peer,
            label_names=run.label_names,
            max_length=run.max_length,
            tokens=self._mean_tokens(),
        )
        if peer.fine_tune is None:
            apply_folds(built.model, run.preprocessor.pixel_scale)
            return built.model, built.strength
        folder = self.folder / candidate.name
        source, stated = _digest(self._peer_source(peer, run)), folder / "source.json"
        if not stated.is_file() or json.loads(stated.read_text(encoding="utf-8")) != source:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(stated, source)
        if self.listener is not None:
            self.listener.retitle(candidate.name)
        teacher, reads = self._teacher(peer, run)
        augment = run.recipe.data.augment
        augmented = run.recipe.modality == "image" and (augment.flip or augment.crop_padding > 0)
        training.fine_tune(
            built.model,
            run.data().train,
            run.data().dev,
            preprocessor=run.preprocessor,
            teacher=teacher,
            spec=peer.fine_tune,
            train=run.recipe.student.train,
            folder=folder,
            seed=self.spec.seed,
            teacher_preprocessor=None if same_tokens(reads, run.preprocessor) else reads,
            augment=augment if augmented else None,
            device=self.device,
            listener=self.listener,
        )
        apply_folds(built.model, run.preprocessor.pixel_scale)
        return built.model, built.strength

    def _teacher(self, peer: PeerSpec, run: Run) -> tuple[Classifier | Rationalist, Any]:
        """Who teaches a peer, and the preprocessor that it reads with."""
        assert peer.fine_tune is not None
        if peer.fine_tune.teacher is None:
            return run.classifier(), run.preprocessor
        other = self.run(peer.fine_tune.teacher)
        teacher = other.teacher()
        assert teacher is not None
        return teacher, other.teacher_preprocessor

    def _measure(
        self, file: Path, target: TargetSpec, candidate: CandidateSpec, run: Run
    ) -> dict[str, Any]:
        """Accuracy of the file over the test split, and its rationales beside the student's."""
        selecting = candidate.form in {"gathered", "masked"}
        problem = run.recipe.problem_type
        answered, parts = [], []
        with OnnxRunner(file, provider=target.execution_provider) as runner:
            for position, batch in enumerate(self.batches()):
                names = OUTPUTS if selecting else ("logits",)
                found = runner.run_named(batch.inputs, names)
                answered.append(found["logits"])
                if selecting:
                    own = self._own_answers(candidate.run, run)[position]
                    parts.append(differences(alone(own), Outputs(**found)))
        labels = np.concatenate([batch.labels for batch in self.batches()])
        logits = penalised(np.concatenate(answered), labels, problem)
        exact = jaccard = None
        if parts:
            joined = concatenate(parts)
            exact = float(joined.same_rationale.mean())
            jaccard = float(joined.jaccard.mean())
        return {
            "examples": len(labels),
            "accuracy": scores(logits, labels, problem)[PRIMARY[problem]],
            "rationale_exact": exact,
            "rationale_jaccard": jaccard,
        }

    def _own_answers(self, row: str, run: Run) -> list[Outputs]:
        """What the row's fp32 torch student answers to the test split."""
        if row not in self._answers:
            fused: FusedRationalist = run.fused()
            names = tuple(tensor.name for tensor in fused.io_spec().inputs)
            with TorchRunner(fused, names) as runner:
                self._answers[row] = [runner.run(batch.inputs) for batch in self.batches()]
        return self._answers[row]

    def _mean_tokens(self) -> int:
        return mean_tokens(self.run(self.spec.reference.run).loader("test"))

    def _whole_flops(self, tokens: int) -> int:
        if self._plain_flops is None:
            plain = self.run(self.spec.reference.run).plain()
            assert plain is not None
            self._plain_flops = model_flops(plain, tokens)
        return self._plain_flops

    def timing(
        self, files: Sequence[CandidateFile], threads: int, batch: int, settings: BenchSettings
    ) -> dict[str, Any]:
        """One interleaved run over all files (:meth:`BenchReport.to_json`), or the one that is
        there for the same files and settings on the same machine."""
        place = self.folder / f"timing-{threads}-{batch}.json"
        source = _digest(
            {
                "files": [[file.label, file.sha256] for file in files],
                "settings": asdict(settings),
                "hardware": hardware(),
                "versions": package_versions(),
            }
        )
        if place.is_file():
            stated = json.loads(place.read_text(encoding="utf-8"))
            if stated["source"] == source:
                return stated["timing"]
        run = self.run(self.spec.reference.run)
        pad_id = 0
        if isinstance(run.preprocessor, TextPreprocessor):
            pad_id = run.preprocessor.special_ids["pad"]
        reference = load_target(self.spec.reference.targets[0])
        examples = examples_of(self.batches(), BENCH_EXAMPLES)
        report: BenchReport = bench_files(
            {file.label: self.folder / f"{file.label}.onnx" for file in files},
            queries(examples, batch, pad_id),
            settings=settings,
            threads=threads,
            provider=reference.execution_provider,
            reference=f"{self.spec.reference.name}.{reference.name}",
            inputs_source=f"test split of {run.data().source.get('name', run.recipe.data.source)}",
        )
        timing = report.to_json()
        write_json(place, {"source": source, "timing": timing})
        return timing

    def rows(
        self, files: Sequence[CandidateFile], timing: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """A row for each file of one timing."""
        measured = timing["candidates"]
        plains = {
            file.precision: file.label for file in files if file.name == self.spec.reference.name
        }
        rows = []
        for file in files:
            mine = measured[file.label]
            like = plains.get(file.precision.partition(" ")[0])
            alike = None
            if like is not None:
                both = (np.asarray(measured[one]["samples_ns"]) for one in (file.label, like))
                alike = ratio_of_medians(*both, resamples=1).value
            rows.append(
                {
                    "name": file.name,
                    "precision": file.precision,
                    "threads": timing["threads"],
                    "batch": timing["batch"],
                    "p50_ms": mine["result_50_percentile_latency_ns"] / 1e6,
                    "ratio_to_plain": mine["ratio"]["value"],
                    "accuracy": file.accuracy,
                    "rationale_exact": file.rationale_exact,
                    "rationale_jaccard": file.rationale_jaccard,
                    "title": file.title,
                    "form": file.form,
                    "target": file.target,
                    "p90_ms": mine["result_90_percentile_latency_ns"] / 1e6,
                    "ratio_low": mine["ratio"]["low"],
                    "ratio_high": mine["ratio"]["high"],
                    "ratio_to_plain_of_precision": alike,
                    "flops_share": round(file.flops_share, 4),
                    "strength": file.strength,
                    "trained": file.trained,
                    "size_bytes": file.size_bytes,
                    "sha256": file.sha256,
                    "queries": mine["result_query_count"],
                }
            )
        return rows


def _trained_as(candidate: CandidateSpec, recipe: Recipe) -> bool:
    """Whether the weights were trained for the candidate's form."""
    if candidate.peer is not None:
        return candidate.peer.fine_tune is not None
    masking = recipe.objective.form.masking
    wanted = {"gathered": "exclude", "masked": "zero"}.get(candidate.form, masking)
    return masking == wanted


def _teacher_sha256(run: Run) -> str:
    """Digest of the weights of a distilled run's teacher."""
    assert run.recipe.teacher is not None
    if run.recipe.teacher.run is not None:
        other = open_run(Path(run.recipe.teacher.run))
        if other.recipe.task != "distill":
            return student_sha256(other)
        return _teacher_sha256(other)
    return file_sha256(run.path / "teacher" / "best" / "model.safetensors")


def _peer_modules() -> tuple[ModuleType, ModuleType]:
    """`benchmarks/peers/build.py` and `training.py` of the checkout that this package lies in."""
    folder = benchmarks_dir()
    if folder is None:
        raise UsageError(
            "token-reduction peers are not part of the installed package",
            hint="run the suite from a checkout of the repository, or without its peers",
        )
    root = str(folder.parent)
    if root not in sys.path:
        sys.path.append(root)
    build, training = (importlib.import_module(f"benchmarks.peers.{n}") for n in _MODULES)
    if not Path(str(build.__file__)).is_relative_to(folder):
        raise UsageError(
            f"another package named benchmarks hides {folder}: {build.__file__}",
            hint="run from the checkout's own folder",
        )
    return build, training


_MODULES = ("build", "training")


@cache
def export_code(package: Path = Path(__file__).parent) -> str:
    """A digest of the modules that a file is made by: a change there makes it anew."""
    files = sorted(path for part in EXPORTING for path in (package / part).glob("*.py"))
    return _digest({path.relative_to(package).as_posix(): file_sha256(path) for path in files})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def table_of(result: Mapping[str, Any]) -> str:
    """A result of :func:`run_latency` as Markdown."""
    return device_table(result) if "device_suite" in result else latency_table(result)


def latency_table(result: Mapping[str, Any]) -> str:
    """A result of :func:`run_latency` as Markdown; every figure is read from it."""
    rows = result["rows"]
    settings = list(dict.fromkeys((row["threads"], row["batch"]) for row in rows))
    found = {(row["name"], row["target"], row["threads"], row["batch"]): row for row in rows}
    score = result.get("score", "accuracy")
    titles = [f"{t} thread{'s' if t > 1 else ''}, batch {b}: ms (ratio)" for t, b in settings]
    lines = [
        f"| model | precision | test {score} | rationale as in fp32: equal, Jaccard "
        f"| share of FLOPs | {' | '.join(titles)} |",
        f"|---|---|---|---|---|{'---|' * len(titles)}",
    ]
    for name, target in dict.fromkeys((row["name"], row["target"]) for row in rows):
        mine = [found[name, target, *setting] for setting in settings]
        row = mine[0]
        rationale = ""
        if row["rationale_exact"] is not None:
            rationale = f"{row['rationale_exact']:.3f}, {row['rationale_jaccard']:.3f}"
        cells = [f"{one['p50_ms']:.2f} ({one['ratio_to_plain']:.2f})" for one in mine]
        lines.append(
            f"| {row['title']} | {row['precision']} | {row['accuracy']:.3f} | {rationale} "
            f"| {row['flops_share']:.2f} | {' | '.join(cells)} |"
        )
    machine, versions = result["hardware"], result["versions"]
    marks = sorted(set(result["validity"].values()))
    facts = [
        f"Recipe `{result['recipe']}`"
        + "".join(f", `{override}`" for override in result["overrides"])
        + f"; seed {result['seed']}, {result['test_examples']} test examples",
        "Median of `session.run` alone, a query of so many examples, all files in one interleaved "
        f"run for each column; ratio to {result['reference']} there ({'; '.join(marks)})",
        f"{score[0].upper()}{score[1:]} is that of the very file on the whole test split, in "
        f"batches of {result['settings']['accuracy_batch']}",
        f"{machine['processor']}, {machine['cores']} cores, {onnxruntime_of(result)}, "
        f"torch {versions['torch']}, timed {result['timed']}",
    ]
    return "\n".join(lines) + "\n\n" + ".\n".join(facts) + ".\n"
