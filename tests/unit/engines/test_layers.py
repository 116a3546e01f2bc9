"""Layers in the words of several versions of TensorRT, and products looked up among them."""

from __future__ import annotations

import pytest

from rekd_edge.engines.layers import compare_precision, parse_layers
from rekd_edge.errors import GateError

RTX = (
    "Name: __mye1_myl0_5, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,-1,64], Strides: "
    "[-1,64,1], StrideOrder: [2,1,0], Datatype: Int8, Format: (Linear) Row major linear format }], "
    "Constants: [ { Name: w, Dimensions: [64,192], Strides: [192,1], Datatype: Int8, Format: "
    "(Linear) Row major linear format }, { Name: alpha, Dimensions: [1], Strides: [1], Datatype: "
    "Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: y, Dimensions: "
    "[-1,192], Datatype: Float, Format: f }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: "
    "a][ONNX Layer: w_DequantizeLinear]"
)
TENSORRT_10 = (
    "Name: /head/MatMul + /head/Add, LayerType: CaskGemmMatrixMultiply, Inputs: [ { Name: x, "
    "Location: Device, Dimensions: [8,16], Format/Datatype: Row major linear FP16 format }], "
    "Outputs: [ { Name: y, Location: Device, Dimensions: [8,2], Format/Datatype: Half }], "
    "TacticName: sm90_gemm, StreamId: 0, Metadata: [ONNX Layer: /head/MatMul]\x1e[ONNX Layer: "
    "/head/Add]"
)
WEIGHTS_ALONE = (
    "Name: g, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [8,16], Datatype: Half }], "
    "Constants: [ { Name: w, Dimensions: [16,2], Datatype: Int8 }], Outputs: [], Metadata: [ONNX "
    "Layer: b]"
)
WEIGHTS_AS_INPUTS = (
    "Name: h, LayerType: gemm, Inputs: [ { Name: x, Location: Device, Dimensions: [8,16], "
    "Format/Datatype: Half }, { Name: w_constantInt8, Location: Device, Dimensions: [16,2], "
    "Format/Datatype: Int8 }, { Name: __mye12_dconst, Location: Device, Dimensions: [8,2], "
    "Format/Datatype: Int8 }], Outputs: [ { Name: y, Dimensions: [8,2], Format/Datatype: Half }], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: d]"
)
MOVES = (
    "Name: __myl_Move_myl0_6, LayerType: kgen, Inputs: [ { Name: y, Dimensions: [8,2], Datatype: "
    "Float }], Constants: [], Outputs: [], Metadata: [ONNX Layer: a]"
)
TEXT = "\n".join(["Layers:", RTX, TENSORRT_10, WEIGHTS_ALONE, MOVES, "", "I/O Tensors:", "Name: x"])


def test_layers_are_read_from_the_words_of_both() -> None:
    rtx, ten, _, moves = parse_layers(TEXT)
    assert (rtx.inputs, rtx.constants, rtx.computes_in) == ({"int8"}, {"int8"}, "int8")
    assert (ten.inputs, ten.constants, ten.computes_in) == ({"fp16"}, set(), "fp16")
    assert ten.name == "/head/MatMul + /head/Add"
    assert ten.nodes == {"/head/MatMul", "/head/Add"}
    assert [rtx.computes, ten.computes, moves.computes] == [True, True, False]


def test_weights_listed_among_the_inputs_are_constants() -> None:
    """Full TensorRT has no section of constants: int8 weights alone are no product in int8."""
    (layer,) = parse_layers(WEIGHTS_AS_INPUTS)
    assert (layer.inputs, layer.constants, layer.computes_in) == ({"fp16"}, {"int8"}, "fp16")
    with pytest.raises(GateError, match="d asks for int8, h has it in fp16"):
        compare_precision({"d": "int8"}, [layer]).require("the engine")


def test_a_product_is_looked_up_in_the_layer_that_computes_it() -> None:
    layers = parse_layers(TEXT)
    right = compare_precision({"a": "int8", "/head/MatMul": "fp16"}, layers)
    right.require("the engine")
    assert [one.layer for one in right.products] == ["__mye1_myl0_5", "/head/MatMul + /head/Add"]


@pytest.mark.parametrize(
    ("node", "kind", "message"),
    [
        ("b", "int8", "b asks for int8, g has it in fp16"),
        ("a", "fp32", "a asks for fp32, __mye1_myl0_5 has it in int8"),
        ("c", "fp32", "c asks for fp32, the engine has it in no precision known"),
    ],
)
def test_another_precision_is_an_error(node: str, kind: str, message: str) -> None:
    compared = compare_precision({node: kind}, parse_layers(TEXT))  # type: ignore[dict-item]
    with pytest.raises(GateError, match=message) as found:
        compared.require("the engine")
    assert found.value.exit_code == 3


def test_silence_is_no_proof() -> None:
    with pytest.raises(GateError, match="no product to look for"):
        compare_precision({}, parse_layers(TEXT)).require("the engine")
