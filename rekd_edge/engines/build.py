"""Engines of a checked ONNX file: linted, built, compared with the graph, and recorded."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import onnx

import rekd_edge
from rekd_edge.data.storage import cache_dir, sha256_of
from rekd_edge.engines.backend import Device, TensorRt
from rekd_edge.engines.layers import compare_precision, parse_layers, requested_precision
from rekd_edge.engines.lint import require_buildable
from rekd_edge.engines.spec import BuildRecipe, EngineOptions
from rekd_edge.engines.store import EngineRecord, StoredEngine, write_recipe, write_record
from rekd_edge.errors import BackendError, IntegrityError


class BuildListener(Protocol):
    """Is told how far a build is. Phases lie in one another; steps count from 1."""

    def engine(self, name: str) -> None: ...

    def phase_start(self, name: str, steps: int) -> None: ...

    def phase_step(self, name: str, step: int) -> None: ...

    def phase_finish(self, name: str) -> None: ...


def require_capabilities(tensorrt: TensorRt, options: EngineOptions, device: Device | None) -> None:
    """Raises :class:`BackendError` where an engine that is asked for cannot be built here."""
    if not tensorrt.backend.builds_ahead and device is None:
        raise BackendError(
            f"{tensorrt.backend.name} builds for the GPU of the machine, and here is none",
            hint="build on the device, or ahead of time with --target trt-rtx",
        )
    for capability in options.compute_capabilities:
        tensorrt.require(capability)


def build_engines(
    file: Path,
    folder: Path,
    recipe: BuildRecipe,
    tensorrt: TensorRt,
    *,
    device: Device | None = None,
    listener: BuildListener | None = None,
) -> tuple[StoredEngine, ...]:
    """Builds ``file`` for each GPU of ``recipe`` into ``folder``: engines, side-cars, the recipe.

    Raises :class:`IntegrityError` where ``file`` is not the recipe's, :class:`BackendError` where
    the graph is refused or a build fails, and :class:`GateError` where an engine computes in
    another precision than the graph asks for.
    """
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != recipe.onnx_sha256:
        raise IntegrityError(f"{file} is not the file of the build recipe")
    require_capabilities(tensorrt, recipe, device)
    model = onnx.load_from_string(content)
    require_buildable(model, recipe, tensorrt.version)
    requested = requested_precision(model)
    folder.mkdir(parents=True, exist_ok=True)
    capabilities: Sequence[int] = recipe.compute_capabilities
    if device is not None and not capabilities:
        capabilities = (device.compute_capability,)
    bound_to = None if tensorrt.backend.builds_ahead else device
    made = []
    for capability in capabilities:
        if listener is not None:
            listener.engine(f"{recipe.backend} {recipe.precision}, SM {capability}")
        handle, name = tempfile.mkstemp(prefix=".engine.", dir=folder)
        os.close(handle)
        plan = Path(name)
        try:
            text = _build_apart(file, plan, recipe, capability, tensorrt, listener)
            layers = parse_layers(text)
            compared = compare_precision(requested, layers)
            compared.require(f"the engine for SM {capability}")
            record = EngineRecord(
                recipe=recipe,
                backend_version=tensorrt.version,
                compute_capability=capability,
                driver=None if bound_to is None else bound_to.driver,
                device_name=None if bound_to is None else bound_to.name,
                engine_sha256=sha256_of(plan),
                size_bytes=plan.stat().st_size,
                layers=len(layers),
                products=compared.products,
            )
            plan.chmod(0o644)
            os.replace(plan, folder / f"{record.stem}.engine")
        finally:
            plan.unlink(missing_ok=True)
        made.append(write_record(folder, record))
    write_recipe(folder, recipe)
    return tuple(made)


def _build_apart(
    file: Path,
    plan: Path,
    recipe: BuildRecipe,
    capability: int,
    tensorrt: TensorRt,
    listener: BuildListener | None,
) -> str:
    """Builds in a process of its own, whose end is no end of this one; answers the layers."""
    version = tensorrt.version
    cache = None
    if recipe.timing_cache and tensorrt.backend.caches_timings:
        cache = cache_dir() / "timings" / f"{recipe.backend}-{version}-sm{capability}.cache"
    job = {
        "onnx": str(file.resolve()),
        "plan": str(plan.resolve()),
        "recipe": recipe.model_dump(mode="json"),
        "compute_capability": capability,
        "timing_cache": None if cache is None else str(cache),
    }
    package = str(Path(rekd_edge.__file__).parents[1])
    search = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rekd_edge.engines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": search},
        )
        try:
            last = _follow(process, job, listener)
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        if last.get("event") == "built" and code == 0:
            return str(last["layers"])
        if last.get("event") == "failed":
            raise BackendError(last["message"], hint=last["hint"])
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    how, hint = f"with code {code}", None
    if code < 0:
        how = f"by signal {-code}"
        hint = (
            "it probably ran out of memory: free some, or lower the largest batch or tokens of "
            "the target"
        )
    raise BackendError(
        f"{recipe.backend} {version} ended {how} while building for SM {capability}"
        + (f": {said[-1]}" if said else ""),
        hint=hint,
    )


def _follow(
    process: subprocess.Popen[str], job: dict[str, Any], listener: BuildListener | None
) -> dict[str, Any]:
    """Passes the events on to ``listener``; the last one."""
    assert process.stdin is not None
    assert process.stdout is not None
    last: dict[str, Any] = {}
    try:
        process.stdin.write(json.dumps(job))
        process.stdin.close()
    except BrokenPipeError:
        return last  # it ended at once; its code says how
    for line in process.stdout:
        try:
            last = json.loads(line)
        except ValueError:  # cut short by the end of the process
            break
        if listener is None:
            continue
        if last["event"] == "start":
            listener.phase_start(last["phase"], last["steps"])
        elif last["event"] == "step":
            listener.phase_step(last["phase"], last["steps"])
        elif last["event"] == "finish":
            listener.phase_finish(last["phase"])
    return last
