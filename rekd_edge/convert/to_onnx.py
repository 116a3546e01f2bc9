"""A torch model as one self-contained ONNX file.

Uses torch's dynamo exporter. What it leaves behind (source paths, stack traces, invented axis
names, empty metadata, weights in a second file) is mended here, and the file is held to the
model's :class:`~rekd_edge.types.IoSpec` before it gets its name.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx
import torch
from torch import Tensor, nn

from rekd_edge import __version__
from rekd_edge.convert.branch import defer_exchange
from rekd_edge.convert.graph import (
    fold_transposed_weights,
    hide_outputs,
    merge_equal_weights,
    require_cut,
    strip_provenance,
)
from rekd_edge.convert.io_spec import declare_axes, validate_io
from rekd_edge.convert.targets import TargetSpec
from rekd_edge.errors import BackendError, GateError, UsageError
from rekd_edge.types import CUT_NAMES, EXCHANGE_NAMES, AxisSpec, IoSpec, TensorSpec

MAX_BYTES = 1_900_000_000
"""Largest weights written into one file; protobuf ends at 2 GB."""
METADATA_PREFIX = "rekd_edge."


class Exportable(Protocol):
    """What the exporter asks of a model, besides being an ``nn.Module``."""

    def io_spec(self) -> IoSpec: ...

    def example_inputs(self, batch: int, tokens: int = 16) -> tuple[Tensor, ...]: ...


class ConversionError(GateError):
    """The exporter failed, or wrote a file that is not what the target asks for."""


@dataclass(frozen=True, slots=True)
class OnnxArtefact:
    """A finished ONNX file."""

    path: Path
    io_spec: IoSpec
    target: TargetSpec
    sha256: str
    size_bytes: int
    metadata: dict[str, str]
    precision: str
    """Actual type of all floating-point weights."""


def convert_to_onnx(
    model: nn.Module,
    io_spec: IoSpec,
    path: Path,
    *,
    target: TargetSpec,
    metadata: Mapping[str, str],
) -> OnnxArtefact:
    """Exports ``model`` to ``path`` in fp32 (written under a temporary name first); the target's
    precision comes afterwards (:mod:`rekd_edge.convert.quantize`).

    ``model(*inputs)`` answers a tuple whose first values are ``io_spec.outputs``. Values after
    those, the model's ``hidden_names`` (``rationale_index`` and ``rationale_valid`` first), keep
    their names inside the graph but are not outputs of the file; metadata ``rekd_edge.cut`` lists
    those two. A model that answers only ``io_spec.outputs`` (a plain classifier, say) has no cut.
    What a pair of students needs only in an exchange is put under a condition
    (:mod:`rekd_edge.convert.branch`).

    ``metadata`` is stored under ``rekd_edge.`` keys. Raises :class:`ConversionError` when the
    exporter fails or bakes something in, an :class:`~rekd_edge.convert.io_spec.IoSpecError` when
    names, types or axes are wrong, :class:`BackendError` without the exporter's packages.
    """
    io_spec = _for_target(io_spec, target)
    if model.training or any(module.training for module in model.modules()):
        raise UsageError(
            "the model is in training mode", hint="call .eval() on it before the export"
        )
    weight_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if weight_bytes > MAX_BYTES:
        raise UsageError(
            f"{weight_bytes / 1e9:.1f} GB of weights do not fit into one ONNX file",
            hint="use a smaller backbone: the format ends at 2 GB",
        )
    names, program = _export(model, io_spec, target)
    proto = program.model_proto
    hidden = names[len(io_spec.outputs) :]
    if hidden:
        require_cut(proto)
        hide_outputs(proto, hidden)
    strip_provenance(proto)
    fold_transposed_weights(proto)
    if set(EXCHANGE_NAMES) <= set(hidden):
        merge_equal_weights(proto)
    validate_io(proto, io_spec)
    declare_axes(proto, io_spec)
    _validate_versions(proto, target)
    precision = _precision(proto)
    defer_exchange(proto)
    written = _fill_metadata(proto, target, metadata, hidden)
    _refuse_external_data(proto)
    _check(proto)
    write_model(proto, path)
    return OnnxArtefact(
        path=path,
        io_spec=io_spec,
        target=target,
        sha256=file_sha256(path),
        size_bytes=path.stat().st_size,
        metadata=written,
        precision=precision,
    )


def weights_sha256(model: nn.Module) -> str:
    """A digest of names, types, shapes and bytes of all weights, in a fixed order."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _for_target(io_spec: IoSpec, target: TargetSpec) -> IoSpec:
    """The model's axes with those fixed that the target wants fixed (batch to 1)."""
    if not target.dynamic_tokens:
        raise UsageError(
            f"target {target.name!r} asks for a fixed number of tokens, which is not supported",
            hint="set dynamic_tokens: true",
        )
    if target.dynamic_batch:
        return io_spec

    def fixed(tensor: TensorSpec) -> TensorSpec:
        axes = tuple(AxisSpec(a.name, 1) if a.name == "batch" else a for a in tensor.axes)
        return TensorSpec(tensor.name, tensor.dtype, axes)

    return IoSpec(
        inputs=tuple(fixed(tensor) for tensor in io_spec.inputs),
        outputs=tuple(fixed(tensor) for tensor in io_spec.outputs),
    )


