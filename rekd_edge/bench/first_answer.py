"""What a fresh process needs: time to the first answer, and memory at its peak.

Run as ``python -m rekd_edge.bench.first_answer MODEL INPUTS.npz THREADS PROVIDER QUERIES``;
prints one JSON object. Nothing but numpy and onnxruntime is loaded, as on a device.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


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


def main(model: str, inputs_file: str, threads: str, provider: str, queries: str) -> None:
    start = time.monotonic_ns()
    import numpy as np
    import onnxruntime as ort

    imported = time.monotonic_ns()
    before_model = peak_rss_bytes()
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=[provider])
    loaded = time.monotonic_ns()
    with np.load(inputs_file, allow_pickle=False) as stored:
        taken = {value.name for value in session.get_inputs()}
        inputs = {name: stored[name] for name in stored.files if name in taken}
    read = time.monotonic_ns()
    session.run(None, inputs)
    answered = time.monotonic_ns()
    for _ in range(int(queries) - 1):
        session.run(None, inputs)
    print(
        json.dumps(
            {
                "answered_at_ns": answered,
                "import_ns": imported - start,
                "load_ns": loaded - imported,
                "first_query_ns": answered - read,
                "peak_rss_bytes": peak_rss_bytes(),
                "rss_before_model_bytes": before_model,
                "providers": session.get_providers(),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
