"""The latency table on a device: every form in every runtime, with transfers and without.

OUTPUT/device/NAME.TARGET.onnx are the files, engines/ the engines of TensorRT,
timing-DEVICE-TARGET-BATCH-WAY.json one interleaved run over all forms in one precision and one way
to run them: a runtime, with CUDA graphs or without. OUTPUT/device-DEVICE.json and .md are the
table.

A timing that is there is kept as long as it was made from the same models, settings and versions,
so that a long table is made in pieces. Models need no training: how fast they are is no matter of
what they have learnt (``weights: untrained``).
"""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rekd_edge import __version__
from rekd_edge.bench import BenchSettings
from rekd_edge.bench.on_device import (
    SCOPES,
    DeviceTiming,
    Transfers,
    describe_device,
    gpu_state,
    time_residents,
)
from rekd_edge.bench.residents import (
    EngineResident,
    Inputs,
    OnnxResident,
    Resident,
    TorchResident,
    exact_fp32,
)
from rekd_edge.bench.timing import ratio_of_medians
from rekd_edge.check.inputs import examples_of, queries, single, stack
from rekd_edge.compare import TitledListener
from rekd_edge.convert import TargetSpec, file_sha256, load_target, weights_sha256
from rekd_edge.data import TaskData, load_data
from rekd_edge.data.preprocess import Preprocessor, TextPreprocessor
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.engines.backend import load_backend, present_device
from rekd_edge.engines.build import build_engines
from rekd_edge.engines.spec import EngineSpec, SizeRange, build_recipe
from rekd_edge.engines.store import read_engines
from rekd_edge.errors import BackendError, IntegrityError, RekdEdgeError, UsageError
from rekd_edge.export_pipeline import BENCH_EXAMPLES, convert_run, test_batches
from rekd_edge.fuse import fuse
from rekd_edge.fuse.folds import unfold_attention
from rekd_edge.fuse.fused import DeployModel, masked_form, plain_form
from rekd_edge.machine import (
    hardware,
    imported_onnxruntime,
    onnxruntime_of,
    package_versions,
)
from rekd_edge.models.build import build_classifier, build_rationalist
from rekd_edge.models.rationalist import Classifier, Rationalist, Selector
from rekd_edge.packages.backend import find_compiler
from rekd_edge.packages.build import made_of, package_for, quiet_compilers
from rekd_edge.packages.spec import PackageSpec
from rekd_edge.problem import clear_answers
from rekd_edge.recipe.latency_file import CandidateSpec, LatencySpec, OnDeviceSpec
from rekd_edge.recipe.schema import Recipe
from rekd_edge.runners import PackageRunner, TensorRtRunner, file_runner
from rekd_edge.runners.file_runner import first_line
from rekd_edge.runners.gpu_runner import CudaRunner, require_provider
from rekd_edge.runtime_options import CUDA_PROVIDER
from rekd_edge.suite import row_run

