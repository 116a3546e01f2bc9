"""The precision of a finished fp32 file: int8 or fp16, for the predictor or the selector too.

The graph is divided where the predictor can be cut off (``CUT_NAMES``): what only `logits` needs
beyond the cut is the predictor, everything else the selector. When only the predictor is changed,
selection stays exactly as it is, so the rationale cannot drift.

In int8 the weights of matrix products get one scale a channel; products of two activations
(attention) stay in floating point, and so do norms and softmax. In fp16 a part computes everything
in fp16 (:mod:`rekd_edge.convert.half`). Scores are compared in fp32 in every precision.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from rekd_edge.convert.branch import defer_exchange, hoist_exchange
from rekd_edge.convert.graph import before_cut, beyond_cut, producers
from rekd_edge.convert.half import to_half, weights_in_fp32
from rekd_edge.convert.to_onnx import write_model
from rekd_edge.convert.types import Lower, Part
from rekd_edge.errors import BackendError, GateError, UsageError
from rekd_edge.types import CUT_NAMES

Inputs = Mapping[str, np.ndarray]

PRODUCTS = ("MatMul", "Gemm")
TABLES = ("Gather",)
"""Tables of embeddings, most of the file of a small text model."""


class PrecisionError(GateError):
    """A file is not in the precision that was asked for, or cannot be brought into it."""


def node_parts(model: onnx.ModelProto) -> list[Part]:
    """Which part each node of the graph belongs to; what both need is the selector's, so that
    changing the predictor alone moves no score. Without a cut all are the predictor's."""
    graph = model.graph
    made = producers(graph)
    if any(name not in made for name in CUT_NAMES):
        return ["predictor"] * len(graph.node)
    needed, _ = beyond_cut(graph)
    selecting = before_cut(graph)
    return [
        "predictor" if index in needed and index not in selecting else "selector"
        for index in range(len(graph.node))
    ]


def quantize(
    source: Path,
    path: Path,
    *,
    precision: Lower,
    parts: Sequence[Part] = ("selector", "predictor"),
    calibration: Sequence[Inputs] = (),
    target: str | None = None,
) -> dict[str, dict[str, int]]:
    """Writes the fp32 file ``source`` to ``path`` in ``precision`` and answers what it became
    (:func:`matrix_products`).

    ``calibration`` are real examples (``[1, ...]`` each) from which `int8-static` takes the ranges
    of activations; nothing is ever calibrated on made-up data. ``target`` is what the file's
    metadata say it is for; None leaves what ``source`` says.

    Raises :class:`PrecisionError` where the result is not what was asked for,
    :class:`UsageError` without calibration data that is needed, :class:`BackendError` without
    the packages.
    """
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "quantization needs the package onnxruntime", hint="pip install 'rekd-edge[onnx]'"
        ) from error
    if not parts:
        raise UsageError("no part to quantize", hint="name selector, predictor or both")
    if precision == "int8-static" and not calibration:
        raise UsageError("int8-static needs calibration data", hint="export from a run with data")
    model = onnx.load(str(source))
    deferred = hoist_exchange(model)
    _name_nodes(model)
    kinds = {kind for counts in matrix_products(model).values() for kind in counts}
    if kinds != {"fp32"}:
        raise PrecisionError(
            f"{source.name} is to be quantized from fp32 and computes in {', '.join(sorted(kinds))}"
        )
    within = [
        node.name
        for node, part in zip(model.graph.node, node_parts(model), strict=True)
        if part in parts
    ]
    del model.graph.value_info[:]  # inner shapes of the exporter contradict those of int8 nodes
    path.parent.mkdir(parents=True, exist_ok=True)
    if precision == "fp16":
        result = onnx.ModelProto()
        result.CopyFrom(model)
        result = to_half(result, node_parts(result), parts)
        left = weights_in_fp32(result, node_parts(result), parts)
        if left:
            raise PrecisionError(f"asked for fp16; these weights are in fp32: {', '.join(left)}")
    else:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder) / "model.onnx"
            _turn_shared(model)
            _untie(model, set(_weighted(model, within)))
            with _quiet():
                if precision == "int8-dynamic":
                    _dynamic(model, made, _weighted(model, within))
                else:
                    _static(model, made, _weighted(model, within), calibration)
            result = onnx.load(str(made))
            _round_for_products_alone(result)
    found = matrix_products(result)
    _require(found, precision.partition("-")[0], parts)
    _describe(result, model, precision, parts, target)
    if deferred:
        defer_exchange(result)
    write_model(result, path)
    return found


