"""One point of a sweep: train, export, check, and the figures that do not depend on the machine.

The development split decides: it is what the sampler searches by and what the front is drawn from.
The accuracy on the test split stands beside it, from the check of the same file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rekd_edge.check import LabelledBatch
from rekd_edge.check.compare import LOWEST_SCORE
from rekd_edge.compare import (
    TitledListener,
    finished_run,
    forget_checkpoints,
    with_shared_teacher,
)
from rekd_edge.convert import load_target
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.errors import GateError
from rekd_edge.export_pipeline import export_bundle, test_batches
from rekd_edge.fuse.report import count_flops, mean_tokens
from rekd_edge.problem import PRIMARY, scores
from rekd_edge.recipe.schema import Recipe
from rekd_edge.run_folder import Run
from rekd_edge.runners import OnnxRunner
from rekd_edge.types import ProblemType

BUNDLE = "bundle"
MODEL = Path(BUNDLE) / "model.onnx"
REPORT = "trial"
"""Name of the report in the run folder that holds a passed point's figures."""


@dataclass(frozen=True, slots=True)
class FileScore:
    """Primary score of a file over ``examples`` (of a single-label classification its accuracy);
    ``kept_share`` of the tokens that could be selected, 1 for a file without a rationale."""

    accuracy: float
    kept_share: float
    examples: int


def run_point(
    recipe: Recipe,
    folder: Path,
    *,
    teachers: Path,
    target: str,
    gates: str | None,
    device: str,
    threads: int | None,
    listener: TitledListener | None,
    alone: Callable[[Path], AbstractContextManager[Any]],
) -> dict[str, Any]:
    """The figures of ``recipe``, trained, exported and checked in ``folder``; of a finished one as
    they were found. ``teachers`` holds the teachers that points share, ``alone`` as
    :func:`~rekd_edge.compare.with_shared_teacher` has it.

    Raises:
        GateError: the file failed its check.
        DivergedError: training did.
    """
    stored = folder / "reports" / f"{REPORT}.json"
    if stored.is_file():
        return json.loads(stored.read_text(encoding="utf-8"))
    recipe = with_shared_teacher(recipe, teachers, device, listener, alone=alone)
    run = finished_run(recipe, folder, device, listener, with_fuse_report=False)
    figures = _export(run, target, gates, threads)
    forget_checkpoints(run)
    write_json(stored, figures)
    return figures


def _export(run: Run, target: str, gates: str | None, threads: int | None) -> dict[str, Any]:
    result = export_bundle(
        run,
        target=target,
        output=run.path / BUNDLE,
        gates=gates,
        force=True,
        twins=False,
        threads=threads,
        class_wise=False,
    )
    if not result.passed or result.report is None:
        raise GateError("; ".join(result.reasons))
    spec = load_target(target)
    dev = score_file(
        run.path / MODEL,
        test_batches(run.data().dev, run.preprocessor),
        threads=threads,
        provider=spec.execution_provider,
        problem=run.recipe.problem_type,
    )
    flops = count_flops(run.fused(), mean_tokens(run.loader("dev")))
    test = result.report.accuracy["onnx"]
    return {
        "dev_accuracy": dev.accuracy,
        "dev_examples": dev.examples,
        "test_accuracy": test.overall,
        "test_examples": test.examples,
        "kept_share": dev.kept_share,
        "flops_share": flops.student_share,
        "size_bytes": result.report.size_bytes,
        "sha256": result.report.file_sha256,
    }


def score_file(
    path: Path,
    batches: Iterable[LabelledBatch],
    *,
    threads: int | None,
    provider: str,
    problem: ProblemType = "single_label_classification",
) -> FileScore:
    """Runs an exported file on ``batches``, a rationalist or a plain classifier."""
    logits: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    kept = selectable = 0
    with OnnxRunner(path, threads=threads, provider=provider) as runner:
        selects = "rationale_mask" in runner.output_names
        wanted = ["logits", *(["rationale_mask", "selection_score"] if selects else [])]
        for batch in batches:
            answer = runner.run_named(batch.inputs, wanted)
            logits.append(answer["logits"])
            labels.append(batch.labels)
            if selects:
                kept += int(np.count_nonzero(answer["rationale_mask"]))
                selectable += int(np.count_nonzero(answer["selection_score"] > LOWEST_SCORE))
    truth = np.concatenate(labels)
    found = scores(np.concatenate(logits), truth, problem)[PRIMARY[problem]]
    return FileScore(found, kept / selectable if selects else 1.0, len(truth))
