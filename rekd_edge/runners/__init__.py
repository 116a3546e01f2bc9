"""One small class per runtime: a context manager whose ``run`` answers
:class:`~rekd_edge.types.Outputs`. Importing this package imports no runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rekd_edge.runners.onnx_runner import OnnxRunner, RunError
from rekd_edge.runners.threads import available_cores, resolve_threads

if TYPE_CHECKING:
    from rekd_edge.runners.torch_runner import TorchRunner

__all__ = ["OnnxRunner", "RunError", "TorchRunner", "available_cores", "resolve_threads"]


def __getattr__(name: str) -> Any:
    if name == "TorchRunner":
        from rekd_edge.runners.torch_runner import TorchRunner

        return TorchRunner
    raise AttributeError(name)