def matrix_products(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """How many matrix products with weights each part computes in which precision; read from the
    graph, whatever was asked for."""
    graph = model.graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    by_output = {name: node for node in graph.node for name in node.output}
    counted: dict[str, Counter[str]] = {"selector": Counter(), "predictor": Counter()}
    for node, part in zip(graph.node, node_parts(model), strict=True):
        kind = _product_kind(node, kinds, by_output)
        if kind is not None:
            counted[part][kind] += 1
    return {part: dict(sorted(counts.items())) for part, counts in counted.items()}


def _product_kind(
    node: onnx.NodeProto, kinds: Mapping[str, int], by_output: Mapping[str, onnx.NodeProto]
) -> str | None:
    """Precision of a product with a weight; None for any other node."""
    if node.op_type == "MatMulInteger":
        return "int8"
    if node.op_type not in PRODUCTS:
        return None
    weight = node.input[1]
    before = by_output.get(weight)
    while before is not None and before.op_type in {"Transpose", "Cast", "QuantizeLinear"}:
        weight = before.input[0]
        before = by_output.get(weight)
    if before is not None and before.op_type == "DequantizeLinear":
        return "int8"
    names: dict[int, str] = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}
    return names.get(kinds.get(weight, 0))


def _weighted(model: onnx.ModelProto, within: Sequence[str]) -> list[str]:
    """Names of products with weights and of embedding tables among the nodes ``within``."""
    tables = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    found: list[str] = []
    allowed = set(within)
    for node in model.graph.node:
        if node.name not in allowed:
            continue
        if node.op_type in PRODUCTS and node.input[1] in tables:
            found.append(node.name)
            if node.op_type == "Gemm":  # the quantizer makes a MatMul of it, under this name
                found.append(f"{node.name}_MatMul")
        elif node.op_type in TABLES and node.input[0] in tables:
            found.append(node.name)
    return found


def _untie(model: onnx.ModelProto, quantized: set[str]) -> None:
    """Gives the nodes ``quantized`` weights of their own where others use them too: a table that is
    quantized for one is dequantized for all, and a selector in fp32 would read rounded words."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    elsewhere = {
        name for node in model.graph.node if node.name not in quantized for name in node.input
    }
    for node in model.graph.node:
        if node.name not in quantized:
            continue
        for position, name in enumerate(node.input):
            if name in tensors and name in elsewhere:
                own = f"{name}_quantized"
                if own not in tensors:
                    tensors[own] = onnx.TensorProto()
                    tensors[own].CopyFrom(tensors[name])
                    tensors[own].name = own
                    model.graph.initializer.append(tensors[own])
                node.input[position] = own


def _turn_shared(model: onnx.ModelProto) -> None:
    """Stores weights that several ``Gemm`` transpose as they are multiplied: the quantizer turns
    them round once for each."""
    turned = Counter(node.input[1] for node in model.graph.node if _is_transposing(node))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        name = node.input[1] if _is_transposing(node) else ""
        if turned[name] < 2 or name not in tensors:
            continue
        own = f"{name}_turned"
        if own not in tensors:
            weight = numpy_helper.to_array(tensors[name])
            tensors[own] = numpy_helper.from_array(np.ascontiguousarray(weight.T), own)
            model.graph.initializer.append(tensors[own])
        node.input[1] = own
        next(item for item in node.attribute if item.name == "transB").i = 0
    used = {name for node in model.graph.node for name in node.input}
    for name in turned:
        if name in tensors and name not in used:
            model.graph.initializer.remove(tensors[name])


def _is_transposing(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)


def _dynamic(model: onnx.ModelProto, path: Path, nodes: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        model,
        path,
        op_types_to_quantize=[*PRODUCTS, *TABLES],
        nodes_to_quantize=nodes,
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def _static(
    model: onnx.ModelProto, path: Path, nodes: list[str], calibration: Sequence[Inputs]
) -> None:
    """TensorRT's form: symmetric int8 on both sides, its own pair of nodes for each use, biases and
    answers in floating point."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Examples(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[Inputs] = iter(calibration)

        def get_next(self) -> Any:
            found = next(self._left, None)
            return None if found is None else dict(found)

    quantize_static(
        model,
        path,
        Examples(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(PRODUCTS),
        nodes_to_quantize=nodes,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "DedicatedQDQPair": True,
            "QuantizeBias": False,
            "MatMulConstBOnly": True,
            # What a product answers goes into a sum, a norm or the scores: rounding it saves
            # nothing and costs labels and rationales (docs/adr/0018-static-int8-answers.md).
            "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
        },
    )


