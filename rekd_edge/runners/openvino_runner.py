"""Runs an ONNX file in OpenVINO on the CPU, in fp32 or not at all.

OpenVINO reads the checked ONNX file itself (docs/adr/0012): what was proven is what runs. On CPUs
with AMX it would compute in bf16 unless told otherwise, so the precision is asked for and then
read back from the compiled model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rekd_edge.errors import BackendError
from rekd_edge.runners.file_runner import FileRunner, first_line
from rekd_edge.runners.threads import resolve_threads
from rekd_edge.runtime_options import compile_options
from rekd_edge.types import OUTPUTS, PAIR_OUTPUTS

if TYPE_CHECKING:
    from rekd_edge.runners.settings import RuntimeSettings

DEVICE = "CPU"
INSTALL = "pip install 'rekd-edge[openvino]'"


class OpenVinoRunner(FileRunner):
    """A context manager around one compiled model and its request.

    Arguments and errors as of :class:`~rekd_edge.runners.OnnxRunner`; of ``settings`` only the
    threads mean anything here. Raises :class:`BackendError` too where the compiled model would
    compute in another precision, or on other devices or threads, than asked for. A token or a
    position that the embeddings do not have is read as zeros, without an error.
    """

    runtime = "openvino"

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        provider: str = DEVICE,
        settings: RuntimeSettings | None = None,
    ) -> None:
        super().__init__(model, resolve_threads(threads, settings.threads if settings else None))
        self.provider = provider
        self._compiled: Any = None
        self._sizes: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> Self:
        try:
            import openvino
        except ImportError as error:
            raise BackendError(
                "running a model in OpenVINO needs the package openvino", hint=INSTALL
            ) from error
        core = openvino.Core()
        if self.provider not in core.available_devices:
            raise BackendError(
                f"this OpenVINO has no device {self.provider} "
                f"(it has {', '.join(core.available_devices) or 'none'})"
            )
        source = self.model if isinstance(self.model, bytes) else str(self.model)
        try:
            model = core.read_model(source)
            compiled = core.compile_model(model, self.provider, compile_options(self.threads))
        except Exception as error:
            raise BackendError(
                f"openvino {openvino.__version__} cannot load {self.model_name}: "
                f"{first_line(error)}"
            ) from error
        self._require(compiled)
        self._compiled = compiled
        # Named by the node: one tensor may have gathered several names.
        self._sizes = {
            port.get_node().get_friendly_name(): tuple(
                -1 if axis.is_dynamic else axis.get_length() for axis in port.partial_shape
            )
            for port in compiled.inputs
        }
        self._session = compiled.create_infer_request()
        return self

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        self._compiled = None

    def _require(self, compiled: Any) -> None:
        found = {
            "precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "devices": list(compiled.get_property("EXECUTION_DEVICES")),
        }
        asked = {"precision": "f32", "threads": self.threads, "devices": [self.provider]}
        if found != asked:
            raise BackendError(f"asked OpenVINO for {asked}, it would run with {found}")

    @property
    def providers(self) -> list[str]:
        self._opened()
        return list(self._compiled.get_property("EXECUTION_DEVICES"))

    @property
    def input_names(self) -> list[str]:
        self._opened()
        return list(self._sizes)

    @property
    def output_names(self) -> list[str]:
        self._opened()
        known = (*OUTPUTS, *PAIR_OUTPUTS)
        names = [value.get_names() for value in self._compiled.outputs]
        return [min(found, key=lambda name: (name not in known, name)) for found in names]

    def _answer(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> Sequence[np.ndarray]:
        for name, sizes in self._sizes.items():  # OpenVINO itself would take any shape
            given = feeds[name].shape
            fits = len(given) == len(sizes)
            if not fits or any(b not in (-1, a) for a, b in zip(given, sizes, strict=True)):
                raise ValueError(f"{name} must be {list(sizes)} (-1: any size)")
        answers = self._opened().infer(dict(feeds))
        return [answers[name] for name in outputs]
