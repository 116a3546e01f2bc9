"""The latency table on a device: every form in every runtime, with transfers and without.

OUTPUT/device/NAME.TARGET.onnx are the files, engines/ the engines of TensorRT,
timing-DEVICE-TARGET-BATCH.json one interleaved run over all forms and runtimes in one precision.
OUTPUT/device-DEVICE.json and .md are the table.

A timing that is there is kept as long as it was made from the same models, settings and versions,
so that a long table is made in pieces. Models need no training: how fast they are is no matter of
what they have learnt (``weights: untrained``).
"""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
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
from rekd_edge.check.inputs import examples_of, queries, stack
from rekd_edge.compare import TitledListener
from rekd_edge.convert import TargetSpec, file_sha256, load_target, weights_sha256
from rekd_edge.data import TaskData, load_data
from rekd_edge.data.preprocess import Preprocessor, TextPreprocessor
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.engines.backend import load_backend, present_device
from rekd_edge.engines.build import build_engines
from rekd_edge.engines.spec import EngineSpec, SizeRange, build_recipe
from rekd_edge.engines.store import read_engines
from rekd_edge.errors import BackendError, IntegrityError, UsageError
from rekd_edge.export_pipeline import BENCH_EXAMPLES, convert_run, test_batches
from rekd_edge.fuse import fuse
from rekd_edge.fuse.fused import DeployModel, masked_form, plain_form
from rekd_edge.machine import hardware, package_versions
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
SCHEMA_VERSION = 1
AGREE = 0.97
"""Share of answers in which a model must agree with the fp32 model in torch; else its timing is
that of another function, and INVALID."""
NEAR = 0.02
"""Of the largest logit: two labels that lie nearer are a tie that rounding decides."""
COMPARED = 128
"""Examples whose labels are compared."""


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to run a model."""

    runtime: str
    cuda_graph: bool

    @property
    def title(self) -> str:
        return self.runtime + (", CUDA graph" if self.cuda_graph else "")


def run_on_device(
    spec: LatencySpec,
    recipes: Mapping[str, Recipe],
    output: Path,
    *,
    batch: Sequence[int] | None = None,
    settings: BenchSettings,
    device: str = "auto",
    listener: TitledListener | None = None,
) -> dict[str, Any]:
    """Makes the models, times them for each batch size, and writes the table as it grows.

    What cannot be run here (a runtime that is missing, CUDA graphs on a CPU) is listed under
    ``not_run`` with its reason, and is no failure.

    Raises:
        BackendError: ``device`` is cuda, and there is no CUDA GPU.
        UsageError: candidates that cannot be timed together.
    """
    assert spec.on_device is not None
    table = _DeviceTable(spec, spec.on_device, recipes, output, _device(device), listener)
    timings: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for size in batch or spec.batch:
        for target in dict.fromkeys(t for one in spec.candidates for t in one.targets):
            timings.append(table.timing(target, size, settings))
            # After each of them: what ends the process takes no more than one.
            result = _result(spec, table, timings, settings)
            stem = output / f"device-{table.device}"
            write_json(stem.with_suffix(".json"), result)
            stem.with_suffix(".md").write_text(device_table(result), encoding="utf-8")
    return result


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
        "not_run": _unique(one for timing in timings for one in timing["not_run"]),
        "validity": {f"{t['target']}, batch {t['batch']}": t["validity"] for t in timings},
        "gpu": [
            {"target": t["target"], "batch": t["batch"], "before": t["before"], "after": t["after"]}
            for t in timings
        ],
        "settings": asdict(settings),
        "device": describe_device(table.device),
        "timed": max(timing["date"] for timing in timings),
        "versions": package_versions(),
        "hardware": hardware(),
    }


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
    ) -> None:
        self.spec = spec
        self.asked = asked
        self.recipes = recipes
        self.output = output
        self.folder = output / FOLDER
        self.device = device
        self.listener = listener
        self._models: dict[str, _Model] = {}
        self._on_device: dict[tuple[str, bool], Any] = {}
        self._wanted: dict[str, list[np.ndarray]] = {}
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

    def timing(self, target_name: str, batch: int, settings: BenchSettings) -> dict[str, Any]:
        """One interleaved run over all forms and ways in one precision, or the one that is there
        for the same models, settings, versions and code."""
        target = load_target(target_name)
        candidates = [one for one in self.spec.candidates if target_name in one.targets]
        place = self.folder / f"timing-{self.device}-{target.name}-{batch}.json"
        facts = {
            "models": {one.name: self._identity(one, target) for one in candidates},
            "asked": self.asked.model_dump(mode="json"),
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
        timing = self._time(candidates, target, batch, settings)
        write_json(place, {"source": source, "timing": timing})
        return timing

    def _time(
        self,
        candidates: Sequence[CandidateSpec],
        target: TargetSpec,
        batch: int,
        settings: BenchSettings,
    ) -> dict[str, Any]:
        inputs = self.queries(batch)
        not_run: list[dict[str, str]] = []
        before = gpu_state() if self.device == "cuda" else None
        scopes: dict[Transfers, dict[str, DeviceTiming]] = {}
        torch._dynamo.reset()
        with ExitStack() as stack_of, exact_fp32(), torch._dynamo.config.patch(**_LIMITS):
            stack_of.enter_context(quiet_compilers())
            stack_of.callback(self._on_device.clear)
            stack_of.callback(self._wanted.clear)
            residents: dict[str, Resident] = {}
            known: dict[str, tuple[CandidateSpec, _Way]] = {}
            agreement: dict[str, float | None] = {}
            for way in self.ways():
                for candidate in candidates:
                    name = f"{candidate.name}|{way.title}"
                    self._say(f"{target.name}, batch {batch}: {candidate.name} in {way.title}")
                    try:
                        made = self._resident(candidate, way, target, batch, stack_of)
                        made.place(inputs[0])
                        made.launch()
                        made.synchronise()
                        agreement[name] = self._agreement(candidate, made, inputs)
                    except UsageError:
                        raise
                    except Exception as error:  # memory, compilers, runtimes: the others go on
                        why = first_line(error)
                        not_run.append({"way": way.title, "target": target.name, "reason": why})
                        continue
                    residents[name] = made
                    known[name] = (candidate, way)
            for transfers in SCOPES if residents else ():
                self._say(f"{target.name}, batch {batch}: timing, transfers {transfers}")
                scopes[transfers] = time_residents(residents, inputs, settings, transfers)
        after = gpu_state() if self.device == "cuda" else None
        reasons = ["quick"] if settings.quick else []
        reasons += [
            f"{name}: labels agree with fp32 in torch for {share:.2f} alone"
            for name, share in agreement.items()
            if share is not None and share < AGREE
        ]
        rows = [
            self._row(name, known, scopes, target, batch, agreement[name]) for name in residents
        ]
        return {
            "target": target.name,
            "batch": batch,
            "tokens": _tokens(inputs[0]),
            "rows": rows,
            "not_run": not_run,
            "validity": "VALID" if not reasons else "INVALID: " + "; ".join(reasons),
            "before": before,
            "after": after,
            "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }

    def _row(
        self,
        name: str,
        known: Mapping[str, tuple[CandidateSpec, _Way]],
        scopes: Mapping[Transfers, Mapping[str, DeviceTiming]],
        target: TargetSpec,
        batch: int,
        agreement: float | None,
    ) -> dict[str, Any]:
        candidate, way = known[name]
        like = f"{self.spec.reference.name}|{way.title}"
        found: dict[str, Any] = {}
        for transfers, timings in scopes.items():
            mine = timings[name]
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
            found = resident.fetch()["logits"]
            same.append(clear_answers(want, found, problem, NEAR))
        every = np.concatenate(same)
        return float(every.mean()) if every.size else None

    def _answers(self, candidate: CandidateSpec, inputs: Sequence[Inputs]) -> list[np.ndarray]:
        """The logits that :meth:`_agreement` compares with, of the first queries. The CPU takes
        seconds for them, so they are computed once for all the ways to run a model."""
        if candidate.name not in self._wanted:
            held = self.model(candidate)
            size = len(next(iter(inputs[0].values())))
            found: list[np.ndarray] = []
            for query in inputs[: max(1, COMPARED // size)]:
                given = [torch.from_numpy(np.ascontiguousarray(query[n])) for n in held.inputs]
                with torch.inference_mode():
                    found.append(held.model(*given)[0].numpy())
            self._wanted[candidate.name] = found
        return self._wanted[candidate.name]

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
        """The model on the device, one for both uses of CUDA graphs."""
        key = (candidate.name, compiled)
        if key not in self._on_device:
            model = copy.deepcopy(self.model(candidate).model).to(self.device)
            if half:
                halve(model)
            self._on_device[key] = _compiled(model) if compiled else model
        return self._on_device[key]

    def _file(self, candidate: CandidateSpec, held: _Model, target: TargetSpec) -> Path:
        """The candidate's ONNX file for a target; made where it is not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{candidate.name}.{target.name}.onnx"
        stated = file.with_suffix(".sha256")
        mark = self._identity(candidate, target)
        if not file.is_file() or not stated.is_file() or stated.read_text() != mark:
            metadata = {"candidate": candidate.name, "weights_sha256": held.sha256}
            convert_run(None, held.model, target, file, metadata)
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


