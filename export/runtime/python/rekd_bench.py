"""Load test of a rekd-edge bundle in MLPerf LoadGen's terms, without torch.

Needs what rekd_runtime.py needs, which lies beside this file or is installed with it:

    python rekd_bench.py BUNDLE --examples DIR --request REQUEST.json --report OUT.json

``DIR/examples.jsonl`` holds one example a line, ``{"text": "..."}`` or ``{"image": "0001.png"}`` (a
file in DIR), with an optional ``"label": 2`` (an index of the bundle's labels; for several labels a
list with 0 or 1 for each, for a regression a list of the values). ``REQUEST.json`` holds the fields
of :class:`Request`; OUT.json is written whole or not at all.

**Scenarios.** ``SingleStream``: one example a query, the next query when the last is answered;
``MultiStream``: ``samples_per_query`` examples, answered as a whole; ``Offline``: everything in one
query. Examples are asked in one shuffled order, again and again, so that each is asked equally
often (LoadGen's "equal issue": texts differ in length).

**Scopes.** ``compute``: the model's run on arrays prepared beforehand, and the check of what it
says. ``end_to_end``: from the text or the image *file* to the label and its rationale. The runtime
answers one example at a time; ``batch`` makes it answer several in one run, texts filled up to the
longest.

**Valid.** A result is INVALID, with its reasons, where it is ``quick``, too short, has too few
queries for early stopping, misses ``target_latency_ms``, or *does not hold still*:

- The queries are cut into 5 consecutive windows (fewer where they would have less than 50). The
  medians of two windows differ by more than 5 % and their 99 % intervals do not meet. Each latency
  is taken relative to the median of the same query over the run where each was asked at least 3
  times. The fifths of a run are five shorter runs: where they repeat, whole ones do all the more.
- The 99 % interval of the median over the run is wider than 5 % (where queries were repeated).
- The clock's median in a window is more than 5 % below that of another (not with an idle gap).
- A throttling counter has risen, or a Raspberry Pi said that it is being throttled.
- This process waited for a core for more than 2 % of the time, or a hypervisor took 2 % of it.
- Other work took more than 0.2 cores and 5 % of the machine; where the system does not tell, the
  load average shows more than one task besides this one.

**Early stopping** is LoadGen's, confidence 99 % and tolerance 0: of n queries the t - 1 slowest are
discarded and the slowest left is the estimate, t being the largest with P(X <= t) < 1 % where X is
binomial of n and 1 - percentile.

Exit codes: 0 measured (look at ``result_validity``); 1 unexpected (a bug); 2 an input cannot be
used; 4 a package is missing or too old; 6 the bundle is not what its manifest promises; 130
interrupted, also by SIGTERM and SIGHUP, or because nobody reads the progress any more.
"""

from __future__ import annotations

import os
import signal
import time

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
if __name__ == "__main__":
    for _one in _SIGNALS:  # until watch_signals: nothing is there to be cleaned up yet
        if signal.getsignal(_one) != signal.SIG_IGN:
            signal.signal(_one, lambda number, frame: os._exit(130))

import argparse  # noqa: E402
import array  # noqa: E402
import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import hashlib  # noqa: E402
import importlib  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import platform  # noqa: E402
import random  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NoReturn, TypeAlias  # noqa: E402

try:
    import rekd_runtime as runtime
except ImportError as missing:
    if __name__ != "__main__":
        raise
    what = missing.name or "a module"
    sys.stderr.write(f"error: {what} is missing ({missing})\n")
    sys.stderr.write(
        "  hint: put rekd_runtime.py beside this file\n"
        if what == "rekd_runtime"
        else f"  hint: python -m pip install {what}\n"
    )
    raise SystemExit(4) from None
import numpy as np  # noqa: E402

InputError = runtime.InputError

SCHEMA_VERSION = 1
EXAMPLES_FILE = "examples.jsonl"
PERCENTILES = ("50", "90", "95", "97", "99", "99.9")
"""LoadGen's."""
SCENARIOS = ("SingleStream", "MultiStream", "Offline")
MODES = ("PerformanceOnly", "AccuracyOnly")
SCOPES = ("compute", "end_to_end")
TARGET_PERCENTILE = {"SingleStream": 90, "MultiStream": 99}
CONFIDENCE = 0.99
OFFICIAL_DURATION_S = 600.0
OFFICIAL_COUNT = {"SingleStream": 100, "MultiStream": 662, "Offline": 24_576}
"""Queries; Offline: samples, or all examples where there are fewer."""
OFFICIAL_SAMPLES_PER_QUERY = 8

STILL = 0.05
"""By how much the medians of two windows, or the clock, may differ."""
MOST_WAITING = 0.02
MOST_STOLEN = 0.02
MOST_OTHER_CORES = 0.2
MOST_OTHER_SHARE = 0.05
MOST_WINDOWS, LEAST_IN_WINDOW, LEAST_PASSES = 5, 50, 3
POLL_S = 0.5
PROGRESS_S = 5.0
WARMUP_S, QUICK_WARMUP_S = 1.0, 0.2
COLD_START_TIMEOUT_S = 300
_MEMORY_QUERIES = 20


