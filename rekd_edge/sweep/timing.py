"""Latency of everything a sweep made, in one interleaved run after all training is done.

While several processes train, a latency is noise; so nothing is timed during the search. Files of
one architecture at one ratio do the same work: one of them is timed for all, since a difference
between them would be noise and would decide the front.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rekd_edge.bench import BenchReport, BenchSettings, bench_files
from rekd_edge.bench.timing import ratio_of_medians
from rekd_edge.check.inputs import examples_of
from rekd_edge.compare import TitledListener, finished_run, forget_checkpoints
from rekd_edge.convert import load_target
from rekd_edge.distill.loop import DivergedError
from rekd_edge.errors import IntegrityError
from rekd_edge.export_pipeline import BENCH_EXAMPLES, convert_run, student_sha256, test_batches
from rekd_edge.recipe.schema import Recipe
from rekd_edge.run_folder import Run, open_run
from rekd_edge.sweep.trial import MODEL, FileScore, score_file

SETTINGS = BenchSettings(min_duration_s=3.0, min_count=200, cold_starts=0)
PLAIN_FILE = Path("onnx") / "plain.onnx"
TRAINED_ONLY = ("dropout", "head_dropout", "head_init", "train_embeddings")
"""Keys of a backbone that leave the exported graph as it is."""


@dataclass(frozen=True, slots=True)
class Plain:
    """The plain classifier of a predictor's backbone; ``failed`` where it diverged."""

    name: str
    file: Path | None
    run: Run | None
    dev: FileScore | None = None
    test: FileScore | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Timed:
    """A trial's latency: that of trial ``timed_as``, and its ratio to the plain classifier of the
    same backbone, ``{"value", "low", "high"}``, None where there is none."""

    p50_ms: float
    ratio_to_plain: dict[str, float] | None
    timed_as: int
    plain: str


def train_plain(
    recipes: Mapping[int, Recipe],
    base: Recipe,
    output: Path,
    *,
    target: str,
    device: str,
    listener: TitledListener | None,
) -> tuple[dict[int, str], dict[str, Plain]]:
    """One plain classifier for each predictor and data among ``recipes`` (by trial), trained with
    the base recipe's seed, objective and training settings; the name of each trial's."""
    names: dict[int, str] = {}
    found: dict[str, Plain] = {}
    for number in sorted(recipes):
        recipe = _plain_recipe(recipes[number], base)
        name = f"plain-{_digest(recipe.student.predictor.model_dump(), recipe.data.model_dump())}"
        names[number] = name
        if name in found:
            continue
        if listener is not None:
            listener.retitle(f"plain classifier of trial {number}")
        try:
            run = finished_run(recipe, output / name, device, listener)
        except DivergedError as error:
            found[name] = Plain(name, None, None, failed=error.message)
            continue
        forget_checkpoints(run)
        found[name] = _scored(name, run, target)
    return names, found


def _plain_recipe(recipe: Recipe, base: Recipe) -> Recipe:
    student = base.student.model_copy(
        update={"selector": recipe.student.selector, "predictor": recipe.student.predictor}
    )
    changes = {"task": "classify", "teacher": None, "transfer": None, "student": student}
    changes |= {"ensemble": None, "class_wise_rationales": False}
    return base.model_copy(update=changes | {"data": recipe.data})


def _scored(name: str, run: Run, target: str) -> Plain:
    spec, file = load_target(target), run.path / PLAIN_FILE
    plain = run.plain()
    assert plain is not None
    file.parent.mkdir(exist_ok=True)
    metadata = {"recipe": run.recipe.name, "student_sha256": student_sha256(run)}
    convert_run(run, plain, spec, file, metadata)
    dev, test = (
        score_file(
            file,
            test_batches(split, run.preprocessor),
            threads=None,
            provider=spec.execution_provider,
            problem=run.recipe.problem_type,
        )
        for split in (run.data().dev, run.data().test)
    )
    return Plain(name, file, run, dev, test)


def time_trials(
    runs: Mapping[int, Path],
    plain_of: Mapping[int, str],
    plains: Mapping[str, Plain],
    *,
    target: str,
    settings: BenchSettings,
) -> tuple[dict[int, Timed], dict[str, float], BenchReport]:
    """Times the trials' files (``runs`` by number) and the plain classifiers in one run at one
    thread: latencies of the trials, p50 in milliseconds of the plain ones by name, and all of it.

    Raises:
        IntegrityError: a trial's file is gone.
    """
    opened = {number: open_run(path) for number, path in runs.items()}
    first: dict[str, int] = {}
    timed_as: dict[int, int] = {}
    for number in sorted(opened):
        timed_as[number] = first.setdefault(architecture(opened[number].recipe), number)
    files: dict[str, Path] = {}
    inputs: dict[str, Sequence[Mapping[str, np.ndarray]]] = {}
    prepared: dict[str, list[dict[str, np.ndarray]]] = {}
    timed = {f"trial-{number}": opened[number] for number in sorted(set(timed_as.values()))}
    for name, run in timed.items():
        files[name] = run.path / MODEL
        if not files[name].is_file():
            raise IntegrityError(
                f"{files[name]} is gone", hint="start the sweep anew in another folder"
            )
        inputs[name] = _examples(run, prepared)
    for name, plain in plains.items():
        if plain.file is not None and plain.run is not None:
            files[name], inputs[name] = plain.file, _examples(plain.run, prepared)
    any_run = next(iter(opened.values()))
    report = bench_files(
        files,
        inputs,
        settings=settings,
        threads=1,
        provider=load_target(target).execution_provider,
        inputs_source=f"test split of {any_run.info.get('data', {}).get('name', 'the recipe')}",
        notes=["files of one architecture and ratio are timed once"],
    )
    samples = {name: np.asarray(one.samples_ns) for name, one in report.candidates.items()}
    found: dict[int, Timed] = {}
    for number, representative in timed_as.items():
        mine, plain = f"trial-{representative}", plain_of[number]
        ratio = None
        if plain in samples:
            ratio = ratio_of_medians(samples[mine], samples[plain]).to_json()
        p50 = report.candidates[mine].latency_ns["50"] / 1e6
        found[number] = Timed(p50, ratio, representative, plain)
    of_plain = {
        name: report.candidates[name].latency_ns["50"] / 1e6 for name in plains if name in samples
    }
    return found, of_plain, report


def architecture(recipe: Recipe) -> str:
    """Equal for recipes whose students are exported to the same graph with other weights."""
    hidden: Any = {"train": True, "selector": set(TRAINED_ONLY), "predictor": set(TRAINED_ONLY)}
    student = recipe.student.model_dump(mode="json", exclude=hidden)
    data = recipe.data.model_dump(mode="json", exclude={"augment": True})
    selection = [recipe.rationale_ratio, recipe.rationale_unit, recipe.region_size]
    return json.dumps([student, data, selection], sort_keys=True)


def _examples(
    run: Run, prepared: dict[str, list[dict[str, np.ndarray]]]
) -> list[dict[str, np.ndarray]]:
    kind = run.preprocessor.fingerprint
    if kind not in prepared:
        batches = test_batches(run.data().test, run.preprocessor)
        prepared[kind] = examples_of(batches, BENCH_EXAMPLES)
    return prepared[kind]


def _digest(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
