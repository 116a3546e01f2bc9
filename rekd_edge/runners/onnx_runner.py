"""Runs an ONNX file in ONNX Runtime, on the provider that was asked for or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rekd_edge.errors import BackendError
from rekd_edge.runners.file_runner import FileRunner, first_line
from rekd_edge.runners.threads import resolve_threads
from rekd_edge.runtime_options import GPU_PROVIDERS, provider_chain, session_options

if TYPE_CHECKING:
    from rekd_edge.runners.settings import RuntimeSettings


INSTALL_GPU = (
    "on a machine with an NVIDIA GPU: pip uninstall -y onnxruntime, then "
    "pip install 'onnxruntime-gpu>=1.30,<1.32' (the same module: never both)"
)


class OnnxRunner(FileRunner):
    """A context manager around one ONNX Runtime session.

    ``threads`` None takes those of ``settings``, or all cores open to this process
    (:func:`~rekd_edge.runners.threads.resolve_threads`). Raises :class:`BackendError` when the
    file cannot be loaded or when another provider than ``provider`` would run it (onnxruntime
    falls back silently, onnxruntime#26996).
    """

    runtime = "onnxruntime"

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        provider: str = "CPUExecutionProvider",
        settings: RuntimeSettings | None = None,
    ) -> None:
        super().__init__(model, resolve_threads(threads, settings.threads if settings else None))
        self.provider = provider
        self.settings = settings

    def __enter__(self) -> Self:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise BackendError(
                "running ONNX files needs the package onnxruntime",
                hint="pip install 'rekd-edge[onnx]'",
            ) from error
        if self.provider not in ort.get_available_providers():
            raise absent(self.provider, ort.get_available_providers())
        self._open(ort, provider_chain(self.provider))
        return self

    def _open(self, ort: Any, chain: list[tuple[str, dict[str, str]]]) -> None:
        """The session on these providers; ``chain`` is then what a fresh process is told."""
        options = session_options(
            ort, self.threads, self.settings.model_dump() if self.settings else None
        )
        for key, value in self._entries().items():
            options.add_session_config_entry(key, value)
        source = self.model if isinstance(self.model, bytes) else str(self.model)
        try:
            session = ort.InferenceSession(source, options, providers=chain, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BackendError(
                f"onnxruntime cannot load {self.model_name}: {first_line(error)}"
            ) from error
        used = session.get_providers()
        if not used or used[0] != self.provider:
            raise BackendError(
                f"asked for {self.provider}, onnxruntime would run on {', '.join(used)}",
                hint="`rekd-edge doctor` shows what is installed",
            )
        self._session = session
        self.start_options = {"providers": [list(one) for one in chain]}

    def _entries(self) -> dict[str, str]:
        """More entries of the session's configuration."""
        return {}

    @property
    def session(self) -> Any:
        """ONNX Runtime's own session, for what binds its inputs and outputs itself."""
        return self._opened()

    @property
    def providers(self) -> list[str]:
        return list(self._opened().get_providers())

    @property
    def input_names(self) -> list[str]:
        return [value.name for value in self._opened().get_inputs()]

    @property
    def output_names(self) -> list[str]:
        return [value.name for value in self._opened().get_outputs()]

    def _answer(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> Sequence[np.ndarray]:
        return self._opened().run(list(outputs), dict(feeds))


def absent(provider: str, available: Sequence[str]) -> BackendError:
    """What to say where onnxruntime was built without ``provider``."""
    by_doctor = "`rekd-edge doctor` shows what is installed"
    return BackendError(
        f"this onnxruntime has no {provider} (it has {', '.join(available)})",
        hint=INSTALL_GPU if provider in GPU_PROVIDERS else by_doctor,
    )
