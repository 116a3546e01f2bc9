"""Operations on ONNX graphs: cleaning, exposing inner values and cutting out a part.

A shipped rationalist names two inner values, ``rationale_index`` and ``rationale_valid``. All
that the predictor learns about the input passes through them, so a graph cut there is the
predictor alone, with a rationale that the caller holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from rekd_edge.convert.io_spec import data_inputs
from rekd_edge.errors import GateError
from rekd_edge.types import CUT_NAMES, PAIR_OUTPUTS

CUT_DTYPES = {"rationale_index": TensorProto.INT64, "rationale_valid": TensorProto.BOOL}


class GraphError(GateError):
    """An ONNX graph does not have the structure that a checkable rationalist must have."""


def strip_provenance(model: onnx.ModelProto) -> None:
    """Removes source paths, stack traces and comments that exporters leave in a file."""
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in graphs_of(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        # Names of inner shapes are the exporter's own; runtimes infer shapes again by themselves.
        del graph.value_info[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in (*graph.input, *graph.output):
            value.doc_string = ""
            del value.metadata_props[:]
        for tensor in graph.initializer:
            tensor.doc_string = ""
            del tensor.metadata_props[:]


def fold_transposed_weights(model: onnx.ModelProto) -> int:
    """Stores weights as they are multiplied, instead of transposing them in the graph; how many.

    The exporter does so by itself except for weights that several products share, which would then
    be no weights to whoever reads the graph.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    folded = [
        node
        for node in graph.node
        if node.op_type == "Transpose"
        and node.input[0] in weights
        and weights[node.input[0]].data_type == TensorProto.FLOAT
    ]
    for node in folded:
        weight = numpy_helper.to_array(weights[node.input[0]])
        order = next((list(item.ints) for item in node.attribute if item.name == "perm"), None)
        turned = np.ascontiguousarray(weight.transpose(order))
        graph.initializer.append(numpy_helper.from_array(turned, node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    for node in folded:
        name = node.input[0]
        if name not in used and name in weights:
            graph.initializer.remove(weights.pop(name))
    return len(folded)


def merge_equal_weights(model: onnx.ModelProto) -> int:
    """Stores equal initializers once; how many went. The exporter turns a weight round anew for
    each product that uses it."""
    graph = model.graph
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        content = numpy_helper.to_array(tensor).tobytes()
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest())
        kept = first.setdefault(key, tensor.name)
        if kept != tensor.name:
            same[tensor.name] = kept
    for inner in graphs_of(graph):
        for node in inner.node:
            for position, name in enumerate(node.input):
                node.input[position] = same.get(name, name)
    left = [tensor for tensor in graph.initializer if tensor.name not in same]
    del graph.initializer[:]
    graph.initializer.extend(left)
    return len(same)


def graphs_of(graph: onnx.GraphProto) -> Iterable[onnx.GraphProto]:
    """The graph, and those inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs_of(inner)


def subgraphs(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def node_inputs(node: onnx.NodeProto) -> list[str]:
    """Values that a node reads, those that its subgraphs take from outside included."""
    names = [name for name in node.input if name]
    for inner in subgraphs(node):
        made = {value.name for value in inner.input} | {t.name for t in inner.initializer}
        for child in inner.node:
            names += [name for name in node_inputs(child) if name not in made]
            made.update(child.output)
        names += [value.name for value in inner.output if value.name not in made]
    return names


def producers(graph: onnx.GraphProto) -> dict[str, int]:
    """Position in ``graph.node`` of the node that makes each value."""
    return {name: i for i, node in enumerate(graph.node) for name in node.output if name}


def flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions, so that every path is visible."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def require_cut(model: onnx.ModelProto) -> None:
    """Raises :class:`GraphError` unless the graph computes both values of :data:`CUT_NAMES`."""
    made = producers(model.graph)
    missing = [name for name in CUT_NAMES if name not in made]
    if missing:
        raise GraphError(
            f"the graph has no value named {' or '.join(missing)}, so the predictor cannot be "
            "cut off and its independence of unselected input cannot be proven"
        )


def hide_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Keeps the named values inside the graph but no longer returns them."""
    kept = [value for value in model.graph.output if value.name not in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def with_cut_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that also returns ``rationale_index`` and ``rationale_valid``."""
    require_cut(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(_cut_info(name) for name in CUT_NAMES if name not in have)
    return copy


def _cut_info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, CUT_DTYPES[name], ["batch", "slot"])


def beyond_cut(graph: onnx.GraphProto) -> tuple[set[int], set[str]]:
    """Positions in ``graph.node`` of all nodes between the cut and ``logits``, and the names of all
    values that they read or make, those of the cut included."""
    return _needed(graph, ["logits"], stop=CUT_NAMES)


def before_cut(graph: onnx.GraphProto) -> set[int]:
    """Positions in ``graph.node`` of all nodes that the cut and the outputs that do not come from
    the predictor need."""
    beyond = ("logits", *PAIR_OUTPUTS)
    others = [output.name for output in graph.output if output.name not in beyond]
    return _needed(graph, [*CUT_NAMES, *others])[0]


def _needed(
    graph: onnx.GraphProto, pending: list[str], stop: Sequence[str] = ()
) -> tuple[set[int], set[str]]:
    made = producers(graph)
    needed: set[int] = set()
    values: set[str] = set()
    while pending:
        name = pending.pop()
        if name in values:
            continue
        values.add(name)
        if name in stop or name not in made:
            continue
        if made[name] not in needed:
            needed.add(made[name])
            pending += node_inputs(graph.node[made[name]])
    return needed, values


def predictor_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The part of the graph between a held rationale and ``logits``.

    Inputs: the model's data inputs that this part still reads, then ``rationale_index`` and
    ``rationale_valid``. Output: ``logits``. Nodes and weights are those of ``model``, unchanged.
    """
    model = flat(model)
    require_cut(model)
    graph = model.graph
    needed, values = beyond_cut(graph)
    inputs = [value for value in data_inputs(graph) if value.name in values]
    inputs += [_cut_info(name) for name in CUT_NAMES]
    cut = helper.make_graph(
        [node for i, node in enumerate(graph.node) if i in needed],
        "predictor",
        inputs,
        [value for value in graph.output if value.name == "logits"],
        [tensor for tensor in graph.initializer if tensor.name in values],
    )
    if not cut.output:
        raise GraphError("the graph has no output named 'logits'")
    return helper.make_model(
        cut, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )
