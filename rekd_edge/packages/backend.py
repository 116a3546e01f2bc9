"""What compiles packages, where it works, and how to get it."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import shlex
import shutil
import sys
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
    tensorrt: str | None = None
    """Of `torch-trt` alone."""


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
    if spec.backend != "torch-trt":
        return Host(torch.__version__, None, device)
    torch_tensorrt = str(load_torch_tensorrt().__version__)
    return Host(torch.__version__, torch_tensorrt, device, load_backend("tensorrt").version)


def find_compiler(spec: PackageSpec) -> Host:
    """Raises :class:`BackendError` where such a package cannot be made here: as :func:`find_host`,
    without a C++ compiler, and for a GPU without the headers of CUDA."""
    host = find_host(spec)
    if cxx() is None:
        named = os.environ.get("CXX")
        why = f"there is no {named}, which CXX names" if named else "there is no compiler"
        raise BackendError(f"{spec.backend} compiles C++, and {why}", hint=COMPILER_HINT)
    if spec.device == "cuda":
        require_cuda_headers(spec)
    return host


def cxx() -> str | None:
    """The C++ compiler to take, the one that CXX names with its options; None where there is
    none."""
    named = os.environ.get("CXX")
    words = shlex.split(named or "")
    if words:
        return named if shutil.which(words[0]) else None
    return next(filter(None, map(shutil.which, ["g++", "c++", "clang++"])), None)


def require_cuda_headers(spec: PackageSpec) -> None:
    """Raises :class:`BackendError` where torch would not find the CUDA toolkit, or where that has
    no ``cuda.h``: code for a GPU includes it. pip's packages of torch bring the libraries alone."""
    import torch

    home = cuda_home()
    if home is not None and (home / "include" / "cuda.h").is_file():
        return
    where = "there is none" if home is None else f"{home} has no include/cuda.h"
    raise BackendError(
        f"{spec.backend} for cuda compiles against the CUDA toolkit, and {where}",
        hint=f"install the CUDA toolkit {torch.version.cuda or ''} (on Debian and Ubuntu "
        "cuda-toolkit from NVIDIA's repository), and name its folder in CUDA_HOME where it is not "
        "/usr/local/cuda",
    )


def cuda_home() -> Path | None:
    """The CUDA toolkit as torch's compiler finds it: CUDA_HOME, the folder of nvcc, or
    /usr/local/cuda."""
    prepare_setuptools()
    from torch.utils import cpp_extension

    found = cpp_extension.CUDA_HOME
    return Path(found) if found else None


def prepare_setuptools() -> None:
    """torch's compiler imports setuptools, which fails where Python's own distutils came before."""
    if "distutils" in sys.modules and "setuptools" not in sys.modules:
        os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")


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
