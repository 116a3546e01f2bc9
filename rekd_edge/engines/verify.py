"""The checks of an engine itself: answered on the GPU that it was built for, or not run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from rekd_edge.check import GateSet, LabelledBatch, TextEdges, check_answers
from rekd_edge.engines.backend import Device
from rekd_edge.engines.store import EngineChecks, StoredEngine, write_record
from rekd_edge.errors import GateError
from rekd_edge.runners import file_runner
from rekd_edge.types import IoSpec


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
    own answers over all of ``batches``. Without its GPU it says ``not run``, and nothing else.

    Raises :class:`GateError` where a gate that was measured does not hold.
    """
    record = engine.record
    if device is None or device.compute_capability != record.compute_capability:
        here = "no GPU" if device is None else f"{device.name}, SM {device.compute_capability}"
        reason = f"needs a GPU of SM {record.compute_capability}; there was {here}"
        found: dict[str, Any] = {"reason": reason}
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
            "accuracy": "passed" if "accuracy" in report.metrics else "not run",
            "reason": "latency is not measured by an export",
        }
    checks = EngineChecks(**found)
    return write_record(engine.path.parent, record.model_copy(update={"checks": checks}))
