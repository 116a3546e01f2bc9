"""What a target asks of a package, and the side-car that says what one was made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rekd_edge.engines.spec import Profile, Sha256, Spec
from rekd_edge.types import DType, PackageBackend

Outcome = Literal["passed", "not run"]
DeviceKind = Literal["cpu", "cuda"]


class PackageSpec(Spec):
    """`package` of a target: what compiles the fused model, and for which device."""

    backend: PackageBackend
    """`aoti`: PyTorch's AOTInductor. `torch-trt`: torch-tensorrt, and AOTInductor for the rest."""
    device: DeviceKind = "cpu"
    """Where it runs: the machine's CPU, or its CUDA GPU."""

    @model_validator(mode="after")
    def _device_fits(self) -> PackageSpec:
        if self.backend == "torch-trt" and self.device != "cuda":
            raise ValueError("torch-trt needs device: cuda")
        return self


class PackageInput(Spec):
    """One input. Sizes are None where every size is served."""

    name: str
    dtype: DType
    axes: tuple[str, ...]
    sizes: tuple[int | None, ...]


class MadeOf(Spec):
    """All that a package follows from: one that differs in any of it is another package."""

    schema_version: Literal[1] = 1
    backend: PackageBackend
    device: DeviceKind
    onnx_sha256: Sha256
    """Of the checked ONNX file of the same fused model: weights, shapes and budget are in it."""
    weights_sha256: Sha256
    torch: str
    torch_tensorrt: str | None = None
    tensorrt: str | None = None
    """Version; `torch-trt` alone."""
    machine: str
    """Architecture of the processor, such as x86_64."""
    instruction_set: str
    """Of the CPU, whose vector instructions the code uses; empty for a GPU."""
    compute_capability: int | None = None
    """Of the GPU: 86 is SM 8.6."""
    device_name: str | None = None
    """The GPU model, whose kernels TensorRT chose; `torch-trt` alone."""
    driver: str | None = None
    """NVIDIA's; `torch-trt` alone."""
    profiles: dict[str, Profile] = Field(default_factory=dict)
    """`torch-trt`: sizes by input. Empty: every size."""
    inputs: tuple[PackageInput, ...]
    outputs: tuple[str, ...]
    max_length: int | None = None
    """Texts: most tokens."""


class PackageChecks(Spec):
    """What was checked of the package itself, on its own answers."""

    parity: Outcome = "not run"
    accuracy: Outcome = "not run"
    exclusion: Outcome = "not run"
    """Answers where unselected content was replaced and the rationale stayed: the same bits."""
    latency: Outcome = "not run"
    reason: str = ""
    """Why what was not run was not."""
    metrics: dict[str, float] = Field(default_factory=dict)


class PackageRecord(Spec):
    """The side-car of one package."""

    schema_version: Literal[1] = 1
    made_of: MadeOf
    package_sha256: Sha256
    size_bytes: int = Field(ge=1)
    build_s: float = Field(ge=0)
    checks: PackageChecks = PackageChecks()
