"""Times models on a device in one interleaved run, with transfers and without.

The clock is the host's, between two synchronisations: what a caller waits for. Where the work is on
torch's stream of a GPU, CUDA events tell how long it took there, in passes of their own: recording
them takes the host's time, too.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from rekd_edge.bench.measure import in_turn
from rekd_edge.bench.report import BenchSettings
from rekd_edge.bench.residents import Inputs, Resident
from rekd_edge.bench.timing import latency_percentiles

Transfers = Literal["excluded", "included"]
SCOPES: dict[Transfers, str] = {
    "excluded": "from launch to the end of the work, inputs and outputs on the device",
    "included": "inputs from the host to the device, the work, outputs to the host",
}
WARM_UPS = 3
"""Launches of each model before those that count, however long they take."""
EVENT_PASSES = 10
"""Launches of each model that are timed by CUDA events."""
GPU_QUERY = (
    *("name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm"),
    *("power.draw", "temperature.gpu", "utilization.gpu"),
)


@dataclass(frozen=True, slots=True)
class DeviceTiming:
    """One model in one scope. ``gpu_ns`` are CUDA events around other launches of it, without
    transfers, and ``gpu_span`` what lies between them (:attr:`Resident.gpu_span`); empty where
    there are none."""

    samples_ns: np.ndarray
    gpu_ns: np.ndarray
    gpu_span: str = ""

    def to_json(self, batch: int) -> dict[str, Any]:
        found = {
            f"result_{name}_percentile_latency_ns": value
            for name, value in latency_percentiles(self.samples_ns).items()
        }
        median = float(np.median(self.samples_ns))
        return {
            "result_query_count": int(self.samples_ns.size),
            "result_duration_ns": int(self.samples_ns.sum()),
            **found,
            "examples_per_s": batch * 1e9 / median,
            "gpu_50_percentile_ns": int(np.median(self.gpu_ns)) if self.gpu_ns.size else None,
            "gpu_span": self.gpu_span if self.gpu_ns.size else None,
            "samples_ns": [int(value) for value in self.samples_ns],
        }


def time_residents(
    residents: Mapping[str, Resident],
    inputs: Sequence[Inputs],
    settings: BenchSettings,
    transfers: Transfers,
    *,
    on_failure: Callable[[str, Exception], None] | None = None,
) -> dict[str, DeviceTiming]:
    """Every resident on the same queries of one shape, in turns as :func:`~rekd_edge.bench.measure
    .measure_in_turn`; sample i of all is the same query. ``on_failure`` as of
    :func:`~rekd_edge.bench.measure.in_turn`: what failed has no timing."""
    alive = dict(residents)

    def lose(name: str, error: Exception) -> None:
        if on_failure is None:
            raise error
        del alive[name]
        on_failure(name, error)

    def answer(name: str, query: int, counted: bool) -> int:
        resident, given = residents[name], inputs[query % len(inputs)]
        if transfers == "excluded":
            resident.place(given)
        resident.synchronise()
        start = time.perf_counter_ns()
        if transfers == "included":
            resident.place(given)
        resident.launch()
        if transfers == "included":
            resident.fetch()
        resident.synchronise()
        return time.perf_counter_ns() - start

    began = time.monotonic()
    for query in range(settings.warmup_count):
        spent_s = time.monotonic() - began
        most_s = settings.max_duration_s
        if most_s is not None and query >= WARM_UPS and spent_s > most_s / 4 * len(alive):
            break
        for name in list(alive):
            try:
                answer(name, query, False)
            except Exception as error:
                lose(name, error)
    samples = in_turn(list(alive), settings, answer, on_failure=lose)
    passes = min(EVENT_PASSES, settings.min_count) if transfers == "excluded" else 0
    gpu: dict[str, list[int]] = {}
    for name, resident in list(alive.items()):
        try:
            gpu[name] = _by_events(resident, inputs, passes)
        except Exception as error:
            lose(name, error)
    return {
        name: DeviceTiming(samples[name], np.asarray(gpu[name], dtype=np.int64), resident.gpu_span)
        for name, resident in alive.items()
    }


def _by_events(resident: Resident, inputs: Sequence[Inputs], passes: int) -> list[int]:
    """Nanoseconds of the GPU's clock for each of so many launches; none where it has no events."""
    pair = resident.events() if passes else None
    if pair is None:
        return []
    begin, end = pair
    found = []
    for query in range(passes):
        resident.place(inputs[query % len(inputs)])
        resident.synchronise()
        begin.record()
        resident.launch()
        end.record()
        resident.synchronise()
        found.append(int(begin.elapsed_time(end) * 1e6))
    return found


def gpu_state() -> dict[str, Any] | None:
    """Clocks, driver, power and heat of the first NVIDIA GPU now; None where `nvidia-smi` is
    missing or answers nothing."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_gpu_state(done.stdout) if done.returncode == 0 else None


def parse_gpu_state(said: str) -> dict[str, Any] | None:
    """The first line of nvidia-smi's answer to :data:`GPU_QUERY`, by name (MHz, W, degrees C, %);
    None for what it does not know."""
    line = next(iter(said.strip().splitlines()), "")
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(GPU_QUERY):
        return None
    return {name: _value(value) for name, value in zip(GPU_QUERY, values, strict=True)}


def _value(text: str) -> str | float | None:
    if text in {"", "[N/A]", "N/A", "[Not Supported]", "[Unknown Error]"}:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def describe_device(device: str) -> dict[str, Any]:
    """What is timed: the GPU with its compute capability and memory, or the CPU."""
    from rekd_edge.bench.timing import describe_machine
    from rekd_edge.engines.backend import present_device

    machine: dict[str, Any] = {"device": device, **describe_machine()}
    found = present_device() if device == "cuda" else None
    if found is not None:
        machine |= {
            "gpu": found.name,
            "compute_capability": found.compute_capability,
            "driver": found.driver,
            "cuda": torch.version.cuda,
            "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        }
    return machine
