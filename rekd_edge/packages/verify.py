"""The checks of a package itself, on the machine that compiled it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from rekd_edge.check import GateSet, LabelledBatch, TextEdges, check_answers, evaluate_gates
from rekd_edge.check.checker import problem_of
from rekd_edge.check.held import held_exclusion
from rekd_edge.check.inputs import in_parts
from rekd_edge.engines.verify import unserved
from rekd_edge.errors import GateError
from rekd_edge.packages.spec import PackageChecks
from rekd_edge.packages.store import StoredPackage, write_record
from rekd_edge.runners import file_runner
from rekd_edge.types import IoSpec

HELD_EXAMPLES = 128
"""Of the test split, asked for exclusion."""
EXCLUSION = ("exclusion_max_change", "exclusion_changed", "exclusion_control")


def check_package(
    package: StoredPackage,
    *,
    model: nn.Module,
    io_spec: IoSpec,
    label_names: Sequence[str],
    batches: Iterable[LabelledBatch],
    gates: GateSet,
    edges: TextEdges | None,
    threads: int | None = None,
) -> StoredPackage:
    """The package with what was found in its side-car: the gates of its ONNX file, measured on its
    own answers over all of ``batches``, and exclusion as far as it shows from outside. Where its
    sizes are fewer than the checks need it says ``not run``.

    Raises :class:`GateError` where a gate that was measured does not hold.
    """
    facts = package.record.made_of
    reason = unserved(facts.profiles, io_spec, edges) if facts.profiles else None
    found: dict[str, Any] = {"reason": reason or "latency is not measured by an export"}
    if reason is None:
        largest = min((one.max[0] for one in facts.profiles.values()), default=None)
        held = list(batches)
        with file_runner(package.path, runtime=facts.backend, threads=threads) as runner:
            report = check_answers(
                runner,
                model=model,
                io_spec=io_spec,
                label_names=label_names,
                batches=held,
                gates=gates,
                edges=edges,
                largest_batch=largest,
            )
            excluded = held_exclusion(runner, _first(held, HELD_EXAMPLES, largest)).metrics
        applicable = gates.applicable(problem_of(model)).gates
        asked = tuple(gate for gate in applicable if gate.metric in EXCLUSION)
        failures = list(report.failures)
        if excluded and asked:
            results = evaluate_gates(gates.model_copy(update={"gates": asked}), excluded, {})
            failures += [gate.reason for gate in results if not gate.passed]
        if failures:
            raise GateError(
                f"the package of {facts.backend} for {facts.device} fails its gates:\n    "
                + "\n    ".join(failures)
            )
        found |= {
            "parity": "passed",
            "accuracy": "passed" if "score" in report.metrics else "not run",
            "exclusion": "passed" if excluded and asked else "not run",
            "metrics": {
                name: value
                for name, value in sorted({**report.metrics, **excluded}.items())
                if abs(value) != float("inf") and value == value  # JSON has no others
            },
        }
        if found["exclusion"] == "not run":
            found["reason"] += "; no rationale stayed where other content was replaced"
    record = package.record.model_copy(update={"checks": PackageChecks(**found)})
    write_record(package.path.parent, record)
    return StoredPackage(package.path, record)


def _first(batches: Sequence[LabelledBatch], count: int, largest: int | None) -> Iterable[Any]:
    seen = 0
    for batch in batches:
        for part in in_parts(batch, largest):
            if seen >= count:
                return
            seen += len(part.labels)
            yield part.inputs
