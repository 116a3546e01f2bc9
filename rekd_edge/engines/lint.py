"""What TensorRT will not take, found in the ONNX file before anything is built.

Each finding names the node, the reason and what to change. Whatever is not found here the parser
refuses itself, by the name of the node (:mod:`rekd_edge.engines.builder`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from rekd_edge.convert.graph import flat, node_inputs, producers
from rekd_edge.convert.io_spec import data_inputs
from rekd_edge.engines.spec import BuildRecipe, Profile
from rekd_edge.errors import BackendError

CUMULATIVE = (10, 8)
"""From here on TensorRT has a layer for running sums; before, its ONNX parser writes a loop, whose
table of types is FP32, FP16 and BF16."""
MAX_K = 3840
"""TensorRT's TopK ends here (operator reference, "TopK: K <= 3840")."""
INSTEAD = {
    "DynamicQuantizeLinear": "use static int8 (QDQ): precision: int8-static",
    "MatMulInteger": "use static int8 (QDQ): precision: int8-static",
    "ConvInteger": "use static int8 (QDQ): precision: int8-static",
    "QLinearMatMul": "write the product as QuantizeLinear, DequantizeLinear, MatMul (QDQ)",
    "QLinearConv": "write the product as QuantizeLinear, DequantizeLinear, Conv (QDQ)",
    "Unique": "compute it outside the graph",
    "StringNormalizer": "compute it outside the graph",
    "TfIdfVectorizer": "compute it outside the graph",
    "SequenceConstruct": "use tensors with an axis more",
    "Optional": "give every input",
    "Bernoulli": "export the model in evaluation mode",
    "Multinomial": "export the model in evaluation mode",
    "BitShift": "multiply by a power of two",
    "Det": "compute it outside the graph",
    "Compress": "select with TopK and GatherElements, whose sizes are known",
}
"""Operators that TensorRT lacks, and what to do instead."""
_SCATTER = frozenset({"ScatterElements", "ScatterND", "Scatter"})
_TYPES: dict[int, str] = {
    TensorProto.DOUBLE: "double",
    TensorProto.STRING: "string",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.INT16: "int16",
    TensorProto.COMPLEX64: "complex64",
    TensorProto.COMPLEX128: "complex128",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the builder would refuse."""

    node: str
    operator: str
    reason: str
    change: str

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self.reason}; {self.change}"


def require_buildable(
    model: onnx.ModelProto, recipe: BuildRecipe, version: str | None = None
) -> None:
    """Raises :class:`BackendError` with every finding; ``version`` as in :func:`lint`."""
    findings = lint(model, recipe, version)
    if findings:
        lines = "\n  ".join(map(str, findings))
        raise BackendError(
            f"{recipe.backend} does not take this graph:\n  {lines}",
            hint="change the model or the target as said, and export again",
        )


def lint(
    model: onnx.ModelProto, recipe: BuildRecipe, version: str | None = None
) -> tuple[Finding, ...]:
    """Every finding, in the order of the graph. ``version`` is that of the recipe's backend; None
    leaves out what only some versions refuse."""
    model = flat(model)
    found = [finding for check in _CHECKS for finding in check(model, recipe)]
    if recipe.backend == "tensorrt" and version is not None and _before(version, CUMULATIVE):
        found += _running_sums(model, version)
    order = {node.name: index for index, node in enumerate(model.graph.node)}
    return tuple(sorted(found, key=lambda one: order.get(one.node, -1)))


def _operators(model: onnx.ModelProto, _: BuildRecipe) -> Iterator[Finding]:
    graph = model.graph
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            reason = f"operator of the domain {node.domain}"
            yield _finding(node, reason, "export operators of the ONNX standard alone")
        elif node.op_type in INSTEAD:
            yield _finding(node, "TensorRT has no such operator", INSTEAD[node.op_type])
        elif node.op_type == "If":
            reason = "a part that runs only where two students disagree has not been tried here"
            yield _finding(node, reason, "export one student (ensemble: null), or an ONNX target")
        elif node.op_type in _SCATTER and _text(node, "reduction", "none") != "none":
            yield _finding(
                node,
                f"scatter with the reduction {_text(node, 'reduction', '')} is refused or computed "
                "wrongly",
                "compare with a threshold, or sum over a one-hot axis",
            )


def _types(model: onnx.ModelProto, _: BuildRecipe) -> Iterator[Finding]:
    graph = model.graph
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        target = next((a.i for a in node.attribute if a.name == "to"), 0)
        kinds = [constants.get(name, 0) for name in node.input] + [target]
        wrong = sorted({_TYPES[kind] for kind in kinds if kind in _TYPES})
        if wrong:
            yield _finding(node, f"TensorRT has no type {', '.join(wrong)}", "use fp32 or int64")


def _bytes(model: onnx.ModelProto, _: BuildRecipe) -> Iterator[Finding]:
    graph = model.graph
    inputs = {
        value.name
        for value in data_inputs(graph)
        if value.type.tensor_type.elem_type == TensorProto.UINT8
    }
    for node in graph.node:
        read = inputs.intersection(node.input)
        if read and node.op_type not in ("Cast", "Shape"):
            yield _finding(
                node,
                f"reads the 8-bit input {', '.join(sorted(read))}, of which TensorRT takes a Cast "
                "to floats alone",
                "cast it first (rekd_edge.convert.pixels does so for targets with an engine)",
            )


def _quantization(model: onnx.ModelProto, _: BuildRecipe) -> Iterator[Finding]:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        tensor = constants.get(node.input[0])
        if tensor is not None and tensor.data_type == TensorProto.INT32:
            yield _finding(
                node,
                "dequantizes an int32 bias, which TensorRT refuses",
                "leave biases in floating point (QuantizeBias: false)",
            )
        point = constants.get(node.input[2]) if len(node.input) > 2 else None
        if point is None:
            continue
        if point.data_type == TensorProto.UINT8:
            yield _finding(node, "quantizes to uint8", "quantize symmetrically to int8")
        elif np.any(numpy_helper.to_array(point)):
            yield _finding(
                node,
                "has a zero point other than 0; TensorRT's int8 is symmetric",
                "quantize symmetrically (ActivationSymmetric, WeightSymmetric)",
            )


def _top_k(model: onnx.ModelProto, recipe: BuildRecipe) -> Iterator[Finding]:
    graph = model.graph
    inputs = {value.name for value in data_inputs(graph)}
    for node in graph.node:
        if node.op_type != "TopK":
            continue
        needed, read = _shape_ancestors(graph, node.input[1])
        if read & inputs:
            yield _finding(
                node,
                f"K is computed from the content of {', '.join(sorted(read & inputs))}",
                "take K from the shape of an input, and mask what is too much",
            )
            continue
        largest = _largest(model, node.input[1], needed, recipe)
        if largest > MAX_K:
            yield _finding(
                node,
                f"K is up to {largest}, TensorRT's ends at {MAX_K}",
                "lower engine.tokens.max of the target, or the rationale ratio",
            )


def _running_sums(model: onnx.ModelProto, version: str) -> Iterator[Finding]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    first = ".".join(map(str, CUMULATIVE))
    for node in graph.node:
        kind = kinds.get(node.input[0], 0) if node.op_type == "CumSum" else 0
        if kind in (TensorProto.INT32, TensorProto.INT64):
            name = TensorProto.DataType.Name(kind).lower()
            yield _finding(
                node,
                f"a running sum of {name}; TensorRT {version} has one of floats alone, as a loop",
                "export the run again with running sums in float32, or build with TensorRT "
                f"{first} or later",
            )


def _before(version: str, first: tuple[int, int]) -> bool:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < first


_CHECKS: tuple[Callable[[onnx.ModelProto, BuildRecipe], Iterator[Finding]], ...] = (
    _operators,
    _types,
    _bytes,
    _quantization,
    _top_k,
)


def _shape_ancestors(graph: onnx.GraphProto, name: str) -> tuple[set[int], set[str]]:
    """Positions of the nodes that ``name`` is computed by, back to shapes and constants, and the
    values that they read the content of."""
    made = producers(graph)
    needed: set[int] = set()
    read: set[str] = set()
    pending = [name]
    while pending:
        value = pending.pop()
        if value in read:
            continue
        read.add(value)
        if value not in made or made[value] in needed:
            continue
        needed.add(made[value])
        node = graph.node[made[value]]
        if node.op_type not in ("Shape", "Size"):
            pending += node_inputs(node)
    return needed, read


def _largest(model: onnx.ModelProto, name: str, needed: set[int], recipe: BuildRecipe) -> int:
    """The value ``name`` at the largest shapes that the engine serves."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if name in constants:
        return int(numpy_helper.to_array(constants[name]).max())
    nodes = [node for index, node in enumerate(graph.node) if index in needed]
    shaped = {n for node in nodes if node.op_type in ("Shape", "Size") for n in node.input}
    inputs = [value for value in data_inputs(graph) if value.name in shaped]
    read = {n for node in nodes for n in node.input}
    part = onnx.helper.make_graph(
        nodes,
        "size",
        inputs,
        [onnx.helper.make_tensor_value_info(name, TensorProto.INT64, None)],
        [tensor for key, tensor in constants.items() if key in read],
    )
    sized = onnx.helper.make_model(part, opset_imports=list(model.opset_import))
    (value,) = ReferenceEvaluator(sized).run(None, _largest_inputs(inputs, recipe.profiles))
    return int(np.max(value))


def _largest_inputs(
    inputs: list[onnx.ValueInfoProto], profiles: Mapping[str, Profile]
) -> dict[str, np.ndarray]:
    def zeros(value: onnx.ValueInfoProto) -> np.ndarray:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return np.broadcast_to(np.zeros((), dtype), profiles[value.name].max)

    return {value.name: zeros(value) for value in inputs}


def _finding(node: onnx.NodeProto, reason: str, change: str) -> Finding:
    return Finding(node.name or node.output[0], node.op_type, reason, change)


def _text(node: onnx.NodeProto, name: str, default: str) -> str:
    return next((a.s.decode() for a in node.attribute if a.name == name), default)
