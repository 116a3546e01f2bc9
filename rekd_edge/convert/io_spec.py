"""Holds an ONNX file to the inputs and outputs that were promised.

Names, types and axes are checked in this order, each with an error of its own, before any
number is compared (the order of optimum's exporter).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import onnx

from rekd_edge.errors import GateError
from rekd_edge.types import AxisSpec, DType, IoSpec, TensorSpec

_DTYPES: dict[int, DType] = {
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.UINT8: "uint8",
}


class IoSpecError(GateError):
    """An ONNX file does not have the inputs and outputs of its model."""


class IoNameError(IoSpecError):
    """Names of inputs or outputs differ, or their order does."""


class IoDTypeError(IoSpecError):
    """An input or output has another element type."""


class IoAxisError(IoSpecError):
    """An axis is missing, or fixed where it should be dynamic, or has another size."""


def read_io(model: onnx.ModelProto) -> IoSpec:
    """Inputs and outputs as the file declares them.

    Raises :class:`IoDTypeError` for an element type that no rationalist uses and
    :class:`IoAxisError` for a tensor without a shape.
    """
    return IoSpec(
        inputs=tuple(_tensor(value) for value in data_inputs(model.graph)),
        outputs=tuple(_tensor(value) for value in model.graph.output),
    )


def data_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs that are not initializers (old files list both)."""
    initializers = {item.name for item in graph.initializer}
    return [value for value in graph.input if value.name not in initializers]


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    if dtype is None:
        kind = onnx.TensorProto.DataType.Name(cast("onnx.TensorProto.DataType", tensor.elem_type))
        raise IoDTypeError(
            f"{value.name!r} has element type {kind}; expected one of {', '.join(_DTYPES.values())}"
        )
    if not tensor.HasField("shape"):
        raise IoAxisError(f"{value.name!r} has no declared shape")
    axes = tuple(
        AxisSpec(d.dim_param or f"axis{i}", d.dim_value if d.HasField("dim_value") else None)
        for i, d in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, dtype, axes)


def validate_io(model: onnx.ModelProto, expected: IoSpec) -> None:
    """Raises the first of :class:`IoNameError`, :class:`IoDTypeError`, :class:`IoAxisError`."""
    graph = model.graph
    pairs = (
        ("inputs", [value.name for value in data_inputs(graph)], expected.inputs),
        ("outputs", [value.name for value in graph.output], expected.outputs),
    )
    for what, found_names, wanted in pairs:
        wanted_names = [tensor.name for tensor in wanted]
        if found_names != wanted_names:
            raise IoNameError(
                f"the {what} are named {found_names}, expected {wanted_names} in this order"
            )
    found = read_io(model)
    for have, want in zip(
        (*found.inputs, *found.outputs), (*expected.inputs, *expected.outputs), strict=True
    ):
        if have.dtype != want.dtype:
            raise IoDTypeError(f"{have.name!r} is {have.dtype}, expected {want.dtype}")
    for have, want in zip(
        (*found.inputs, *found.outputs), (*expected.inputs, *expected.outputs), strict=True
    ):
        _validate_axes(have, want)


def _validate_axes(have: TensorSpec, want: TensorSpec) -> None:
    if len(have.axes) != len(want.axes):
        raise IoAxisError(
            f"{have.name!r} has {len(have.axes)} axes, expected {len(want.axes)} "
            f"({shape_text(want.axes)})"
        )
    for position, (mine, wanted) in enumerate(zip(have.axes, want.axes, strict=True)):
        if wanted.size is None and mine.size is not None:
            raise IoAxisError(
                f"axis {position} ({wanted.name}) of {have.name!r} is baked in as {mine.size}; "
                "it must be dynamic"
            )
        if wanted.size is not None and mine.size is not None and wanted.size != mine.size:
            raise IoAxisError(
                f"axis {position} ({wanted.name}) of {have.name!r} has size {mine.size}, "
                f"expected {wanted.size}"
            )


def declare_axes(model: onnx.ModelProto, expected: IoSpec) -> None:
    """Names the axes of inputs and outputs as in ``expected`` (exporters invent names such as
    ``s0`` or ``token + Min(1, token - 1) - 1``). Call :func:`validate_io` first."""
    for values, tensors in (
        (data_inputs(model.graph), expected.inputs),
        (list(model.graph.output), expected.outputs),
    ):
        for value, tensor in zip(values, tensors, strict=True):
            for dimension, axis in zip(value.type.tensor_type.shape.dim, tensor.axes, strict=True):
                if axis.size is None:
                    dimension.dim_param = axis.name
                else:
                    dimension.dim_value = axis.size


def shape_text(axes: Sequence[AxisSpec]) -> str:
    """Axes for people, e.g. ``[batch, class=2]``."""
    parts = (axis.name if axis.size is None else f"{axis.name}={axis.size}" for axis in axes)
    return f"[{', '.join(parts)}]"
