"""Proof that input outside the rationale cannot reach the answer, from the shipped file alone.

*Structural*: walking back from ``logits``, every path ends at ``rationale_index``,
``rationale_valid``, a constant, a shape, or a ``GatherElements`` that reads the raw input at
``rationale_index``. Nothing else of the input is reachable, whatever the weights are.

*Numerical*: the file is cut at ``rationale_index`` and ``rationale_valid``, the rationale is held
and everything else is replaced by other content. The logits must be identical to the last bit.
As a control, replacing the *selected* content must change them.

The rationale itself is of course computed from the whole input; what is shown is that, given the
rationale, nothing else matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from rekd_edge.check.inputs import Inputs
from rekd_edge.convert.graph import (
    GraphError,
    flat,
    node_inputs,
    predictor_graph,
    require_cut,
    subgraphs,
    with_cut_outputs,
)
from rekd_edge.convert.io_spec import data_inputs
from rekd_edge.problem import Reading
from rekd_edge.runners import FileRunner, RuntimeSettings, file_runner
from rekd_edge.types import CUT_NAMES, RuntimeName

_REARRANGE = {
    "Cast",
    "Flatten",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Operators that move elements of the raw input and mix none."""
_INDEX_FORM = {"Cast", "Expand", "Identity", "Unsqueeze"}
"""Operators that only change the form of an index; adding a constant is allowed too."""
_SHAPE_FROM_VALUE: dict[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "TopK": (1,),
    "OneHot": (1,),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Resize": (2, 3),
}
"""Inputs whose *values* decide the shape of an operator's output."""
_SHAPE_FROM_EVERYTHING = {
    "NonZero",
    "Compress",
    "Unique",
    "Loop",
    "Scan",
    "NonMaxSuppression",
}


@dataclass(frozen=True, slots=True)
class StructuralExclusion:
    """``leaks`` names each path from an input to ``logits`` that passes no gate, node by node;
    ``gated_reads`` the inputs that are read at ``rationale_index``."""

    leaks: tuple[str, ...]
    gated_reads: tuple[str, ...]
    shape_reads: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.leaks and bool(self.gated_reads)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True, slots=True)
