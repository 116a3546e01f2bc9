"""Statistics of latencies, and what is known about the machine they were taken on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from rekd_edge.runners.threads import available_cores, cpu_quota

PERCENTILES = ("50", "90", "95", "97", "99", "99.9")
"""MLPerf LoadGen's percentiles."""


def latency_percentiles(samples_ns: np.ndarray) -> dict[str, int]:
    """Percentile to nanoseconds; each is a sample that was really seen."""
    values = np.percentile(samples_ns, [float(p) for p in PERCENTILES], method="higher")
    return {name: int(value) for name, value in zip(PERCENTILES, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratio of two medians with a bootstrap interval (95 %)."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def ratio_of_medians(
    samples_ns: np.ndarray, reference_ns: np.ndarray, *, resamples: int = 400, seed: int = 0
) -> Ratio:
    """median(samples) / median(reference).

    Sample i of both was taken in the same round on the same input, so rounds are resampled as
    pairs: drift and input length hit both sides alike. Raises ValueError for unequal counts.
    """
    if samples_ns.shape != reference_ns.shape or samples_ns.size == 0:
        raise ValueError("ratios need paired samples")
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for i in range(resamples):
        rows = rng.integers(0, samples_ns.size, size=samples_ns.size)
        values[i] = np.median(samples_ns[rows]) / np.median(reference_ns[rows])
    low, high = np.percentile(values, [2.5, 97.5])
    return Ratio(float(np.median(samples_ns) / np.median(reference_ns)), float(low), float(high))


def describe_machine() -> dict[str, object]:
    """Processor, cores, limits, clock governor, load and versions, where they can be read."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _RUNTIMES if _version(name)},
        "cores_online": os.cpu_count(),
        "cores_available": available_cores(),
        "cpu_quota": cpu_quota(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average_1m": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
