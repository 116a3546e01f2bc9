"""What a figure was measured on: versions and hardware, for every report; and the memory that is
free."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "timm",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "torch-tensorrt",
)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in ("rekd-edge", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def running_s() -> float:
    """Seconds since this process was started: what Python and torch took to load is in them."""
    import psutil

    return time.time() - psutil.Process().create_time()


def imported_onnxruntime() -> dict[str, str] | None:
    """The onnxruntime that ``import`` gives: its ``version``, and its ``distribution`` where that
    is clear. ``onnxruntime`` and ``onnxruntime-gpu`` are the same module: of two that are
    installed, the first on the module path runs."""
    try:
        import onnxruntime
    except ImportError:
        return None
    found = {"version": str(onnxruntime.__version__)}
    place = Path(str(onnxruntime.__file__)).resolve().parent
    owners = {
        name
        for name in PACKAGES
        if name.startswith("onnxruntime")
        for one in distributions(name=name)
        if one.version == found["version"]
        and Path(str(one.locate_file("onnxruntime"))).resolve() == place
    }
    return found if len(owners) != 1 else found | {"distribution": owners.pop()}


def onnxruntime_of(result: Mapping[str, Any]) -> str:
    """What a result says of the onnxruntime that ran, with its version; older ones have the
    installed package's alone."""
    found = result.get("onnxruntime") or {"version": result["versions"].get("onnxruntime", "-")}
    return f"{found.get('distribution', 'onnxruntime')} {found['version']}"


def hardware() -> dict[str, Any]:
    """Processor name, usable cores and system; no host name."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {
        "processor": _processor_name(),
        "cores": cores,
        "machine": platform.machine(),
        "system": platform.system(),
    }


def _processor_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def free_memory_bytes(
    cgroup_root: Path = Path("/sys/fs/cgroup"), own_cgroups: Path = Path("/proc/self/cgroup")
) -> int:
    """Memory that this process may still take: what the machine has available, capped by what the
    limits of its cgroups leave (v2 ``memory.max`` or v1, those of the groups above it too)."""
    import psutil

    free = [int(psutil.virtual_memory().available)]
    try:
        lines = own_cgroups.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        number, kinds, place = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not kinds:
            root, files = cgroup_root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root = cgroup_root / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / place.lstrip("/")
        groups = [one for one in (group, *group.parents) if one.is_relative_to(root)]
        found = [_left_in(one, *files) for one in {*groups, root}]
        free += [left for left in found if left is not None]
    return min(free)


def _left_in(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """What a cgroup's limit leaves, files cached and not in use not counted; None: no limit."""
    try:
        most = int((group / limit).read_text(encoding="ascii"))
        used = int((group / usage).read_text(encoding="ascii"))
        statistics = (group / "memory.stat").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no such group, or "max"
        return None
    figures = dict(zip(statistics[::2], statistics[1::2], strict=False))
    return max(0, most - used + int(figures.get(reclaimable, 0)))
