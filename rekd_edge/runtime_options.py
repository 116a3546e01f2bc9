"""How runtimes are told what to do. Imports nothing: a cold start passes through here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}


def session_options(ort: Any, threads: int, settings: Mapping[str, Any] | None = None) -> Any:
    """``onnxruntime.SessionOptions`` for ``threads`` (final: capped by the caller) and the fields
    of :class:`~rekd_edge.runners.settings.RuntimeSettings`; one that is missing is the default.

    The pools of `parallel` share the threads, so that no more of them run than were given.
    """
    wanted = settings or {}
    parallel = wanted.get("execution_mode") == "parallel" and threads > 1
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 2 if parallel else 1
    options.intra_op_num_threads = threads // 2 if parallel else threads
    mode = ort.ExecutionMode
    options.execution_mode = mode.ORT_PARALLEL if parallel else mode.ORT_SEQUENTIAL
    level = _LEVELS[wanted.get("graph_optimization", "all")]
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.enable_cpu_mem_arena = wanted.get("cpu_arena", True)
    options.enable_mem_pattern = wanted.get("memory_pattern", True)
    spins = "1" if wanted.get("spinning", True) else "0"
    entries = {
        "session.disable_prepacking": "0" if wanted.get("prepacking", True) else "1",
        "session.intra_op.allow_spinning": spins,
        "session.inter_op.allow_spinning": spins,
        "session.force_spinning_stop": "1",
    }
    blocks = wanted.get("dynamic_block_base", 0)
    if blocks:
        entries["session.dynamic_block_base"] = str(blocks)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def compile_options(threads: int) -> dict[str, Any]:
    """What OpenVINO is told: one query at a time, on ``threads`` threads, in fp32."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
    }