# --- the request ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What is to be measured. None stands for the default of the scenario and mode."""

    scenario: str
    mode: str = "PerformanceOnly"
    scope: str = "compute"
    min_duration_s: float | None = None
    """600 official, 1 quick, else 10; the wall clock's."""
    min_query_count: int | None = None
    """Queries (Offline: examples). Official: 100, MultiStream 662, Offline 24,576 or all; quick:
    20; else 100, MultiStream 662."""
    samples_per_query: int = OFFICIAL_SAMPLES_PER_QUERY
    """MultiStream."""
    batch: int = 1
    """Examples in one run of the model (MultiStream and Offline)."""
    warmup_count: int | None = None
    """Queries before the measured ones: 20, quick 5; and they take a second, quick a fifth."""
    threads: int | None = None
    """None: those of the bundle's settings, or every core open to the process."""
    provider: str | None = None
    idle_gap_ms: float = 0.0
    """Sleep between two queries, as a device that is asked now and then has."""
    cold_starts: int | None = None
    """Fresh processes started after the measurement: 3, quick 1."""
    official: bool = False
    quick: bool = False
    target_latency_ms: float | None = None
    """The early-stopping estimate must not be above it."""
    seed: int = 0
    loadgen: bool = False
    """Driven by MLCommons' LoadGen (package mlcommons-loadgen)."""

    @classmethod
    def of(cls, document: Any) -> Request:
        """Raises :class:`InputError` that lists everything wrong."""
        if not isinstance(document, dict):
            raise InputError("the request is not a JSON object")
        problems = []
        version = document.get("schema_version")
        if version != SCHEMA_VERSION or isinstance(version, bool):
            problems.append(f"schema_version is {version!r}, not {SCHEMA_VERSION}")
        known = {item.name: item for item in dataclasses.fields(cls)}
        given = {key: value for key, value in document.items() if key != "schema_version"}
        problems += [f"{key!r} is not known" for key in given if key not in known]
        if "scenario" not in given:
            problems.append("scenario is missing")
        for key, value in given.items():
            if key in known and not _fits(str(known[key].type), value):
                problems.append(f"{key} is {value!r}, not {known[key].type}")
        if problems:
            raise InputError("the request cannot be used: " + "; ".join(problems))
        request = cls(**given)
        problems = request._problems()
        if problems:
            raise InputError("the request cannot be used: " + "; ".join(problems))
        return request

    def _problems(self) -> list[str]:
        offline = self.scenario == "Offline"
        accuracy = self.mode == "AccuracyOnly"
        found = [
            f"{name} {value!r} is none of {', '.join(choices)}"
            for name, value, choices in (
                ("scenario", self.scenario, SCENARIOS),
                ("mode", self.mode, MODES),
                ("scope", self.scope, SCOPES),
            )
            if value not in choices
        ]
        for name, least, most in (
            ("min_duration_s", 0, 1e6),
            ("min_query_count", 1, 1e9),
            ("samples_per_query", 1, 1e5),
            ("batch", 1, 1e5),
            ("warmup_count", 0, 1e6),
            ("threads", 1, 4096),
            ("idle_gap_ms", 0, 1e6),
            ("cold_starts", 0, 1000),
            ("target_latency_ms", 1e-6, 1e9),
            ("seed", 0, 2**63),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                found.append(f"{name} {value!r} is not from {least:g} to {most:g}")
        if self.batch > 1 and self.scenario == "SingleStream":
            found.append("batch: SingleStream asks one example at a time")
        if offline and self.idle_gap_ms:
            found.append("idle_gap_ms: Offline is a single query")
        if offline and self.target_latency_ms is not None:
            found.append("target_latency_ms: Offline is about throughput")
        if accuracy and self.target_latency_ms is not None:
            found.append("target_latency_ms: AccuracyOnly measures no latency")
        if self.official and self.quick:
            found.append("a run is official or quick, not both")
        if self.official and accuracy:
            found.append("official is about PerformanceOnly")
        if self.official and self.idle_gap_ms:
            found.append("idle_gap_ms: an official run asks without a pause")
        if (
            self.official
            and self.scenario == "MultiStream"
            and self.samples_per_query != OFFICIAL_SAMPLES_PER_QUERY
        ):
            found.append(f"an official MultiStream query is {OFFICIAL_SAMPLES_PER_QUERY} samples")
        if self.official and self.min_duration_s is not None:
            if self.min_duration_s < OFFICIAL_DURATION_S:
                found.append(f"an official run takes at least {OFFICIAL_DURATION_S:g} s")
        return found

    def resolved(self, example_count: int) -> Request:
        """With every default filled in. Raises :class:`InputError` where an official run would have
        too few queries."""
        least = OFFICIAL_COUNT.get(self.scenario, 1)
        if self.scenario == "Offline":
            least = min(least, example_count)
        count = self.min_query_count
        if self.official and count is not None and count < least:
            raise InputError(
                f"the request cannot be used: an official {self.scenario} run has at least {least} "
                f"queries, not {count}"
            )
        usual = 662 if self.scenario == "MultiStream" else 100
        return dataclasses.replace(
            self,
            min_duration_s=_default(
                self.min_duration_s,
                OFFICIAL_DURATION_S if self.official else 1.0 if self.quick else 10.0,
            ),
            min_query_count=_default(
                count, least if self.official else 20 if self.quick else usual
            ),
            warmup_count=_default(self.warmup_count, 5 if self.quick else 20),
            cold_starts=_default(self.cold_starts, 1 if self.quick else 3),
        )


def _default(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _fits(kind: str, value: Any) -> bool:
    """Whether a JSON value is of an annotated kind, as ``float | None``."""
    if value is None:
        return kind.endswith("None")
    kind = kind.split(" ")[0]
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind == "float":
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, int if kind == "int" else str)


Label: TypeAlias = "int | list[int] | list[float]"


@dataclass(frozen=True)
class Example:
    """A text, or the path of an image. ``label`` is the number of a class; 0 or 1 for each of
    several labels; or the values of a regression."""

    item: str
    label: Label | None


def read_examples(
    folder: Path, modality: str, classes: int, problem_type: str = runtime.SINGLE_LABEL
) -> tuple[list[Example], str]:
    """The examples and the sha256 of their file. Raises :class:`InputError` naming the first line
    that cannot be used."""
    path = folder / EXAMPLES_FILE
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not JSON: {error}") from error
        key = "text" if modality == "text" else "image"
        if not isinstance(entry, dict) or not {key} <= set(entry) <= {key, "label"}:
            raise InputError(f'{place}: {{"{key}": ..., "label": ...}} is due')
        item, label = entry[key], entry.get("label")
        if not isinstance(item, str):
            raise InputError(f"{place}: {key} is not a string")
        if label is not None:
            _require_label(label, classes, problem_type, place)
        if modality == "image":
            item = str(_image_path(folder, item, place))
        examples.append(Example(item, label))
    if not examples:
        raise InputError(f"{path} holds no example")
    return examples, hashlib.sha256(content).hexdigest()


def _require_label(label: Any, classes: int, problem_type: str, place: str) -> None:
    def is_number(value: Any) -> bool:
        is_plain = isinstance(value, int | float) and not isinstance(value, bool)
        return is_plain and math.isfinite(value)

    if problem_type == runtime.SINGLE_LABEL:
        if isinstance(label, bool) or not isinstance(label, int):
            raise InputError(f"{place}: label is not a number")
        if not 0 <= label < classes:
            raise InputError(f"{place}: the bundle has labels 0 to {classes - 1}, not {label}")
        return
    due = "0 or 1" if problem_type == runtime.MULTI_LABEL else "a number"
    if not isinstance(label, list) or len(label) != classes or not all(map(is_number, label)):
        raise InputError(f"{place}: label is a list of {classes}, {due} each")
    if problem_type == runtime.MULTI_LABEL and not set(label) <= {0, 1}:
        raise InputError(f"{place}: label is a list of {classes}, {due} each")


def _image_path(folder: Path, name: str, place: str) -> Path:
    if not name or name in (".", "..") or any(character in name for character in "/\\:\0"):
        raise InputError(f"{place}: {name!r} is not the plain name of a file")
    path = folder / name
    if not path.is_file() or path.resolve().parent != folder.resolve():
        raise InputError(f"{place}: {name!r} is no file in {folder}")
    return path


# --- statistics -------------------------------------------------------------------------------


def log_binomial(n: int, k: int, p: float) -> float:
    """ln P(X = k), X binomial of ``n`` and ``p``."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return ways + k * math.log(p) + (n - k) * math.log1p(-p)


def allowed_overlatency(n: int, percentile: float, confidence: float = CONFIDENCE) -> int:
    """The largest t with P(X <= t) < 1 - confidence, X binomial of ``n`` queries and 1 - percentile
    / 100; -1 where even t = 0 is too many."""
    late = 1 - percentile / 100
    # What lies 12 standard deviations below the mean adds less than 1e-30.
    first = max(0, int(n * late - 12 * math.sqrt(n * late * (1 - late))) - 1)
    total = 0.0
    for k in range(first, n + 1):
        total += math.exp(log_binomial(n, k, late))
        if total >= 1 - confidence:
            return k - 1
    return n


def early_stopping_count(percentile: float) -> int:
    """Fewest queries for an estimate: 64 at the 90th percentile, 662 at the 99th."""
    low, high = 1, 2
    while allowed_overlatency(high, percentile) < 1:
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if allowed_overlatency(middle, percentile) >= 1 else (middle + 1, high)
        )
    return low


def early_stopping_estimate(ordered_ns: Sequence[int], percentile: float) -> int | None:
    """LoadGen's estimate from ascending latencies; None where there are too few."""
    t = allowed_overlatency(len(ordered_ns), percentile)
    return None if t < 1 else ordered_ns[len(ordered_ns) - t]


def percentile_of(ordered_ns: Sequence[int], percentile: float) -> int:
    """LoadGen's: the item at the whole part of count times percentile, counted from 0."""
    return ordered_ns[min(len(ordered_ns) - 1, int(len(ordered_ns) * (percentile / 100)))]


def median_interval(ordered: Sequence[float]) -> tuple[float, float, float]:
    """Median and its distribution-free 99 % interval, of ascending values."""
    n = len(ordered)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    # P(fewer than k + 1 of n lie below the median) < 0.5 %.
    k = allowed_overlatency(n, 50, 1 - (1 - CONFIDENCE) / 2)
    return (middle, ordered[max(k, 0)], ordered[n - 1 - max(k, 0)])


@dataclass(frozen=True)
class Windows:
    """Median and 99 % interval of consecutive windows, relative to that of the run where
    ``repeated``, else to the run's median."""

    medians: tuple[tuple[float, float, float], ...]
    whole: tuple[float, float, float]
    repeated: bool

    @property
    def problem(self) -> str:
        """Why the latencies did not hold still; empty where they did."""
        if self.medians:
            low = min(self.medians)
            high = max(self.medians)
            if high[0] > low[0] * (1 + STILL) and high[1] > low[2]:
                return (
                    f"medians of {len(self.medians)} windows from {low[0]:.3f} to {high[0]:.3f} of "
                    f"the run's ({STILL:.0%} allowed)"
                )
        middle, low_end, high_end = self.whole
        if self.repeated and high_end - low_end > STILL * middle:
            return f"the 99 % interval of the median is {(high_end - low_end) / middle:.1%} wide"
        return ""


def windows_of(samples_ns: Sequence[int], queries: Sequence[int]) -> Windows:
    """``queries[i]`` names the query that sample i answered."""
    by_query: dict[int, list[int]] = {}
    for query, sample in zip(queries, samples_ns, strict=True):
        by_query.setdefault(query, []).append(sample)
    repeated = min(map(len, by_query.values()), default=0) >= LEAST_PASSES
    if repeated:
        usual = {query: median_interval(sorted(own))[0] for query, own in by_query.items()}
        relative = [s / usual[q] for s, q in zip(samples_ns, queries, strict=True)]
    else:
        whole = median_interval(sorted(samples_ns))[0] if samples_ns else 1.0
        relative = [sample / whole for sample in samples_ns]
    count = min(MOST_WINDOWS, len(relative) // LEAST_IN_WINDOW)
    edges = [len(relative) * i // count for i in range(count + 1)] if count >= 2 else []
    medians = tuple(
        median_interval(sorted(relative[start:end])) for start, end in itertools.pairwise(edges)
    )
    run = median_interval(sorted(relative)) if relative else (1.0, 1.0, 1.0)
    return Windows(medians, run, repeated)


# --- the machine ------------------------------------------------------------------------------


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def _glob(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []


class Energy:
    """RAPL's counters, or the power rails of a Jetson (INA3221), added up from poll to poll.

    ``joules`` by zone or rail; ``total`` names those that add up to the whole without counting
    anything twice.
    """

    def __init__(self, root: Path) -> None:
        self.source: str | None = None
        self.reason = "no RAPL counter and no INA3221 rail"
        self.joules: dict[str, float] = {}
        self.total: tuple[str, ...] = ()
        self.poll_count = 0
        self._counters: dict[str, tuple[Path, int]] = {}
        self._rails: dict[str, tuple[Path, Path | None, float]] = {}
        self._last: dict[str, float] = {}
        self._last_ns = 0
        self._find_rails(root)
        if not self._rails:
            self._find_counters(root)

    def _find_rails(self, root: Path) -> None:
        for folder in _glob(root, "sys/class/hwmon/hwmon*"):
            if _text(folder / "name") != "ina3221":
                continue
            for number in (1, 2, 3):
                volts, amperes = folder / f"in{number}_input", folder / f"curr{number}_input"
                if _number(volts) is not None and _number(amperes) is not None:
                    label = _text(folder / f"in{number}_label") or f"{folder.name} {number}"
                    self._rails[label] = (volts, amperes, 1e-6)  # mV times mA
        for folder in _glob(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*"):
            for number in (0, 1, 2):
                power = folder / f"in_power{number}_input"
                if _number(power) is not None:
                    label = _text(folder / f"rail_name_{number}") or f"{folder.name} {number}"
                    self._rails[label] = (power, None, 1e-3)  # mW
        if self._rails:
            self.source = "INA3221"
            whole = [name for name in self._rails if name in ("VDD_IN", "POM_5V_IN")]
            self.total = tuple(whole or self._rails)

    def _find_counters(self, root: Path) -> None:
        zones = _glob(root, "sys/class/powercap/intel-rapl:*")
        for folder in zones:
            counter = folder / "energy_uj"
            is_part = folder.name.count(":") > 1
            name = _text(folder / "name") or folder.name
            if is_part:
                name = f"{_text(folder.parent / folder.name.rpartition(':')[0] / 'name')} {name}"
            try:
                int(counter.read_text(encoding="ascii"))
            except PermissionError:
                self.reason = f"RAPL needs permission to read {counter.relative_to(root)}"
                continue
            except (OSError, ValueError):
                continue
            self._counters[name] = (counter, _number(folder / "max_energy_range_uj") or 0)
            if (is_part and name.endswith(" dram")) or (not is_part and name != "psys"):
                self.total += (name,)
        if self._counters:
            self.source = "RAPL"

    def poll(self, now_ns: int) -> None:
        self.poll_count += 1
        for name, (counter, wrap) in self._counters.items():
            value = _number(counter)
            if value is not None:
                before = self._last.get(name, value)
                step = (value - before) % wrap if wrap else max(0, value - before)
                self.joules[name] = self.joules.get(name, 0.0) + step / 1e6
                self._last[name] = value
        for name, (first, second, unit) in self._rails.items():
            a, b = _number(first), 1 if second is None else _number(second)
            if a is not None and b is not None:
                watts = a * b * unit
                seconds = (now_ns - self._last_ns) / 1e9 if name in self._last else 0.0
                mean = (watts + self._last.get(name, watts)) / 2
                self.joules[name] = self.joules.get(name, 0.0) + mean * seconds
                self._last[name] = watts
        self._last_ns = now_ns

    def to_json(self, seconds: float, queries: int) -> dict[str, Any]:
        if self.source is None:
            return {"source": None, "reason": self.reason}
        joules = sum(self.joules.get(name, 0.0) for name in self.total)
        return {
            "source": self.source,
            "reason": None,
            "energy_j": joules,
            "mean_power_w": joules / seconds if seconds > 0 else None,
            "energy_per_query_j": joules / queries if queries else None,
            "counted": list(self.total),
            "zones_j": dict(self.joules),
            "poll_count": self.poll_count,
        }


_THROTTLING = (
    "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count",
    "sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count",
    "sys/class/hwmon/hwmon*/oc*_event_cnt",
)
_PI_FIRMWARE = "sys/devices/platform/soc*/*firmware/get_throttled"
"""Flags in hexadecimal: the lowest four are of now, those 16 places above of since the start."""
_THROTTLED_NOW = 0xF
_MOST_NAMED = 3
_TOKEN_BYTES = 128
"""Of a token's place in the text, as Python keeps it."""


class Machine:
    """What the system tells of itself, read from files below ``root``; None where it does not."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        if hasattr(os, "sched_getaffinity"):
            cores = sorted(os.sched_getaffinity(0))
        else:  # macOS, Windows
            cores = list(range(os.cpu_count() or 1))
        base = root / "sys/devices/system/cpu"
        self._clocks = [
            path for n in cores if (path := base / f"cpu{n}/cpufreq/scaling_cur_freq").is_file()
        ]
        self._flags = _glob(root, _PI_FIRMWARE)

    def clock_mhz(self) -> float | None:
        """Of the fastest core open to this process (kHz in cpufreq, MHz in cpuinfo)."""
        found = [value / 1e3 for path in self._clocks if (value := _number(path)) is not None]
        if not found:
            for line in (_text(self.root / "proc/cpuinfo") or "").splitlines():
                if line.startswith("cpu MHz"):
                    try:
                        found.append(float(line.partition(":")[2]))
                    except ValueError:
                        continue
        return max(found, default=None)

    @property
    def clock_source(self) -> str | None:
        if self._clocks:
            return "cpufreq"
        return None if self.clock_mhz() is None else "/proc/cpuinfo"

    def governors(self) -> list[str]:
        paths = _glob(self.root, "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
        return sorted({text for path in paths if (text := _text(path)) is not None})

    def throttling(self) -> dict[str, int]:
        """Counters by file (they only rise), and the Raspberry Pi's flags."""
        found = {}
        for pattern in _THROTTLING:
            for path in _glob(self.root, pattern):
                try:
                    found[str(path.relative_to(self.root))] = int(_text(path) or "")
                except ValueError:
                    continue
        return found | self.throttled_flags()

    def throttled_flags(self) -> dict[str, int]:
        """A Raspberry Pi's, where its kernel tells."""
        found = {}
        for path in self._flags:
            try:
                found[str(path.relative_to(self.root))] = int(_text(path) or "", 16)
            except ValueError:
                continue
        return found

    def temperatures(self) -> dict[str, float]:
        """Degrees Celsius by zone."""
        found = {}
        for folder in _glob(self.root, "sys/class/thermal/thermal_zone*"):
            value = _number(folder / "temp")
            if value is not None:
                found[f"{folder.name} {_text(folder / 'type') or ''}".strip()] = value / 1e3
        return found

    def cooling(self) -> dict[str, int]:
        """How far each cooling device has gone, 0 for not at all."""
        found = {}
        for folder in _glob(self.root, "sys/class/thermal/cooling_device*"):
            value = _number(folder / "cur_state")
            if value is not None:
                found[f"{folder.name} {_text(folder / 'type') or ''}".strip()] = value
        return found

    def processor_ticks(self) -> tuple[int, int, int] | None:
        """Busy, stolen and all ticks of all cores since the system started."""
        line = (_text(self.root / "proc/stat") or "").partition("\n")[0].split()
        if len(line) < 9 or line[0] != "cpu" or not all(word.isdecimal() for word in line[1:]):
            return None
        user, nice, system, idle, waiting, irq, soft, stolen = map(int, line[1:9])
        busy = user + nice + system + irq + soft
        return busy, stolen, busy + idle + waiting + stolen

    def waited_ns(self) -> int | None:
        """How long the threads of this process have waited for a core."""
        found = [_text(path) for path in _glob(self.root, "proc/self/task/*/schedstat")]
        words = [text.split() for text in found if text]
        waits = [int(word[1]) for word in words if len(word) >= 2 and word[1].isdecimal()]
        return sum(waits) if waits else None

    def describe(self) -> dict[str, Any]:
        """Names as in ``rekd-edge bench``."""
        from importlib.metadata import PackageNotFoundError, version

        versions = {}
        for name in ("numpy", "onnxruntime", "openvino", "tokenizers", "pillow"):
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                continue
        return {
            "cpu": self._processor(),
            "board": _text(self.root / "proc/device-tree/model"),
            "architecture": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            **versions,
            "runtime_version": runtime.__version__,
            "cores_online": os.cpu_count(),
            "cores_available": runtime.resolve_threads(None),
            "cpu_quota": runtime.cpu_quota(self.root / "sys/fs/cgroup"),
            "governor": ", ".join(self.governors()) or None,
            "memory_bytes": self.memory_bytes("MemTotal"),
            "load_average_1m": load_average(),
        }

    def memory_bytes(self, name: str) -> int | None:
        for line in (_text(self.root / "proc/meminfo") or "").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        return None

    def _processor(self) -> str:
        for line in (_text(self.root / "proc/cpuinfo") or "").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
        return platform.processor() or "unknown"


def load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_rss_bytes() -> int | None:
    """Largest resident memory of this process so far, from ``VmHWM``: ``getrusage`` may report the
    parent's after a fork."""
    for line in (_text(Path("/proc/self/status")) or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Watch:
    """Looks at the machine before, during and after a measurement, between queries and never more
    often than each half second."""

    def __init__(self, machine: Machine, say: Callable[[str], None] = lambda line: None) -> None:
        self.machine = machine
        self.energy = Energy(machine.root)
        self.clocks: list[tuple[int, float]] = []
        """Number of queries answered so far, MHz."""
        self.throttled: set[str] = set()
        """Flags that have said so at any time."""
        self._say = say
        self._next_poll = self._next_progress = 0

    def start(self) -> None:
        self.before = self._counters()
        self._poll(0)
        self.started_ns = time.perf_counter_ns()
        self._next_progress = self.started_ns + int(PROGRESS_S * 1e9)

    def between(self, queries: int) -> None:
        """After each query."""
        now = time.perf_counter_ns()
        if now >= self._next_poll:
            self._poll(queries)
        if now >= self._next_progress:
            self._say(f"measuring: {(now - self.started_ns) / 1e9:.0f} s, {queries} queries")
            self._next_progress = now + int(PROGRESS_S * 1e9)

    def stop(self, queries: int) -> None:
        self.stopped_ns = time.perf_counter_ns()
        self._poll(queries)
        self.after = self._counters()

    def _poll(self, queries: int) -> None:
        clock = self.machine.clock_mhz()
        if clock is not None:
            self.clocks.append((queries, clock))
        flags = self.machine.throttled_flags()
        self.throttled |= {name for name, value in flags.items() if value & _THROTTLED_NOW}
        now = time.perf_counter_ns()
        self.energy.poll(now)
        self._next_poll = now + int(POLL_S * 1e9)

    def _counters(self) -> dict[str, Any]:
        return {
            "throttling": self.machine.throttling(),
            "temperatures_c": self.machine.temperatures(),
            "cooling": self.machine.cooling(),
            "load_average_1m": load_average(),
            "ticks": self.machine.processor_ticks(),
            "waited_ns": self.machine.waited_ns(),
            "own_s": time.process_time(),
        }

    @property
    def seconds(self) -> float:
        return (self.stopped_ns - self.started_ns) / 1e9

    def shares(self) -> dict[str, float | None]:
        """Cores that others kept busy, and shares of the time that was waited or stolen."""
        found: dict[str, float | None] = dict.fromkeys(
            ("other_work_cores", "stolen_share", "waiting_share")
        )
        ticks, later = self.before["ticks"], self.after["ticks"]
        # Ticks are hundredths of a second: of a shorter time they say too little.
        if ticks is not None and later is not None and self.seconds >= 1 and later[2] > ticks[2]:
            busy, stolen, total = (b - a for a, b in zip(ticks, later, strict=True))
            own = self.after["own_s"] - self.before["own_s"]
            per_second = os.sysconf("SC_CLK_TCK")
            found["other_work_cores"] = max(0.0, busy / per_second - own) / self.seconds
            found["stolen_share"] = stolen / total
        if self.before["waited_ns"] is not None and self.after["waited_ns"] is not None:
            waited = self.after["waited_ns"] - self.before["waited_ns"]
            found["waiting_share"] = max(0, waited) / 1e9 / self.seconds
        return found

    def problems(self, queries: int, *, idle_gap: bool) -> list[str]:
        """Why the machine did not hold still."""
        found = []
        clock = self._clock_problem(queries)
        if clock and not idle_gap:
            found.append(clock)
        before, after = self.before["throttling"], self.after["throttling"]
        found += _first(
            [f"{name} said that it is throttled" for name in sorted(self.throttled)]
            + [
                f"{name} rose from {before.get(name, 0)} to {value}"
                for name, value in after.items()
                if value > before.get(name, 0) and name not in self.throttled
            ]
        )
        found += _first(
            [
                f"{name} went from {self.before['cooling'].get(name, 0)} to {value}"
                for name, value in self.after["cooling"].items()
                if value > self.before["cooling"].get(name, 0) and "fan" not in name.lower()
            ]
        )
        shares = self.shares()
        waiting, stolen = shares["waiting_share"], shares["stolen_share"]
        if waiting is not None and waiting > MOST_WAITING:
            found.append(f"waited for a core for {waiting:.1%} of the time")
        if stolen is not None and stolen > MOST_STOLEN:
            found.append(f"a hypervisor took {stolen:.1%} of the time")
        other, load = shares["other_work_cores"], self.after["load_average_1m"]
        most = max(MOST_OTHER_CORES, MOST_OTHER_SHARE * (os.cpu_count() or 1))
        if other is not None and other > most:
            found.append(f"other work took {other:.2f} cores")
        own = (self.after["own_s"] - self.before["own_s"]) / max(self.seconds, 1e-9)
        if other is None and load is not None and load - own > 1:
            found.append(f"the load average is {load:.2f}")
        return found

    def _clock_problem(self, queries: int) -> str:
        count = min(MOST_WINDOWS, max(1, queries // LEAST_IN_WINDOW))
        parts: dict[int, list[float]] = {}
        for answered, clock in self.clocks:
            if answered:  # what was read before the first query is no clock under load
                parts.setdefault(min(count - 1, answered * count // max(queries, 1)), []).append(
                    clock
                )
        medians = [median_interval(sorted(part))[0] for part in parts.values()]
        if medians and min(medians) < max(medians) * (1 - STILL):
            return f"the clock fell from {max(medians):.0f} to {min(medians):.0f} MHz"
        return ""

    def to_json(self, queries: int) -> dict[str, Any]:
        clocks = [clock for _, clock in self.clocks]
        during = [clock for answered, clock in self.clocks if answered] or clocks
        return {
            "clock_mhz": {
                "before": clocks[0] if clocks else None,
                "after": clocks[-1] if clocks else None,
                "min": min(during, default=None),
                "max": max(during, default=None),
                "source": self.machine.clock_source,
                "reason": None if clocks else "neither cpufreq nor /proc/cpuinfo tells",
            },
            "throttling": {"before": self.before["throttling"], "after": self.after["throttling"]},
            "temperatures_c": {
                "before": self.before["temperatures_c"],
                "after": self.after["temperatures_c"],
            },
            "cooling": {"before": self.before["cooling"], "after": self.after["cooling"]},
            "load_average_1m": {
                "before": self.before["load_average_1m"],
                "after": self.after["load_average_1m"],
            },
            **self.shares(),
            "energy": self.energy.to_json(self.seconds, queries),
        }


def _first(reasons: list[str]) -> list[str]:
    """A machine may have hundreds of counters."""
    more = len(reasons) - _MOST_NAMED
    return reasons if more <= 0 else [*reasons[:_MOST_NAMED], f"and {more} more of the kind"]


# --- the system under test --------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """``prediction`` in the end-to-end scope."""

    encoded: runtime.Encoded
    answer: runtime.Answer
    prediction: runtime.Prediction | None


class SystemUnderTest:
    """Answers examples by number; the same code in every scenario, scope and mode."""

    def __init__(
        self,
        model: runtime.Rationalist,
        examples: Sequence[Example],
        request: Request,
        machine: Machine,
    ) -> None:
        self.model = model
        self.examples = examples
        self.batch = request.batch
        self.end_to_end = request.scope == "end_to_end"
        self._prepared: list[runtime.Encoded] = []
        if not self.end_to_end and request.mode == "PerformanceOnly":
            self._require_room(machine)
            self._prepared = [self._encode(number) for number in range(len(examples))]

    def _require_room(self, machine: Machine) -> None:
        """Raises :class:`InputError` where all examples, if as large as the first, would take more
        than half of the memory that is free."""
        free, first = machine.memory_bytes("MemAvailable"), self._encode(0)
        size = sum(array.nbytes for array in first.arrays.values())
        if first.text is not None:
            size += first.tokens * _TOKEN_BYTES
        whole = size * len(self.examples)
        if free is not None and whole > free / 2:
            raise InputError(
                f"{len(self.examples)} examples, prepared, take {whole / 1e9:.2g} GB, more than "
                f"half of the {free / 1e9:.2g} GB of memory that are free",
                hint="give fewer examples, or measure end_to_end, which prepares none beforehand",
            )

    def _encode(self, number: int) -> runtime.Encoded:
        return self.model.encode(self.examples[number].item, f"example {number + 1}")

    def parts(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        """As many as go into one run of the model."""
        for start in range(0, len(numbers), self.batch):
            yield numbers[start : start + self.batch]

    def answer(self, numbers: Sequence[int]) -> list[Answered]:
        found = []
        for part in self.parts(numbers):
            encoded = [
                self._prepared[number] if self._prepared else self._encode(number)
                for number in part
            ]
            answers = self.model.run_encoded(encoded)
            for one, answer in zip(encoded, answers, strict=True):
                prediction = self.model.decode(one, answer) if self.end_to_end else None
                found.append(Answered(one, answer, prediction))
        return found

    @property
    def scope_in_words(self) -> str:
        what = "text" if self.model.config.modality == "text" else "image file"
        runs = "one example" if self.batch == 1 else f"up to {self.batch} examples"
        filled = ", texts filled up to the longest" if self.batch > 1 and what == "text" else ""
        if self.end_to_end:
            return f"{what} to label and rationale, {runs} a run of the model{filled}"
        return f"prepared arrays to checked outputs of the model, {runs} a run{filled}"


@dataclass
class Samples:
    """``queries[i]`` names what sample i asked: the number of its first example."""

    latencies_ns: list[int] = field(default_factory=list)
    queries: list[int] = field(default_factory=list)
    sample_count: int = 0
    answered_ns: list[int] = field(default_factory=list)
    """Offline: nanoseconds from the query to each part's answer, and how many examples it had."""
    part_sizes: list[int] = field(default_factory=list)

    def add(self, latency_ns: int, numbers: Sequence[int]) -> None:
        self.latencies_ns.append(latency_ns)
        self.queries.append(numbers[0])
        self.sample_count += len(numbers)


def shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def measure_streams(
    system: SystemUnderTest, request: Request, order: Sequence[int], watch: Watch
) -> Samples:
    """SingleStream and MultiStream: the next query when the last is answered."""
    width = request.samples_per_query if request.scenario == "MultiStream" else 1
    samples = Samples()
    asked = 0
    start = time.perf_counter_ns()
    until = start + int(_default(request.min_duration_s, 0.0) * 1e9)
    least = _default(request.min_query_count, 1)
    while len(samples.latencies_ns) < least or time.perf_counter_ns() < until:
        numbers = [order[(asked + i) % len(order)] for i in range(width)]
        asked += width
        begun = time.perf_counter_ns()
        system.answer(numbers)
        samples.add(time.perf_counter_ns() - begun, numbers)
        watch.between(len(samples.latencies_ns))
        if request.idle_gap_ms:
            time.sleep(request.idle_gap_ms / 1e3)
    return samples


def measure_offline(
    system: SystemUnderTest, request: Request, order: Sequence[int], watch: Watch
) -> Samples:
    """One query that lasts until both minima are met; a sample is a run of the model."""
    samples = Samples()
    asked = 0
    start = time.perf_counter_ns()
    until = start + int(_default(request.min_duration_s, 0.0) * 1e9)
    least = _default(request.min_query_count, 1)
    while samples.sample_count < least or time.perf_counter_ns() < until:
        numbers = [order[(asked + i) % len(order)] for i in range(request.batch)]
        asked += len(numbers)
        answer_part(system, numbers, start, samples)
        watch.between(len(samples.latencies_ns))
    return samples


def answer_part(
    system: SystemUnderTest, numbers: Sequence[int], start_ns: int, samples: Samples
) -> list[Answered]:
    """One run of the model in the Offline scenario."""
    begun = time.perf_counter_ns()
    answered = system.answer(numbers)
    now = time.perf_counter_ns()
    samples.add(now - begun, numbers)
    samples.answered_ns.append(now - start_ns)
    samples.part_sizes.append(len(numbers))
    return answered


@dataclass
class Quality:
    """AccuracyOnly: what was answered, by the number of the example, None where nothing was yet."""

    problem_type: str
    predicted: list[Label | None]
    abstained: list[bool]
    margins: list[float | None]
    digests: list[str]

    @classmethod
    def empty(cls, count: int, problem_type: str = runtime.SINGLE_LABEL) -> Quality:
        return cls(problem_type, [None] * count, [False] * count, [None] * count, [""] * count)

    def add(self, system: SystemUnderTest, number: int, one: Answered) -> None:
        prediction = one.prediction or system.model.decode(one.encoded, one.answer)
        label = label_of(prediction, system.model.config.label_names)
        self.predicted[number] = label
        self.abstained[number] = prediction.abstain
        margin = prediction.margin
        self.margins[number] = margin if math.isfinite(margin) else None
        self.digests[number] = answer_digest(label, one.answer.kept.tolist())

    def to_json(self, examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
        """``accuracy`` is the score of the problem type (:func:`score_of`)."""
        given = [number for number, one in enumerate(examples) if one.label is not None]
        sure = [number for number in given if not self.abstained[number]]
        count = len(examples)

        def score(numbers: Sequence[int]) -> float | None:
            found = [self.predicted[number] for number in numbers]
            due = [examples[number].label for number in numbers]
            return score_of(found, due, self.problem_type) if numbers else None

        several = self.problem_type != runtime.SINGLE_LABEL
        return {
            "example_count": count,
            "labelled_count": len(given),
            **({"problem_type": self.problem_type} if several else {}),
            "label_names": list(names),
            "accuracy": score(given),
            "accuracy_of_answered": score(sure),
            "abstained_count": sum(self.abstained),
            "coverage": 1 - sum(self.abstained) / count,
            "reason": None if given else "the examples have no labels",
            "predicted": self.predicted,
            "abstained": self.abstained,
            "margins": self.margins,
            "digests": self.digests,
        }


def label_of(prediction: runtime.Prediction, names: Sequence[str]) -> Label:
    """What was answered, in the form of an example's label."""
    if prediction.values is not None:
        return [prediction.values[name] for name in names]
    if prediction.labels is not None:
        return [int(name in prediction.labels) for name in names]
    assert prediction.label is not None
    return names.index(prediction.label)


def score_of(found: Sequence[Any], due: Sequence[Any], problem_type: str) -> float:
    """The share of right classes; F1 over all labels of all examples (0 where there is none); R2,
    mean over values (of one that does not vary 0, or 1 where all are met)."""
    if problem_type == runtime.SINGLE_LABEL:
        return sum(mine == true for mine, true in zip(found, due, strict=True)) / len(due)
    mine, true = (np.asarray(rows, dtype=np.float64) for rows in (found, due))
    if problem_type == runtime.MULTI_LABEL:
        every = float(mine.sum() + true.sum())
        return 2 * float((mine * true).sum()) / every if every else 0.0
    residual = ((mine - true) ** 2).sum(axis=0)
    spread = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    missed = np.where(residual > 0, 1.0, 0.0)
    return float((1 - np.divide(residual, spread, out=missed, where=spread > 0)).mean())


def answer_digest(label: Label, kept: Sequence[bool]) -> str:
    """First 16 digits of the sha256 of ``<label>:<a 1 or 0 for each token or patch>``. Several
    labels are a 1 or 0 each; values, which machines round otherwise, are left out."""
    if isinstance(label, list):
        label_text = "".join(map(str, label)) if all(isinstance(one, int) for one in label) else ""
    else:
        label_text = str(label)
    text = f"{label_text}:{''.join('1' if one else '0' for one in kept)}"
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def measure_accuracy(system: SystemUnderTest, request: Request, watch: Watch) -> Quality:
    """Every example once, in queries as the scenario makes them."""
    count = len(system.examples)
    quality = Quality.empty(count, system.model.config.problem_type)
    width = {"SingleStream": 1, "MultiStream": request.samples_per_query}.get(
        request.scenario, request.batch
    )
    for start in range(0, count, width):
        numbers = range(start, min(start + width, count))
        for number, one in zip(numbers, system.answer(numbers), strict=True):
            quality.add(system, number, one)
        watch.between(numbers.stop)
    return quality


# --- MLCommons' LoadGen -----------------------------------------------------------------------


def measure_with_loadgen(
    system: SystemUnderTest,
    request: Request,
    watch: Watch,
    expected_ns: float,
    logs: Path,
) -> tuple[Samples, Quality | None, dict[str, Any]]:
    """The same system driven by LoadGen, whose logs go to ``logs``. Our own samples are of the same
    queries, from the call of LoadGen to the answer."""
    loadgen = _import_loadgen()
    count = len(system.examples)
    samples = Samples()
    problem_type = system.model.config.problem_type
    quality = Quality.empty(count, problem_type) if request.mode == "AccuracyOnly" else None
    offline = request.scenario == "Offline"

    def respond(asked: Sequence[Any], answered: Sequence[Answered]) -> None:
        said = loadgen_answers([one.answer.logits for one in answered], problem_type)
        place, _ = said.buffer_info()
        size = said.itemsize * len(said) // len(asked)
        loadgen.QuerySamplesComplete(
            [
                loadgen.QuerySampleResponse(one.id, place + position * size, size)
                for position, one in enumerate(asked)
            ]
        )

    def issue(asked: Sequence[Any]) -> None:
        try:
            start = time.perf_counter_ns()
            numbers = [one.index for one in asked]
            done = 0
            if not offline:
                answered = system.answer(numbers)
                spent = time.perf_counter_ns() - start
                respond(asked, answered)
                samples.add(spent, numbers)
                keep(numbers, answered)
                watch.between(len(samples.latencies_ns))
                if request.idle_gap_ms:
                    time.sleep(request.idle_gap_ms / 1e3)
                return
            for part in system.parts(numbers):
                answered = answer_part(system, part, start, samples)
                respond(asked[done : done + len(part)], answered)
                done += len(part)
                keep(part, answered)
                watch.between(len(samples.latencies_ns))
        except BaseException as error:  # must not unwind through LoadGen's C++
            _stop(_report_failure(error))

    def keep(numbers: Sequence[int], answered: Sequence[Answered]) -> None:
        if quality is not None:
            for number, one in zip(numbers, answered, strict=True):
                quality.add(system, number, one)

    settings = loadgen_settings(loadgen, request, expected_ns)
    output = loadgen.LogOutputSettings()
    output.outdir = str(logs)
    output.copy_summary_to_stdout = False
    log_settings = loadgen.LogSettings()
    log_settings.log_output = output
    log_settings.enable_trace = False
    under_test = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(count, count, lambda numbers: None, lambda numbers: None)
    try:
        # The default would read an audit.config of the current folder.
        nothing = str(logs / "no-audit.config")
        loadgen.StartTestWithLogSettings(under_test, library, settings, log_settings, nothing)
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(under_test)
    (logs / "mlperf_log_trace.json").unlink(missing_ok=True)  # none was asked for
    if quality is not None and None in quality.predicted:
        missing = quality.predicted.index(None) + 1
        raise runtime.RekdRuntimeError(f"LoadGen never asked example {missing}")
    return samples, quality, read_loadgen_log(logs / "mlperf_log_detail.txt")


def loadgen_answers(logits: Sequence[np.ndarray], problem_type: str) -> array.array[Any]:
    """What LoadGen's accuracy log gets, equally many bytes an example: an int32, the number of the
    class; an int32 of 0 or 1 for each label; a float32 for each value."""
    if problem_type == runtime.SINGLE_LABEL:
        return array.array("i", [int(row.argmax()) for row in logits])
    if problem_type == runtime.MULTI_LABEL:
        return array.array("i", [int(logit > 0) for row in logits for logit in row])
    return array.array("f", [float(value) for row in logits for value in row])


def _import_loadgen() -> Any:
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError as error:
        raise runtime.BackendError(
            f"mlcommons-loadgen cannot be imported ({error})",
            hint="python -m pip install mlcommons-loadgen, or measure without LoadGen",
        ) from error


def loadgen_settings(loadgen: Any, request: Request, expected_ns: float) -> Any:
    """``expected_ns`` is the time of one query (Offline: of one example): LoadGen decides by it how
    many queries it prepares."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, request.scenario)
    settings.mode = getattr(loadgen.TestMode, request.mode)
    settings.min_duration_ms = int(_default(request.min_duration_s, 0.0) * 1e3)
    settings.min_query_count = _default(request.min_query_count, 1)
    settings.single_stream_expected_latency_ns = int(expected_ns / 2)
    settings.multi_stream_expected_latency_ns = int(expected_ns / 2)
    settings.multi_stream_samples_per_query = request.samples_per_query
    settings.offline_expected_qps = 1.3e9 / expected_ns
    settings.qsl_rng_seed = settings.sample_index_rng_seed = request.seed
    settings.schedule_rng_seed = request.seed
    return settings


def read_loadgen_log(path: Path) -> dict[str, Any]:
    """The results in LoadGen's detailed log. Raises RekdRuntimeError where there are none."""
    found: dict[str, Any] = {}
    for line in (_text(path) or "").splitlines():
        marker, _, rest = line.partition(" ")
        if marker != ":::MLLOG":
            continue
        try:
            entry = json.loads(rest)
            key, value = entry["key"], entry["value"]
        except (ValueError, LookupError, TypeError):
            continue
        if key.startswith(("result_", "early_stopping", "loadgen_version", "effective_")):
            found[key.replace(".00_percentile", "_percentile").replace(".90_p", ".9_p")] = value
        elif key in ("error_runtime", "error_invalid_test_settings"):
            found.setdefault("errors", []).append(value)
    if "loadgen_version" not in found:
        raise runtime.RekdRuntimeError(f"LoadGen left no results in {path}")
    return found


# --- cold start -------------------------------------------------------------------------------


_FIRST_ANSWER = """
import sys, time
started = time.monotonic_ns()
sys.path[:] = [place for place in sys.path if place]  # nothing from the current folder
import json

def peak():
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024

asked = json.loads(sys.stdin.read())
sys.path.insert(0, asked["folder"])
import rekd_runtime
imported = time.monotonic_ns()
before_model = peak()
try:
    model = rekd_runtime.Rationalist.load(
        asked["bundle"], threads=asked["threads"], provider=asked["provider"]
    )
    loaded = time.monotonic_ns()
    model.predict([asked["item"]])
    answered = time.monotonic_ns()
    for _ in range(asked["queries"] - 1):
        model.predict([asked["item"]])
except rekd_runtime.RekdRuntimeError as error:
    sys.exit(error.message)
print(json.dumps({
    "answered_at_ns": answered,
    "import_ns": imported - started,
    "load_ns": loaded - imported,
    "first_query_ns": answered - loaded,
    "peak_rss_bytes": peak(),
    "rss_before_model_bytes": before_model,
}))
"""
"""A program of its own: what a fresh process compiles and loads is the runtime, not this file."""


def cold_starts(
    bundle: Path, item: str, request: Request, say: Callable[[str], None]
) -> dict[str, list[Any]] | None:
    """Times to the first answer, end to end, and memory, of fresh processes one after another; None
    where none is asked for. The files are in the system's cache by then."""
    runs = []
    place = Path(str(runtime.__file__)).resolve()
    asked = {
        "folder": str(place.parents[1] if place.name == "__init__.py" else place.parent),
        "bundle": str(bundle.resolve()),
        "queries": _MEMORY_QUERIES,
        "item": item,
        "threads": request.threads,
        "provider": request.provider,
    }
    for number in range(_default(request.cold_starts, 0)):
        say(f"cold start {number + 1} of {request.cold_starts}")
        launched = time.monotonic_ns()
        command = [sys.executable, "-c", _FIRST_ANSWER]
        code, output, errors = _run_child(command, json.dumps(asked))
        if code != 0:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise runtime.BackendError(f"a fresh process could not answer: {last}")
        run = json.loads(output)
        run["time_to_first_answer_ns"] = run.pop("answered_at_ns") - launched
        runs.append(run)
    return {key: [run[key] for run in runs] for key in runs[0]} if runs else None


# --- being stopped ----------------------------------------------------------------------------

_GUARD = threading.RLock()
"""Held while a child is started or a report is put in its place."""
_CHILD: subprocess.Popen[str] | None = None
_TEMPORARY: list[Path] = []


def _run_child(command: Sequence[str], given: str) -> tuple[int, str, str]:
    global _CHILD
    with _GUARD:
        child = _CHILD = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
    try:
        output, errors = child.communicate(given, timeout=COLD_START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise runtime.BackendError(f"no first answer within {COLD_START_TIMEOUT_S} s") from None
    finally:
        _CHILD = None
    return child.returncode, output, errors


def _stop(exit_code: int) -> NoReturn:
    """End this process at once, wherever its threads are, and leave nothing behind."""
    with _GUARD:
        if _CHILD is not None:
            _CHILD.kill()
        for path in _TEMPORARY:
            _remove(path)
        os._exit(exit_code)


def _remove(path: Path) -> None:
    """A temporary file, or the folder of LoadGen's logs, if nothing else is in it."""
    try:
        if path.is_dir():
            for file in path.glob("mlperf_log_*"):
                file.unlink(missing_ok=True)
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    except OSError:
        pass


def _interrupted() -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    _stop(130)


def watch_signals() -> None:
    """From here on SIGINT, SIGTERM and SIGHUP end the process with 130, also while the model runs
    or LoadGen drives it. One that was ignored (``nohup``) stays ignored.

    The system may hand a signal to any thread, those of numpy's BLAS among them, so none is blocked
    and waited for: Python's own C handler, which runs in whichever, writes to a pipe.
    """
    wanted = [one for one in _SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
    if os.name == "nt":
        for one in wanted:
            signal.signal(one, lambda number, frame: _interrupted())
        return

    told, tell = os.pipe()
    os.set_blocking(tell, False)

    def wait() -> None:
        os.read(told, 1)
        _interrupted()

    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for one in wanted:
        signal.signal(one, lambda number, frame: None)
    threading.Thread(target=wait, name="signals", daemon=True).start()


def _say(line: str) -> None:
    """Progress; where nobody reads it, nobody waits for the result."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _stop(130)


# --- the report -------------------------------------------------------------------------------


def run(
    bundle: Path,
    examples_folder: Path,
    request: Request,
    *,
    logs: Path | None = None,
    machine: Machine | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure and return the report. ``logs`` is an existing folder for LoadGen's, where it is to
    drive. Raises RekdRuntimeError for what cannot be used."""
    model = runtime.Rationalist.load(bundle, threads=request.threads, provider=request.provider)
    config = model.config
    examples, examples_sha256 = read_examples(
        examples_folder, config.modality, len(config.label_names), config.problem_type
    )
    request = request.resolved(len(examples))
    if request.batch > 1 and not model.takes_batches:
        raise InputError("the bundle's model takes one example at a time", hint="batch 1")
    if request.loadgen:
        _import_loadgen()
    say(f"{request.scenario}, {request.mode}, {request.scope}, {len(examples)} examples")
    machine = machine or Machine()
    system = SystemUnderTest(model, examples, request, machine)
    order = shuffled(len(examples), request.seed)
    expected_ns = _warm_up(system, request, order)
    watch = Watch(machine, say)
    quality: Quality | None = None
    samples = Samples()
    told: dict[str, Any] | None = None
    watch.start()
    if request.loadgen:
        assert logs is not None
        samples, quality, told = measure_with_loadgen(system, request, watch, expected_ns, logs)
    elif request.mode == "AccuracyOnly":
        quality = measure_accuracy(system, request, watch)
    elif request.scenario == "Offline":
        samples = measure_offline(system, request, order, watch)
    else:
        samples = measure_streams(system, request, order, watch)
    watch.stop(len(samples.latencies_ns))
    own_peak = peak_rss_bytes()
    cold = None
    if request.mode == "PerformanceOnly":
        cold = cold_starts(bundle, examples[order[0]].item, request, say)
    manifest_bytes = (model.folder / runtime.MANIFEST_FILE).read_bytes()
    sizes = {entry["path"]: entry for entry in model.manifest["files"]}
    wide = request.scenario == "MultiStream"
    peaks = [peak for peak in (cold or {}).get("peak_rss_bytes", []) if peak is not None]
    return {
        "schema_version": SCHEMA_VERSION,
        "report": "load-test",
        "scenario": request.scenario,
        "mode": request.mode,
        "scope": request.scope,
        "scope_in_words": system.scope_in_words,
        "driver": "own" if told is None else "MLCommons LoadGen",
        **_results(request, samples, watch, told),
        "quality": (None if quality is None else quality.to_json(examples, config.label_names)),
        "loadgen": told,
        "threads": runtime.resolve_threads(request.threads, config.settings.threads),
        "batch": request.batch,
        "samples_per_query": request.samples_per_query if wide else 1,
        "idle_gap_ms": request.idle_gap_ms,
        "runtime": config.runtime,
        "provider": request.provider
        or ("CPU" if config.runtime == "openvino" else runtime.CPU_PROVIDER),
        "request": {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(request)},
        "name": model.manifest.get("name"),
        "model_sha256": sizes[runtime.MODEL_FILE]["sha256"],
        "size_bytes": sizes[runtime.MODEL_FILE]["size_bytes"],
        "manifest_sha256": hashlib.sha256(manifest_bytes).hexdigest(),
        "inputs": f"{EXAMPLES_FILE} {examples_sha256[:12]}",
        "inputs_sha256": examples_sha256,
        "input_count": len(examples),
        "cold_start": cold,
        "peak_rss_bytes": max(peaks, default=own_peak),
        "measuring_peak_rss_bytes": own_peak,
        "machine": watch.machine.describe(),
        "state": watch.to_json(
            (samples.sample_count if request.scenario == "Offline" else len(samples.latencies_ns))
            or len(examples)
        ),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "samples_ns": samples.latencies_ns,
        "sample_examples": samples.queries,
    }


def _warm_up(system: SystemUnderTest, request: Request, order: Sequence[int]) -> float:
    """Nanoseconds of the median query (Offline: of one example)."""
    width = {"SingleStream": 1, "MultiStream": request.samples_per_query}.get(
        request.scenario, request.batch
    )
    spent: list[int] = []
    # Without a warm-up one query is still needed to tell LoadGen what to expect.
    count = _default(request.warmup_count, 0) or int(request.loadgen)
    least_ns = int((QUICK_WARMUP_S if request.quick else WARMUP_S) * 1e9) if count > 1 else 0
    while len(spent) < count or sum(spent) < least_ns:
        start = len(spent) * width
        numbers = [order[(start + i) % len(order)] for i in range(width)]
        begun = time.perf_counter_ns()
        system.answer(numbers)
        spent.append(time.perf_counter_ns() - begun)
    whole = median_interval(sorted(spent))[0] if spent else 1e6
    return whole / width if request.scenario == "Offline" else whole


def _results(
    request: Request, samples: Samples, watch: Watch, told: Mapping[str, Any] | None
) -> dict[str, Any]:
    """LoadGen's fields."""
    reasons = ["quick"] if request.quick else []
    if request.mode == "AccuracyOnly":
        return {
            "target_latency_percentile": None,
            "result_validity": "INVALID" if reasons else "VALID",
            "result_invalid_reason": "; ".join(reasons),
            "result_min_duration_met": None,
            "result_min_queries_met": None,
            "early_stopping_met": None,
            "result_query_count": None,
        }
    offline = request.scenario == "Offline"
    latencies = samples.latencies_ns
    counted = samples.sample_count if offline else len(latencies)
    percentile = TARGET_PERCENTILE.get(request.scenario)
    enough_time = watch.seconds >= _default(request.min_duration_s, 0.0)
    enough_queries = counted >= _default(request.min_query_count, 1)
    if not enough_time:
        reasons.append(f"{watch.seconds:.1f} s of {request.min_duration_s:g} s")
    if not enough_queries:
        reasons.append(f"{counted} of {request.min_query_count} queries")
    found: dict[str, Any] = {}
    stopped = True
    if percentile is not None:
        ordered = sorted(latencies)
        estimate = early_stopping_estimate(ordered, percentile)
        stopped = estimate is not None
        found["early_stopping_latency_ns"] = estimate
        found["early_stopping_99_percentile_latency_ns"] = early_stopping_estimate(ordered, 99)
        if not stopped:
            reasons.append(
                f"early stopping needs {early_stopping_count(percentile)} queries, not {counted}"
            )
        if request.target_latency_ms is not None:
            reached = estimate if estimate is not None else percentile_of(ordered, percentile)
            met = reached <= request.target_latency_ms * 1e6
            found["result_perf_constraints_met"] = met
            if not met:
                reasons.append(
                    f"the {percentile}th percentile is {reached / 1e6:.6g} ms, above the target of "
                    f"{request.target_latency_ms:g} ms"
                )
    else:
        spread = [
            when
            for when, size in zip(samples.answered_ns, samples.part_sizes, strict=True)
            for _ in range(size)
        ]
        ordered = sorted(spread)
        found["result_samples_per_second"] = len(ordered) / (ordered[-1] / 1e9)
    windows = windows_of(latencies, samples.queries)
    unrest = [windows.problem] if windows.problem else []
    unrest += watch.problems(len(latencies), idle_gap=bool(request.idle_gap_ms))
    if unrest:
        reasons.append("does not hold still: " + ", ".join(unrest))
    if told is not None and "result_90_percentile_latency_ns" in told:
        theirs = told[f"result_{percentile or 50}_percentile_latency_ns"]
        own = percentile_of(ordered, percentile or 50)
        found["loadgen_difference"] = own / theirs - 1 if theirs else None
    if told is not None and told.get("result_validity") != "VALID":
        reasons.append(f"LoadGen: {told.get('result_invalid_reason', 'no result')}".strip())
    return {
        "target_latency_percentile": percentile,
        "result_validity": "INVALID" if reasons else "VALID",
        "result_invalid_reason": "; ".join(reasons),
        "result_min_duration_met": enough_time,
        "result_min_queries_met": enough_queries,
        "early_stopping_met": stopped,
        **found,
        "result_query_count": 1 if offline else len(latencies),
        "result_sample_count": samples.sample_count,
        "result_duration_ns": watch.stopped_ns - watch.started_ns,
        "result_min_latency_ns": ordered[0],
        "result_max_latency_ns": ordered[-1],
        "result_mean_latency_ns": sum(ordered) // len(ordered),
        **{
            f"result_{name}_percentile_latency_ns": percentile_of(ordered, float(name))
            for name in PERCENTILES
        },
        "stability": {
            "held_still": not unrest,
            "reasons": unrest,
            "relative_to_the_same_query": windows.repeated,
            "window_medians": [list(window) for window in windows.medians],
            "run_median": list(windows.whole),
        },
    }


def write_report(path: Path, document: Mapping[str, Any], logs: Path | None) -> None:
    """Whole or not at all; LoadGen's logs go into a folder beside it first."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        with _GUARD:
            handle, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
            _TEMPORARY.append(Path(name))
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        Path(name).chmod(0o644)
        with _GUARD:
            if logs is not None:
                place = logs_folder(path)
                _remove(place)
                logs.chmod(0o755)
                os.replace(logs, place)
            os.replace(name, path)
            _TEMPORARY.clear()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def logs_folder(report: Path) -> Path:
    return report.with_name(f"{report.stem}.loadgen")


def require_place_for_logs(folder: Path) -> None:
    """Raises :class:`InputError` where ``folder`` is anything but LoadGen's logs of an earlier
    run, which are replaced."""
    others = []
    if folder.is_dir():
        others = [path.name for path in folder.iterdir() if not path.match("mlperf_log_*")]
    if others or (folder.exists() and not folder.is_dir()):
        raise InputError(
            f"{folder} is in the way of LoadGen's logs", hint="move it, or name another report"
        )


# --- the command ------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Load test of a rekd-edge bundle.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--examples", type=Path, required=True, metavar="DIR")
    parser.add_argument("--request", type=Path, required=True, metavar="REQUEST.json")
    parser.add_argument("--report", type=Path, required=True, metavar="OUT.json")
    return parser


def _measure(options: argparse.Namespace) -> None:
    report: Path = options.report
    if not report.parent.is_dir() or report.is_dir():
        raise InputError(f"cannot write {report}", hint="name a file in an existing folder")
    try:
        document = json.loads(options.request.read_bytes().decode("utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{options.request}: cannot be read: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{options.request}: not JSON: {error}") from error
    request = Request.of(document)
    logs = None
    if request.loadgen:
        require_place_for_logs(logs_folder(report))
        with _GUARD:
            logs = Path(tempfile.mkdtemp(prefix=f".{report.stem[:64]}.", dir=report.parent))
            _TEMPORARY.append(logs)
    try:
        write_report(
            report, run(options.bundle, options.examples, request, logs=logs, say=_say), logs
        )
    finally:
        for path in _TEMPORARY:
            _remove(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; failures become one message, no traceback."""
    try:
        options = _parser().parse_args(argv)
        watch_signals()
        _measure(options)
    except Exception as error:
        return _report_failure(error)
    return 0


def _report_failure(error: BaseException) -> int:
    if os.environ.get(runtime.TRACEBACK_VARIABLE, "") not in ("", "0"):
        traceback.print_exception(error)
    exit_code = 1
    if isinstance(error, runtime.RekdRuntimeError):
        message, exit_code = f"error: {error}", error.exit_code
    else:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        details = f"run with {runtime.TRACEBACK_VARIABLE}=1 for details"
        message = f"unexpected: {text} (a bug: please report it; {details})"
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
