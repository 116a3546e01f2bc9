"""From a torch model to a file that a runtime reads."""

from __future__ import annotations

from rekd_edge.convert.branch import with_own_answers
from rekd_edge.convert.graph import GraphError, predictor_graph, with_cut_outputs
from rekd_edge.convert.io_spec import (
    IoAxisError,
    IoDTypeError,
    IoNameError,
    IoSpecError,
    read_io,
    validate_io,
)
from rekd_edge.convert.quantize import PrecisionError, matrix_products, quantize
from rekd_edge.convert.targets import RecoverySpec, TargetSpec, load_target, variants_of
from rekd_edge.convert.to_onnx import (
    ConversionError,
    OnnxArtefact,
    convert_to_onnx,
    file_sha256,
    label_metadata,
    weights_sha256,
)

__all__ = [
    "ConversionError",
    "GraphError",
    "IoAxisError",
    "IoDTypeError",
    "IoNameError",
    "IoSpecError",
    "OnnxArtefact",
    "PrecisionError",
    "RecoverySpec",
    "TargetSpec",
    "convert_to_onnx",
    "file_sha256",
    "label_metadata",
    "load_target",
    "matrix_products",
    "predictor_graph",
    "quantize",
    "read_io",
    "validate_io",
    "variants_of",
    "weights_sha256",
    "with_cut_outputs",
    "with_own_answers",
]
