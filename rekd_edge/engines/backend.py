"""TensorRT 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`): one interface, two packages.

What differs is said here and nowhere else: how each is got, for which GPUs it builds, and whether
its timing cache does anything.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekd_edge.errors import BackendError
from rekd_edge.types import EngineBackend


@dataclass(frozen=True, slots=True)
class Backend:
    """A package that builds engines, installed or not."""

    name: EngineBackend
    module: str
    short: str
    """In the names of engine files."""
    majors: tuple[int, ...]
    builds_ahead: bool
    """Builds for GPUs that it is told, on a machine without any; else for the GPU present."""
    caches_timings: bool
    how: str
    """How to get it."""


BACKENDS: dict[EngineBackend, Backend] = {
    "tensorrt-rtx": Backend(
        name="tensorrt-rtx",
        module="tensorrt_rtx",
        short="rtx",
        majors=(1,),
        builds_ahead=True,
        caches_timings=False,
        how="pip install 'rekd-edge[trt-rtx]' (builds without a GPU; RTX GPUs run the engines)",
    ),
    "tensorrt": Backend(
        name="tensorrt",
        module="tensorrt",
        short="trt",
        majors=(10, 11),
        builds_ahead=False,
        caches_timings=True,
        how="on a machine with an NVIDIA GPU, pip install 'rekd-edge[trt]' (the package downloads "
        "TensorRT from NVIDIA), or JetPack's own TensorRT on a Jetson; without a GPU, "
        "--target trt-rtx builds",
    ),
}


@dataclass(frozen=True, slots=True)
class TensorRt:
    """An imported backend. ``compute_capabilities`` are those it can be told to build for (86 is
    SM 8.6); empty where it builds for the GPU present alone."""

    backend: Backend
    module: Any
    version: str
    compute_capabilities: tuple[int, ...]

    def require(self, compute_capability: int) -> None:
        """Raises :class:`BackendError` where no engine for this GPU can be built."""
        if compute_capability in self.compute_capabilities or not self.backend.builds_ahead:
            return
        known = ", ".join(map(str, self.compute_capabilities))
        raise BackendError(
            f"{self.backend.name} {self.version} builds no engine for SM {compute_capability} "
            f"(it does for {known})",
            hint="name others in engine.compute_capabilities of the target; data-centre GPUs such "
            "as SM 90 and 100 need --target trt on a machine that has one",
        )


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA GPU. ``driver`` is NVIDIA's version, None where it is not told; ``present`` is False
    for one that is only asked about, whose model nobody knows."""

    name: str
    compute_capability: int
    driver: str | None
    present: bool = True


def load_backend(name: EngineBackend) -> TensorRt:
    """Imports a backend. Raises :class:`BackendError` where it is absent, broken or of a version
    that is not supported."""
    backend = BACKENDS[name]
    try:
        module = importlib.import_module(backend.module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != backend.module:
            raise _broken(backend, error) from error
        raise BackendError(f"{name} is not installed", hint=backend.how) from error
    except Exception as error:  # a broken library raises whatever it likes
        raise _broken(backend, error) from error
    version = str(module.__version__)
    if int(version.partition(".")[0]) not in backend.majors:
        majors = " or ".join(map(str, backend.majors))
        raise BackendError(f"{name} {version} is not supported, {majors} is", hint=backend.how)
    return TensorRt(backend, module, version, tuple(_compute_capabilities(module)))


def _broken(backend: Backend, error: Exception) -> BackendError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return BackendError(
        f"{backend.name} is installed and does not import: {reason}",
        hint=backend.how,
    )


def _compute_capabilities(module: Any) -> Iterator[int]:
    for name in getattr(getattr(module, "ComputeCapability", None), "__members__", ()):
        found = re.fullmatch(r"SM(\d+)", name)
        if found:
            yield int(found[1])


def present_device() -> Device | None:
    """The current CUDA GPU. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return Device(torch.cuda.get_device_name(), 10 * major + minor, _driver())


def _driver(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    try:
        found = re.search(r"\b(\d{3}\.\d+(\.\d+)?)\b", path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None
