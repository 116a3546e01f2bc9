"""The process that builds: a job as JSON on standard input, events as lines of JSON on standard
output (:mod:`rekd_edge.engines.build` starts it and reads them)."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from rekd_edge.engines.backend import load_backend
from rekd_edge.engines.builder import EngineBuilder
from rekd_edge.engines.spec import BuildRecipe
from rekd_edge.errors import RekdEdgeError


def main() -> None:
    job = json.load(sys.stdin)
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no event

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    def report(what: str, phase: str, steps: int) -> None:
        tell(event=what, phase=phase, steps=steps)

    warnings.simplefilter("ignore")
    recipe = BuildRecipe.model_validate(job["recipe"])
    cache = None if job["timing_cache"] is None else Path(job["timing_cache"])
    timings = None
    if cache is not None:
        timings = cache.read_bytes() if cache.is_file() else b""
    try:
        built = EngineBuilder(load_backend(recipe.backend), report).build(
            Path(job["onnx"]).read_bytes(),
            recipe,
            compute_capability=job["compute_capability"],
            timings=timings,
        )
    except RekdEdgeError as error:
        tell(event="failed", message=error.message, hint=error.hint)
        return
    Path(job["plan"]).write_bytes(built.plan)
    if cache is not None and built.timings is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        whole = cache.with_name(f"{cache.name}.{os.getpid()}")
        whole.write_bytes(built.timings)
        os.replace(whole, cache)
    tell(event="built", layers=built.layers)


if __name__ == "__main__":
    main()
