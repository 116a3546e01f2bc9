"""What a fresh process needs: time to the first answer, and memory at its peak.

Run as ``python -m rekd_edge.bench.first_answer MODEL INPUTS.npz REQUEST``, where the request is
JSON with ``runtime``, ``threads``, ``provider``, ``settings``, ``queries`` and what the runner says
of itself (``start_options``); prints one JSON object. Nothing but numpy and the
runtime is loaded, as on a device.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rekd_edge.runtime_options import compile_options, preload_libraries, session_options

Answer = Callable[[dict[str, Any]], Any]


def peak_rss_bytes() -> int | None:
    """Largest resident memory of this process so far; None where it cannot be read.

    From ``VmHWM``: ``getrusage`` may report the parent's peak after a fork.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def open_onnxruntime(model: str, asked: dict[str, Any]) -> tuple[list[str], Answer, list[str]]:
    import onnxruntime as ort

    options = session_options(ort, asked["threads"], asked["settings"])
    chain = [tuple(one) for one in asked.get("providers") or [[asked["provider"], {}]]]
    preload_libraries(ort, chain[0][0])
    session = ort.InferenceSession(model, options, providers=chain)
    if session.get_providers()[0] != chain[0][0]:
        raise SystemExit(f"onnxruntime would run on {session.get_providers()[0]}")
    names = [value.name for value in session.get_inputs()]
    return names, lambda inputs: session.run(None, inputs), list(session.get_providers())


def open_openvino(model: str, asked: dict[str, Any]) -> tuple[list[str], Answer, list[str]]:
    import openvino

    core = openvino.Core()
    options = compile_options(asked["threads"])
    compiled = core.compile_model(core.read_model(model), asked["provider"], options)
    names = [value.get_node().get_friendly_name() for value in compiled.inputs]
    devices = list(compiled.get_property("EXECUTION_DEVICES"))
    return names, compiled.create_infer_request().infer, devices


def open_package(model: str, asked: dict[str, Any]) -> tuple[list[str], Answer, list[str]]:
    import torch

    if asked["runtime"] == "torch-trt":
        __import__("torch_tensorrt")  # the package calls its operators
    torch.set_num_threads(asked["threads"])
    package, device, names = (
        torch._inductor.aoti_load_package(model),
        asked["device"],
        asked["inputs"],
    )

    def answer(inputs: dict[str, Any]) -> Any:
        with torch.inference_mode():
            held = [torch.from_numpy(inputs[name]).to(device) for name in names]
            return [one.cpu() for one in package(*held)]

    return names, answer, [device]


OPENERS = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "aoti": open_package,
    "torch-trt": open_package,
}
MODULES = {"aoti": "torch", "torch-trt": "torch"}
"""What a runtime is imported as, where that is not its name."""


def main(model: str, inputs_file: str, request: str) -> None:
    asked = json.loads(request)
    start = time.monotonic_ns()
    import numpy as np

    runtime = str(asked["runtime"])
    __import__(MODULES.get(runtime, runtime))
    imported = time.monotonic_ns()
    before_model = peak_rss_bytes()
    names, answer, providers = OPENERS[asked["runtime"]](model, asked)
    loaded = time.monotonic_ns()
    with np.load(inputs_file, allow_pickle=False) as stored:
        inputs = {name: stored[name] for name in stored.files if name in names}
    read = time.monotonic_ns()
    answer(inputs)
    answered = time.monotonic_ns()
    for _ in range(asked["queries"] - 1):
        answer(inputs)
    print(
        json.dumps(
            {
                "answered_at_ns": answered,
                "import_ns": imported - start,
                "load_ns": loaded - imported,
                "first_query_ns": answered - read,
                "peak_rss_bytes": peak_rss_bytes(),
                "rss_before_model_bytes": before_model,
                "providers": providers,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
