"""Runs a TensorRT engine on a CUDA GPU, through torch's tensors and a stream of its own.

Nothing of it has been run yet where this was written: it needs a GPU (docs/tensorrt.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rekd_edge.engines.backend import Device, load_backend, present_device
from rekd_edge.engines.builder import log_of, runtime_of
from rekd_edge.engines.kernels import keep_kernels, kernels_path, runtime_config
from rekd_edge.engines.store import read_engine, runnable
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.runners.file_runner import FileRunner

if TYPE_CHECKING:
    import torch

    from rekd_edge.runners.settings import RuntimeSettings


class TensorRtRunner(FileRunner):
    """A context manager around one engine and its execution context.

    ``model`` is an engine with its side-car beside it. Raises :class:`IntegrityError` where the two
    do not belong together, :class:`BackendError` without a GPU or TensorRT, and where the engine is
    of another GPU, TensorRT or driver: it is never loaded then. ``threads``, ``provider`` and
    ``settings`` are those of other runtimes and mean nothing here. With TensorRT-RTX the first run
    at a shape waits for its kernels, which are kept when the runner is closed
    (:mod:`rekd_edge.engines.kernels`).
    """

    runtime = "tensorrt"

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        provider: str = "",
        settings: RuntimeSettings | None = None,
    ) -> None:
        super().__init__(model, 1)
        self._kept: tuple[Any, ...] = ()
        self._kernels: tuple[Any, Path] | None = None
        self._log: Any = None
        self._stream: Any = None
        self._device: Device | None = None
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    def __enter__(self) -> Self:
        if isinstance(self.model, bytes):
            raise UsageError("an engine is run from its file: its side-car lies beside it")
        stored = read_engine(self.model)
        record = stored.record
        device = present_device()  # asked first: TensorRT's runtime may crash without one
        if device is None:
            raise BackendError(
                f"running {self.model.name} needs a CUDA GPU, and there is none here",
                hint="without one, the bundle's model.onnx answers in ONNX Runtime",
            )
        tensorrt = load_backend(record.recipe.backend)
        runnable([stored], record.recipe, tensorrt.version, device)
        module, log = tensorrt.module, log_of(tensorrt.module)
        runtime = runtime_of(tensorrt, log)
        if record.recipe.version_compatible:
            runtime.engine_host_code_allowed = True
        import torch

        self._stream = torch.cuda.Stream()  # and with it a CUDA context
        engine = runtime.deserialize_cuda_engine(self.model.read_bytes())
        context, config, cache = None, None, None
        if engine is not None and tensorrt.backend.builds_ahead:
            place = kernels_path(record.engine_sha256, device)
            config, cache = runtime_config(module, engine, place)
            context = engine.create_execution_context(config)
            self._kernels = None if cache is None else (cache, place)
        elif engine is not None:
            context = engine.create_execution_context()
        if engine is None or context is None:
            raise BackendError(
                f"{record.recipe.backend} {tensorrt.version} cannot load {self.model}: "
                + ("; ".join(log.errors) or "it gives no reason")
            )
        self._kept = (runtime, engine, config)  # TensorRT does not keep them alive itself
        self._log, self._session, self._device = log, context, device
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {n: engine.get_tensor_mode(n) == module.TensorIOMode.INPUT for n in names}
        self._inputs = [name for name in names if is_input[name]]
        self._outputs = [name for name in names if not is_input[name]]
        kinds = {
            module.DataType.FLOAT: torch.float32,
            module.DataType.BOOL: torch.bool,
            module.DataType.INT64: torch.int64,
            module.DataType.UINT8: torch.uint8,
        }
        self._kinds = {name: kinds[engine.get_tensor_dtype(name)] for name in names}
        return self

    def __exit__(self, *problem: Any) -> None:
        try:
            if self._kernels is not None:
                keep_kernels(*self._kernels)
        finally:
            super().__exit__(*problem)
            self._stream = None
            self._kernels = None
            self._kept = ()

    @property
    def providers(self) -> list[str]:
        self._opened()
        assert self._device is not None
        return [f"{self._device.name} (SM {self._device.compute_capability})"]

    @property
    def input_names(self) -> list[str]:
        self._opened()
        return list(self._inputs)

    @property
    def output_names(self) -> list[str]:
        self._opened()
        return list(self._outputs)

    @property
    def stream(self) -> torch.cuda.Stream:
        """The runner's own. On CUDA's default stream TensorRT would synchronise more than it has
        to, and say so in its log."""
        self._opened()
        return self._stream

    def bind(self, held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Points the context at inputs on the GPU; the outputs that it will write, by name.

        Raises ValueError for types or shapes that the engine does not serve.
        """
        import torch

        context = self._opened()
        for name, tensor in held.items():
            if tensor.dtype != self._kinds[name]:
                raise ValueError(f"{name} is {tensor.dtype}, must be {self._kinds[name]}")
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise ValueError(f"{name} {tuple(tensor.shape)} is no shape of this engine")
        answers = {
            name: torch.empty(
                tuple(context.get_tensor_shape(name)), dtype=self._kinds[name], device="cuda"
            )
            for name in self._outputs
        }
        for name, tensor in {**held, **answers}.items():
            context.set_tensor_address(name, tensor.data_ptr())
        return answers

    def enqueue(self, stream: torch.cuda.Stream) -> None:
        """Starts the engine on what is bound. Raises RuntimeError with TensorRT's reason."""
        if not self._opened().execute_async_v3(stream.cuda_stream):
            raise RuntimeError("; ".join(self._log.errors) or "the engine failed")

    def _answer(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> Sequence[np.ndarray]:
        import torch

        self._opened()
        with torch.cuda.stream(self._stream):
            held = {
                name: torch.from_numpy(np.ascontiguousarray(array)).cuda()
                for name, array in feeds.items()
            }
            answers = self.bind(held)
            self.enqueue(self._stream)
        self._stream.synchronize()
        return [answers[name].cpu().numpy() for name in outputs]
