"""What a benchmark measured, under MLPerf LoadGen's field names where they exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from rekd_edge.bench.timing import Ratio
from rekd_edge.runtime_options import GPU_PROVIDERS

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How long is measured. Minimum duration *and* minimum count must both be met, each by every
    candidate. ``quick`` marks the result INVALID, as LoadGen does.

    In each turn a candidate answers ``turn_count`` queries in a row. Where that is more than one,
    one goes before them that is not counted: it finds the caches full of the other candidates'
    weights, and how many others there are must not decide a ratio.

    ``max_duration_s`` are seconds of the clock for each candidate, all that lies between its
    queries included, after which no further round begins once each has answered
    :data:`~rekd_edge.bench.measure.FEWEST` queries. A minimum that is not met then makes the result
    INVALID. On a device warming up ends after a quarter of it, too."""

    min_duration_s: float = 10.0
    min_count: int = 200
    max_duration_s: float | None = None
    turn_count: int = 3
    warmup_count: int = 20
    cold_starts: int = 3
    rss_queries: int = 20
    quick: bool = False
    seed: int = 0

    @classmethod
    def quick_look(cls) -> BenchSettings:
        return cls(min_duration_s=1.0, min_count=20, warmup_count=5, cold_starts=1, quick=True)


@dataclass(frozen=True, slots=True)
class ColdStart:
    """A fresh process, ``time_to_first_answer_ns`` from its launch (the interpreter's start
    included) to the first answer; one item per repetition."""

    time_to_first_answer_ns: tuple[int, ...]
    import_ns: tuple[int, ...]
    load_ns: tuple[int, ...]
    first_query_ns: tuple[int, ...]
    peak_rss_bytes: tuple[int | None, ...]
    rss_before_model_bytes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """One file. ``latency_ns`` maps LoadGen's percentiles to nanoseconds; ``samples_ns`` are all
    measured queries in order; ``ratio`` compares with the reference candidate of the same run."""

    size_bytes: int
    sha256: str
    providers: tuple[str, ...]
    query_count: int
    duration_ns: int
    mean_latency_ns: int
    min_latency_ns: int
    max_latency_ns: int
    latency_ns: dict[str, int]
    ratio: Ratio | None
    cold_start: ColdStart | None
    samples_ns: tuple[int, ...] = field(repr=False)
    placement: Mapping[str, Any] | None = None
    """Which provider of ONNX Runtime ran how many nodes, where a GPU did."""

    def to_json(self) -> dict[str, Any]:
        percentiles = {
            f"result_{name}_percentile_latency_ns": value for name, value in self.latency_ns.items()
        }
        return {
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "providers": list(self.providers),
            "result_query_count": self.query_count,
            "result_duration_ns": self.duration_ns,
            "result_mean_latency_ns": self.mean_latency_ns,
            "result_min_latency_ns": self.min_latency_ns,
            "result_max_latency_ns": self.max_latency_ns,
            **percentiles,
            "ratio": None if self.ratio is None else self.ratio.to_json(),
            "cold_start": None if self.cold_start is None else asdict(self.cold_start),
            "samples_ns": list(self.samples_ns),
            **({} if self.placement is None else {"placement": dict(self.placement)}),
        }


@dataclass(frozen=True, slots=True)
class BenchReport:
    """One interleaved run over all candidates.

    The timed scope is ``session.run`` alone: one query of ``batch`` examples, inputs already arrays
    on the host, preprocessing outside.
    """

    candidates: Mapping[str, CandidateReport]
    reference: str | None
    threads: int
    provider: str
    settings: BenchSettings
    inputs: str
    """Where the inputs come from, in words."""
    input_count: int
    invalid_reasons: tuple[str, ...]
    machine: Mapping[str, object]
    date: str
    runtime: str = "onnxruntime"
    runtime_settings: Mapping[str, object] = field(default_factory=dict)
    """Of every file; those that are not the default's (``RuntimeSettings``)."""
    notes: tuple[str, ...] = ()
    batch: int = 1
    mode: str = "PerformanceOnly"

    @property
    def scenario(self) -> str:
        """LoadGen's name: one example a query, or several."""
        return "SingleStream" if self.batch == 1 else "MultiStream"

    @property
    def scope(self) -> str:
        examples = "one example" if self.batch == 1 else f"{self.batch} examples"
        turn = self.settings.turn_count
        moved = ", transfers included" if self.provider in GPU_PROVIDERS else ""
        return f"session.run, {examples} a query{moved}, round-robin in turns of {turn}"

    @property
    def valid(self) -> bool:
        return not self.invalid_reasons

    @property
    def passed(self) -> bool:
        return self.valid

    def to_json(self) -> dict[str, Any]:
        met_duration = all(
            c.duration_ns >= self.settings.min_duration_s * 1e9 for c in self.candidates.values()
        )
        met_count = all(c.query_count >= self.settings.min_count for c in self.candidates.values())
        return {
            "schema_version": 1,
            "scenario": self.scenario,
            "mode": self.mode,
            "scope": self.scope,
            "target_latency_percentile": 90,
            "result_validity": "VALID" if self.valid else "INVALID",
            "result_invalid_reason": "; ".join(self.invalid_reasons),
            "result_min_duration_met": met_duration,
            "result_min_queries_met": met_count,
            "reference": self.reference,
            "threads": self.threads,
            "batch": self.batch,
            "runtime": self.runtime,
            "provider": self.provider,
            "runtime_settings": dict(self.runtime_settings),
            "settings": asdict(self.settings),
            "inputs": self.inputs,
            "input_count": self.input_count,
            "date": self.date,
            "machine": dict(self.machine),
            "notes": list(self.notes),
            "candidates": {name: c.to_json() for name, c in self.candidates.items()},
        }

    def render(self, console: Console) -> None:
        from rich.table import Table

        verdict = "VALID" if self.valid else f"INVALID: {'; '.join(self.invalid_reasons)}"
        where = f"{self.runtime} {self.provider.removesuffix('ExecutionProvider')}"
        title = f"bench: {self.threads} thread(s), {where}, {self.scenario}, {verdict}"
        table = Table(title=title, title_justify="left")
        table.add_column("file")
        for column in ("p50 ms", "p90 ms", "p99 ms", f"ratio to {self.reference or '-'}"):
            table.add_column(column, justify="right")
        for column in ("cold start s", "peak RSS MB", "size MB", "queries"):
            table.add_column(column, justify="right")
        for name, item in self.candidates.items():
            latency = (f"{item.latency_ns[p] / 1e6:.3f}" for p in ("50", "90", "99"))
            ratio = item.ratio
            compared = (
                "-" if ratio is None else (f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})")
            )
            cold = item.cold_start
            start = memory = "-"
            if cold is not None:
                start = f"{median(cold.time_to_first_answer_ns) / 1e9:.2f}"
                peaks = [peak for peak in cold.peak_rss_bytes if peak is not None]
                memory = f"{max(peaks) / 1e6:.0f}" if peaks else "-"
            table.add_row(
                name,
                *latency,
                compared,
                start,
                memory,
                f"{item.size_bytes / 1e6:.1f}",
                str(item.query_count),
            )
        console.print(table)
        console.print(f"inputs: {self.inputs} ({self.input_count})", markup=False)
        if self.runtime_settings:
            stated = ", ".join(f"{name} {value}" for name, value in self.runtime_settings.items())
            console.print(f"runtime settings: {stated}", markup=False)
        for note in self.notes:
            console.print(f"note: {note}", markup=False)
