"""Runs an ONNX file in ONNX Runtime, on the provider that was asked for or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from rekd_edge.errors import BackendError
from rekd_edge.runners.file_runner import FileRunner, first_line
from rekd_edge.runners.threads import resolve_threads
from rekd_edge.runtime_options import session_options

if TYPE_CHECKING:
    from rekd_edge.runners.settings import RuntimeSettings


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
        available = ort.get_available_providers()
        if self.provider not in available:
            raise BackendError(
                f"this onnxruntime has no {self.provider} (it has {', '.join(available)})",
                hint="`rekd-edge doctor` shows what is installed",
            )
        options = session_options(
            ort, self.threads, self.settings.model_dump() if self.settings else None
        )
        source = self.model if isinstance(self.model, bytes) else str(self.model)
        try:
            session = ort.InferenceSession(source, options, providers=[self.provider])
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
        return self

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
