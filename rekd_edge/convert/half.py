"""fp16 for the parts of a graph that compute; the selection itself stays in fp32.

onnxruntime's converter rounds what passes between nodes that it is told to keep in fp32, and their
constants: scores would come back rounded, and the score that marks a token which can never be
selected (the lowest float32) as -65504. So it is never shown those nodes: what computes is cut
out as a graph of its own, converted with its inputs and outputs left as they are, and put back.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Sequence

import onnx
from onnx import TensorProto, helper, shape_inference

from rekd_edge.convert.graph import node_inputs, producers
from rekd_edge.convert.types import Part

WEIGHTED = frozenset({"MatMul", "Gemm", "Conv"})
FLOAT_BY_DEFINITION = {"Resize": (1, 2)}
"""Inputs that an operator may take in fp32 whatever it computes in."""


def to_half(
    model: onnx.ModelProto, node_parts: Sequence[Part], parts: Sequence[Part]
) -> onnx.ModelProto:
    """``model`` with the weights and values of ``parts`` in fp16; ``node_parts`` says which part
    each node belongs to. Of the selector only what leads to a product with weights is changed, so
    scores are compared and reported in fp32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = model.graph
    chosen = _computing(graph, node_parts, parts)
    if not chosen:
        return model
    inner = _cut_out(model, chosen)
    half = convert_float_to_float16(inner, keep_io_types=True).graph
    _put_back(graph, chosen, half)
    return model


def weights_in_fp32(
    model: onnx.ModelProto, node_parts: Sequence[Part], parts: Sequence[Part]
) -> list[str]:
    """Names of fp32 constants that a node of ``parts`` which should compute in fp16 reads."""
    graph = model.graph
    floats = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    found = set()
    for index in _computing(graph, node_parts, parts):
        node = graph.node[index]
        free = FLOAT_BY_DEFINITION.get(node.op_type, ())
        found |= {n for i, n in enumerate(node.input) if n in floats and i not in free}
    return sorted(found)


def _computing(
    graph: onnx.GraphProto, node_parts: Sequence[Part], parts: Sequence[Part]
) -> set[int]:
    """Positions of the nodes that are to compute in fp16."""
    constants = {tensor.name for tensor in graph.initializer}
    selector = [i for i, part in enumerate(node_parts) if part == "selector"]
    chosen: set[int] = set()
    if "selector" in parts:
        products = [
            i
            for i in selector
            if graph.node[i].op_type in WEIGHTED and _reads_weight(graph, graph.node[i], constants)
        ]
        chosen |= _ancestors(graph, products) & set(selector)
    if "predictor" in parts:
        chosen |= {i for i, part in enumerate(node_parts) if part == "predictor"}
    return chosen


def _reads_weight(graph: onnx.GraphProto, node: onnx.NodeProto, constants: set[str]) -> bool:
    made = producers(graph)
    name = node.input[1]
    while name in made and graph.node[made[name]].op_type in {"Cast", "Transpose"}:
        name = graph.node[made[name]].input[0]
    return name in constants


def _ancestors(graph: onnx.GraphProto, nodes: Iterable[int]) -> set[int]:
    """``nodes`` and all that they are computed from."""
    made = producers(graph)
    found: set[int] = set()
    pending = list(nodes)
    while pending:
        index = pending.pop()
        if index in found:
            continue
        found.add(index)
        pending += [made[name] for name in node_inputs(graph.node[index]) if name in made]
    return found


def _cut_out(model: onnx.ModelProto, chosen: set[int]) -> onnx.ModelProto:
    """The nodes ``chosen`` as a model between the values that they exchange with the others."""
    graph = model.graph
    inferred = shape_inference.infer_shapes(model).graph
    known = {v.name: v for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    nodes = [node for i, node in enumerate(graph.node) if i in chosen]
    others = [node for i, node in enumerate(graph.node) if i not in chosen]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    read = list(dict.fromkeys(name for node in nodes for name in node_inputs(node)))
    made = list(dict.fromkeys(name for node in nodes for name in node.output if name))
    wanted = {name for node in others for name in node_inputs(node)}
    wanted |= {value.name for value in graph.output}
    cut = helper.make_graph(
        nodes,
        "computing",
        [known[name] for name in read if name not in constants and name not in made],
        [known[name] for name in made if name in wanted],
        [constants[name] for name in read if name in constants],
    )
    return helper.make_model(
        cut, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )


def _put_back(graph: onnx.GraphProto, chosen: set[int], half: onnx.GraphProto) -> None:
    """Replaces the nodes ``chosen`` of ``graph`` by those of ``half``, in place."""
    others = [node for i, node in enumerate(graph.node) if i not in chosen]
    still_read = {name for node in others for name in node_inputs(node)}
    kept = [tensor for tensor in graph.initializer if tensor.name in still_read]
    renamed: dict[str, str] = {}
    added = []
    originals = {tensor.name: tensor for tensor in kept}
    for tensor in half.initializer:
        twin = originals.get(tensor.name)
        if twin is not None and twin.data_type == tensor.data_type:
            continue
        if twin is not None:
            renamed[tensor.name] = f"{tensor.name}_fp16"
            tensor.name = renamed[tensor.name]
        added.append(tensor)
    for node in half.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    nodes = _sorted([*others, *half.node])
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added])


def _sorted(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """In an order in which every value is made before it is read; always the same one."""
    made = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    before = {
        i: dict.fromkeys(made[name] for name in node_inputs(node) if name in made)
        for i, node in enumerate(nodes)
    }
    return [nodes[i] for i in graphlib.TopologicalSorter(before).static_order()]
