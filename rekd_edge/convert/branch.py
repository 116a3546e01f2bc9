"""A part of a graph that runs only where it is needed.

A pair of students answers from the other's rationale only where the two disagree. The exporter
writes those answers like all others; :func:`defer_exchange` then moves whatever nothing else needs
into the branch of an ``If``, and :func:`hoist_exchange` takes it out again, so that a file can be
quantized as any other. Weights stay outside, where both students' own answers use them too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx
from onnx import TensorProto, helper

from rekd_edge.convert.graph import GraphError, node_inputs, producers
from rekd_edge.types import EXCHANGE_NAMES, OWN_ANSWERS

NEEDED, OWN, PARTNER, OWN_SHOWN, PARTNER_SHOWN = EXCHANGE_NAMES
SHOWN = {OWN_SHOWN: OWN, PARTNER_SHOWN: PARTNER}
"""What the branch answers, and what stands for it where it does not run: where no two students
disagree these are never looked at."""
BRANCH = "exchange"
"""Name of the ``If`` node."""
INSIDE = "_inside"


def defer_exchange(model: onnx.ModelProto) -> bool:
    """Moves the exchange under its condition, in place; whether there is one.

    Raises :class:`GraphError` where nothing of it can be moved.
    """
    graph = model.graph
    made = producers(graph)
    if not all(name in made for name in EXCHANGE_NAMES):
        return False
    outputs = [value.name for value in graph.output]
    elsewhere = _nodes_for(graph, [*outputs, NEEDED, OWN, PARTNER], stop=SHOWN)
    moved = _nodes_for(graph, SHOWN) - elsewhere
    if not {made[name] for name in SHOWN} <= moved:
        raise GraphError("what one student says of the other's rationale is needed elsewhere, too")
    inside = [onnx.NodeProto() for _ in moved]
    for node, index in zip(inside, sorted(moved), strict=True):
        node.CopyFrom(graph.node[index])
        _rename(node, {name: name + INSIDE for name in SHOWN})
    kinds = _kinds(model, SHOWN)
    answers = [_logits(name + INSIDE, kinds[name]) for name in SHOWN]
    unneeded = [helper.make_node("Identity", [own], [f"{own}_again"]) for own in SHOWN.values()]
    stand_ins = [_logits(f"{own}_again", kinds[shown]) for shown, own in SHOWN.items()]
    branch = helper.make_node(
        "If",
        [NEEDED],
        list(SHOWN),
        name=BRANCH,
        then_branch=helper.make_graph(inside, f"{BRANCH}_then", [], answers),
        else_branch=helper.make_graph(unneeded, f"{BRANCH}_else", [], stand_ins),
    )
    left = [node for index, node in enumerate(graph.node) if index not in moved]
    _replace_nodes(graph, [*left, branch])
    _check(model)
    return True


def hoist_exchange(model: onnx.ModelProto) -> bool:
    """Undoes :func:`defer_exchange`, in place; whether there was anything to undo."""
    graph = model.graph
    branch = next((node for node in graph.node if node.name == BRANCH), None)
    if branch is None or branch.op_type != "If":
        return False
    inside = next(item.g for item in branch.attribute if item.name == "then_branch")
    nodes = [onnx.NodeProto() for _ in inside.node]
    for node, original in zip(nodes, inside.node, strict=True):
        node.CopyFrom(original)
        _rename(node, {name + INSIDE: name for name in SHOWN})
    _replace_nodes(graph, [*(node for node in graph.node if node.name != BRANCH), *nodes])
    _check(model)
    return True


def with_own_answers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that also answers :data:`~rekd_edge.types.OWN_ANSWERS`.

    Raises :class:`GraphError` where the graph computes no such values.
    """
    if not set(OWN_ANSWERS) <= producers(model.graph).keys():
        raise GraphError("the graph has no values with what either student answers by itself")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kinds = _kinds(model, OWN_ANSWERS)
    copy.graph.output.extend(_logits(name, kinds[name]) for name in OWN_ANSWERS)
    return copy


def _nodes_for(
    graph: onnx.GraphProto, wanted: Iterable[str], stop: Collection[str] = ()
) -> set[int]:
    """Positions of the nodes that ``wanted`` values come from, not looking behind ``stop``."""
    made = producers(graph)
    pending, found = [*wanted], set[int]()
    while pending:
        name = pending.pop()
        index = made.get(name)
        if index is None or index in found or name in stop:
            continue
        found.add(index)
        pending += node_inputs(graph.node[index])
    return found


def _kinds(model: onnx.ModelProto, names: Collection[str]) -> dict[str, int]:
    """Element types of answers inside the graph: those of the whole file in fp32, and otherwise of
    what a lower precision made of them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in names:
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    inferred = onnx.shape_inference.infer_shapes(copy)
    found = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.output, *inferred.graph.value_info)
    }
    return {name: found.get(name) or TensorProto.FLOAT for name in names}


def _logits(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", "class"])


def _rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    for values in (node.input, node.output):
        for position, name in enumerate(values):
            values[position] = names.get(name, name)


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """``nodes`` become those of the graph, each after what it reads, otherwise in their order."""
    waiting = {name for node in nodes for name in node.output}
    ordered: list[onnx.NodeProto] = []
    left = list(nodes)
    while left:
        later = []
        for node in left:
            if waiting.isdisjoint(node_inputs(node)):
                ordered.append(node)
                waiting.difference_update(node.output)
            else:
                later.append(node)
        if len(later) == len(left):
            raise GraphError("the graph has a cycle")
        left = later
    copies = [onnx.NodeProto() for _ in ordered]
    for copy, node in zip(copies, ordered, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"onnx.checker refuses the branch: {error}") from error
