"""Targets: where an artefact is to run and in which form, from ``export/targets/*.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rekd_edge.calibrate.spec import AbstentionSpec
from rekd_edge.convert.spec_file import find_spec, read_spec
from rekd_edge.convert.types import Part, Precision
from rekd_edge.engines.spec import EngineSpec, ServedSizes
from rekd_edge.packages.spec import PackageSpec
from rekd_edge.resources import export_dir
from rekd_edge.types import RuntimeName


class RecoverySpec(BaseModel):
    """A short training in the target's arithmetic, where an int8 file fails its gates."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: float = Field(default=1.0, gt=0, le=100)
    """Passes over the training split."""
    learning_rate: float = Field(default=2.0e-5, gt=0, allow_inf_nan=False)


class TargetSpec(BaseModel):
    """One target: the runtime, the file format and the gates that must hold there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    runtime: RuntimeName
    """What runs the artefact."""
    execution_provider: Literal[
        "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPU"
    ] = "CPUExecutionProvider"
    """ONNX Runtime's provider, or OpenVINO's device (`CPU`), that must really be used; a silent
    fallback is an error, of the whole graph or of one node."""
    opset: int = Field(ge=18, le=26)
    """ONNX operator set of the file."""
    ir_version: int = Field(ge=8, le=13)
    """ONNX file format version; ONNX Runtime 1.31 reads up to 13."""
    precision: Precision = "fp32"
    """Of matrix products with weights; the file's actual precision must match. `int8-dynamic`
    takes the ranges of activations from each query, `int8-static` from calibration data. `fp16`
    keeps the comparison of scores, and all inputs and outputs, in fp32."""
    quantize: tuple[Part, ...] = Field(default=("selector", "predictor"), min_length=1)
    """Parts in that precision; the other stays in fp32. With the predictor alone the rationale
    is exactly that of the fp32 file."""
    calibration_examples: int = Field(default=128, ge=1)
    """`int8-static`: training examples, drawn evenly over the split."""
    recovery: RecoverySpec | None = None
    """int8: how a file that fails a gate on labels, rationales or accuracy is trained to answer
    like the fp32 student (docs/adr/0016-recovery.md); null: not at all."""
    abstention: AbstentionSpec | None = None
    """When runtimes withhold an answer (docs/adr/0020-calibration.md); null: never. Options of
    `rekd-edge export` come before it. Probabilities are calibrated either way."""
    dynamic_batch: bool = True
    """Whether one file serves every batch size."""
    dynamic_tokens: bool = True
    """Text: whether one file serves every sequence length up to the model's maximum."""
    engine: EngineSpec | None = None
    """Also build TensorRT engines from the file (docs/tensorrt.md). ``runtime`` is then what checks
    the file, and answers where there is no GPU."""
    sizes: ServedSizes | None = None
    """Sizes that TensorRT is to serve, where it is a provider of ONNX Runtime or part of a package
    (an engine has its own): `batch` and, for texts, `tokens`, `{min, opt, max}` each."""
    package: PackageSpec | None = None
    """Also compile the model for this machine, into the user's cache (docs/compiled.md); the bundle
    is as ever. ``runtime`` is then what checks the file, and answers from the bundle."""
    gates: str = "default"
    """Name of a file in ``export/gates`` or a path: what must hold before a bundle is written."""

    @model_validator(mode="after")
    def _runtime_fits(self) -> TargetSpec:
        if (self.runtime == "openvino") != (self.execution_provider == "CPU"):
            raise ValueError(f"{self.runtime} has no execution_provider {self.execution_provider}")
        if self.runtime == "openvino" and self.precision != "fp32":
            raise ValueError("the runtime openvino is supported in fp32 alone")
        if self.recovery is not None and not self.precision.startswith("int8"):
            raise ValueError(f"recovery is for int8, not for {self.precision}")
        self._sizes_fit()
        if self.package is not None:
            if self.engine is not None:
                raise ValueError("a target has an engine or a package, not both")
            if (self.runtime, self.execution_provider) != ("onnxruntime", "CPUExecutionProvider"):
                raise ValueError("the file beside a package is checked in onnxruntime on the CPU")
            if self.precision != "fp32":
                raise ValueError("packages are compiled from the fp32 model")
        if self.engine is not None:
            if self.runtime != "onnxruntime":
                raise ValueError("the file of an engine is checked in onnxruntime")
            if self.precision == "int8-dynamic":
                raise ValueError("TensorRT reads int8 as int8-static (QDQ), not int8-dynamic")
            if not self.dynamic_batch:
                raise ValueError("an engine needs dynamic_batch: its sizes are in engine.batch")
        return self

    def _sizes_fit(self) -> None:
        by_provider = self.execution_provider == "TensorrtExecutionProvider"
        by_package = self.package is not None and self.package.backend == "torch-trt"
        if (by_provider or by_package) != (self.sizes is not None):
            raise ValueError(
                "sizes are for TensorRT inside ONNX Runtime or torch-tensorrt, and needed there"
            )
        if by_provider and self.precision != "fp32":
            raise ValueError("TensorrtExecutionProvider is supported in fp32: fp16 would be a flag")


def targets_dir() -> Path:
    return export_dir() / "targets"


def variants_of(name: str) -> tuple[TargetSpec, ...]:
    """The shipped target ``name`` and those named ``name-...`` that differ from it in precision
    alone, the target itself first."""
    base = load_target(name)
    found = [base]
    for path in sorted(targets_dir().glob(f"{base.name}-*.yaml"), key=lambda path: path.stem):
        other = load_target(path.stem)
        if _but_precision(other) == _but_precision(base):
            found.append(other)
    return tuple(found)


def _but_precision(target: TargetSpec) -> dict[str, object]:
    differs = {"name", "description", "precision", "quantize", "calibration_examples", "gates"}
    return target.model_dump(exclude=differs | {"recovery", "abstention"})


def load_target(name_or_path: str) -> TargetSpec:
    """A shipped target by name, or a target file by path.

    Raises :class:`UsageError` for an unknown name, :class:`RecipeError` for an invalid file.
    """
    return read_spec(find_spec(name_or_path, targets_dir(), "target"), TargetSpec, "target")
