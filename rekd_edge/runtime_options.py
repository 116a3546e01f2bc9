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


CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
GPU_PROVIDERS = (CUDA_PROVIDER, TENSORRT_PROVIDER)
"""Of ONNX Runtime, on NVIDIA GPUs; what TensorRT does not take goes to CUDA."""
CUDA_OPTIONS = {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""fp32 products keep all their bits, and the algorithm of a convolution is no matter of timing."""
TENSORRT_OPTIONS = {
    "device_id": "0",
    "trt_fp16_enable": "False",
    "trt_bf16_enable": "False",
    "trt_int8_enable": "False",
}
"""Precision is in the graph, never in a flag. This provider reads True and False, and refuses the 1
and 0 of CUDA's."""


def provider_chain(
    provider: str,
    tensorrt: Mapping[str, str] | None = None,
    cuda: Mapping[str, str] | None = None,
) -> list[tuple[str, dict[str, str]]]:
    """``providers`` of a session, in order; the other arguments add to the options."""
    if provider not in GPU_PROVIDERS:
        return [(provider, {})]
    chain = [(CUDA_PROVIDER, CUDA_OPTIONS | dict(cuda or {}))]
    if provider == TENSORRT_PROVIDER:
        chain.insert(0, (TENSORRT_PROVIDER, TENSORRT_OPTIONS | dict(tensorrt or {})))
    return chain


def preload_libraries(ort: Any, provider: str) -> str:
    """Loads the CUDA libraries that came with torch or lie elsewhere on the module path, so that
    onnxruntime finds them, also where it was installed apart from them; what it had to say about
    those that it did not find."""
    if provider not in GPU_PROVIDERS or not hasattr(ort, "preload_dlls"):
        return ""
    said = _preloaded(ort)
    if said:
        import importlib.util
        import sys
        from pathlib import Path

        torch = importlib.util.find_spec("torch")
        places = [Path(place) for place in sys.path if place]
        if torch is not None and torch.origin is not None:
            places.insert(0, Path(torch.origin).parents[1])
        for place in dict.fromkeys(places):
            for folder in sorted(place.glob("nvidia/*/lib")):
                _preloaded(ort, str(folder))
        said = _preloaded(ort)
    return said


def _preloaded(ort: Any, folder: str | None = None) -> str:
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls(directory=folder)
    return said.getvalue().strip()
