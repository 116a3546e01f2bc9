"""How many CPU cores this process may really use.

``os.cpu_count`` counts the machine's cores, also inside a container that may use one of them
(onnxruntime#8313). Here the affinity mask and the cgroup's quota are asked.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from rekd_edge.errors import UsageError


def available_cores(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores open to this process: the affinity mask, capped by the cgroup's CPU quota; >= 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    quota = cpu_quota(cgroup_root)
    if quota is not None:
        cores = min(cores, max(1, math.ceil(quota)))
    return max(1, cores)


def cpu_quota(cgroup_root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPU quota in cores from cgroup v2 (``cpu.max``) or v1 (``cfs_quota_us``); None: no limit."""
    try:
        quota, period = (cgroup_root / "cpu.max").read_text(encoding="ascii").split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = int((cgroup_root / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((cgroup_root / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def resolve_threads(
    threads: int | None,
    stored: int | None = None,
    cgroup_root: Path = Path("/sys/fs/cgroup"),
) -> int:
    """The number of intra-operator threads: as asked, or else all available cores, of which
    ``stored`` (a bundle's setting, perhaps from a larger machine) takes no more than there are."""
    if threads is None:
        available = available_cores(cgroup_root)
        return available if stored is None else min(stored, available)
    if threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    return threads