def _unique(items: Any) -> list[dict[str, str]]:
    return [dict(pairs) for pairs in dict.fromkeys(tuple(item.items()) for item in items)]


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
            way = first["runtime"] + (", CUDA graph" if first["cuda_graph"] else "")
            best = f"{max(rates):,.0f}"
            cells = [first["title"], way, first["precision"], *cells, best]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    for one in result["not_run"]:
        lines.append(f"- not run: {one['way']}, {one['target']}: {one['reason']}")
    machine, versions = result["device"], result["versions"]
    marks = sorted(set(result["validity"].values()))
    on = machine.get("gpu", machine["cpu"])
    driver = f", driver {machine['driver']}" if machine.get("driver") else ""
    facts = [
        f"Recipe `{result['recipe']}`"
        + "".join(f", `{override}`" for override in result["overrides"])
        + f"; weights {result['weights']}",
        "Median of the host's clock between two synchronisations; ratio to the plain classifier in "
        f"the same runtime and precision, in one interleaved run ({'; '.join(marks)})",
        f"{on}{driver}, torch {versions['torch']}, onnxruntime {_onnxruntime(versions)}, timed "
        f"{result['timed']}",
    ]
    return "\n".join(lines) + "\n\n" + ".\n".join(facts) + ".\n"


def _onnxruntime(versions: Mapping[str, str]) -> str:
    return versions.get("onnxruntime") or versions.get("onnxruntime-gpu") or "-"


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["runtime"], row["cuda_graph"], row["target"], row["name"], row["batch"])
