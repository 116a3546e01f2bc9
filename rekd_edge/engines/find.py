"""The engine of a bundle for one GPU: the one that was shipped, or else one built again."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rekd_edge.bundle import Bundle
from rekd_edge.data.storage import cache_dir
from rekd_edge.engines.backend import Device, TensorRt, load_backend, present_device
from rekd_edge.engines.build import BuildListener, build_engines
from rekd_edge.engines.spec import BuildRecipe
from rekd_edge.engines.store import (
    ENGINES_FOLDER,
    StoredEngine,
    read_engines,
    read_recipe,
    runnable,
)
from rekd_edge.errors import BackendError, IntegrityError, UsageError


def bundle_recipe(bundle: Bundle) -> BuildRecipe:
    """The build recipe of a bundle. Raises :class:`UsageError` where it has none,
    :class:`IntegrityError` where it, or a side-car, is not of the bundle's file."""
    folder = bundle.folder / ENGINES_FOLDER
    if not folder.is_dir():
        raise UsageError(
            f"{bundle.folder} was made for no engine",
            hint="export the run with --target trt-rtx or --target trt",
        )
    recipe = read_recipe(folder)
    listed = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    shipped = listed[bundle.model_path.name]
    for name, found in (
        ("recipe.json", recipe),
        *((e.path.name, e.record.recipe) for e in read_engines(folder)),
    ):
        if found.onnx_sha256 != shipped:
            raise IntegrityError(
                f"{folder / name} is of another ONNX file than the bundle's", hint="export it again"
            )
    return recipe


def engine_for(
    bundle: Bundle,
    *,
    compute_capability: int | None = None,
    build: bool = True,
    listener: BuildListener | None = None,
) -> StoredEngine:
    """The engine that may run on this GPU, or on the one named (86 is SM 8.6).

    The bundle's own, or one built before, if nothing about it differs; else it is built from the
    bundle's recipe into the user's cache, and with ``build`` False refused. Raises
    :class:`BackendError` where TensorRT is missing, refuses, or may not build.
    """
    recipe = bundle_recipe(bundle)
    tensorrt = load_backend(recipe.backend)
    present = present_device()
    if compute_capability is None and present is None:
        raise UsageError(
            "there is no GPU here to choose an engine for", hint="name one, e.g. --sm 86"
        )
    device = present
    if present is None or compute_capability not in (None, present.compute_capability):
        assert compute_capability is not None
        device = Device("the GPU named", compute_capability, None, present=False)
    assert device is not None
    wanted = recipe
    if tensorrt.backend.builds_ahead:
        wanted = recipe.model_copy(update={"compute_capabilities": (device.compute_capability,)})
    place = _place(wanted, tensorrt, device)
    engines = [*read_engines(bundle.folder / ENGINES_FOLDER), *_cached(place)]
    try:
        return runnable(engines, recipe, tensorrt.version, device)
    except BackendError:
        if not build:
            raise
    if not tensorrt.backend.builds_ahead and device is not present:
        raise BackendError(
            f"{tensorrt.backend.name} builds for the GPU present alone",
            hint="run this on the device that is meant",
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        build_engines(
            bundle.model_path,
            work,
            wanted,
            tensorrt,
            device=device if device is present else None,
            listener=listener,
        )
        shutil.rmtree(place, ignore_errors=True)  # what is there is broken, or was not found
        with suppress(OSError):  # another process was faster, and its engine is as good
            os.replace(work, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return runnable(read_engines(place), recipe, tensorrt.version, device)


def _place(recipe: BuildRecipe, tensorrt: TensorRt, device: Device) -> Path:
    """Where the user's cache keeps such an engine: another one for all that may differ."""
    ahead = tensorrt.backend.builds_ahead
    bound_to = () if ahead else (str(device.driver), device.name)
    named = (recipe.model_dump_json(), tensorrt.version, *bound_to)
    digest = hashlib.sha256("\n".join(named).encode()).hexdigest()
    return cache_dir() / ENGINES_FOLDER / f"sm{device.compute_capability}-{digest[:24]}"


def _cached(place: Path) -> Iterator[StoredEngine]:
    try:
        yield from read_engines(place)
    except IntegrityError:  # it is only a cache: built again
        return
