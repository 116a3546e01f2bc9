"""Latency, cold start, memory and size of exported files. Importing this package is cheap: the
cold start is measured in a process that passes through here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rekd_edge.bench.measure import bench_files
    from rekd_edge.bench.report import BenchReport, BenchSettings, CandidateReport, ColdStart

__all__ = ["BenchReport", "BenchSettings", "CandidateReport", "ColdStart", "bench_files"]


def __getattr__(name: str) -> Any:
    if name == "bench_files":
        from rekd_edge.bench.measure import bench_files

        return bench_files
    if name in __all__:
        from rekd_edge.bench import report

        return getattr(report, name)
    raise AttributeError(name)
