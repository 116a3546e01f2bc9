"""Runs an ONNX file in ONNX Runtime on an NVIDIA GPU: all of it, in the graph's own precision.

CUDA's provider and TensorRT's. Neither has been run where this was written: both need a GPU
(docs/tensorrt.md). What is refused without one has been.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rekd_edge.data.storage import cache_dir, write_text
from rekd_edge.engines.backend import Device, present_device
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.runners.onnx_runner import INSTALL_GPU, OnnxRunner, absent
from rekd_edge.runners.placement import RECORD_KEY, own_nodes, placement_of, shape_nodes
from rekd_edge.runtime_options import (
    CUDA_PROVIDER,
    GPU_PROVIDERS,
    TENSORRT_PROVIDER,
    preload_libraries,
    provider_chain,
)

if TYPE_CHECKING:
    import onnx

    from rekd_edge.runners.settings import RuntimeSettings

PROFILE_KEY = "rekd_edge.profiles"
"""Metadata of a file: the sizes that TensorRT is to serve, by input, as JSON."""
CACHE_FOLDER = "ort-trt"
RECORD_FILE = "made-of.json"


class CudaRunner(OnnxRunner):
    """A context manager around one session on a GPU.

    Arguments as of :class:`~rekd_edge.runners.OnnxRunner`. ``cuda_graph`` lets the session capture
    its work once and launch it as a whole; inputs and outputs must then stay where they are.

    Raises :class:`BackendError` without a GPU, without the provider or its libraries, and where any
    part of the graph but the arithmetic of shapes would run on the CPU, with its nodes.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        provider: str = CUDA_PROVIDER,
        settings: RuntimeSettings | None = None,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(model, threads=threads, provider=provider, settings=settings)
        self.cuda_graph = cuda_graph
        self._placement: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        ort, device = _require(self.provider)
        said = preload_libraries(ort, self.provider)
        proto = self._proto()
        try:
            with _quiet(ort), self._environment():
                self._open(ort, self._chain(proto, ort.__version__, device))
        except BackendError as error:
            raise BackendError(error.message, hint=_libraries(ort, said)) from error
        self._require_options()
        found = placement_of(self._session, self.provider)
        found.require(shape_nodes(proto), own_nodes(proto))
        self._placement = found.to_json()
        return self

    @property
    def placement(self) -> Mapping[str, Any] | None:
        return self._placement

    def _proto(self) -> onnx.ModelProto:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            if isinstance(self.model, bytes):
                return onnx.load_model_from_string(self.model)
            return onnx.load(str(self.model))
        except (OSError, DecodeError) as error:
            raise BackendError(f"{self.model_name} cannot be read as an ONNX file") from error

    def _chain(
        self, proto: onnx.ModelProto, ort_version: str, device: Device
    ) -> list[tuple[str, dict[str, str]]]:
        graph = {"enable_cuda_graph": "1"} if self.cuda_graph else {}
        return provider_chain(self.provider, cuda=graph)

    def _entries(self) -> dict[str, str]:
        return {RECORD_KEY: "1"}

    @contextmanager
    def _environment(self) -> Iterator[None]:
        yield

    def _require_options(self) -> None:
        """Raises :class:`BackendError` where the session does not have the options asked for."""
        used = self._opened().get_provider_options()
        for provider, options in self.start_options["providers"]:
            for name, value in options.items():
                found = used.get(provider, {}).get(name)
                if found is not None and _plain(found) != _plain(value):
                    raise BackendError(
                        f"asked {provider} for {name}={value}, it would run with {found}"
                    )


def require_provider(provider: str) -> None:
    """Raises :class:`BackendError` where a provider for GPUs is asked for and not installed, or has
    no GPU. Whether its libraries load is seen when a file is opened."""
    if provider in GPU_PROVIDERS:
        _require(provider)


def _require(provider: str) -> tuple[Any, Device]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(
            f"{provider} needs the package onnxruntime-gpu", hint=INSTALL_GPU
        ) from error
    available = ort.get_available_providers()
    if provider not in available:
        raise absent(provider, available)
    device = present_device()
    if device is None:
        raise BackendError(
            f"{provider} needs a CUDA GPU, and there is none here (onnxruntime-gpu lists its "
            "providers all the same, and would run on the CPU)",
            hint="without one, a target for the CPU answers: --target onnx",
        )
    return ort, device


