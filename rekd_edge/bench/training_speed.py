"""How fast distillation steps run, setting by setting, in one interleaved run.

The first setting is the published code's: float32, batches of 32, selector and predictor over all
tokens under a drawn mask, the teacher's two passes in the loop, images prepared one by one. Each
further setting adds one thing to the one before. Every setting has models, optimiser and batches of
its own and does what the training loop does in a step of the ``joint`` phase; they take turns in
blocks of steps, timed between two synchronisations of the device.

Operations are counted on the uncompiled step (matrix products, convolutions and attention, forward
and backward). Model FLOPs utilisation is that number over the time and over the device's peak,
which is a large matrix product timed in the same run.
"""

from __future__ import annotations

import copy
import datetime as dt
import itertools
import math
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rekd_edge.bench.timing import describe_machine
from rekd_edge.data import load_data
from rekd_edge.data.loader import WorkerLoader, make_loader
from rekd_edge.data.on_device import DeviceImages
from rekd_edge.data.preprocess import Preprocessor
from rekd_edge.data.split import Split
from rekd_edge.distill.compiled import (
    CompiledBackbones,
    HalfWeights,
    no_compiler,
    use_channels_last,
)
from rekd_edge.distill.loop import (
    BatchLoader,
    Rates,
    make_optimizer,
    move_batch,
    use_planless_attention,
)
from rekd_edge.distill.objectives import JointObjective, Progress
from rekd_edge.distill.targets import CachedTargets, TargetSource
from rekd_edge.distill.teacher import Teacher
from rekd_edge.errors import UsageError
from rekd_edge.machine import package_versions
from rekd_edge.models.build import build_rationalist, same_tokens
from rekd_edge.models.candidates import ALL_CONTENT, Positions
from rekd_edge.models.rationalist import BlockSelector, Rationalist
from rekd_edge.recipe.schema import ObjectiveSpec, Recipe, TeacherSpec
from rekd_edge.types import Batch

SCHEMA_VERSION = 1
OFFICIAL_BATCH = 32
SETTLING_STEPS = 3
"""Steps after the first that are not timed: with CUDA graphs the second records them."""
TEACHER_BATCHES = (1, 4, 16)
"""Batches of the teacher's pass alone, in units of the recipe's."""

Precision = Literal["fp32", "tf32", "bf16"]

