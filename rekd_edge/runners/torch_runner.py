"""Runs a fused torch model with the interface of the other runners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np
import torch
from torch import nn

from rekd_edge.errors import UsageError
from rekd_edge.runners.threads import resolve_threads
from rekd_edge.types import OUTPUTS, Outputs


class TorchRunner:
    """A context manager around a fused model in eval mode.

    ``input_names`` gives the order of the model's arguments. ``threads`` are set for the process
    while the runner is open and set back afterwards. The model's own mode is not changed.
    """

    def __init__(
        self, model: nn.Module, input_names: tuple[str, ...], *, threads: int | None = None
    ) -> None:
        self.model = model
        self.input_names = input_names
        self.threads = resolve_threads(threads)
        self._previous_threads: int | None = None

    def __enter__(self) -> TorchRunner:
        if any(module.training for module in self.model.modules()):
            raise UsageError("the model is in training mode", hint="call .eval() on it first")
        self._previous_threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous_threads is not None:
            torch.set_num_threads(self._previous_threads)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """All of :data:`~rekd_edge.types.OUTPUTS` for one batch, and those of a pair."""
        names: tuple[str, ...] = getattr(self.model, "output_names", OUTPUTS)
        return Outputs(**self.run_named(inputs, names))

    def run_named(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The named values of those that the model answers, its ``hidden_names`` among them."""
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[n])) for n in self.input_names]
        with torch.inference_mode():
            answers = self.model(*tensors)
        names = (
            *getattr(self.model, "output_names", OUTPUTS),
            *getattr(self.model, "hidden_names", ()),
        )
        named = dict(zip(names, answers, strict=False))
        return {name: named[name].cpu().numpy() for name in outputs}