class TensorRtProviderRunner(CudaRunner):
    """TensorRT inside ONNX Runtime; what TensorRT does not take runs on CUDA.

    The sizes to serve are in the file (:data:`PROFILE_KEY`, from ``sizes`` of its target). Engines
    are kept in the user's cache, in a folder of their own for each file, GPU, driver, version and
    profile, with a record of it.
    """

    def _chain(
        self, proto: onnx.ModelProto, ort_version: str, device: Device
    ) -> list[tuple[str, dict[str, str]]]:
        stated = {item.key: item.value for item in proto.metadata_props}
        profiles = profile_options(stated.get(PROFILE_KEY, "{}"), dynamic_inputs(proto))
        content = self.model if isinstance(self.model, bytes) else self.model.read_bytes()
        made_of = {
            "onnx_sha256": hashlib.sha256(content).hexdigest(),
            "compute_capability": device.compute_capability,
            "driver": device.driver,
            "onnxruntime": ort_version,
            "tensorrt": tensorrt_version(),
            "profiles": profiles,
        }
        place = cache_place(made_of)
        options = {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(place),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(place),
            **({"trt_cuda_graph_enable": "True"} if self.cuda_graph else {}),
            **profiles,
        }
        return provider_chain(TENSORRT_PROVIDER, tensorrt=options)

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """TensorRT rounds fp32 products to TF32 unless told; the provider has no option for it."""
        name = "NVIDIA_TF32_OVERRIDE"
        before = os.environ.get(name)
        os.environ[name] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def profile_options(stated: str, dynamic: Sequence[str]) -> dict[str, str]:
    """``trt_profile_*_shapes`` from the metadata of a file, and nothing where an input with a
    dynamic size is not named (a graph cut out of the file): TensorRT then takes what it sees.

    Raises :class:`UsageError` for metadata that says no shapes.
    """
    try:
        profiles = json.loads(stated)
        if not set(dynamic) <= profiles.keys() or not dynamic:
            return {}
        return {
            f"trt_profile_{which}_shapes": ",".join(
                f"{name}:{'x'.join(str(int(size)) for size in profiles[name][which])}"
                for name in sorted(dynamic)
            )
            for which in ("min", "opt", "max")
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"the metadata {PROFILE_KEY} of the file says no shapes", hint="export it again"
        ) from error


def dynamic_inputs(proto: onnx.ModelProto) -> list[str]:
    """Inputs with an axis whose size is not fixed."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [
        value.name
        for value in proto.graph.input
        if value.name not in constants
        and any(not axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim)
    ]


def cache_place(made_of: Mapping[str, Any]) -> Path:
    """A folder of the user's cache for engines of exactly this, with the record of it."""
    record = json.dumps(made_of, indent=2, sort_keys=True)
    digest = hashlib.sha256(record.encode()).hexdigest()[:24]
    place = cache_dir() / CACHE_FOLDER / f"sm{made_of['compute_capability']}-{digest}"
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (place / RECORD_FILE).is_file():
        write_text(place / RECORD_FILE, record + "\n")
    return place


def tensorrt_version() -> str | None:
    """Of the package; None where TensorRT is the system's."""
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


@contextmanager
def _quiet(ort: Any) -> Iterator[None]:
    """Keeps what onnxruntime logs about providers that it cannot load off standard error."""
    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


def _libraries(ort: Any, said: str) -> str:
    """What to do where a provider that is there does not load."""
    wanted = str(getattr(ort, "cuda_version", "") or "")
    first = next(iter(said.splitlines()), "")
    needs = f"this onnxruntime-gpu is built for CUDA {wanted}" if wanted else "its CUDA libraries"
    more = f". It could not load: {first}" if first else ""
    if "curand" in first:
        more += " (pip install nvidia-curand: torch does not bring it)"
    return (
        f"{needs} and needs those libraries, cuDNN 9 and a driver for them (TensorRT's provider: "
        f"TensorRT's libraries, too); torch's are taken where they are of the same CUDA{more}"
    )


def _plain(value: str) -> str:
    return {"True": "1", "False": "0", "true": "1", "false": "0"}.get(str(value), str(value))
