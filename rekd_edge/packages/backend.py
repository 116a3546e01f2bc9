"""What compiles packages, where it works, and how to get it."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekd_edge.engines.backend import Device, load_backend, present_device
from rekd_edge.errors import BackendError
from rekd_edge.packages.spec import PackageSpec

COMPILER_HINT = "install a C++ compiler (on Debian: apt-get install g++), or name one in CXX"


@dataclass(frozen=True, slots=True)
class Host:
    """What runs packages of one kind here."""

    torch: str
    torch_tensorrt: str | None
    device: Device | None
    """None on a CPU."""


def find_host(spec: PackageSpec) -> Host:
    """Raises :class:`BackendError` where such a package cannot run here, with what is missing: a
    GPU, torch-tensorrt or the one that belongs to this torch. No compiler is needed for that."""
    import torch

    device = None
    if spec.device == "cuda":
        device = present_device()
        if device is None:
            raise BackendError(
                f"a package of {spec.backend} for cuda is compiled on the GPU that runs it, and "
                "there is none here",
                hint="on a CPU, --target aoti; ahead of time for a GPU, --target trt-rtx",
            )
    tensorrt = None
    if spec.backend == "torch-trt":
        tensorrt = str(load_torch_tensorrt().__version__)
    return Host(torch.__version__, tensorrt, device)


def find_compiler(spec: PackageSpec) -> Host:
    """Raises :class:`BackendError` where such a package cannot be made here: as :func:`find_host`,
    and without a C++ compiler."""
    host = find_host(spec)
    if cxx() is None:
        raise BackendError(
            f"{spec.backend} compiles C++, and there is no compiler", hint=COMPILER_HINT
        )
    return host


def cxx() -> str | None:
    """The C++ compiler that torch would take; None where there is none."""
    named = os.environ.get("CXX")
    return next(
        filter(None, map(shutil.which, [named] if named else ["g++", "c++", "clang++"])), None
    )


def load_torch_tensorrt() -> Any:
    """Imports torch-tensorrt. Raises :class:`BackendError` where it is absent, of another version
    than belongs to torch, or broken; its version is read first, as a wrong one may crash."""
    import torch

    found, wanted = installed("torch-tensorrt"), _minor(torch.__version__)
    how = (
        f"pip install 'torch-tensorrt=={wanted}.*', which belongs to torch {wanted} (each torch "
        "has one of the same number; it needs TensorRT: pip install 'rekd-edge[trt]', on a machine "
        "with an NVIDIA GPU)"
    )
    if found is None:
        raise BackendError("torch-tensorrt is not installed", hint=how)
    if _minor(found) != wanted:
        raise BackendError(
            f"torch-tensorrt {found} does not belong to torch {torch.__version__}", hint=how
        )
    load_backend("tensorrt")
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as error:  # a broken library raises whatever it likes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BackendError(
            f"torch-tensorrt is installed and does not import: {reason}", hint=how
        ) from error


def installed(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The vector instructions of this CPU by name, and a digest of all that it has: code that was
    compiled for one CPU may not run on another."""
    import torch

    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    words = " ".join(sorted(flags.partition(":")[2].split())) or platform.processor()
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    return f"{torch.backends.cpu.get_cpu_capability()} {digest}"


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])