def _export(model: Any, io_spec: IoSpec, target: TargetSpec) -> tuple[list[str], Any]:
    """Names of everything the model answers, and torch's ONNX program."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "exporting to ONNX needs the package onnxscript",
            hint="pip install 'rekd-edge[onnx]'",
        ) from error
    inputs = model.example_inputs(batch=2 if target.dynamic_batch else 1)
    if len(inputs) != len(io_spec.inputs):
        raise UsageError(
            f"the model gives {len(inputs)} example inputs for {len(io_spec.inputs)} inputs"
        )
    with torch.no_grad():
        answered = model(*inputs)
    count = 1 if isinstance(answered, Tensor) else len(answered)
    names = [tensor.name for tensor in io_spec.outputs]
    hidden = getattr(model, "hidden_names", CUT_NAMES)
    if count == len(names) + len(hidden):
        names += hidden
    elif count != len(names):
        raise ConversionError(f"the model answers {count} values, expected {names}")
    with warnings.catch_warnings(), _quiet_exporter():
        # The exporter warns about its own internals; what matters is validated afterwards.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                opset_version=target.opset,
                input_names=[tensor.name for tensor in io_spec.inputs],
                output_names=names,
                dynamic_shapes=dynamic_shapes(model, io_spec),
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise ConversionError(
                f"torch could not export the model to ONNX: {_root_cause(error)}",
                hint="a size that depends on the data or was baked in is the usual cause",
            ) from error
    if program is None:
        raise ConversionError("torch answered no ONNX program")
    return names, program


def dynamic_shapes(model: nn.Module, io_spec: IoSpec) -> tuple[Any, ...]:
    """For torch.export: every axis without a size of its own may have any."""
    shapes = tuple(
        {
            position: torch.export.Dim.DYNAMIC
            for position, axis in enumerate(tensor.axes)
            if axis.size is None
        }
        for tensor in io_spec.inputs
    )
    return (shapes,) if _is_variadic(model) else shapes


def _is_variadic(model: nn.Module) -> bool:
    """Whether ``forward`` takes ``*inputs``, which torch.export sees as one argument."""
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def _root_cause(error: BaseException) -> str:
    """The first line of the innermost error: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


class _quiet_exporter:  # noqa: N801
    """Keeps the exporter's log lines off standard error."""

    NAMES = ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")

    def __enter__(self) -> None:
        self._levels = {name: logging.getLogger(name).level for name in self.NAMES}
        for name in self.NAMES:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)


def _validate_versions(proto: onnx.ModelProto, target: TargetSpec) -> None:
    opsets = {item.domain: item.version for item in proto.opset_import}
    foreign = sorted({node.domain for node in proto.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise ConversionError(f"the graph uses operators outside the ONNX standard: {foreign}")
    if opsets.get("") != target.opset:
        raise ConversionError(
            f"asked for opset {target.opset}, the exporter wrote {opsets.get('')}"
        )
    del proto.opset_import[:]
    proto.opset_import.add(domain="", version=target.opset)
    proto.ir_version = target.ir_version


def _precision(proto: onnx.ModelProto) -> str:
    kinds: dict[int, str] = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.BFLOAT16: "bf16",
        onnx.TensorProto.DOUBLE: "fp64",
    }
    found = {kinds[t.data_type] for t in proto.graph.initializer if t.data_type in kinds}
    if found != {"fp32"}:
        raise ConversionError(
            f"the exporter's weights are {', '.join(sorted(found))}, expected fp32"
        )
    return "fp32"


def _fill_metadata(
    proto: onnx.ModelProto, target: TargetSpec, metadata: Mapping[str, str], hidden: Sequence[str]
) -> dict[str, str]:
    values = {"version": __version__, "target": target.name, "precision": "fp32"}
    if hidden:
        values["cut"] = ",".join(CUT_NAMES)
    values.update(metadata)
    written = {f"{METADATA_PREFIX}{key}": value for key, value in sorted(values.items())}
    proto.producer_name = "rekd-edge"
    proto.producer_version = __version__
    proto.graph.name = "rationalist" if hidden else "model"
    onnx.helper.set_model_props(proto, written)
    return written


def _refuse_external_data(proto: onnx.ModelProto) -> None:
    outside = [
        tensor.name
        for tensor in proto.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    if outside:
        raise ConversionError(f"weights lie outside the file: {', '.join(outside[:3])}")


def _check(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"onnx.checker refuses the file: {error}") from error


def write_model(proto: onnx.ModelProto, path: Path) -> None:
    """Writes a model in one file, deterministically, first under a temporary name."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(proto.SerializeToString(deterministic=True))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def label_metadata(label_names: Sequence[str]) -> str:
    """Label names as the JSON list stored under ``rekd_edge.labels``."""
    return json.dumps(list(label_names), ensure_ascii=False)