FOLDER = "device"
SCHEMA_VERSION = 2
AGREE = 0.97
"""Share of answers in which a model must agree with the fp32 model in torch; else its timing is
that of another function, and INVALID."""
NEAR = 0.02
"""Of the largest logit: two labels that lie nearer are a tie that rounding decides."""
COMPARED = 128
"""Examples whose labels are compared."""
RESERVE_S = 5.0
"""Kept for timing what is open, where there is a limit."""
LONGEST_REASON = 500
"""Letters of a reason why something was not run."""


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to run a model."""

    runtime: str
    cuda_graph: bool

    @property
    def title(self) -> str:
        return self.runtime + (", CUDA graph" if self.cuda_graph else "")

    @property
    def file_name(self) -> str:
        return self.runtime + ("-graph" if self.cuda_graph else "")


def run_on_device(
    spec: LatencySpec,
    recipes: Mapping[str, Recipe],
    output: Path,
    *,
    batch: Sequence[int] | None = None,
    settings: BenchSettings,
    device: str = "auto",
    limit_s: float | None = None,
    listener: TitledListener | None = None,
) -> dict[str, Any]:
    """Makes the models, times them for each batch size, and writes the table as it grows.

    What cannot be run here (a runtime that is missing, CUDA graphs on a CPU) is listed under
    ``not_run`` with its reason, and is no failure. ``limit_s``: about then no further model is
    opened and no timing begun; the result is then ``unfinished``, and another call goes on.

    Raises:
        BackendError: ``device`` is cuda, and there is no CUDA GPU; no model could be run at all.
        UsageError: candidates that cannot be timed together.
    """
    assert spec.on_device is not None
    table = _DeviceTable(spec, spec.on_device, recipes, output, _device(device), listener, limit_s)
    timings: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    unfinished = False
    for size, target, way in _asked(spec, batch or spec.batch, table.ways()):
        if timings and table.left_s() <= 0:
            unfinished = True
            break
        timings.append(table.timing(target, way, size, settings))
        # After each of them: what ends the process takes no more than one.
        result = _result(spec, table, timings, settings)
        _write(result, output / f"device-{table.device}")
    if unfinished:
        result["unfinished"] = True
        _write(result, output / f"device-{table.device}")
    if not result["rows"] and not result["unfinished"]:
        raise BackendError(
            f"suite {spec.name}: nothing ran on {table.device}",
            hint=next(iter(one["reason"] for one in result["not_run"]), None),
        )
    return result


def _asked(
    spec: LatencySpec, batch: Sequence[int], ways: Sequence[_Way]
) -> Iterator[tuple[int, str, _Way]]:
    """Batch size, target and way of each timing, in order."""
    targets = list(dict.fromkeys(t for one in spec.candidates for t in one.targets))
    for size in batch:
        for target in targets:
            for way in ways:
                yield size, target, way


def _write(result: dict[str, Any], stem: Path) -> None:
    write_json(stem.with_suffix(".json"), result)
    stem.with_suffix(".md").write_text(device_table(result), encoding="utf-8")


def _result(
    spec: LatencySpec,
    table: _DeviceTable,
    timings: Sequence[dict[str, Any]],
    settings: BenchSettings,
) -> dict[str, Any]:
    assert spec.on_device is not None
    return {
        "device_suite": spec.name,
        "schema_version": SCHEMA_VERSION,
        "description": spec.description,
        "recipe": spec.recipe,
        "overrides": list(spec.overrides),
        "seed": spec.seed,
        "weights": spec.on_device.weights,
        "reference": spec.reference.name,
        "scopes": dict(SCOPES),
        "rows": [row for timing in timings for row in timing["rows"]],
        "not_run": [one for timing in timings for one in timing["not_run"]],
        "unfinished": any(timing["unfinished"] for timing in timings),
        "validity": {_run_of(timing): timing["validity"] for timing in timings},
        "gpu": [
            {name: t[name] for name in ("target", "batch", "way", "before", "after")}
            for t in timings
        ],
        "settings": asdict(settings),
        "device": describe_device(table.device),
        "timed": max(timing["date"] for timing in timings),
        "versions": package_versions(),
        "onnxruntime": imported_onnxruntime(),
        "hardware": hardware(),
    }


def _run_of(one: Mapping[str, Any]) -> str:
    """Which interleaved run a timing is."""
    return f"{one['target']}, batch {one['batch']}, {one['way']}"


def _device(asked: str) -> str:
    if asked not in {"auto", "cpu", "cuda"}:
        raise UsageError(f"--device {asked}: auto, cpu or cuda")
    present = torch.cuda.is_available()
    if asked == "cuda" and not present:
        built = torch.version.cuda
        raise BackendError(
            "--device cuda: torch sees no CUDA GPU"
            + (f" (it was built for CUDA {built})" if built else " (it was built without CUDA)"),
            hint="look at `nvidia-smi`: the GPU's driver must be as new as torch's CUDA; or time "
            "on the CPU with --device cpu",
        )
    return "cuda" if present and asked != "cpu" else "cpu"


@dataclass(frozen=True, slots=True)
class _Model:
    """A candidate's model, and what it was made from."""

    model: DeployModel
    preprocessor: Preprocessor
    sha256: str

    @property
    def inputs(self) -> list[str]:
        return [tensor.name for tensor in self.model.io_spec().inputs]

    @property
    def outputs(self) -> list[str]:
        return [tensor.name for tensor in self.model.io_spec().outputs]