def _round_for_products_alone(model: onnx.ModelProto) -> None:
    """The quantizer also hands what it rounded for a product to whoever else reads that value, such
    as the sum that goes around a block; those get the value itself again."""
    made = {name: node for node in model.graph.node for name in node.output}
    exact = {
        node.output[0]: made[node.input[0]].input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in made
        and made[node.input[0]].op_type == "QuantizeLinear"
    }
    for node in model.graph.node:
        if node.op_type not in PRODUCTS:
            for position, name in enumerate(node.input):
                node.input[position] = exact.get(name, name)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Gives nodes without a name one of their own: parts are told apart by name."""
    names = Counter(node.name for node in model.graph.node)
    for index, node in enumerate(model.graph.node):
        if not node.name or names[node.name] > 1:
            node.name = f"{node.op_type}_{index}"


def _require(found: Mapping[str, Mapping[str, int]], kind: str, parts: Sequence[Part]) -> None:
    """Every product of the chosen parts is of the ``kind`` asked for, and no other one is."""
    for part, counts in found.items():
        expected = kind if part in parts else "fp32"
        wrong = {kind: count for kind, count in counts.items() if kind != expected}
        if wrong:
            listed = ", ".join(f"{count} in {kind}" for kind, count in wrong.items())
            raise PrecisionError(
                f"asked for {expected} in the {part}; of its matrix products {listed}"
            )
    if not any(counts.get(kind) for counts in found.values()):
        raise PrecisionError(f"no matrix product of {', '.join(parts)} could be made {kind}")


def _describe(
    result: onnx.ModelProto,
    source: onnx.ModelProto,
    precision: Lower,
    parts: Sequence[Part],
    target: str | None,
) -> None:
    stated = {item.key: item.value for item in source.metadata_props}
    stated |= {"rekd_edge.precision": precision, "rekd_edge.quantized": ",".join(parts)}
    if target is not None:
        stated["rekd_edge.target"] = target
    onnx.helper.set_model_props(result, dict(sorted(stated.items())))
    result.producer_name, result.producer_version = source.producer_name, source.producer_version
    result.graph.name = source.graph.name
    result.ir_version = source.ir_version
    del result.graph.value_info[:]
    foreign = {node.domain for node in result.graph.node} - {"", "ai.onnx"}
    if foreign:
        raise PrecisionError(f"the graph uses operators outside the ONNX standard: {foreign}")
    version = next(item.version for item in source.opset_import if item.domain in {"", "ai.onnx"})
    del result.opset_import[:]
    result.opset_import.add(domain="", version=version)
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PrecisionError(f"onnx.checker refuses the quantized file: {error}") from error


class _quiet:  # noqa: N801
    """Keeps the quantizer's advice (it asks for a pre-processing that fails on dynamic shapes) and
    log lines off the terminal."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        self._warnings.__exit__(None, None, None)
        logging.disable(self._level)
