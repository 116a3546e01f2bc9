"""Targets: where an artefact is to run and in which form, from ``export/targets/*.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rekd_edge.convert.spec_file import find_spec, read_spec
from rekd_edge.resources import export_dir


class TargetSpec(BaseModel):
    """One target: the runtime, the file format and the gates that must hold there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    runtime: Literal["onnxruntime"]
    """What runs the artefact."""
    execution_provider: Literal["CPUExecutionProvider", "CUDAExecutionProvider"] = (
        "CPUExecutionProvider"
    )
    """The ONNX Runtime provider that must really be used; a silent fallback is an error."""
    opset: int = Field(ge=18, le=26)
    """ONNX operator set of the file."""
    ir_version: int = Field(ge=8, le=13)
    """ONNX file format version; ONNX Runtime 1.31 reads up to 13."""
    precision: Literal["fp32"] = "fp32"
    """Type of weights and activations; the file's actual type must match."""
    dynamic_batch: bool = True
    """Whether one file serves every batch size."""
    dynamic_tokens: bool = True
    """Text: whether one file serves every sequence length up to the model's maximum."""
    gates: str = "default"
    """Name of a file in ``export/gates`` or a path: what must hold before a bundle is written."""


def targets_dir() -> Path:
    return export_dir() / "targets"


def load_target(name_or_path: str) -> TargetSpec:
    """A shipped target by name, or a target file by path.

    Raises :class:`UsageError` for an unknown name, :class:`RecipeError` for an invalid file.
    """
    return read_spec(find_spec(name_or_path, targets_dir(), "target"), TargetSpec, "target")
