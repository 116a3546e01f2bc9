"""Models whose inputs and outputs stay on a device, so that transfers can be timed apart.

Each is placed (inputs to the device), launched, and fetched (outputs to the host). The same classes
run on the CPU, where a transfer is a copy and CUDA graphs do not exist.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rekd_edge.errors import BackendError
from rekd_edge.packages.exact import exact_fp32 as exact_fp32
from rekd_edge.runners.file_runner import first_line

if TYPE_CHECKING:
    from rekd_edge.runners import OnnxRunner, TensorRtRunner

Inputs = Mapping[str, np.ndarray]
_WARM_UPS = 3
"""Before a graph is captured: kernels are chosen and memory is taken in the first runs."""
_ONE_LAUNCH = "one launch of a CUDA graph"


class Resident(ABC):
    """One model on ``device``. ``on_stream`` says whether its work is on torch's current stream,
    where CUDA events see it."""

    on_stream = True

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    @abstractmethod
    def place(self, inputs: Inputs) -> None:
        """Copies inputs of one and the same shape, again and again, to where they stay."""

    @abstractmethod
    def launch(self) -> None:
        """Starts the work on what was placed; it may still run when this returns."""

    @abstractmethod
    def fetch(self) -> dict[str, np.ndarray]:
        """The outputs on the host."""

    @property
    def gpu_span(self) -> str:
        """What lies between two events around :meth:`launch`."""
        return "from the first launch to the last, the gaps between them included"

    def events(self) -> tuple[Any, Any] | None:
        """Two CUDA events for torch's current stream; None where they would not see the work."""
        if self.device.type != "cuda" or not self.on_stream:
            return None
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Buffers:
    """Static tensors on a device, by name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held: dict[str, torch.Tensor] = {}

    def place(self, inputs: Inputs, names: Sequence[str]) -> bool:
        """Whether they are new: their addresses have changed."""
        host = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names}
        same = self.held.keys() == host.keys() and all(
            (self.held[name].shape, self.held[name].dtype) == (value.shape, value.dtype)
            for name, value in host.items()
        )
        if not same:
            self.held = {
                n: torch.empty_like(value, device=self.device) for n, value in host.items()
            }
        for name, value in host.items():
            self.held[name].copy_(value)
        return not same


class _Captured:
    """Work that was captured as a CUDA graph once and is launched as a whole."""

    def __init__(self, work: Callable[[], Any]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.answers = work()


class TorchResident(Resident):
    """``model(*inputs)`` answering a tuple: a module, one compiled by torch, or a package.

    ``half`` lets autocast do products in fp16. Raises :class:`BackendError` from ``place`` where
    the work cannot be captured as a CUDA graph.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        device: str,
        half: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(device)
        self._model = model
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._half = half
        self._wants_graph = cuda_graph
        self._buffers = _Buffers(self.device)
        self._captured: _Captured | None = None
        self._answers: Any = None

    def place(self, inputs: Inputs) -> None:
        moved = self._buffers.place(inputs, self._inputs)
        if self._wants_graph and (moved or self._captured is None):
            self._captured = None
            try:
                self._captured = _Captured(self._work)
            except RuntimeError as error:
                raise BackendError(f"no CUDA graph: {first_line(error)}") from error

    @property
    def gpu_span(self) -> str:
        return super().gpu_span if self._captured is None else _ONE_LAUNCH

    def _work(self) -> Any:
        kind = self.device.type
        with torch.inference_mode(), torch.autocast(kind, torch.float16, enabled=self._half):
            return self._model(*(self._buffers.held[name] for name in self._inputs))

    def launch(self) -> None:
        if self._captured is None:
            self._answers = self._work()
        else:
            self._captured.graph.replay()

    def fetch(self) -> dict[str, np.ndarray]:
        answers = self._answers if self._captured is None else self._captured.answers
        found = zip(self._outputs, answers, strict=False)  # the student answers two more
        return {
            name: (value.float() if value.is_floating_point() else value).cpu().numpy()
            for name, value in found
        }