class _DeviceTable:
    def __init__(
        self,
        spec: LatencySpec,
        asked: OnDeviceSpec,
        recipes: Mapping[str, Recipe],
        output: Path,
        device: str,
        listener: TitledListener | None,
        limit_s: float | None = None,
    ) -> None:
        self.spec = spec
        self.asked = asked
        self.recipes = recipes
        self.output = output
        self.folder = output / FOLDER
        self.device = device
        self.listener = listener
        self._ends = None if limit_s is None else time.monotonic() + limit_s
        self._models: dict[str, _Model] = {}
        self._on_device: dict[tuple[str, bool], Any] = {}
        self._on_device_for: tuple[str, str, int] | None = None
        self._wanted: dict[str, dict[bytes, np.ndarray]] = {}
        self._data: TaskData | None = None
        self._examples: list[dict[str, np.ndarray]] | None = None
        base = recipes[spec.reference.run]
        for candidate in spec.candidates:
            recipe = recipes[candidate.run]
            if recipe.data != base.data or recipe.modality != base.modality:
                raise UsageError(
                    f"candidate {candidate.name!r} has other data than {spec.reference.name!r}"
                )
            for name in candidate.targets:
                if load_target(name).precision not in {"fp32", "fp16"}:
                    raise UsageError(f"on a device fp32 and fp16 are timed, not {name!r}")

    def left_s(self) -> float:
        """Seconds until the limit."""
        return float("inf") if self._ends is None else self._ends - time.monotonic()

    def _say(self, what: str) -> None:
        if self.listener is not None:
            self.listener.retitle(what)

    def _read(self) -> TaskData:
        if self._data is None:
            self._data = load_data(self.recipes[self.spec.reference.run])
        return self._data

    def model(self, candidate: CandidateSpec) -> _Model:
        if candidate.name not in self._models:
            self._say(f"making {candidate.name}")
            if self.asked.weights == "trained":
                self._models[candidate.name] = self._trained(candidate)
            else:
                self._models[candidate.name] = self._untrained(candidate)
        return self._models[candidate.name]

    def _trained(self, candidate: CandidateSpec) -> _Model:
        recipe = self.recipes[candidate.run].model_copy(update={"seed": self.spec.seed})
        run = row_run(recipe, candidate.run, self.output, self.device, self.listener)
        if candidate.form == "plain":
            plain = run.plain()
            assert plain is not None
            model: DeployModel = plain
        else:
            model = run.fused() if candidate.form == "gathered" else run.masked()
        return _Model(model, run.preprocessor, weights_sha256(model))

    def _untrained(self, candidate: CandidateSpec) -> _Model:
        """The backbones' weights, and heads as they are before training."""
        recipe, labels = self.recipes[candidate.run], self._read().label_names
        torch.manual_seed(self.spec.seed)
        facts: dict[str, Any] = {"label_names": labels, "max_length": None}
        if recipe.modality == "text":
            facts["max_length"] = recipe.data.max_length
        if candidate.form == "plain":
            built = build_classifier(recipe.student, recipe, len(labels))
            assert isinstance(built.model, Classifier)
            scale = built.preprocessor.pixel_scale
            model: DeployModel = plain_form(built.model, pixel_scale=scale, **facts)
        else:
            built = build_rationalist(recipe.student, recipe, len(labels))
            assert isinstance(built.model, Rationalist)
            fused = fuse(built.model, pixel_scale=built.preprocessor.pixel_scale, **facts)
            model = masked_form(fused) if candidate.form == "masked" else fused
        return _Model(model.eval(), built.preprocessor, weights_sha256(model))

    def _identity(self, candidate: CandidateSpec, target: TargetSpec) -> str:
        """A digest of what a candidate's file follows from."""
        facts = {
            "form": candidate.form,
            "weights": self.model(candidate).sha256,
            "recipe": self.recipes[candidate.run].model_dump(mode="json"),
            "target": target.model_dump(mode="json"),
            "versions": package_versions() | {"rekd-edge": __version__},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def queries(self, batch: int) -> list[Inputs]:
        """Real test examples, all queries of one shape: texts are padded to the longest of them."""
        held = self.model(self.spec.reference)
        if self._examples is None:
            batches = test_batches(self._read().test, held.preprocessor)
            self._examples = examples_of(batches, max(BENCH_EXAMPLES, batch))
        pad_id = 0
        if isinstance(held.preprocessor, TextPreprocessor):
            pad_id = held.preprocessor.special_ids["pad"]
        found = queries(self._examples, batch, pad_id)[: self.asked.queries]
        whole = stack(found, pad_id) if batch > 1 or len(found) > 1 else found[0]
        return [
            {name: value[start : start + batch] for name, value in whole.items()}
            for start in range(0, len(found) * batch, batch)
        ]

    def ways(self) -> list[_Way]:
        graphs = (False, True) if self.asked.cuda_graphs else (False,)
        return [
            _Way(runtime, graph)
            for runtime in self.asked.runtimes
            for graph in graphs
            if not (graph and runtime == "aoti")  # it keeps memory of its own
        ]

    def timing(
        self, target_name: str, way: _Way, batch: int, settings: BenchSettings
    ) -> dict[str, Any]:
        """One interleaved run over all forms in one precision and one way, or the one that is there
        for the same models, settings, versions and code. It is kept once it is whole."""
        target = load_target(target_name)
        candidates = [one for one in self.spec.candidates if target_name in one.targets]
        place = self.folder / f"timing-{self.device}-{target.name}-{batch}-{way.file_name}.json"
        facts = {
            "models": {one.name: self._identity(one, target) for one in candidates},
            "asked": {"weights": self.asked.weights, "queries": self.asked.queries},
            "settings": asdict(settings),
            "hardware": hardware(),
            "device": {k: v for k, v in describe_device(self.device).items() if k in _IDENTITY},
            "schema_version": SCHEMA_VERSION,
        }
        digest = json.dumps(facts, sort_keys=True, default=str).encode()
        source = hashlib.sha256(digest).hexdigest()
        if place.is_file():
            stated = json.loads(place.read_text(encoding="utf-8"))
            if stated["source"] == source:
                return stated["timing"]
        self.folder.mkdir(parents=True, exist_ok=True)
        timing = self._time(candidates, target, way, batch, settings)
        if timing["rows"]:
            whole = not timing["unfinished"]
            write_json(place, {"source": source if whole else None, "timing": timing})
        return timing

    def _time(
        self,
        candidates: Sequence[CandidateSpec],
        target: TargetSpec,
        way: _Way,
        batch: int,
        settings: BenchSettings,
    ) -> dict[str, Any]:
        inputs = self.queries(batch)
        not_run: list[dict[str, Any]] = []
        before = after = None
        unfinished = False
        scopes: dict[Transfers, dict[str, DeviceTiming]] = {}
        residents: dict[str, Resident] = {}
        agreement: dict[str, float | None] = {}
        known = {candidate.name: candidate for candidate in candidates}

        def leave_out(name: str, reason: str) -> None:
            facts = {"way": way.title, "target": target.name, "model": name, "batch": batch}
            not_run.append(facts | {"reason": reason})

        def lose(name: str, error: Exception) -> None:
            del residents[name]
            leave_out(name, _reason(error))

        self._forget(target, way, batch)
        with ExitStack() as stack_of, exact_fp32(), torch._dynamo.config.patch(**_LIMITS):
            stack_of.enter_context(quiet_compilers())
            longest_s = 0.0
            for name, candidate in known.items():
                if residents and self.left_s() < longest_s + RESERVE_S:
                    unfinished = True
                    leave_out(name, "no time was left")
                    continue
                self._say(f"{target.name}, batch {batch}: {name} in {way.title}")
                began = time.monotonic()
                try:
                    made = self._resident(candidate, way, target, batch, stack_of)
                    made.place(inputs[0])
                    made.launch()
                    made.synchronise()
                    agreement[name] = self._agreement(candidate, made, inputs)
                    residents[name] = made
                except UsageError:
                    raise
                except Exception as error:  # memory, compilers, runtimes: the others go on
                    leave_out(name, _reason(error))
                longest_s = max(longest_s, time.monotonic() - began)
            if residents and self.device == "cuda":
                before = gpu_state()
            for transfers in SCOPES:
                self._say(f"{target.name}, batch {batch}: {way.title}, transfers {transfers}")
                # What fails here, too, costs itself alone.
                scopes[transfers] = time_residents(
                    residents, inputs, settings, transfers, on_failure=lose
                )
            if before is not None:
                after = gpu_state()
        rows = [
            self._row(known[name], way, scopes, target, batch, agreement[name])
            for name in residents
        ]
        reasons = ["quick"] if settings.quick else []
        reasons += _too_short(scopes, settings) if rows else ["nothing ran"]
        reasons += [
            f"{name}: labels agree with fp32 in torch for {share:.2f} alone"
            for name, share in agreement.items()
            if name in residents and share is not None and share < AGREE
        ]
        return {
            "target": target.name,
            "batch": batch,
            "way": way.title,
            "tokens": _tokens(inputs[0]),
            "rows": rows,
            "not_run": not_run,
            "unfinished": unfinished,
            "validity": "VALID" if not reasons else "INVALID: " + "; ".join(reasons),
            "before": before,
            "after": after,
            "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }

    def _forget(self, target: TargetSpec, way: _Way, batch: int) -> None:
        """Models on the device, and code compiled for them, but for both uses of CUDA graphs."""
        key = (target.name, way.runtime, batch)
        if key != self._on_device_for:
            self._on_device.clear()
            torch._dynamo.reset()
            self._on_device_for = key

    def _row(
        self,
        candidate: CandidateSpec,
        way: _Way,
        scopes: Mapping[Transfers, Mapping[str, DeviceTiming]],
        target: TargetSpec,
        batch: int,
        agreement: float | None,
    ) -> dict[str, Any]:
        like = self.spec.reference.name
        found: dict[str, Any] = {}
        for transfers, timings in scopes.items():
            mine = timings[candidate.name]
            ratio = None
            if like in timings:
                ratio = ratio_of_medians(mine.samples_ns, timings[like].samples_ns).to_json()
            found[transfers] = mine.to_json(batch) | {"ratio_to_plain": ratio}
        return {
            "name": candidate.name,
            "title": candidate.title or candidate.name,
            "form": candidate.form,
            "target": target.name,
            "precision": target.precision,
            "runtime": way.runtime,
            "cuda_graph": way.cuda_graph,
            "batch": batch,
            "label_agreement": agreement,
            "transfers": found,
        }

    def _agreement(
        self, candidate: CandidateSpec, resident: Resident, inputs: Sequence[Inputs]
    ) -> float | None:
        """Share of answers as the fp32 model gives them in torch on the CPU, where its own are not
        in doubt; None where they always are (heads that have learnt nothing)."""
        problem = self.model(candidate).model.problem_type
        same: list[np.ndarray] = []
        for query, want in zip(inputs, self._answers(candidate, inputs), strict=False):
            resident.place(query)
            resident.launch()
            found = resident.fetch()["logits"][: len(want)]
            same.append(clear_answers(want, found, problem, NEAR))
        every = np.concatenate(same)
        return float(every.mean()) if every.size else None

    def _answers(self, candidate: CandidateSpec, inputs: Sequence[Inputs]) -> list[np.ndarray]:
        """The logits that :meth:`_agreement` compares with, query by query, of the first
        :data:`COMPARED` examples. The CPU takes seconds for them, so each example is answered once
        for all precisions, ways and batch sizes."""
        held = self.model(candidate)
        known = self._wanted.setdefault(candidate.name, {})
        found: list[np.ndarray] = []
        left = COMPARED
        for query in inputs:
            first = {name: query[name][:left] for name in held.inputs}
            size = len(first[held.inputs[0]])
            if size == 0:
                break
            keys = [_digest(single(first, row)) for row in range(size)]
            new = [row for row, key in enumerate(keys) if key not in known]
            if new:
                given = [torch.from_numpy(first[name][new]) for name in held.inputs]
                with torch.inference_mode():
                    logits = held.model(*given)[0].numpy()
                known.update(zip((keys[row] for row in new), logits, strict=True))
            found.append(np.stack([known[key] for key in keys]))
            left -= size
        return found

    def _resident(
        self,
        candidate: CandidateSpec,
        way: _Way,
        target: TargetSpec,
        batch: int,
        opened: ExitStack,
    ) -> Resident:
        """Raises :class:`BackendError` where this cannot be run here."""
        if way.cuda_graph and self.device != "cuda":
            raise BackendError("CUDA graphs need a CUDA GPU")
        held = self.model(candidate)
        half = target.precision == "fp16"
        if way.runtime in {"torch", "torch-compiled"}:
            if half and self.device != "cuda":
                raise BackendError("fp16 in torch is timed on a CUDA GPU alone")
            return TorchResident(
                self._in_torch(candidate, way.runtime == "torch-compiled", half),
                held.inputs,
                held.outputs,
                device=self.device,
                half=half,
                cuda_graph=way.cuda_graph,
            )
        if way.runtime == "aoti":
            return self._package(candidate, held, target, opened)
        if way.runtime == "tensorrt":
            return self._engine(candidate, held, target, way, opened)
        if self.device == "cuda":
            require_provider(CUDA_PROVIDER)  # before a file is made for it, which takes seconds
            served = {"name": f"{target.name}-cuda", "opset": load_target("ort-cuda").opset}
            target = target.model_copy(update=served)
        file = self._file(candidate, held, target)
        if self.device == "cuda":
            runner: Any = CudaRunner(file, provider=CUDA_PROVIDER, cuda_graph=way.cuda_graph)
        else:
            runner = file_runner(file, threads=torch.get_num_threads())
        return OnnxResident(opened.enter_context(runner), device=self.device)

    def _in_torch(self, candidate: CandidateSpec, compiled: bool, half: bool) -> Any:
        """The model on the device, one for both uses of CUDA graphs; its attention is torch's own
        and not what is written for the exporter."""
        key = (candidate.name, compiled)
        if key not in self._on_device:
            model = copy.deepcopy(self.model(candidate).model).to(self.device)
            unfold_attention(model)
            if half:
                halve(model)
            self._on_device[key] = _compiled(model) if compiled else model
        return self._on_device[key]

    def _file(self, candidate: CandidateSpec, held: _Model, target: TargetSpec) -> Path:
        """The candidate's ONNX file for a target; made where it is not there. A lower precision is
        made from the fp32 file of the same opset, and that is exported once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if target.precision == "fp32" and target.engine is None and target.sizes is None:
            target = _in_fp32(target)
        file = self.folder / f"{candidate.name}.{target.name}.onnx"
        stated = file.with_suffix(".sha256")
        mark = self._identity(candidate, target)
        if not file.is_file() or not stated.is_file() or stated.read_text() != mark:
            metadata = {"candidate": candidate.name, "weights_sha256": held.sha256}
            whole = None
            if target.precision != "fp32":
                whole = self._file(candidate, held, _in_fp32(target))
            convert_run(None, held.model, target, file, metadata, fp32=whole)
            stated.write_text(mark, encoding="utf-8")
        return file

    def _package(
        self, candidate: CandidateSpec, held: _Model, target: TargetSpec, opened: ExitStack
    ) -> Resident:
        if target.precision != "fp32":
            raise BackendError("packages are compiled from the fp32 model")
        wanted = PackageSpec(backend="aoti", device="cuda" if self.device == "cuda" else "cpu")
        package = package_for(
            held.model,
            made_of(
                wanted,
                find_compiler(wanted),
                held.model.io_spec(),
                onnx_sha256=file_sha256(self._file(candidate, held, target)),
                weights_sha256=held.sha256,
                profiles={},
                max_length=held.model.max_length,
            ),
        )
        runner = PackageRunner(package.path, threads=torch.get_num_threads())
        call = opened.enter_context(runner).call
        return TorchResident(call, held.inputs, held.outputs, device=self.device)

    def _engine(
        self,
        candidate: CandidateSpec,
        held: _Model,
        target: TargetSpec,
        way: _Way,
        opened: ExitStack,
    ) -> Resident:
        """Of full TensorRT, for the GPU present and all batch sizes of the suite."""
        device = present_device()
        if self.device != "cuda" or device is None:
            raise BackendError("TensorRT needs a CUDA GPU")
        tensorrt = load_backend("tensorrt")
        sizes = sorted(self.spec.batch)
        tokens = None
        if held.model.modality == "text":
            tokens = SizeRange(min=3, opt=max(3, (held.model.max_length or 64) // 2), max=None)
        batch = SizeRange(min=1, opt=sizes[len(sizes) // 2], max=sizes[-1])
        engine = EngineSpec(backend="tensorrt", batch=batch, tokens=tokens)
        for_engine = target.model_copy(update={"engine": engine, "name": f"trt-{target.precision}"})
        file = self._file(candidate, held, for_engine)
        recipe = build_recipe(
            engine,
            held.model.io_spec(),
            precision=target.precision,
            onnx_sha256=file_sha256(file),
            max_length=held.model.max_length,
        )
        folder = self.folder / "engines" / f"{candidate.name}-{recipe.onnx_sha256[:16]}"
        try:
            engines = read_engines(folder)
        except IntegrityError:
            engines = ()
        fitting = [e for e in engines if not e.record.differences(recipe, tensorrt.version, device)]
        if not fitting:
            fitting = list(build_engines(file, folder, recipe, tensorrt, device=device))
        runner = opened.enter_context(TensorRtRunner(fitting[0].path))
        return EngineResident(runner, cuda_graph=way.cuda_graph)


_IDENTITY = ("device", "gpu", "compute_capability", "driver", "cuda", "cpu")


_LIMITS = {"recompile_limit": 64, "fail_on_recompile_limit_hit": True}
"""Forms of one class are compiled in turn; past its limit torch would run them eagerly."""


def _in_fp32(target: TargetSpec) -> TargetSpec:
    """The same graph in fp32 and as exported; of two targets that differ in nothing else, one."""
    fixed = "" if target.dynamic_batch and target.dynamic_tokens else f"-{target.name}"
    changes: dict[str, Any] = {
        "name": f"fp32-opset{target.opset}{fixed}",
        "description": "",
        "precision": "fp32",
        "quantize": ("selector", "predictor"),
        "execution_provider": "CPUExecutionProvider",
        "engine": None,
        "package": None,
        "gates": "default",
    }
    return target.model_copy(update=changes)


def halve(model: DeployModel) -> None:
    """Weights of products in fp16, so that autocast need not cast them for each query; scores of
    tokens are computed in fp32 (:meth:`Selector.score_hidden`)."""
    heads = {part.head for part in model.modules() if isinstance(part, Selector)}
    for module in model.modules():
        if module in heads:
            continue
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d):
            module.half()


def _compiled(model: DeployModel) -> Any:
    """By torch's compiler, for one shape."""
    from torch._dynamo.exc import TorchDynamoException

    compiled = torch.compile(model, dynamic=False)

    def call(*inputs: torch.Tensor) -> Any:
        try:
            return compiled(*inputs)
        except TorchDynamoException as error:
            raise BackendError(f"torch could not compile the model: {first_line(error)}") from error

    return call


def _tokens(inputs: Inputs) -> int | None:
    ids = inputs.get("input_ids")
    return None if ids is None else int(ids.shape[1])


def _digest(inputs: Inputs) -> bytes:
    """Of one example."""
    found = hashlib.sha256()
    for name in sorted(inputs):
        found.update(np.ascontiguousarray(inputs[name]).tobytes())
    return found.digest()


def _reason(error: Exception) -> str:
    """Why something was not run, in one line; what is to be done about it often has the cause."""
    if isinstance(error, RekdEdgeError):
        hint = "" if error.hint is None else f" ({error.hint})"
        return " ".join(f"{error.message}{hint}".split())[:LONGEST_REASON]
    return first_line(error)[:LONGEST_REASON]


def _too_short(
    scopes: Mapping[Transfers, Mapping[str, DeviceTiming]], settings: BenchSettings
) -> list[str]:
    """The minima that were not met."""
    reasons = []
    for transfers, timings in scopes.items():
        count = min(one.samples_ns.size for one in timings.values())
        if count < settings.min_count:
            reasons.append(f"transfers {transfers}: fewer than {settings.min_count} queries")
        if min(one.samples_ns.sum() for one in timings.values()) < settings.min_duration_s * 1e9:
            reasons.append(f"transfers {transfers}: less than {settings.min_duration_s:g} s")
    return reasons


def _not_run(result: Mapping[str, Any]) -> list[str]:
    """One line for each way, target and reason; models and batch sizes where others of the same
    way and target were run."""
    ran = {(_way_of(row), row["target"]) for row in result["rows"]}
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for one in result["not_run"]:
        found.setdefault((one["way"], one["target"], one["reason"]), []).append(one)
    lines = []
    for (way, target, reason), ones in found.items():
        which = ""
        if (way, target) in ran:
            models = ", ".join(dict.fromkeys(one["model"] for one in ones))
            sizes = ", ".join(dict.fromkeys(str(one["batch"]) for one in ones))
            which = f", {models} at batch {sizes}"
        lines.append(f"- not run: {way}, {target}{which}: {reason}")
    return lines


def _way_of(row: Mapping[str, Any]) -> str:
    return _Way(row["runtime"], row["cuda_graph"]).title


def device_table(result: Mapping[str, Any]) -> str:
    """A result of :func:`run_on_device` as Markdown; every figure is read from it."""
    rows = result["rows"]
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    found = {_key(row): row for row in rows}
    lines: list[str] = []
    for transfers, what in result["scopes"].items():
        heads = " | ".join(f"batch {size}: ms (ratio)" for size in batches)
        lines += [
            f"Transfers {transfers}: {what}.",
            "",
            f"| model | runtime | precision | {heads} | examples/s at most |",
            f"|---|---|---|{'---|' * len(batches)}---|",
        ]
        for key in dict.fromkeys(one[:-1] for one in found):
            mine = [found.get((*key, size)) for size in batches]
            cells, rates = [], []
            for row in mine:
                if row is None:
                    cells.append("not run")
                    continue
                one = row["transfers"][transfers]
                ratio = one["ratio_to_plain"]
                text = f"{one['result_50_percentile_latency_ns'] / 1e6:.3f}"
                cells.append(text if ratio is None else f"{text} ({ratio['value']:.2f})")
                rates.append(one["examples_per_s"])
            first = next(row for row in mine if row is not None)
            best = f"{max(rates):,.0f}"
            cells = [first["title"], _way_of(first), first["precision"], *cells, best]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += _not_run(result)
    machine, versions = result["device"], result["versions"]
    runs = {_run_of({**row, "way": _way_of(row)}) for row in rows} or result["validity"].keys()
    marks = sorted({result["validity"][run] for run in runs})
    on = machine.get("gpu", machine["cpu"])
    driver = f", driver {machine['driver']}" if machine.get("driver") else ""
    facts = [
        f"Recipe `{result['recipe']}`"
        + "".join(f", `{override}`" for override in result["overrides"])
        + f"; weights {result['weights']}",
        "Median of the host's clock between two synchronisations; ratio to the plain classifier in "
        f"the same way and precision, in one interleaved run ({'; '.join(marks)})",
        f"{on}{driver}, torch {versions['torch']}, {onnxruntime_of(result)}, timed "
        f"{result['timed']}",
    ]
    return "\n".join(lines) + "\n\n" + ".\n".join(facts) + ".\n"


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["runtime"], row["cuda_graph"], row["target"], row["name"], row["batch"])