class NumericalExclusion:
    """``max_change`` is the largest change of a logit when unselected content is replaced, and
    ``changed_examples`` how many examples changed in any bit; ``control_changed`` the share that
    changes when the selected content is replaced instead; ``reproduction_error`` the largest
    difference between the cut predictor and the whole file on unchanged inputs.
    ``mask_mismatches`` counts examples whose ``rationale_mask``, which is what people are shown,
    is not the set of positions in ``rationale_index``, which is what the predictor read."""

    examples: int
    replaced_positions: int
    mask_mismatches: int
    max_change: float
    changed_examples: int
    control_changed: float
    reproduction_error: float

    @property
    def passed(self) -> bool:
        return (
            self.changed_examples == 0 and self.mask_mismatches == 0 and self.control_changed > 0.0
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def structural_exclusion(model: onnx.ModelProto) -> StructuralExclusion:
    """Walks back from ``logits``; see the module's description.

    Raises :class:`~rekd_edge.convert.graph.GraphError` where the cut values do not exist.
    """
    return _Walk(flat(model)).run()


class _Walk:
    """One backward walk. A step is ("value" | "shape", name): whether the content of a value
    matters or only its shape."""

    def __init__(self, model: onnx.ModelProto) -> None:
        require_cut(model)
        self.made: dict[str, onnx.NodeProto] = {}
        self.inputs = {value.name for value in data_inputs(model.graph)}
        self.constants: set[str] = set()
        self._enter(model.graph)
        self.leaks: list[str] = []
        self.gated: set[str] = set()
        self.shapes: set[str] = set()

    def _enter(self, graph: onnx.GraphProto) -> None:
        """Notes what makes each value, in the branches of ``If`` too, which read values of the
        graphs around them by name; loops are taken as a whole."""
        for tensor in graph.initializer:
            self._require_new(tensor.name)
            self.constants.add(tensor.name)
        for node in graph.node:
            for name in filter(None, node.output):
                self._require_new(name)
                self.made[name] = node
            if node.op_type == "If":
                for branch in subgraphs(node):
                    self._enter(branch)

    def _require_new(self, name: str) -> None:
        if name in self.made or name in self.constants:
            raise GraphError(f"the graph has two values named {name!r}; no path can be followed")

    def run(self) -> StructuralExclusion:
        pending: list[tuple[str, str, tuple[str, ...]]] = [("value", "logits", ())]
        seen: set[tuple[str, str]] = set()
        while pending:
            kind, name, path = pending.pop()
            if (kind, name) in seen or name in CUT_NAMES:
                continue
            seen.add((kind, name))
            if name in self.inputs:
                if kind == "value":
                    self.leaks.append(" <- ".join((*_shortened(path), name)))
                else:
                    self.shapes.add(name)
                continue
            if name not in self.made:
                continue  # a constant
            node = self.made[name]
            further = (*path, f"{node.op_type}({name})")
            pending += [(k, n, further) for k, n in self._sources(kind, name, node)]
        return StructuralExclusion(
            leaks=tuple(sorted(self.leaks)),
            gated_reads=tuple(sorted(self.gated)),
            shape_reads=tuple(sorted(self.shapes)),
        )

    def _sources(self, kind: str, name: str, node: onnx.NodeProto) -> list[tuple[str, str]]:
        if node.op_type == "If":
            # Either branch may be taken, and which of them is something that the answer shows.
            branches = list(subgraphs(node))
            if [len(branch.output) for branch in branches] != [len(node.output)] * 2:
                raise GraphError(f"the branches of {node.name!r} do not answer what it answers")
            position = list(node.output).index(name)
            ends = [branch.output[position].name for branch in branches]
            return [("value", node.input[0]), *((kind, end) for end in ends)]
        if kind == "shape":
            return self._shape_sources(node)
        if node.op_type in {"Shape", "Size"}:
            return [("shape", node.input[0])]
        raw = self._gated_read(node)
        if raw is not None:
            self.gated.add(raw)
            # What is read is gated; how the input was rearranged must not depend on content.
            return [("shape", node.input[0]), ("value", node.input[1])]
        return [("value", name) for name in node_inputs(node)]

    @staticmethod
    def _shape_sources(node: onnx.NodeProto) -> list[tuple[str, str]]:
        if node.op_type in _SHAPE_FROM_EVERYTHING:
            return [("value", name) for name in node_inputs(node)]
        by_value = _SHAPE_FROM_VALUE.get(node.op_type, ())
        return [
            ("value" if position in by_value else "shape", name)
            for position, name in enumerate(node.input)
            if name
        ]

    def _gated_read(self, node: onnx.NodeProto) -> str | None:
        """The raw input that ``node`` reads at ``rationale_index``, if that is what it does."""
        if node.op_type != "GatherElements":
            return None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if axis != 1 or not self._is_index(node.input[1]):
            return None
        name = node.input[0]
        while name not in self.inputs:
            if name not in self.made:
                return None
            source = self.made[name]
            if source.op_type not in _REARRANGE:
                return None
            name = source.input[0]
        return name

    def _is_index(self, name: str) -> bool:
        """Whether a value is ``rationale_index`` in another form."""
        while name != "rationale_index":
            if name not in self.made:
                return False
            node = self.made[name]
            shifted = node.op_type in {"Add", "Sub"} and node.input[1] in self.constants
            if shifted or node.op_type in _INDEX_FORM:
                name = node.input[0]
            elif node.op_type == "Add" and node.input[0] in self.constants:
                name = node.input[1]
            else:
                return False
        return True


def _shortened(path: Sequence[str]) -> tuple[str, ...]:
    return tuple(path) if len(path) <= 8 else (*path[:3], "...", *path[-4:])


def numerical_exclusion(
    model: onnx.ModelProto,
    batches: Iterable[Inputs],
    *,
    seed: int = 0,
    trials: int = 2,
    threads: int | None = None,
    provider: str = "CPUExecutionProvider",
    runtime: RuntimeName = "onnxruntime",
    runtime_settings: RuntimeSettings | None = None,
    reading: Reading | None = None,
) -> NumericalExclusion:
    """Holds each rationale and replaces everything else; see the module's description. ``reading``
    gives the units of ``reproduction_error``; that nothing changes is a matter of bits.

    Raises :class:`~rekd_edge.convert.graph.GraphError` where the graph cannot be cut.
    """
    rng = np.random.default_rng(seed)
    whole = with_cut_outputs(model).SerializeToString()
    predictor = predictor_graph(model).SerializeToString()
    examples = replaced = changed = control = mismatches = 0
    max_change = reproduction = 0.0
    units = Reading() if reading is None else reading

    def open_graph(graph: bytes) -> FileRunner:
        return file_runner(
            graph, runtime=runtime, threads=threads, provider=provider, settings=runtime_settings
        )

    with (
        open_graph(whole) as file,
        open_graph(predictor) as cut,
    ):
        for inputs in batches:
            answer = file.run_named(inputs, ("logits", "rationale_mask", *CUT_NAMES))
            held = {name: answer[name] for name in CUT_NAMES}
            keep = answer["rationale_mask"]
            mismatches += int((_as_mask(held, keep.shape) != keep).any(axis=1).sum())
            before = cut.run_named({**inputs, **held}, ("logits",))["logits"]
            both = (units.in_units(logits) for logits in (answer["logits"], before))
            reproduction = max(reproduction, largest_difference(*both))
            changed_rows = np.zeros(len(keep), dtype=bool)
            for _ in range(trials):
                other = replace_content(inputs, ~keep, rng)
                after = cut.run_named({**other, **held}, ("logits",))["logits"]
                max_change = max(max_change, largest_difference(before, after))
                changed_rows |= ~same_bits(before, after)
            other = replace_content(inputs, keep, rng)
            after = cut.run_named({**other, **held}, ("logits",))["logits"]
            control += int((~same_bits(before, after)).sum())
            changed += int(changed_rows.sum())
            examples += len(keep)
            replaced += int((~keep).sum()) * trials
    return NumericalExclusion(
        examples=examples,
        replaced_positions=replaced,
        mask_mismatches=mismatches,
        max_change=max_change,
        changed_examples=changed,
        control_changed=control / examples if examples else 0.0,
        reproduction_error=reproduction,
    )


def replace_content(
    inputs: Inputs, where: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Inputs with other content at the positions ``where``, bool ``[batch, token]``.

    Texts: another token id out of those of the batch, and the attention mask flipped. Images:
    another value of each 8-bit pixel, or normal noise, in the patches (the grid is square).
    Everything else is left as it is.
    """
    if "pixel_values" in inputs:
        pixels = inputs["pixel_values"]
        side = round(where.shape[1] ** 0.5)
        patch = pixels.shape[2] // side
        area = where.reshape(-1, side, side).repeat(patch, axis=1).repeat(patch, axis=2)
        if pixels.dtype == np.uint8:
            noise = pixels + rng.integers(1, 256, pixels.shape, dtype=np.uint8)  # wraps around
        else:
            noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        return {**inputs, "pixel_values": np.where(area[:, None], noise, pixels)}
    ids = inputs["input_ids"]
    pool = np.unique(ids)
    position = np.searchsorted(pool, ids)
    step = rng.integers(1, max(len(pool), 2), size=ids.shape)
    others = pool[(position + step) % len(pool)]
    valid = inputs["attention_mask"]
    return {
        **inputs,
        "input_ids": np.where(where, others, ids),
        "attention_mask": np.where(where, 1 - valid, valid),
    }


def _as_mask(held: Inputs, shape: tuple[int, ...]) -> np.ndarray:
    """The positions in ``rationale_index`` where ``rationale_valid``, bool ``[batch, token]``."""
    found = np.zeros(shape, dtype=bool)
    row, slot = np.nonzero(held["rationale_valid"])
    found[row, held["rationale_index"][row, slot]] = True
    return found


def same_bits(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether two float32 ``[batch, class]`` agree in every bit, bool ``[batch]``."""
    return (left.view(np.uint32) == right.view(np.uint32)).all(axis=1)


def largest_difference(left: np.ndarray, right: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # infinity minus itself: not a number, counted as infinite
        difference = np.abs(left.astype(np.float64) - right.astype(np.float64))
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))