@contextmanager
def _said_by_runtime() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BackendError(f"onnxruntime failed: {first_line(error)}") from error


class OnnxResident(Resident):
    """An open session with bound inputs and outputs. Its work is on a stream of its own, and done
    when ``launch`` returns.

    A session that captures CUDA graphs keeps one for each ``gpu_graph_id``, with the addresses that
    were bound then: whatever is bound anew has an id of its own (0 is onnxruntime's)."""

    on_stream = False

    def __init__(self, runner: OnnxRunner, *, device: str) -> None:
        super().__init__(device)
        self._session = runner.session
        self._inputs, self._outputs = tuple(runner.input_names), tuple(runner.output_names)
        self._held: dict[str, Any] = {}
        self._answers: list[Any] = []
        self._binding: Any = None
        self._options: Any = None
        self._bound = 0

    def place(self, inputs: Inputs) -> None:
        with _said_by_runtime():
            self._place(inputs)

    def _place(self, inputs: Inputs) -> None:
        arrays = {name: np.ascontiguousarray(inputs[name]) for name in self._inputs}
        same = self._held.keys() == arrays.keys() and all(
            tuple(self._held[name].shape()) == array.shape for name, array in arrays.items()
        )
        if same:
            for name, array in arrays.items():
                self._held[name].update_inplace(array)
            return
        import onnxruntime as ort

        kind = self.device.type
        self._held = {
            name: ort.OrtValue.ortvalue_from_numpy(array, kind, 0) for name, array in arrays.items()
        }
        # The shapes of the outputs are known once they have been computed; -1: not captured.
        aside = ort.RunOptions()
        aside.add_run_config_entry("gpu_graph_id", "-1")
        sizes = self._session.run(list(self._outputs), arrays, aside)
        self._answers = [
            ort.OrtValue.ortvalue_from_shape_and_type(one.shape, one.dtype, kind, 0)
            for one in sizes
        ]
        self._binding = self._session.io_binding()
        for name, value in self._held.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._outputs, self._answers, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._bound += 1
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(self._bound))

    def launch(self) -> None:
        with _said_by_runtime():
            self._session.run_with_iobinding(self._binding, self._options)

    def fetch(self) -> dict[str, np.ndarray]:
        found = zip(self._outputs, self._answers, strict=True)
        return {name: value.numpy() for name, value in found}


class EngineResident(Resident):
    """An open TensorRT engine on its runner's stream, which waits for torch's current one and is
    waited for by it: events on the current stream lie around the work. Not run yet: it needs a
    GPU."""

    def __init__(self, runner: TensorRtRunner, *, cuda_graph: bool = False) -> None:
        super().__init__("cuda")
        self._runner = runner
        self._wants_graph = cuda_graph
        self._buffers = _Buffers(self.device)
        self._captured: _Captured | None = None
        self._answers: dict[str, torch.Tensor] = {}

    def place(self, inputs: Inputs) -> None:
        if not self._buffers.place(inputs, self._runner.input_names):
            return
        self._answers = self._runner.bind(self._buffers.held)
        if self._wants_graph:
            try:
                self._captured = _Captured(self._work)
            except RuntimeError as error:
                raise BackendError(f"no CUDA graph: {first_line(error)}") from error

    @property
    def gpu_span(self) -> str:
        return super().gpu_span if self._captured is None else _ONE_LAUNCH

    def _work(self) -> None:
        self._runner.enqueue(torch.cuda.current_stream())

    def launch(self) -> None:
        if self._captured is not None:
            self._captured.graph.replay()
            return
        here, own = torch.cuda.current_stream(), self._runner.stream
        own.wait_stream(here)
        with torch.cuda.stream(own):
            self._work()
        here.wait_stream(own)

    def fetch(self) -> dict[str, np.ndarray]:
        return {name: value.cpu().numpy() for name, value in self._answers.items()}
