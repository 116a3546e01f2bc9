"""One small class per runtime: a context manager whose ``run`` answers
:class:`~rekd_edge.types.Outputs`. Importing this package imports no runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekd_edge.errors import BackendError
from rekd_edge.runners.file_runner import FileRunner, RunError
from rekd_edge.runners.onnx_runner import OnnxRunner
from rekd_edge.runners.openvino_runner import OpenVinoRunner
from rekd_edge.runners.tensorrt_runner import TensorRtRunner
from rekd_edge.runners.threads import available_cores, resolve_threads
from rekd_edge.types import EngineBackend, RuntimeName

if TYPE_CHECKING:
    from rekd_edge.runners.settings import RuntimeSettings
    from rekd_edge.runners.torch_runner import TorchRunner

__all__ = [
    "FileRunner",
    "OnnxRunner",
    "OpenVinoRunner",
    "RunError",
    "RuntimeSettings",
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
    runtime: RuntimeName | EngineBackend = "onnxruntime",
    threads: int | None = None,
    provider: str = "CPUExecutionProvider",
    settings: RuntimeSettings | None = None,
) -> FileRunner:
    """The runner of ``runtime``, not yet open. ``provider`` is ONNX Runtime's execution provider,
    or OpenVINO's device; an engine runs on the GPU that it is for."""
    kinds = {"onnxruntime": OnnxRunner, "openvino": OpenVinoRunner}
    kind = kinds.get(runtime, TensorRtRunner)
    return kind(model, threads=threads, provider=provider, settings=settings)


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
