"""Where a query's time goes, by ONNX Runtime's own profile, and how many operations it took.

Operations are counted from the shapes that really ran: a multiply-add is two. ONNX Runtime leaves
prepacked weights out of the shapes that it reports, so the inner size of a product is what its
first operand has more of than its output's rows.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from rekd_edge.runtime_options import session_options

Kind = Literal["weights", "attention", "other"]
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm"})
CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})
BYTES = {"float": 4, "int64": 8, "int32": 4, "bool": 1}
WARMUP = 2


@dataclass(frozen=True, slots=True)
class OperatorTimes:
    """One query, each node at its median. ``shares`` of the operators' time: ``weights``
    (products and convolutions with weights), ``attention`` (products of two activations, softmax,
    and what else has the shape of attention weights) and ``other``; ``other_operators`` are the
    latter's, largest first. ``product_bytes`` are the operands and answers of all products, each
    once.
    """

    flops: int
    product_bytes: int
    shares: dict[str, float]
    other_operators: dict[str, float]


def profile(
    file: Path, inputs: Mapping[str, np.ndarray], *, threads: int = 1, queries: int = 9
) -> OperatorTimes:
    """Runs ``file`` under ONNX Runtime's profiler; the first :data:`WARMUP` queries are left out.
    Profiling itself costs time, so shares are kept and times are not."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="rekd-edge-profile-") as folder:
        options = session_options(ort, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        feeds = {name: value for name, value in inputs.items() if name in taken}
        for _ in range(WARMUP + queries):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return operator_times(events, warmup=WARMUP)


def operator_times(events: Sequence[Mapping[str, Any]], *, warmup: int = 0) -> OperatorTimes:
    """From the events of a profile, without the first ``warmup`` queries.

    Raises ValueError where there is no query left.
    """
    queries = [event for event in events if event.get("name") == "model_run"]
    if len(queries) <= warmup:
        raise ValueError(f"the profile holds {len(queries)} queries, {warmup} of them warm-up")
    start = queries[warmup - 1]["ts"] + queries[warmup - 1]["dur"] if warmup else 0
    nodes = [event for event in events if event.get("cat") == "Node" and event["ts"] >= start]
    scores = {
        tuple(_shapes(node, "output")[0][1])
        for node in nodes
        if node["args"]["op_name"] == "Softmax"
    }
    times: dict[Kind, float] = {"weights": 0.0, "attention": 0.0, "other": 0.0}
    other: dict[str, float] = {}
    flops = moved = 0
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for node in nodes:  # fused nodes share a name
        runs.setdefault((node["args"]["node_index"], node["name"]), []).append(node)
    for same in runs.values():
        kind, work = _work(same[0], scores)
        took = median(node["dur"] for node in same)
        times[kind] += took
        flops += work
        if work:
            moved += _operand_bytes(same[0], work)
        if kind == "other":
            name = same[0]["args"]["op_name"]
            other[name] = other.get(name, 0.0) + took
    total = sum(times.values()) or 1.0
    return OperatorTimes(
        flops=flops,
        product_bytes=moved,
        shares={kind: time / total for kind, time in times.items()},
        other_operators={
            name: time / total
            for name, time in sorted(other.items(), key=lambda item: (-item[1], item[0]))
        },
    )


def _work(node: Mapping[str, Any], scores: set[tuple[int, ...]]) -> tuple[Kind, int]:
    """What a node belongs to, and its operations if it is a product."""
    name = node["args"]["op_name"]
    inputs, output = _shapes(node, "input"), tuple(_shapes(node, "output")[0][1])
    if name in CONVOLUTIONS:
        return "weights", 2 * math.prod(output) * math.prod(inputs[1][1][1:])
    if name in PRODUCTS:
        floats = [shape for dtype, shape in inputs if dtype == "float"]
        inner = math.prod(floats[0]) // max(1, math.prod(output[:-1]))
        of_activations = len(floats) > 1 and len(floats[1]) > 2
        return ("attention" if of_activations else "weights"), 2 * math.prod(output) * inner
    return ("attention" if name == "Softmax" or output in scores else "other"), 0


def _operand_bytes(node: Mapping[str, Any], work: int) -> int:
    inputs, outputs = _shapes(node, "input"), _shapes(node, "output")
    seen = sum(BYTES.get(dtype, 4) * math.prod(shape) for dtype, shape in (*inputs, *outputs))
    hidden = 0
    output = outputs[0][1]
    is_product = node["args"]["op_name"] in PRODUCTS
    if is_product and (len(inputs) == 1 or len(inputs[1][1]) < 2):  # a prepacked weight
        hidden = 4 * work // (2 * math.prod(output)) * output[-1]
    return seen + hidden


def _shapes(node: Mapping[str, Any], side: Literal["input", "output"]) -> list[tuple[str, list]]:
    return [next(iter(entry.items())) for entry in node["args"][f"{side}_type_shape"]]
