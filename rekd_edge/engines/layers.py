"""The layers of a finished engine, and whether products are computed as the graph asks.

TensorRT describes a layer in one line, with the type of all that it reads and the ONNX nodes that
it stands for. The engine inspector gives these lines where the engine can be loaded, that is on a
GPU; TensorRT-RTX also writes them to its log when it builds, with or without a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from rekd_edge.engines.store import Kind, Product
from rekd_edge.errors import GateError

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_ONNX_KINDS: dict[int, Kind] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}
_ENGINE_KINDS: dict[Kind, re.Pattern[str]] = {
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "fp8": re.compile(r"\bfp8\b", re.IGNORECASE),
    "fp16": re.compile(r"\b(half|fp16)\b", re.IGNORECASE),
    "bf16": re.compile(r"\b(bfloat16|bf16)\b", re.IGNORECASE),
    "fp32": re.compile(r"\b(float|fp32)\b", re.IGNORECASE),
}
"""TensorRT's names, the narrowest first: `Half`, or `Row major linear FP16` in TensorRT 10."""
_SECTIONS = ("LayerType", "Inputs", "Constants", "Outputs", "TacticName", "StreamId", "Metadata")
_SECTION = re.compile(rf", ({'|'.join(_SECTIONS)}): ")
_TENSOR = re.compile(r"\[([-\d,]*)\][^{}]*?Datatype: ([^,{}]+)")
_CONSTANT = re.compile(r"_(dconst|constant)")
"""In the names of weights, which full TensorRT lists among a layer's inputs: `w_constantInt8`."""
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_COMPUTES = re.compile(r"gemm|mha|conv|matmul|matrixmultiply|fusion|fully", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer: its name and type, the types of what it reads (``inputs`` made by other layers,
    ``constants`` such as weights, wherever they are listed; single values left out) and the ONNX
    nodes it stands for."""

    name: str
    kind: str
    inputs: frozenset[Kind]
    constants: frozenset[Kind]
    nodes: frozenset[str]

    @property
    def computes(self) -> bool:
        """Whether it may hold a product; others move or rescale its operands."""
        return bool(_COMPUTES.search(f"{self.kind} {self.name}"))

    @property
    def computes_in(self) -> Kind | None:
        """The narrowest type that the layer reads; 8 bits count only where they come in, not where
        weights alone are stored so. None where it reads no type known."""
        for kind in _ENGINE_KINDS:
            if kind in self.inputs or (kind in self.constants and kind not in ("int8", "fp8")):
                return kind
        return None


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers in TensorRT's one-line form (``LayerInformationFormat.ONELINE``)."""
    found = []
    for line in text.split("\n"):
        if not line.startswith("Name: ") or ", LayerType: " not in line:
            continue
        name, *rest = _SECTION.split(line)
        sections = dict(zip(rest[::2], rest[1::2], strict=True))
        inputs, stored = _kinds(sections.get("Inputs", ""))
        constants = stored.union(*_kinds(sections.get("Constants", "")))
        found.append(
            EngineLayer(
                name=name.removeprefix("Name: "),
                kind=sections["LayerType"],
                inputs=inputs,
                constants=constants,
                nodes=frozenset(_NODE.findall(sections.get("Metadata", ""))),
            )
        )
    return tuple(found)


def _kinds(tensors: str) -> tuple[frozenset[Kind], frozenset[Kind]]:
    """The types of what other layers make, and of constants as their names tell."""
    made: set[Kind] = set()
    stored: set[Kind] = set()
    for tensor in tensors.split("{ Name: ")[1:]:
        name, _, rest = tensor.partition("Dimensions: ")
        found = _TENSOR.match(rest)
        if found is not None and set(found[1].split(",")) - {"1", ""}:
            into = stored if _CONSTANT.search(name) else made
            into.update(kind for kind, known in _ENGINE_KINDS.items() if known.search(found[2]))
    return frozenset(made), frozenset(stored)


def requested_precision(model: onnx.ModelProto) -> dict[str, Kind]:
    """What the graph says that each matrix product or convolution computes in, by node name. A
    product of two dequantized values is one in int8."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    constants = {tensor.name for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    found: dict[str, Kind] = {}
    for node in graph.node:
        if node.op_type not in PRODUCTS or constants.issuperset(node.input[:2]):
            continue
        operands = [made.get(name) for name in node.input[:2]]
        if all(one is not None and one.op_type == "DequantizeLinear" for one in operands):
            found[node.name] = "int8"
        elif types.get(node.input[0]) in _ONNX_KINDS:
            found[node.name] = _ONNX_KINDS[types[node.input[0]]]
    return found


@dataclass(frozen=True, slots=True)
class PrecisionComparison:
    products: tuple[Product, ...]

    @property
    def wrong(self) -> tuple[Product, ...]:
        return tuple(one for one in self.products if not one.as_requested)

    def require(self, engine: str) -> None:
        """Raises :class:`GateError` where a product is computed in another precision."""
        if not self.products:
            raise GateError(f"{engine}: the graph has no product to look for")
        if self.wrong:
            lines = [
                f"{one.node} asks for {one.requested}, "
                f"{one.layer or 'the engine'} has it in {one.declared or 'no precision known'}"
                for one in self.wrong
            ]
            raise GateError(
                f"{engine} does not compute as the graph asks:\n    " + "\n    ".join(lines)
            )


def compare_precision(
    requested: Mapping[str, Kind], layers: Sequence[EngineLayer]
) -> PrecisionComparison:
    """Each product of the graph beside the layer that computes it. Where several could, the one
    that does not do as asked is told."""
    products = []
    for node, kind in requested.items():
        naming = [layer for layer in layers if node in layer.nodes]
        candidates = [layer for layer in naming if layer.computes] or naming
        other = [layer for layer in candidates if layer.computes_in != kind]
        told = next(iter(other or candidates), None)
        declared, name = (None, None) if told is None else (told.computes_in, told.name)
        products.append(Product(node, kind, declared, name))
    return PrecisionComparison(tuple(products))
