"""A fused model, compiled for this machine."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekd_edge.data.storage import sha256_of
from rekd_edge.engines.spec import Profile
from rekd_edge.errors import BackendError, IntegrityError
from rekd_edge.packages.backend import (
    Host,
    cxx,
    find_host,
    instruction_set,
    load_torch_tensorrt,
    prepare_setuptools,
)
from rekd_edge.packages.exact import exact_fp32
from rekd_edge.packages.spec import MadeOf, PackageInput, PackageRecord, PackageSpec
from rekd_edge.packages.store import (
    PACKAGE_FILE,
    StoredPackage,
    packages_dir,
    place_of,
    read_package,
    write_record,
)

if TYPE_CHECKING:
    import torch

    from rekd_edge.fuse.fused import DeployModel
    from rekd_edge.types import IoSpec

NOISY = ("torch", "torch._inductor", "torch._dynamo", "torch.utils.cpp_extension", "torch_tensorrt")


def compiler_options() -> dict[str, Any]:
    """For AOTInductor. The number of threads is the caller's, not that of the machine's first
    compilation; the compiler is the one that was found, where torch by itself looks for g++."""
    found = cxx()
    return {"cpp.dynamic_threads": True, **({} if found is None else {"cpp.cxx": (None, found)})}


def made_of(
    spec: PackageSpec,
    host: Host,
    io_spec: IoSpec,
    *,
    onnx_sha256: str,
    weights_sha256: str,
    profiles: Mapping[str, Profile],
    max_length: int | None,
) -> MadeOf:
    """What a package would be made of on this machine."""
    on_gpu, by_tensorrt = host.device is not None, spec.backend == "torch-trt"
    return MadeOf(
        backend=spec.backend,
        device=spec.device,
        onnx_sha256=onnx_sha256,
        weights_sha256=weights_sha256,
        torch=host.torch,
        torch_tensorrt=host.torch_tensorrt,
        tensorrt=host.tensorrt,
        machine=platform.machine(),
        instruction_set="" if on_gpu else instruction_set(),
        compute_capability=host.device.compute_capability if host.device else None,
        device_name=host.device.name if host.device and by_tensorrt else None,
        driver=host.device.driver if host.device and by_tensorrt else None,
        profiles=dict(profiles) if by_tensorrt else {},
        inputs=tuple(
            PackageInput(
                name=tensor.name,
                dtype=tensor.dtype,
                axes=tuple(axis.name for axis in tensor.axes),
                sizes=tuple(axis.size for axis in tensor.axes),
            )
            for tensor in io_spec.inputs
        ),
        outputs=tuple(tensor.name for tensor in io_spec.outputs),
        max_length=max_length,
    )


def require_runnable(package: StoredPackage) -> None:
    """Raises :class:`BackendError` unless it was made for this torch and this CPU or GPU, with what
    differs."""
    mine = package.record.made_of
    host = find_host(PackageSpec(backend=mine.backend, device=mine.device))
    needed: list[tuple[str, str | int | None, str | int | None]] = [
        ("torch", mine.torch, host.torch),
        ("torch-tensorrt", mine.torch_tensorrt, host.torch_tensorrt),
        ("TensorRT", mine.tensorrt, host.tensorrt),
        ("processors of kind", mine.machine, platform.machine()),
    ]
    if host.device is None:
        needed.append(("the processor", mine.instruction_set, instruction_set()))
    else:
        needed.append(("SM", mine.compute_capability, host.device.compute_capability))
        if mine.backend == "torch-trt":
            needed.append(("the GPU", mine.device_name, host.device.name))
        if mine.driver is not None:
            needed.append(("driver", mine.driver, host.device.driver))
    differing = [
        f"{what} {theirs} (here: {ours})" for what, theirs, ours in needed if theirs != ours
    ]
    if differing:
        raise BackendError(
            f"{package.path} was compiled for {', '.join(differing)}",
            hint="export the run here with the same target",
        )


def package_for(model: DeployModel, wanted: MadeOf) -> StoredPackage:
    """The package of ``model``: the one that is there, or else compiled now, which takes from
    seconds to minutes.

    Raises :class:`BackendError` where the compiler refuses or runs out of memory; nothing is kept
    then.
    """
    place = place_of(wanted)
    if place.is_dir():
        with suppress(IntegrityError):  # it is only a cache: compiled again
            return read_package(place / PACKAGE_FILE)
    home = packages_dir()
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        home.chmod(0o700)
        work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=home))
    except OSError as error:
        raise BackendError(
            f"{home} cannot be written: {error.strerror or error}",
            hint="packages are kept in the user's cache; name another with REKD_EDGE_CACHE",
        ) from error
    try:
        file = work / PACKAGE_FILE
        started = time.monotonic()
        _compile(model, wanted, file)
        file.chmod(0o600)
        record = PackageRecord(
            made_of=wanted,
            package_sha256=sha256_of(file),
            size_bytes=file.stat().st_size,
            build_s=round(time.monotonic() - started, 1),
        )
        write_record(work, record)
        shutil.rmtree(place, ignore_errors=True)  # what is there is broken
        with suppress(OSError):  # another process was faster, and its package is as good
            os.replace(work, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read_package(place / PACKAGE_FILE)


def _compile(model: DeployModel, wanted: MadeOf, file: Path) -> None:
    import torch

    prepare_setuptools()
    held = copy.deepcopy(model).to(wanted.device).eval()
    inputs = tuple(tensor.to(wanted.device) for tensor in held.example_inputs(batch=2))
    with quiet_compilers(), exact_fp32():
        try:
            if wanted.backend == "torch-trt":
                program = export_program(held, inputs, floats_first=True)
                _compile_with_tensorrt(program, inputs, wanted, file)
            else:
                program = export_program(held, inputs)
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(file), inductor_configs=compiler_options()
                )
        except Exception as error:  # compilers raise whatever they like
            raise _refused(wanted, error) from error


def export_program(
    model: DeployModel, inputs: tuple[torch.Tensor, ...], *, floats_first: bool = False
) -> Any:
    """``model`` as torch's exported program, for every size of the axes that have no fixed one.

    With ``floats_first`` 8-bit inputs are turned into floats before anything else, which TensorRT
    asks for; the answers stay the same to the last bit (:mod:`rekd_edge.convert.pixels`).
    """
    import torch

    from rekd_edge.convert.to_onnx import dynamic_shapes

    class FloatsFirst(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            floats = (one.float() if one.dtype == torch.uint8 else one for one in inputs)
            return self.model(*floats)

    shapes = dynamic_shapes(model, model.io_spec())
    exported = FloatsFirst().eval() if floats_first else model
    with torch.no_grad():
        return torch.export.export(exported, inputs, dynamic_shapes=shapes)


def free_axes(compiled: Any, inputs: Sequence[PackageInput]) -> dict[str, dict[int, Any]]:
    """The axes that have no fixed size, by the names that ``compiled.forward`` has for ``inputs``,
    as torch.export takes them. No axis is given bounds: two inputs share theirs, and what is
    computed from a bounded one, as the number of slots is, would be a guard that fails.

    Raises ValueError where ``forward`` takes another number of inputs.
    """
    import torch

    names = inspect.signature(compiled.forward).parameters
    return {
        name: {
            axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(one.sizes) if size is None
        }
        for name, one in zip(names, inputs, strict=True)
    }


def _compile_with_tensorrt(
    program: Any, inputs: tuple[torch.Tensor, ...], wanted: MadeOf, file: Path
) -> None:
    """torch-tensorrt's engines inside one of AOTInductor's packages: of its formats, that one holds
    no pickle that Python reads (an ExportedProgram does; of the engines see
    :func:`~rekd_edge.packages.store.require_no_pickle`). Strongly typed, without TF32. Not run yet:
    written after torch-tensorrt 2.14."""
    import torch

    tensorrt = load_torch_tensorrt()
    kinds = {"int64": torch.int64, "float32": torch.float32, "uint8": torch.uint8}
    served = [
        tensorrt.Input(
            min_shape=wanted.profiles[one.name].min,
            opt_shape=wanted.profiles[one.name].opt,
            max_shape=wanted.profiles[one.name].max,
            dtype=kinds[one.dtype],
            name=one.name,
        )
        for one in wanted.inputs
    ]
    options: dict[str, Any] = {"disable_tf32": True}
    # Its cache of engines is one of pickles.
    options |= {"cache_built_engines": False, "reuse_cached_engines": False}
    if "use_explicit_typing" in inspect.signature(tensorrt.dynamo.compile).parameters:
        options["use_explicit_typing"] = True  # with TensorRT 11 there is nothing else
    compiled = tensorrt.dynamo.compile(program, arg_inputs=served, **options)
    tensorrt.save(
        compiled,
        str(file),
        output_format="aot_inductor",
        retrace=True,
        arg_inputs=inputs,
        dynamic_shapes=free_axes(compiled, wanted.inputs),
        inductor_configs=compiler_options(),
    )


def _refused(wanted: MadeOf, error: Exception) -> BackendError:
    """What stopped a compilation, in one line, and what to do about it."""
    text = f"{type(error).__name__}: {error}"
    lowered = text.lower()
    # A compiler that the system ends for its memory says "Killed".
    if isinstance(error, MemoryError) or any(
        word in lowered for word in ("out of memory", "outofmemory", "killed signal", "bad_alloc")
    ):
        return BackendError(
            f"{wanted.backend} ran out of memory while compiling for {wanted.device}",
            hint="free some, or compile with one job at a time: TORCHINDUCTOR_COMPILE_THREADS=1",
        )
    if "no space left" in lowered:
        return BackendError(
            f"{wanted.backend}: no space left while compiling for {wanted.device}",
            hint="free some in the temporary folder and the cache",
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return BackendError(
        f"{wanted.backend} could not compile the model for {wanted.device}: "
        f"{type(error).__name__}: {first[:300]}",
        hint="the bundle's model.onnx answers without it (--target onnx)",
    )


@contextmanager
def quiet_compilers() -> Iterator[None]:
    """The compilers warn and log about their own internals; what matters is checked afterwards."""
    levels = {name: logging.getLogger(name).level for name in NOISY}
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
