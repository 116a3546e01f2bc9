"""8-bit pixels in the form that TensorRT takes: turned into floats before anything else.

TensorRT reads a uint8 input only to cast it at once, and moves no bytes about. The exporter's
graph rearranges and gathers bytes and casts what was chosen (docs/adr/0014-eight-bit-pixels.md).
A byte is exact in fp32 and fp16 alike, so casting first answers the same to the last bit.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from rekd_edge.convert.graph import GraphError
from rekd_edge.convert.io_spec import data_inputs

_MOVES = frozenset({"Reshape", "Transpose", "Gather", "GatherElements", "Slice", "Identity"})


def cast_pixels_first(model: onnx.ModelProto) -> bool:
    """Moves the casts of 8-bit inputs to the inputs, in place; whether there was one to move.

    Raises :class:`GraphError` where bytes are computed with.
    """
    graph = model.graph
    inputs = [
        value.name
        for value in data_inputs(graph)
        if value.type.tensor_type.elem_type == TensorProto.UINT8
    ]
    for name in inputs:
        _cast_first(graph, name)
    if inputs:
        onnx.checker.check_model(model, full_check=True)
    return bool(inputs)


def _cast_first(graph: onnx.GraphProto, name: str) -> None:
    reached, casts = {name}, []
    for node in graph.node:
        if node.op_type == "Shape" or not node.input or node.input[0] not in reached:
            continue
        if node.op_type == "Cast":
            casts.append(node)
        elif node.op_type in _MOVES:
            reached.update(node.output)
        else:
            raise GraphError(f"{node.name} ({node.op_type}) computes with the bytes of {name}")
    kinds = {attribute.i for node in casts for attribute in node.attribute}
    kind = kinds.pop() if len(kinds) == 1 else TensorProto.FLOAT
    floats = f"{name}_float"
    renamed: dict[str, str] = {name: floats}
    for node in casts:
        if node.attribute[0].i == kind:  # what it makes is there already
            renamed[node.output[0]] = str(renamed.get(node.input[0], node.input[0]))
            graph.node.remove(node)
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] == name:
            continue
        for position, read in enumerate(node.input):
            node.input[position] = renamed.get(read, read)
    cast = helper.make_node("Cast", [name], [floats], name=f"{name}_to_float", to=kind)
    graph.node.insert(0, cast)
