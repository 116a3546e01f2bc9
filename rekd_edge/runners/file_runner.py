"""What all runners of files have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np

from rekd_edge.errors import BackendError, UsageError
from rekd_edge.types import OUTPUTS, PAIR_OUTPUTS, Outputs


class RunError(BackendError):
    """A loaded model failed on an input."""


class FileRunner(ABC):
    """A context manager around one loaded model: a file, or the bytes of one.

    ``threads`` are final. A subclass opens the model in ``__enter__`` and refuses what would run
    otherwise than asked for.
    """

    runtime: ClassVar[str]
    """The name of the runtime, as in a target."""

    def __init__(self, model: Path | bytes, threads: int) -> None:
        self.model = model
        self.threads = threads
        self._session: Any = None
        self._wanted: tuple[str, ...] | None = None
        self.start_options: dict[str, Any] = {}
        """What a fresh process needs to open the model as it is open here."""
        self._answered: tuple[str, ...] | None = None

    @abstractmethod
    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = self._wanted = self._answered = None

    @property
    @abstractmethod
    def providers(self) -> list[str]:
        """What runs the model, the first first."""

    @property
    def placement(self) -> Mapping[str, Any] | None:
        """Which part of the runtime runs how many nodes; None where there is one part alone."""
        return None

    @property
    @abstractmethod
    def input_names(self) -> list[str]: ...

    @property
    @abstractmethod
    def output_names(self) -> list[str]: ...

    @abstractmethod
    def _answer(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> Sequence[np.ndarray]:
        """The outputs in order; may raise whatever the runtime raises."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """All of :data:`~rekd_edge.types.OUTPUTS` for one batch, and those of a pair."""
        if self._answered is None:
            has = set(self.output_names)
            self._answered = (*OUTPUTS, *(name for name in PAIR_OUTPUTS if name in has))
        return Outputs(**self.run_named(inputs, self._answered))

    def run_named(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The named outputs. Inputs that the graph does not take are left out.

        Raises :class:`RunError` when the runtime refuses the inputs or fails.
        """
        if self._wanted is None:
            self._wanted = tuple(self.input_names)
        wanted = self._wanted
        missing = set(wanted) - inputs.keys()
        if missing:
            raise UsageError(f"inputs missing: {', '.join(sorted(missing))}")
        try:
            answers = self._answer({name: inputs[name] for name in wanted}, outputs)
        except Exception as error:  # runtimes' exceptions share no base class
            shapes = ", ".join(f"{name} {inputs[name].shape}" for name in sorted(wanted))
            raise RunError(f"{self.runtime} failed on {shapes}: {first_line(error)}") from error
        return dict(zip(outputs, answers, strict=True))

    @property
    def model_name(self) -> str:
        return "the graph" if isinstance(self.model, bytes) else str(self.model)

    def _opened(self) -> Any:
        if self._session is None:
            raise UsageError("the runner is not open", hint="use it in a `with` statement")
        return self._session


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
