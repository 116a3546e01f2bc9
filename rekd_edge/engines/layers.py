"""The layers of a finished engine, and whether products are computed as the graph asks.

TensorRT describes a layer in one line, with the type of all that it reads and the ONNX nodes that
it stands for. The engine inspector gives these lines where the engine can be loaded, that is on a
GPU; TensorRT-RTX also writes them to its log when it builds, with or without a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from rekd_edge.engines.store import Kind, Product
from rekd_edge.errors import GateError

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_ONNX_KINDS: dict[int, Kind] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}
_ENGINE_KINDS: dict[str, Kind] = {
    "int8": "int8",
    "fp8": "fp8",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float": "fp32",
    "fp32": "fp32",
}
"""TensorRT's names, lower case, the narrowest first."""
_SECTIONS = ("LayerType", "Inputs", "Constants", "Outputs", "TacticName", "StreamId", "Metadata")
_SECTION = re.compile(rf", ({'|'.join(_SECTIONS)}): ")
_TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\][^{}]*?(?:Datatype|Format/Datatype): (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_COMPUTES = re.compile(r"gemm|mha|conv|matmul|matrixmultiply|fusion|fully", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer: its name and type, the types of the tensors that it reads (``inputs`` made by
    other layers, ``constants`` of more than one value) and the ONNX nodes it stands for."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: frozenset[str]

    @property
    def computes(self) -> bool:
        """Whether it may hold a product; others move or rescale its operands."""
        return bool(_COMPUTES.search(f"{self.kind} {self.name}"))


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers in TensorRT's one-line form (``LayerInformationFormat.ONELINE``)."""
    found = []
    for line in text.splitlines():
        if not line.startswith("Name: ") or ", LayerType: " not in line:
            continue
        name, *rest = _SECTION.split(line)
        sections = dict(zip(rest[::2], rest[1::2], strict=True))
        found.append(
            EngineLayer(
                name=name.removeprefix("Name: "),
                kind=sections["LayerType"],
                inputs=tuple(kind for kind, _ in _tensors(sections.get("Inputs", ""))),
                constants=tuple(
                    kind for kind, count in _tensors(sections.get("Constants", "")) if count != 1
                ),
                nodes=frozenset(_NODE.findall(sections.get("Metadata", ""))),
            )
        )
    return tuple(found)


def _tensors(text: str) -> list[tuple[str, int]]:
    """Type and number of values of each tensor."""
    return [
        (kind, prod(int(size) for size in dimensions.split(",") if size))
        for dimensions, kind in _TENSOR.findall(text)
    ]


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
                f"{one.layer or 'the engine'} has it in {one.actual or 'no precision known'}"
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
        found = [(_computed_in(layer), layer.name) for layer in candidates]
        worst = next((one for one in found if one[0] != kind), found[0] if found else (None, None))
        products.append(Product(node, kind, *worst))
    return PrecisionComparison(tuple(products))


def _computed_in(layer: EngineLayer) -> Kind | None:
    """The narrowest type that the layer reads; int8 counts only where it comes in, not where
    weights alone are stored so."""
    inputs = {_ENGINE_KINDS.get(kind.lower()) for kind in layer.inputs}
    constants = {_ENGINE_KINDS.get(kind.lower()) for kind in layer.constants}
    for kind in _ENGINE_KINDS.values():
        if kind in inputs or (kind in constants and kind not in ("int8", "fp8")):
            return kind
    return None
