"""The checks of an engine itself: answered on the GPU that it was built for, or not run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from rekd_edge.check import GateSet, LabelledBatch, TextEdges, check_answers
from rekd_edge.engines.backend import Device
from rekd_edge.engines.spec import Profile
from rekd_edge.engines.store import EngineChecks, StoredEngine, write_record
from rekd_edge.errors import GateError
from rekd_edge.runners import file_runner
from rekd_edge.types import IoSpec

FEWEST_TOKENS = 3
"""Of the texts that the checks ask: one token between `[CLS]` and `[SEP]`."""


def check_engine(
    engine: StoredEngine,
    device: Device | None,
    *,
    model: nn.Module,
    io_spec: IoSpec,
    label_names: Sequence[str],
    batches: Iterable[LabelledBatch],
    gates: GateSet,
    edges: TextEdges | None,
) -> StoredEngine:
    """The engine with what was found in its side-car: the gates of its ONNX file, measured on its
    own answers over all of ``batches``. Where its shapes are fewer than the checks need, or its GPU
    is not there, it says ``not run``, and nothing else.

    Raises :class:`GateError` where a gate that was measured does not hold.
    """
    record = engine.record
    too_few = unserved(record.recipe.profiles, io_spec, edges)
    if too_few is not None:
        found: dict[str, Any] = {"reason": too_few}
    elif device is None or device.compute_capability != record.compute_capability:
        here = "no GPU" if device is None else f"{device.name}, SM {device.compute_capability}"
        reason = f"needs a GPU of SM {record.compute_capability}; there was {here}"
        found = {"reason": reason}
    else:
        with file_runner(engine.path, runtime=record.recipe.backend) as runner:
            report = check_answers(
                runner,
                model=model,
                io_spec=io_spec,
                label_names=label_names,
                batches=batches,
                gates=gates,
                edges=edges,
                largest_batch=min(shapes.max[0] for shapes in record.recipe.profiles.values()),
            )
        if report.failures:
            raise GateError(
                f"the engine for SM {record.compute_capability} fails its gates:\n    "
                + "\n    ".join(report.failures)
            )
        found = {
            "parity": "passed",
            "accuracy": "passed" if "score" in report.metrics else "not run",
            "reason": "latency is not measured by an export",
        }
    checks = EngineChecks(**found)
    return write_record(engine.path.parent, record.model_copy(update={"checks": checks}))


def unserved(
    profiles: Mapping[str, Profile], io_spec: IoSpec, edges: TextEdges | None
) -> str | None:
    """Which sizes the checks need and ``profiles`` do not serve, in words."""
    for tensor in io_spec.inputs:
        profile = profiles[tensor.name]
        for axis, least, most in zip(tensor.axes, profile.min, profile.max, strict=True):
            if axis.name == "batch" and least > 1:
                return f"serves batches of {least} to {most}; the checks need batches of 1"
            if axis.name != "token" or edges is None:
                continue
            if least > FEWEST_TOKENS or most < edges.max_length:
                return (
                    f"serves {least} to {most} tokens; the checks need {FEWEST_TOKENS} to "
                    f"{edges.max_length}"
                )
    return None