DATA_SHEET_TFLOPS: dict[str, dict[Precision, float]] = {
    "NVIDIA H200": {"bf16": 989.0, "tf32": 494.5, "fp32": 66.9},
    "NVIDIA H100 80GB HBM3": {"bf16": 989.0, "tf32": 494.5, "fp32": 66.9},
    "NVIDIA H100 PCIe": {"bf16": 756.0, "tf32": 378.0, "fp32": 51.2},
    "NVIDIA A100-SXM4-80GB": {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "NVIDIA A100-SXM4-40GB": {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "NVIDIA L40S": {"bf16": 362.0, "tf32": 183.0, "fp32": 91.6},
    "NVIDIA L4": {"bf16": 121.0, "tf32": 60.0, "fp32": 30.3},
    "NVIDIA GeForce RTX 4090": {"bf16": 165.2, "tf32": 82.6, "fp32": 82.6},
}
"""Dense peaks of NVIDIA's data sheets by the name that CUDA reports."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to train. ``adds`` says what it has that the setting before it has not."""

    name: str
    adds: str
    published: bool = True
    precision: Precision = "fp32"
    batch_size: int = OFFICIAL_BATCH
    data: Literal["loader", "workers", "device"] = "loader"
    workers: int = 0
    fused: bool = False
    gather: bool = False
    channels_last: bool = False
    compile: Literal["default", "reduce-overhead"] | None = None
    augment: bool = True


@dataclass(frozen=True, slots=True)
class SpeedPlan:
    """How long is measured: ``rounds`` of one block of each setting, a block being at least one
    step and about ``block_s`` seconds. ``only`` names the settings to take (None: all).
    ``limit_s``: a table comes of it about then, counted from ``began``, a time of
    ``time.monotonic``, where that is given; what there was no time for is said in it."""

    rounds: int = 5
    block_s: float = 1.5
    workers: int = 8
    square: int = 8192
    only: tuple[str, ...] | None = None
    limit_s: float | None = None
    began: float | None = None

    @staticmethod
    def quick() -> SpeedPlan:
        """A look in seconds; the figures mean nothing."""
        return SpeedPlan(rounds=2, block_s=0.0, workers=1, square=256)


def ladder(recipe: Recipe, device: torch.device, plan: SpeedPlan) -> list[Setting]:
    """The settings, each with all that those before it have, as far as recipe and device allow."""
    train = recipe.student.train
    steps: list[tuple[str, str, dict[str, Any]]] = []
    on_cuda = device.type == "cuda"
    images = recipe.modality == "image"
    workers = {"data": "workers", "workers": max(1, plan.workers)}
    if images:
        steps.append(("workers", "processes that prepare images ahead, pinned memory", workers))
        steps.append(
            ("device images", "images cropped and resized on the device", {"data": "device"})
        )
    if on_cuda:
        steps.append(("tf32", "products in TF32", {"precision": "tf32"}))
    steps.append(("bf16", "products in bf16", {"precision": "bf16"}))
    steps.append(("fused", "one kernel for AdamW", {"fused": True}))
    if train.batch_size != OFFICIAL_BATCH:
        batch = {"batch_size": train.batch_size}
        steps.append(("batch", f"batches of {train.batch_size}", batch))
    steps.append(
        ("objective", "the recipe's objective: exactly k, the teacher once", {"published": False})
    )
    if train.selector_learning_rate != 0:
        steps.append(("gathered", "backward pass through kept tokens alone", {"gather": True}))
    if _is_convolutional(recipe):
        steps.append(("channels last", "convolutions with channels last", {"channels_last": True}))
    if on_cuda or "compiled" in (plan.only or ()):  # code for a processor takes minutes to make
        steps.append(("compiled", "torch.compile", {"compile": "default"}))
    if on_cuda and images:
        steps.append(("graphs", "CUDA graphs", {"compile": "reduce-overhead"}))
    if images and recipe.objective.form.uses_teacher_targets:
        cached = "nothing augmented, so that the teacher has answered once"
        steps.append(("cached teacher", cached, {"augment": False}))
    setting = Setting("official", "the published code's settings")
    settings = [setting]
    for name, adds, change in steps:
        setting = replace(setting, name=name, adds=adds, **change)
        settings.append(setting)
    if plan.only is None:
        return settings
    known = [setting.name for setting in settings]
    unknown = [name for name in plan.only if name not in known]
    if unknown:
        raise UsageError(
            f"no setting {unknown[0]!r} for this recipe on this device",
            hint=f"one of {', '.join(known)}",
        )
    return [setting for setting in settings if setting.name in plan.only]


def _is_convolutional(recipe: Recipe) -> bool:
    roles = (recipe.student, recipe.teacher)
    return any(role is not None and role.predictor.patch_size is not None for role in roles)


def with_random_weights(recipe: Recipe) -> Recipe:
    """The same architectures with random weights, which take the same time: nothing is fetched.

    Raises:
        UsageError: a backbone names no architecture of timm.
    """
    content = recipe.model_dump()
    for role in ("teacher", "student"):
        for part in ("selector", "predictor"):
            if content[role] is None:
                continue
            sources = content[role][part]["weights"]
            named = [s.split(":", 1)[1] for s in sources if s.startswith(("timm:", "random:"))]
            if not named:
                raise UsageError(
                    f"{role}.{part}.weights names no architecture: {', '.join(sources)}",
                    hint="--random-weights needs a source timm:NAME or random:NAME",
                )
            content[role][part]["weights"] = [f"random:{named[0]}"]
    return Recipe.model_validate(content)


def measure_speed(
    recipe: Recipe,
    device: torch.device,
    plan: SpeedPlan,
    *,
    progress: Callable[[str], None] = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures every setting; one that fails is reported as failed, with its reason.

    A setting is measured for a first time, and its teacher's pass alone, as soon as it has started,
    and only then is the next one started: ``keep`` gets the report as far as it goes after each of
    them and after each round, ``complete`` being false in it.

    Raises:
        UsageError: the recipe distils nothing; an unknown setting.
        DataError, BackendError, IntegrityError: data or weights cannot be had.
    """
    if recipe.task != "distill" or recipe.teacher is None:
        raise UsageError("only recipes of task distill have a teacher in the loop")
    if recipe.teacher.is_black_box or recipe.objective.method != "rekd":
        raise UsageError(
            "the training speed of objective.method: rekd with a rationalist teacher is measured, "
            "not that of other methods or of black boxes",
            hint="--set objective.method=rekd, or a recipe whose teacher.rationale is rationalist",
        )
    run = _Run(recipe, device, plan, progress, keep)
    return run.execute()


class _Run:
    """What is measured so far."""

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        plan: SpeedPlan,
        progress: Callable[[str], None],
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        self.began = time.monotonic() if plan.began is None else plan.began
        self.recipe, self.device, self.plan = recipe, device, plan
        self.progress, self.keep = progress, keep
        self.settings = ladder(recipe, device, plan)
        self.parts = _Parts.of(recipe, device)
        if device.type == "cuda":
            use_planless_attention()
        self.peaks: dict[Precision, float] = {
            name: _peak(name, device, plan.square) for name in _precisions(device)
        }
        self.contenders: dict[str, _Contender] = {}
        self.failed: dict[str, str] = {}
        self.teacher: list[dict[str, Any]] = []
        self.clocks = [gpu_clocks()]

    def execute(self) -> dict[str, Any]:
        for setting in self.settings:
            if self.contenders and not self._has_time_for(setting):
                self.failed[setting.name] = "not started: no time was left"
                continue
            self._start(setting)
            self.keep(self._report(complete=False))
        for number in range(1, self.plan.rounds):
            if self._is_late(0.85):
                break
            self.progress(f"round {number + 1} of {self.plan.rounds}")
            self._round(number)
            self.keep(self._report(complete=False))
        self._larger_batches()
        return self._report(complete=True)

    def _left_s(self) -> float:
        if self.plan.limit_s is None:
            return math.inf
        return self.plan.limit_s - (time.monotonic() - self.began)

    def _is_late(self, share: float) -> bool:
        limit = self.plan.limit_s
        return limit is not None and self._left_s() < (1 - share) * limit

    def _has_time_for(self, setting: Setting) -> bool:
        if self._is_late(0.6):
            return False
        return setting.compile is None or self._left_s() > 1.5 * self._longest_compile_s()

    def _longest_compile_s(self) -> float:
        compiled = [c for c in self.contenders.values() if c.setting.compile is not None]
        return max((c.first_step_s + c.settling_s for c in compiled), default=0.0)

    def _start(self, setting: Setting) -> None:
        """Starts a setting, measures its first block, and its teacher's pass alone."""
        self.progress(f"{setting.name}: starting")
        try:
            contender = _Contender(setting, self.parts, self.device)
            contender.warm_up(self.plan.block_s)
            contender.measure()
            self.contenders[setting.name] = contender
        except Exception as error:  # a setting that a machine cannot run is a result
            if isinstance(error, UsageError):
                raise
            self.failed[setting.name] = _reason(error)
            _release(self.device)
            return
        if setting.augment:  # else it looks answers up
            self._teacher_pass(contender)

    def _round(self, number: int) -> None:
        alive = list(self.contenders.values())
        turn = number % max(1, len(alive))
        for contender in alive[turn:] + alive[:turn]:
            try:
                contender.measure()
            except Exception as error:
                self.failed[contender.name] = _reason(error)
                del self.contenders[contender.name]
        self.clocks.append(gpu_clocks())

    def _teacher_pass(self, contender: _Contender) -> None:
        """The teacher's share of the setting's step."""
        size = contender.setting.batch_size
        one: dict[str, Any] = {"setting": contender.name, "batch_size": size}
        try:
            contender.teacher_s = contender.time_teacher(
                contender.batch_of(size), self.plan.block_s
            )
        except Exception as error:  # the steps that were measured stay
            self.teacher.append(one | {"failed": _reason(error)})
            return
        self._add_pass(one, contender, contender.teacher_s, contender.teacher_flops)

    def _larger_batches(self) -> None:
        """The teacher's share in its fastest form at larger batches."""
        own = [
            contender
            for contender in self.contenders.values()
            if not contender.setting.published and contender.teacher_s is not None
        ]
        if not own:
            return
        fastest = min(own, key=lambda c: (c.teacher_s or math.inf) / c.setting.batch_size)
        for factor in TEACHER_BATCHES[1:]:
            # A compiled form takes its own batch size: another one is compiled for this.
            needed = 1.5 * self._longest_compile_s() if fastest.setting.compile else 0.0
            if self._is_late(0.95) or self._left_s() < needed:
                return
            size = factor * fastest.setting.batch_size
            self.progress(f"the teacher alone, batches of {size}")
            one: dict[str, Any] = {"setting": fastest.name, "batch_size": size}
            try:
                seconds = fastest.time_larger(size, self.plan.block_s)
            except Exception as error:
                self.teacher.append(one | {"failed": _reason(error)})
            else:
                self._add_pass(one, fastest, seconds, fastest.teacher_flops * factor)
            self.keep(self._report(complete=False))

    def _add_pass(
        self, one: dict[str, Any], contender: _Contender, seconds: float, flops: int
    ) -> None:
        precision = contender.setting.precision
        one |= {"precision": precision, "ms": seconds * 1e3, "flops": flops}
        self.teacher.append(one | _utilisation(flops, seconds, precision, self.peaks, self.device))

    def _report(self, *, complete: bool) -> dict[str, Any]:
        started = {setting.name for setting in self.settings} & {*self.contenders, *self.failed}
        settings = [s for s in self.settings if complete or s.name in started]
        return {
            "schema_version": SCHEMA_VERSION,
            "recipe": self.recipe.name,
            "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "complete": complete,
            "plan": {key: v for key, v in asdict(self.plan).items() if key != "began"},
            "device": _describe(self.device),
            "machine": describe_machine(),
            "versions": package_versions(),
            "clocks": self.clocks,
            "peaks_tflops": {
                name: {
                    "measured": peak / 1e12,
                    "square": self.plan.square,
                    "data_sheet": _data_sheet(name, self.device),
                }
                for name, peak in self.peaks.items()
            },
            "settings": _rows(settings, self.contenders, self.failed, self.peaks),
            "teacher_pass": self.teacher,
        }


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _release(device: torch.device) -> None:
    """What a setting that failed held. An error of the device that stays is met again, and told, by
    the next setting."""
    if device.type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def _precisions(device: torch.device) -> tuple[Precision, ...]:
    return ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32", "bf16")


def _set_precision(precision: Precision) -> None:
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of one of ``times`` calls."""
    _synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    _synchronise(device)
    return (time.perf_counter() - started) / times


def _peak(precision: Precision, device: torch.device, side: int) -> float:
    """FLOP/s of a square product of random numbers: the median of five times three."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    _set_precision(precision)

    def multiply() -> Tensor:
        return left @ right

    for _ in range(3):
        multiply()
    seconds = statistics.median(_timed(multiply, 3, device) for _ in range(5))
    _set_precision("fp32")
    return 2 * side**3 / seconds


def _data_sheet(precision: Precision, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return DATA_SHEET_TFLOPS.get(torch.cuda.get_device_name(device), {}).get(precision)


def _describe(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"type": device.type, "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": found.name,
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "compute_capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
    }


CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")


def gpu_clocks() -> dict[str, str] | None:
    """What nvidia-smi says of the first GPU now (MHz, W, degrees Celsius, %); None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = said.stdout.strip().splitlines()[:1]
    return (
        dict(zip(CLOCKS, (v.strip() for v in values[0].split(",")), strict=False))
        if values
        else None
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What all settings start from."""

    recipe: Recipe
    split: Split
    student: Rationalist
    teacher: Rationalist
    preprocessor: Preprocessor
    teacher_preprocessor: Preprocessor | None

    @staticmethod
    def of(recipe: Recipe, device: torch.device) -> _Parts:
        spec = recipe.teacher
        assert isinstance(spec, TeacherSpec)
        if spec.run is not None:
            raise UsageError(
                "the speed of a recipe with teacher.run is not measured",
                hint="describe the teacher in the recipe; its weights play no part",
            )
        torch.manual_seed(recipe.seed)
        data = load_data(recipe)
        classes = len(data.label_names)
        theirs = build_rationalist(spec, recipe, classes)
        own = build_rationalist(recipe.student, recipe, classes)
        assert isinstance(theirs.model, Rationalist)
        assert isinstance(own.model, Rationalist)
        alike = same_tokens(theirs.preprocessor, own.preprocessor)
        return _Parts(
            recipe,
            data.train,
            own.model,
            theirs.model,
            own.preprocessor,
            None if alike else theirs.preprocessor,
        )


class _Contender:
    """One setting with its own models, optimiser and endless batches."""

    def __init__(self, setting: Setting, parts: _Parts, device: torch.device) -> None:
        self.setting, self.device, self.parts = setting, device, parts
        self.name = setting.name
        recipe = parts.recipe
        self.train = recipe.student.train
        assert recipe.teacher is not None
        if setting.compile is not None and (reason := no_compiler(device)) is not None:
            raise RuntimeError(f"no compiler: {reason}")
        self.student = copy.deepcopy(parts.student).to(device)
        frozen = copy.deepcopy(parts.teacher).to(device)
        if setting.channels_last:
            use_channels_last([self.student, frozen])
        spec = _published(recipe, self.student, frozen) if setting.published else recipe.objective
        masking = "zero" if setting.published else recipe.teacher.objective.form.masking
        full = spec.form.teacher_prediction == "full_input"
        self.teacher = Teacher(frozen, self.student, masking, full_input=full)
        HalfWeights([frozen], torch.bfloat16 if setting.precision == "bf16" else None).round()
        self.batches = self._stream()
        targets: TargetSource | None = None
        if spec.form.uses_teacher_targets:
            targets = self.teacher.targets
            if not setting.augment:
                with self._autocast():
                    targets = CachedTargets(targets, self._in_order())
        self.targets = targets
        positions = ALL_CONTENT
        if setting.published and recipe.modality == "text":
            positions = Positions(spec.form.select_special, recipe.data.max_length)
        self.objective = JointObjective(
            self.student, spec, self.teacher, targets, positions, gather=setting.gather
        )
        trained: dict[nn.Module, Rates] = {self.student.predictor: Rates.of(self.train)}
        rate = self.train.selector_learning_rate
        if setting.published or rate != 0:
            own = Rates(rate, rate) if rate else Rates.of(self.train)
            trained = {self.student.selector: own} | trained
        wanted = {p for module in trained for p in module.parameters() if p.requires_grad}
        for parameter in self.student.parameters():
            parameter.requires_grad_(parameter in wanted)
        self.student.eval()
        for module in trained:
            module.train()
        self.optimizer = make_optimizer(trained, wanted, self.train, device, fused=setting.fused)
        varying = recipe.modality == "text"
        self.compiled = CompiledBackbones(
            [self.student, frozen],
            mode=setting.compile,
            batch_size=setting.batch_size,
            varying=varying,
        )
        self.steps = 1
        self.first_step_s = 0.0
        self.settling_s = 0.0
        self.samples: list[float] = []
        """Seconds a step, one entry a round."""
        self.memory_bytes: int | None = None
        self.flops = 0
        self.teacher_flops = 0
        self.teacher_s: float | None = None

    def _epochs(self) -> Callable[[int], BatchLoader]:
        parts, setting = self.parts, self.setting
        augment = parts.recipe.data.augment
        options: dict[str, Any] = {
            "batch_size": setting.batch_size,
            "seed": parts.recipe.seed,
            "augment": augment if setting.augment and parts.recipe.modality == "image" else None,
        }
        if setting.data == "device":
            held = DeviceImages.of(
                parts.split, parts.preprocessor, self.device, parts.teacher_preprocessor
            )
            if isinstance(held, str):
                raise RuntimeError(f"the split cannot be prepared on the device: {held}")
            return lambda epoch: held.batches(shuffle=True, epoch=epoch, **options)
        options["teacher"] = parts.teacher_preprocessor
        options["bucket"] = self.train.bucket_by_length
        if setting.data == "workers":
            workers = setting.workers
            return WorkerLoader(parts.split, parts.preprocessor, workers=workers, **options).epoch
        return lambda epoch: make_loader(
            parts.split, parts.preprocessor, shuffle=True, epoch=epoch, **options
        )

    def _stream(self) -> Iterator[Batch]:
        """Whole batches without an end."""
        epochs = self._epochs()
        if len(self.parts.split) < self.setting.batch_size:
            raise RuntimeError(f"there are fewer than {self.setting.batch_size} training examples")
        for epoch in itertools.count():
            for batch in epochs(epoch):
                if len(batch.labels) == self.setting.batch_size:
                    yield move_batch(batch, self.device)

    def _in_order(self) -> Iterator[Batch]:
        for batch in self._epochs()(0):
            yield move_batch(batch, self.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        lowered = self.setting.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=lowered)

    def step(self) -> None:
        """What the loop does for one batch."""
        batch = next(self.batches)
        with self.compiled.active():
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        with self._autocast():
            loss = self.objective(batch, Progress(0, 1000))["loss"]
        loss.backward()
        if self.train.gradient_clip is not None:
            for group in self.optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.train.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def teacher_pass(self, batch: Batch) -> None:
        """The teacher's share of a step."""
        with self._autocast():
            if self.targets is not None:
                self.targets(batch)
            if self.objective.form.uses_teacher_draws:
                self.teacher.score(batch)
            if not self.objective.form.answers_from_targets:
                view = self.student.predictor.encoder.view(batch.inputs)
                self.teacher.answer(batch, view.selectable.float())

    def warm_up(self, block_s: float) -> None:
        """Counts operations, compiles, and finds how many steps make a block."""
        _set_precision(self.setting.precision)
        batch = next(self.batches)
        with FlopCounterMode(display=False) as counter:
            self._step(batch)
        self.flops = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            self.teacher_pass(batch)
        self.teacher_flops = counter.get_total_flops()
        self.first_step_s = _timed(self.step, 1, self.device)
        self.settling_s = SETTLING_STEPS * _timed(self.step, SETTLING_STEPS, self.device)
        seconds = min(_timed(self.step, 2, self.device) for _ in range(2))
        self.steps = max(1, math.ceil(block_s / seconds))

    def measure(self) -> None:
        _set_precision(self.setting.precision)
        before = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        self.samples.append(_timed(self.step, self.steps, self.device))
        if self.device.type == "cuda":
            used = torch.cuda.max_memory_allocated(self.device) - before
            self.memory_bytes = max(used, self.memory_bytes or 0)

    def time_teacher(self, batch: Batch, block_s: float) -> float:
        """Median seconds of the teacher's share on ``batch``."""
        _set_precision(self.setting.precision)

        def once() -> None:
            with self.compiled.active():
                self.teacher_pass(batch)

        for _ in range(3):
            once()
        times = max(1, math.ceil(block_s / 3 / max(_timed(once, 2, self.device), 1e-6)))
        return statistics.median(_timed(once, times, self.device) for _ in range(3))

    def time_larger(self, size: int, block_s: float) -> float:
        """:meth:`time_teacher` at another batch size, compiled for it where the setting is."""
        before = self.compiled
        self.compiled = CompiledBackbones(
            [self.teacher.model], mode=self.setting.compile, batch_size=size
        )
        try:
            return self.time_teacher(self.batch_of(size), block_s)
        finally:
            self.compiled = before

    def batch_of(self, size: int) -> Batch:
        """A batch of ``size`` examples: one batch again and again."""
        batch = next(self.batches)
        times = -(-size // len(batch.labels))

        def more(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: v.repeat(times, *(1,) * (v.dim() - 1))[:size] for n, v in inputs.items()}

        side = batch.teacher
        if side is not None and side.spans is not None:
            return batch
        return Batch(
            more(batch.inputs),
            more({"labels": batch.labels})["labels"],
            batch.index.repeat(times)[:size],
            None if side is None else replace(side, inputs=more(side.inputs)),
        )


def _published(recipe: Recipe, *models: Rationalist) -> ObjectiveSpec:
    """The published objective, as far as the selectors of ``models`` can follow it."""
    if recipe.objective.name == "paper":
        return recipe.objective
    content: dict[str, Any] = {"name": "paper", "alpha": 0.5, "lambda_select": 5e-2}
    if not all(isinstance(model.selector, BlockSelector) for model in models):
        content |= {"select_special": False}
    return ObjectiveSpec.model_validate(content)


def _utilisation(
    flops: float,
    seconds: float,
    precision: Precision,
    peaks: Mapping[Precision, float],
    device: torch.device,
) -> dict[str, float | None]:
    sheet = _data_sheet(precision, device)
    rate = flops / seconds
    return {
        "tflops_per_s": rate / 1e12,
        "mfu": rate / peaks[precision],
        "mfu_of_data_sheet": None if sheet is None else rate / (sheet * 1e12),
    }


def _rows(
    settings: Sequence[Setting],
    contenders: Mapping[str, _Contender],
    failed: Mapping[str, str],
    peaks: Mapping[Precision, float],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    before: float | None = None
    first: float | None = None
    for setting in settings:
        row: dict[str, Any] = asdict(setting)
        contender = contenders.get(setting.name)
        if contender is None:
            rows.append(row | {"failed": failed.get(setting.name, "not measured")})
            continue
        seconds = statistics.median(contender.samples)
        rate = setting.batch_size / seconds
        if setting.name == "official":
            first = rate
        row |= {
            "examples_per_s": {
                "p50": rate,
                "low": setting.batch_size / max(contender.samples),
                "high": setting.batch_size / min(contender.samples),
            },
            "step_ms": seconds * 1e3,
            "ratio_to_official": None if first is None else rate / first,
            "ratio_to_previous": None if before is None else rate / before,
            "steps_a_block": contender.steps,
            "samples_s": contender.samples,
            "first_step_s": contender.first_step_s,
            "settling_s": contender.settling_s,
            "step_memory_bytes": contender.memory_bytes,
            "flops": contender.flops,
            **_utilisation(contender.flops, seconds, setting.precision, peaks, contender.device),
        }
        if contender.teacher_s is not None and contender.teacher_s < seconds:
            rest = contender.flops - contender.teacher_flops
            row["student"] = {
                "ms": (seconds - contender.teacher_s) * 1e3,
                "flops": rest,
                **_utilisation(
                    rest,
                    seconds - contender.teacher_s,
                    setting.precision,
                    peaks,
                    contender.device,
                ),
            }
        before = rate
        rows.append(row)
    return rows


def speed_table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    device = report["device"]
    where = device.get("name") or report["machine"]["cpu"]
    lines = [
        f"# Training speed of {report['recipe']}",
        "",
        f"{where}, torch {report['versions'].get('torch', '?')}, {report['date'][:10]}. Steps of "
        "joint training in one interleaved run; medians over rounds. *MFU*: counted operations "
        "over time and over the measured peak of the precision ("
        + ", ".join(
            f"{name} {peak['measured']:.3g} TFLOP/s"
            for name, peak in report["peaks_tflops"].items()
        )
        + ").",
        "",
        "| setting | adds | examples a second | to official | to the one before | step ms | MFU | "
        "first step s | memory of a step, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["settings"]:
        head = f"| {row['name']} | {row['adds']} |"
        if "failed" in row:
            lines.append(f"{head} failed: {row['failed'].replace('|', '/')} | | | | | | |")
            continue
        memory = row["step_memory_bytes"]
        lines.append(
            f"{head} {row['examples_per_s']['p50']:.1f} | {_times(row['ratio_to_official'])} | "
            f"{_times(row['ratio_to_previous'])} | {row['step_ms']:.2f} | {row['mfu']:.3f} | "
            f"{row['first_step_s']:.1f} | {'' if memory is None else round(memory / 1e6)} |"
        )
    gain = _gain(report["settings"])
    if gain is not None:
        lines += ["", gain]
    if not report["complete"]:
        lines += ["", "**Not complete**: the run was still going on, or was ended, after this."]
    lines += ["", "The teacher's pass alone:", ""]
    lines += [
        "| setting | batch | ms | TFLOP/s | MFU | of the data sheet |",
        "|---|---|---|---|---|---|",
    ]
    for one in report["teacher_pass"]:
        head = f"| {one['setting']} | {one['batch_size']} |"
        if "failed" in one:
            lines.append(f"{head} failed: {one['failed'].replace('|', '/')} | | | |")
            continue
        sheet = one["mfu_of_data_sheet"]
        lines.append(
            f"{head} {one['ms']:.3f} | {one['tflops_per_s']:.2f} | {one['mfu']:.3f} | "
            f"{'' if sheet is None else f'{sheet:.3f}'} |"
        )
    return "\n".join(lines) + "\n"


def _gain(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """How much faster the fastest setting that answers anew for each image is than the published
    one, and how much of that is not due to how images are prepared."""
    measured = {row["name"]: row["examples_per_s"]["p50"] for row in rows if "failed" not in row}
    augmented = {row["name"] for row in rows if row["augment"]}
    ours = {name: rate for name, rate in measured.items() if name in augmented}
    if "official" not in measured or len(ours) < 2:
        return None
    name = max(ours, key=lambda one: ours[one])
    text = f"The fastest is *{name}*: {ours[name] / measured['official']:.2f}x the official setting"
    if "device images" in measured and name not in ("official", "workers"):
        text += f", {ours[name] / measured['device images']:.2f}x *device images*, which is the "
        text += "official setting without waiting for images"
    return text + "."


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"
