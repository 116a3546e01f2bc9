"""Builds an engine with whichever TensorRT it is given.

Runs in a process of its own (:mod:`rekd_edge.engines.__main__`): a builder that runs out of memory
or fails inside its libraries takes its process with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rekd_edge.engines.backend import TensorRt
from rekd_edge.engines.spec import BuildRecipe
from rekd_edge.errors import BackendError

Report = Callable[[str, str, int], None]
"""What is told of the build: ``start``, ``step`` or ``finish``; the phase; its number of steps, or
the step that is done."""

_MEMORY = re.compile(r"bad_alloc|out ?of ?memory|workspace limit|failed to allocate", re.I)
_SOURCE = re.compile(r"\s*In \S+ at \S+:\d+\)?\s*\)?$")
_PREFIX = re.compile(r"^(?:(?:\w+::)*\w+: Error Code \d+: [\w ]+ \(|\[[^\]]+\] ?)+")


@dataclass(frozen=True, slots=True)
class Built:
    """An engine as bytes, its layers in TensorRT's words, and the timings measured on the way."""

    plan: bytes
    layers: str
    timings: bytes | None


class EngineBuilder:
    """One TensorRT. Networks are strongly typed: precision is that of the graph."""

    def __init__(self, tensorrt: TensorRt, report: Report | None = None) -> None:
        self.tensorrt = tensorrt
        self._report = report
        self._module = tensorrt.module
        self._log = log_of(self._module)
        try:
            self._builder = self._module.Builder(self._log)
        except Exception as error:  # without a driver: "factory function returned nullptr"
            raise BackendError(
                f"{tensorrt.backend.name} {tensorrt.version} cannot build here: {error}",
                hint="it needs an NVIDIA GPU and its driver; without one, --target trt-rtx builds",
            ) from error

    def build(
        self,
        onnx: bytes,
        recipe: BuildRecipe,
        *,
        compute_capability: int | None,
        timings: bytes | None = None,
    ) -> Built:
        """``timings`` are those of an earlier build; None where none are wanted. Raises
        :class:`BackendError` where the graph is refused, or the builder fails."""
        network = self._network(onnx)
        config = self._config(recipe, compute_capability)
        profile = self._builder.create_optimization_profile()
        for name, shapes in recipe.profiles.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) < 0:
            raise self._failed("the shapes are refused")
        keeps_timings = timings is not None and self.tensorrt.backend.caches_timings
        if timings is not None and keeps_timings:
            self._use_timings(config, timings)
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise self._failed("the build failed")
        cache = config.get_timing_cache() if keeps_timings else None
        measured = None if cache is None else cache.serialize()
        content = bytes(memoryview(plan))
        return Built(
            content,
            self._layers(content),
            None if measured is None else bytes(memoryview(measured)),
        )

    def _network(self, onnx: bytes) -> Any:
        module = self._module
        flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self._builder.create_network(0 if flag is None else 1 << int(flag))
        parser = module.OnnxParser(network, self._log)
        if not parser.parse(onnx):
            lines = []
            for index in range(parser.num_errors):
                error = parser.get_error(index)
                why = _readable(str(error.desc()).removeprefix("Invalid Node - "))
                lines.append(f"{error.node_name()} ({error.node_operator()}): {why}")
            raise BackendError(
                f"{self._name} does not take this graph:\n  " + "\n  ".join(lines),
                hint="change the model or the target, and export again",
            )
        self._keep_alive = parser  # the network reads the parser's weights while it is built
        return network

    def _config(self, recipe: BuildRecipe, compute_capability: int | None) -> Any:
        module = self._module
        config = self._builder.create_builder_config()
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        config.builder_optimization_level = recipe.optimization_level
        for name, wanted in (
            ("TF32", recipe.tf32),
            ("VERSION_COMPATIBLE", recipe.version_compatible),
            ("REFIT", recipe.refit),
        ):
            flag = getattr(module.BuilderFlag, name)
            config.set_flag(flag) if wanted else config.clear_flag(flag)
        if recipe.workspace_mib is not None:
            pool = module.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, recipe.workspace_mib << 20)
        if self.tensorrt.backend.builds_ahead and compute_capability is not None:
            self.tensorrt.require(compute_capability)
            config.num_compute_capabilities = 1
            capability = getattr(module.ComputeCapability, f"SM{compute_capability}")
            config.set_compute_capability(capability, 0)
        if self._report is not None:
            self._monitor = _monitor_of(module, self._report)
            config.progress_monitor = self._monitor
        return config

    @staticmethod
    def _use_timings(config: Any, stored: bytes) -> None:
        cache = config.create_timing_cache(stored)  # None where the bytes are broken
        if cache is None or not config.set_timing_cache(cache, False):
            # They are of another GPU or version: begin anew.
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def _layers(self, plan: bytes) -> str:
        if self._log.layers is not None:
            return self._log.layers
        module = self._module
        runtime = runtime_of(self.tensorrt, self._log)
        runtime.engine_host_code_allowed = True  # of a version-compatible plan; it was built here
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed("the engine cannot be inspected")
        form = module.LayerInformationFormat.ONELINE
        return str(engine.create_engine_inspector().get_engine_information(form))

    @property
    def _name(self) -> str:
        return f"{self.tensorrt.backend.name} {self.tensorrt.version}"

    def _failed(self, what: str) -> BackendError:
        reasons = list(dict.fromkeys(map(_readable, self._log.errors)))
        text = "; ".join(reasons) or "TensorRT gives no reason"
        if any(map(_MEMORY.search, self._log.errors)):
            return BackendError(
                f"{self._name} ran out of memory while building: {text}",
                hint="raise engine.workspace_mib, lower the largest batch or tokens of the target, "
                "or free memory",
            )
        return BackendError(f"{self._name}: {what}: {text}", hint=_hint(text))


def _readable(text: str) -> str:
    """TensorRT's message without the places in its source code."""
    line = next((line for line in text.strip().splitlines() if line), text)
    return _SOURCE.sub("", _PREFIX.sub("", line)).strip()


def _hint(text: str) -> str | None:
    if "lean" in text:
        return "engine.version_compatible needs TensorRT's lean runtime: set it to false"
    if "Turing" in text:
        return "SM 75 takes products in fp16 alone: leave it out, or take a target in fp16"
    return None


def runtime_of(tensorrt: TensorRt, log: Any) -> Any:
    """What loads engines. Raises :class:`BackendError` where it cannot be made."""
    try:
        return tensorrt.module.Runtime(log)
    except Exception as error:  # without a driver: "factory function returned nullptr"
        reasons = "; ".join(dict.fromkeys(map(_readable, log.errors)))
        raise BackendError(
            f"{tensorrt.backend.name} {tensorrt.version} has no runtime here: {reasons or error}",
            hint="it needs an NVIDIA GPU and a driver that this version supports",
        ) from error


def log_of(module: Any) -> Any:
    class Log(module.ILogger):
        """Keeps errors, and the layers that TensorRT-RTX lists when it has built them."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.layers: str | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message

    return Log()


def _monitor_of(module: Any, report: Report) -> Any:
    class Monitor(module.IProgressMonitor):
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            report("start", phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            report("step", phase_name, step + 1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            report("finish", phase_name, 0)

    return Monitor()
