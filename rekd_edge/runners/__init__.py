"""One small class per runtime: a context manager whose ``run`` answers
:class:`~rekd_edge.types.Outputs`. Importing this package imports no runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekd_edge.errors import BackendError
from rekd_edge.runners.file_runner import FileRunner, RunError
from rekd_edge.runners.gpu_runner import CudaRunner, TensorRtProviderRunner
from rekd_edge.runners.onnx_runner import OnnxRunner
from rekd_edge.runners.openvino_runner import OpenVinoRunner
from rekd_edge.runners.package_runner import PackageRunner
from rekd_edge.runners.tensorrt_runner import TensorRtRunner
from rekd_edge.runners.threads import available_cores, resolve_threads
from rekd_edge.runtime_options import CUDA_PROVIDER, TENSORRT_PROVIDER
from rekd_edge.types import EngineBackend, PackageBackend, RuntimeName

if TYPE_CHECKING:
    from rekd_edge.runners.settings import RuntimeSettings
    from rekd_edge.runners.torch_runner import TorchRunner

__all__ = [
    "CudaRunner",
    "FileRunner",
    "OnnxRunner",
    "OpenVinoRunner",
    "PackageRunner",
    "RunError",
    "RuntimeSettings",
    "TensorRtProviderRunner",
    "TensorRtRunner",
    "TorchRunner",
    "available_cores",
    "file_runner",
    "require_runtime",
    "resolve_threads",
]


def file_runner(
    model: Path | bytes,
    *,
    runtime: RuntimeName | EngineBackend | PackageBackend = "onnxruntime",
    threads: int | None = None,
    provider: str = "CPUExecutionProvider",
    settings: RuntimeSettings | None = None,
) -> FileRunner:
    """The runner of ``runtime``, not yet open. ``provider`` is ONNX Runtime's execution provider,
    or OpenVINO's device; an engine or a package runs on the device that it is for."""
    kind = _KINDS[runtime]
    if runtime == "onnxruntime":
        kind = _PROVIDERS.get(provider, kind)
    return kind(model, threads=threads, provider=provider, settings=settings)


_KINDS: dict[str, Any] = {
    "onnxruntime": OnnxRunner,
    "openvino": OpenVinoRunner,
    "tensorrt": TensorRtRunner,
    "tensorrt-rtx": TensorRtRunner,
    "aoti": PackageRunner,
    "torch-trt": PackageRunner,
}
_PROVIDERS: dict[str, Any] = {
    CUDA_PROVIDER: CudaRunner,
    TENSORRT_PROVIDER: TensorRtProviderRunner,
}


def require_runtime(runtime: RuntimeName) -> None:
    """Raises :class:`BackendError` where the runtime's package is not installed."""
    if importlib.util.find_spec(runtime) is None:
        extra = {"onnxruntime": "onnx", "openvino": "openvino"}[runtime]
        raise BackendError(
            f"this target needs the package {runtime}", hint=f"pip install 'rekd-edge[{extra}]'"
        )


def __getattr__(name: str) -> Any:
    if name == "TorchRunner":
        from rekd_edge.runners.torch_runner import TorchRunner

        return TorchRunner
    if name == "RuntimeSettings":
        from rekd_edge.runners.settings import RuntimeSettings

        return RuntimeSettings
    raise AttributeError(name)
