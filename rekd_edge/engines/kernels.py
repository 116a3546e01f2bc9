"""Kernels that TensorRT-RTX compiles on the GPU, kept in the user's cache.

An engine built ahead holds no kernels of its GPU; they are compiled when it is opened and run. By
default a shape is answered with a fallback until its own kernel is ready, so that answers and
timings would be of one kernel and later of another. Here a shape's first run waits for its kernel.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from rekd_edge.data.storage import cache_dir, write_bytes
from rekd_edge.engines.backend import Device

KERNELS_FOLDER = "rtx-kernels"


def kernels_path(engine_sha256: str, device: Device) -> Path:
    """Where the kernels of an engine are kept: another place for each GPU model and driver."""
    named = "\n".join((engine_sha256, device.name, str(device.driver)))
    digest = hashlib.sha256(named.encode()).hexdigest()[:24]
    return cache_dir() / KERNELS_FOLDER / f"sm{device.compute_capability}-{digest}.cache"


def runtime_config(module: Any, engine: Any, path: Path) -> tuple[Any, Any]:
    """How an engine of TensorRT-RTX is to be run, and its cache of kernels with what ``path`` has;
    None where TensorRT-RTX does not take one. Needs a current CUDA context."""
    config = engine.create_runtime_config()
    strategies = module.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    cache = config.create_runtime_cache()
    stored = _own(path)
    if stored:
        cache.deserialize(stored)  # of another GPU or version: it refuses them and stays empty
    return config, cache if config.set_runtime_cache(cache) else None


def keep_kernels(cache: Any, path: Path) -> None:
    """Writes the kernels, whole or not at all. It is only a cache: what the file system refuses is
    compiled again."""
    found = cache.serialize()
    content = b"" if found is None else bytes(memoryview(found))
    if not content or content == _own(path):
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, content)


def _own(path: Path) -> bytes | None:
    """The bytes of a file that this user wrote and nobody else may write to; they are code."""
    try:
        if hasattr(os, "getuid"):
            for one in (path.parent, path):
                found = one.stat()
                if found.st_uid != os.getuid() or found.st_mode & 0o022:
                    return None
        return path.read_bytes()
    except OSError:
        return None
