"""Runs an ONNX file in ONNX Runtime, on the provider that was asked for or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rekd_edge.errors import BackendError, UsageError
from rekd_edge.runners.threads import resolve_threads
from rekd_edge.types import OUTPUTS, Outputs


class OnnxRunner:
    """A context manager around one ONNX Runtime session.

    ``model`` is a file or the bytes of one. ``threads`` None takes all cores open to this process
    (:func:`~rekd_edge.runners.threads.available_cores`); execution is sequential, one operator at
    a time. Raises :class:`BackendError` when the file cannot be loaded or when another provider
    than ``provider`` would run it (onnxruntime falls back silently, onnxruntime#26996).
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        provider: str = "CPUExecutionProvider",
    ) -> None:
        self.model = model
        self.threads = resolve_threads(threads)
        self.provider = provider
        self._session: Any = None

    def __enter__(self) -> OnnxRunner:
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
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        source = self.model if isinstance(self.model, bytes) else str(self.model)
        try:
            session = ort.InferenceSession(source, options, providers=[self.provider])
        except Exception as error:  # onnxruntime's exceptions share no base class
            name = "the graph" if isinstance(self.model, bytes) else str(self.model)
            raise BackendError(f"onnxruntime cannot load {name}: {_first_line(error)}") from error
        used = session.get_providers()
        if not used or used[0] != self.provider:
            raise BackendError(
                f"asked for {self.provider}, onnxruntime would run on {', '.join(used)}",
                hint="`rekd-edge doctor` shows what is installed",
            )
        self._session = session
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = None

    @property
    def providers(self) -> list[str]:
        return list(self._opened().get_providers())

    @property
    def input_names(self) -> list[str]:
        return [value.name for value in self._opened().get_inputs()]

    @property
    def output_names(self) -> list[str]:
        return [value.name for value in self._opened().get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """All of :data:`~rekd_edge.types.OUTPUTS` for one batch."""
        values = self.run_named(inputs, OUTPUTS)
        return Outputs(**values)

    def run_named(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The named outputs. Inputs that the graph does not take are left out.

        Raises :class:`RunError` when onnxruntime refuses the inputs or fails.
        """
        session = self._opened()
        wanted = {value.name for value in session.get_inputs()}
        missing = wanted - inputs.keys()
        if missing:
            raise UsageError(f"inputs missing: {', '.join(sorted(missing))}")
        try:
            answers = session.run(list(outputs), {name: inputs[name] for name in wanted})
        except Exception as error:
            shapes = ", ".join(f"{name} {inputs[name].shape}" for name in sorted(wanted))
            raise RunError(f"onnxruntime failed on {shapes}: {_first_line(error)}") from error
        return dict(zip(outputs, answers, strict=True))

    def _opened(self) -> Any:
        if self._session is None:
            raise UsageError("the runner is not open", hint="use it in a `with` statement")
        return self._session


class RunError(BackendError):
    """A loaded model failed on an input."""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
