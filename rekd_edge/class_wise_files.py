"""``why_not.onnx``: the file of a bundle that answers for a class that it is asked about.

It is exported and checked as the file that answers: the same proofs of exclusion and the same
gates, on the whole test split, each example asked for one class in turn. Runtimes open it only when
somebody asks, so the answer costs what it costs without it (docs/adr/0034).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from rekd_edge.check import CheckReport, GateSet, LabelledBatch, TextEdges, check_artefact
from rekd_edge.check.checker import LATENCY_METRICS
from rekd_edge.convert import TargetSpec, convert_to_onnx, file_sha256
from rekd_edge.errors import UsageError
from rekd_edge.fuse import FusedClassWise
from rekd_edge.run_folder import CLASS_WISE_WEIGHTS, Run
from rekd_edge.runners import RuntimeSettings
from rekd_edge.runtime_options import TENSORRT_PROVIDER
from rekd_edge.types import CANDIDATE_INPUT

WITHOUT = "leave it out with --no-why-not, or export with --target onnx or openvino"


def class_wise_model(run: Run, target: TargetSpec, wanted: bool | None) -> FusedClassWise | None:
    """What ``target`` gets besides the answer; None where the run has none, or it is not
    ``wanted`` (None: wherever the run has it).

    Raises:
        UsageError: it is wanted and the run was trained without; or the target cannot carry it.
    """
    if wanted is False:
        return None
    if not run.recipe.class_wise_rationales:
        if wanted:
            raise UsageError(
                f"{run.path} was trained without class-wise rationales",
                hint="train with class_wise_rationales: true",
            )
        return None
    reason = why_target_cannot(target)
    if reason is not None:
        raise UsageError(
            f"{target.name!r} cannot carry class-wise rationales: {reason}", hint=WITHOUT
        )
    return run.fused_class_wise()


def require_left_out(run: Run, wanted: bool | None) -> None:
    """Raises :class:`UsageError` where several precisions are tried and class-wise rationales would
    be left out unasked."""
    if wanted or (wanted is None and run.recipe.class_wise_rationales):
        raise UsageError(
            "--precision auto tries precisions that cannot carry class-wise rationales",
            hint=WITHOUT,
        )


def why_target_cannot(target: TargetSpec) -> str | None:
    """Why files of ``target`` cannot come with class-wise rationales, or None."""
    if target.engine is not None:
        return "its answers come from an engine, whose predictor would not be the one that is asked"
    if target.package is not None:
        return "its answers come from a package, whose predictor would not be the one that is asked"
    if target.execution_provider == TENSORRT_PROVIDER:
        return "TensorRT builds engines for sizes that are served, and a question has none"
    if target.precision != "fp32":
        return f"the predictor that answers is in {target.precision}, the one that is asked in fp32"
    return None


def convert_class_wise(
    run: Run, model: FusedClassWise, target: TargetSpec, path: Path, metadata: Mapping[str, str]
) -> None:
    """Writes the file; ``metadata`` is that of the file that answers."""
    own = {"class_head_sha256": file_sha256(run.path / CLASS_WISE_WEIGHTS)}
    convert_to_onnx(model, model.io_spec(), path, target=target, metadata={**metadata, **own})


def check_class_wise(
    path: Path,
    model: FusedClassWise,
    report: CheckReport,
    *,
    batches: Iterable[LabelledBatch],
    edges: TextEdges | None,
    gates: GateSet,
    target: TargetSpec,
    runtime_settings: RuntimeSettings | None = None,
) -> CheckReport:
    """``report``, of the file that answers, with that of this one. Its accuracy is the share of
    rationales that make the predictor say their class; gates of latency, and those that compare
    with other models, are the answer's."""
    kept = tuple(
        gate
        for gate in gates.gates
        if gate.metric not in LATENCY_METRICS and gate.reference in (None, "torch", "majority")
    )
    found = check_artefact(
        path,
        model=model,
        io_spec=model.io_spec(),
        label_names=model.label_names,
        batches=asked_batches(batches, len(model.label_names)),
        gates=gates.model_copy(update={"gates": kept}),
        edges=edges,
        provider=target.execution_provider,
        threads=report.threads,
        runtime=target.runtime,
        runtime_settings=runtime_settings,
    )
    return replace(report, class_wise=found)


def asked_batches(batches: Iterable[LabelledBatch], num_classes: int) -> Iterator[LabelledBatch]:
    """Each example asked for one class, in turn, which is then its label."""
    first = 0
    for batch in batches:
        candidate = (np.arange(len(batch.labels), dtype=np.int64) + first) % num_classes
        first += len(candidate)
        yield LabelledBatch({**batch.inputs, CANDIDATE_INPUT: candidate}, candidate)
