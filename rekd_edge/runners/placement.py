"""Where ONNX Runtime has put the nodes of a graph, and whether that is where they were asked for.

A session on a GPU runs what its provider does not take on the CPU, without a word. Some of that is
as it should be: what is computed from shapes alone is put on the CPU on purpose. Anything else is
refused, by name. ``session.disable_cpu_ep_fallback`` cannot do it: it refuses those nodes, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rekd_edge.errors import BackendError
from rekd_edge.runtime_options import GPU_PROVIDERS

if TYPE_CHECKING:
    import onnx

RECORD_KEY = "session.record_ep_graph_assignment_info"
CPU_PROVIDER = "CPUExecutionProvider"
PRODUCTS = frozenset({"Conv", "FusedConv", "FusedMatMul", "Gemm", "MatMul", "TransposeMatMul"})
_SHAPES = frozenset({"Shape", "Size"})
_ARITHMETIC = frozenset(
    {
        *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Less"),
        *("Max", "Min", "Mul", "Range", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub"),
        *("Unsqueeze", "Where"),
    }
)
"""Operators that shapes are computed with."""
_NAMED = 6


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """One node as ONNX Runtime runs it (products may have been joined with what follows them)."""

    name: str
    operator: str
    provider: str


@dataclass(frozen=True, slots=True)
class Placement:
    """All nodes of a session. ``on_cpu`` are those outside the GPU."""

    provider: str
    nodes: tuple[PlacedNode, ...]

    @property
    def on_cpu(self) -> tuple[PlacedNode, ...]:
        return tuple(node for node in self.nodes if node.provider not in GPU_PROVIDERS)

    def misplaced(self, shape_nodes: Iterable[str], known: Iterable[str]) -> tuple[PlacedNode, ...]:
        """Nodes elsewhere than asked for: products beside the provider itself, and anything on the
        CPU that does not compute shapes. ``known`` are the names of the file's own nodes; one that
        ONNX Runtime has made itself is judged by its operator."""
        shapes, own = frozenset(shape_nodes), frozenset(known)

        def computes_shapes(node: PlacedNode) -> bool:
            if node.name in own:
                return node.name in shapes
            return node.operator in _ARITHMETIC

        elsewhere = [
            node
            for node in self.nodes
            if node.operator in PRODUCTS and node.provider != self.provider
        ]
        on_cpu = [
            node
            for node in self.on_cpu
            if node.operator not in PRODUCTS and not computes_shapes(node)
        ]
        return (*elsewhere, *on_cpu)

    def require(self, shape_nodes: Iterable[str], known: Iterable[str]) -> None:
        """Raises :class:`BackendError` that names what is misplaced."""
        wrong = self.misplaced(shape_nodes, known)
        if not wrong:
            return
        shown = ", ".join(
            f"{node.name or 'a node'} ({node.operator}) on {short(node.provider)}"
            for node in wrong[:_NAMED]
        )
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise BackendError(
            f"onnxruntime would not run all of the graph on {self.provider}: {shown}{more}",
            hint="take another onnxruntime-gpu, or a target for the CPU (--target onnx)",
        )

    def to_json(self) -> dict[str, Any]:
        counts = Counter(node.provider for node in self.nodes)
        products = Counter(node.provider for node in self.nodes if node.operator in PRODUCTS)
        return {
            "nodes": dict(sorted(counts.items())),
            "products": dict(sorted(products.items())),
            "on_cpu": [f"{node.name} ({node.operator})" for node in self.on_cpu],
        }


def placement_of(session: Any, provider: str) -> Placement:
    """Of a session that was opened with :data:`RECORD_KEY` set to 1."""
    return Placement(
        provider,
        tuple(
            PlacedNode(node.name, node.op_type, subgraph.ep_name)
            for subgraph in session.get_provider_graph_assignment_info()
            for node in subgraph.get_nodes()
        ),
    )


def shape_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the nodes whose values follow from shapes and constants alone, those inside the
    branches of an ``If`` included."""
    return frozenset(_shapes_in(model.graph, {""}))


def _shapes_in(graph: onnx.GraphProto, outside: Iterable[str]) -> Iterator[str]:
    from rekd_edge.convert.graph import subgraphs  # it imports torch

    constant = {*outside, *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:  # in topological order
        inner = list(subgraphs(node))
        for branch in inner:
            yield from _shapes_in(branch, constant)
        if inner:
            continue
        if node.op_type in _SHAPES or all(name in constant for name in node.input):
            constant.update(node.output)
            yield node.name


def own_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Names of all nodes, those inside branches included."""
    from rekd_edge.convert.graph import graphs_of  # it imports torch

    return frozenset(node.name for graph in graphs_of(model.graph) for node in graph.node) - {""}


def short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def summary(placement: Mapping[str, Any]) -> str:
    """:meth:`Placement.to_json` in words: ``CUDA 210 nodes, CPU 12 (shapes)``."""
    parts = []
    for provider, count in placement["nodes"].items():
        what = " (shapes)" if provider == CPU_PROVIDER else ""
        parts.append(f"{short(provider)} {count}{what}")
    return ", ".join(parts)
