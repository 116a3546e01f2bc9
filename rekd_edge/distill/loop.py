"""The training loop: phases of steps, resumable to the same weights.

Randomness is a function of (seed, phase, step), never of what ran before, and every batch's
order is a function of (seed, epoch): a run that is killed and resumed makes the same draws as
one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rekd_edge.distill.checkpoint import (
    JUDGE_FILE,
    read_training_state,
    restore_model,
    restore_optimizer,
    save_model,
    save_training_state,
)
from rekd_edge.distill.compiled import (
    CompiledBackbones,
    HalfWeights,
    compile_mode,
    use_channels_last,
    wanted,
    worth_compiling,
)
from rekd_edge.distill.monitor import SelectionMonitor, TrainingWarning
from rekd_edge.distill.objectives import LossTerms, Progress
from rekd_edge.errors import RekdEdgeError, UsageError
from rekd_edge.recipe.schema import TrainSpec
from rekd_edge.schedules import learning_rate_factor
from rekd_edge.types import Batch, TeacherSide

LOG_EVERY_STEPS = 10
CHECKPOINT_STEPS = 200
CHECKPOINT_APART_S = 30.0
"""Where a recipe does not say, at least so many steps and seconds lie between two checkpoints of an
epoch: on a GPU 200 steps may take a second (an estimate), and a checkpoint a fraction of one."""


class DivergedError(RekdEdgeError):
    """The loss is no longer a number."""

    exit_code = 3


class BatchLoader(Sized, Iterable[Batch], Protocol):
    """An epoch of batches with a known number of them."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of a module's ``body`` and of its ``head``."""

    body: float
    head: float

    @staticmethod
    def of(train: TrainSpec) -> Rates:
        """The recipe's."""
        return Rates(train.learning_rate, train.head_learning_rate or train.learning_rate)

    @staticmethod
    def first_of(train: TrainSpec) -> Rates:
        """The recipe's for a predictor that has never been trained (`warmup`)."""
        own, first = Rates.of(train), train.warmup.predictor_learning_rate
        return own if first is None else Rates(first, own.head * first / own.body)


@dataclass(frozen=True, slots=True)
class Turn:
    """One of several updates that each batch gets: ``name`` is what the objective is told, and of
    the phase's modules only ``trained`` move; the others get no gradient at all."""

    name: str
    trained: tuple[nn.Module, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """One objective optimised for some epochs.

    ``trained`` maps the submodules that get gradients to their learning rates; the rest of the
    model is frozen and in evaluation mode. ``select`` phases are evaluated before their first step
    and after each epoch, and may hold the best model. ``judge`` is a submodule whose weights are
    kept (:data:`JUDGE_FILE`) when the phase ends. ``auxiliary`` is trained beside the model: it is
    in checkpoints and not in the result. ``turns`` are updates in that order on each batch; without
    any, there is one of everything. ``varying_tokens``: whether the models see another number of
    tokens in each batch (:class:`CompiledBackbones`); None compiles nothing.
    """

    name: str
    objective: nn.Module
    epochs: float
    trained: Mapping[nn.Module, Rates]
    select: bool = False
    judge: nn.Module | None = None
    auxiliary: nn.Module | None = None
    turns: tuple[Turn, ...] = ()
    varying_tokens: bool | None = None


@dataclass(frozen=True, slots=True)
class DevResult:
    """Result on the development split: ``accuracy`` in 0..1 and mean cross-entropy.

    Of another problem than one class ``accuracy`` is the primary score, ``loss`` the task's, and
    ``scores`` are all of them by name. ``criterion``, where there is one, is what the best epoch
    has least of; of equals the later epoch is kept, as in the published code.
    """

    accuracy: float
    loss: float
    criterion: float | None = None
    scores: dict[str, float] | None = None

    def better_than(self, other: DevResult | None) -> bool:
        if other is None:
            return True
        if self.criterion is not None and other.criterion is not None:
            return self.criterion <= other.criterion
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)

    def values(self) -> dict[str, float]:
        """What is there, for logs."""
        named = {"accuracy": self.accuracy} if self.scores is None else self.scores
        found = {**named, "loss": self.loss, "criterion": self.criterion}
        return {name: value for name, value in found.items() if value is not None}

    def state(self) -> dict[str, Any]:
        """JSON values of which this is made again."""
        found = asdict(self)
        if self.scores is None:
            del found["scores"]
        return found

    @property
    def headline(self) -> tuple[str, float]:
        """The primary score by its name."""
        name = "accuracy" if self.scores is None else next(iter(self.scores))
        return name, self.accuracy


@dataclass(slots=True)
class FitReport:
    """What happened: the best development result, one entry an epoch in ``history``, and what the
    monitor warned of."""

    best: DevResult | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[TrainingWarning] = field(default_factory=list)
    steps: int = 0
    wall_s: float = 0.0
    resumed_at_step: int | None = None


class ProgressListener(Protocol):
    """Receives progress; the command line draws bars, tests count."""

    def phase(self, name: str, total_steps: int, done_steps: int) -> None: ...
    def step(self, terms: dict[str, float]) -> None: ...
    def epoch(self, name: str, result: DevResult) -> None: ...
    def warning(self, warning: TrainingWarning) -> None: ...


class Silent:
    """A listener that does nothing."""

    def phase(self, name: str, total_steps: int, done_steps: int) -> None:
        return

    def step(self, terms: dict[str, float]) -> None:
        return

    def epoch(self, name: str, result: DevResult) -> None:
        return

    def warning(self, warning: TrainingWarning) -> None:
        return


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """``batch`` on ``device``, except ``index``, which stays where it is."""

    def moved(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}

    side = batch.teacher
    if side is not None:
        side = TeacherSide(
            moved(side.inputs),
            None if side.spans is None else side.spans.to(device, non_blocking=True),
            None
            if side.student_spans is None
            else side.student_spans.to(device, non_blocking=True),
        )
    labels = batch.labels.to(device, non_blocking=True)
    return Batch(moved(batch.inputs), labels, batch.index, side)


def fit(
    model: nn.Module,
    phases: list[Phase],
    *,
    train: TrainSpec,
    epoch_loader: Callable[[int], BatchLoader],
    evaluate: Callable[[nn.Module], DevResult],
    folder: Path,
    seed: int,
    device: str = "auto",
    resume: bool = False,
    listener: ProgressListener | None = None,
    monitor: SelectionMonitor | None = None,
    frozen: Sequence[nn.Module] = (),
) -> FitReport:
    """Runs ``phases`` in order and leaves the best model in ``folder/best``.

    ``epoch_loader(e)`` gives the batches of epoch ``e``, in an order that depends on ``e`` alone.
    Logs go to ``folder/log.jsonl`` and TensorBoard files in ``folder/tensorboard``; a resumable
    checkpoint to ``folder/last.safetensors``. With ``resume`` and such a checkpoint, training
    goes on from there; a finished one returns at once. ``monitor`` watches a rationalist in its
    ``select`` phases. ``frozen`` are other models that the objectives run.

    Raises:
        DivergedError: the loss is not finite; the last good checkpoint is kept.
        UsageError: the device or precision is not available.
    """
    run = _Run(
        model,
        phases,
        train,
        epoch_loader,
        evaluate,
        folder,
        seed,
        device,
        listener,
        monitor,
        frozen,
    )
    return run.execute(resume)


class _Run:
    def __init__(
        self,
        model: nn.Module,
        phases: list[Phase],
        train: TrainSpec,
        epoch_loader: Callable[[int], BatchLoader],
        evaluate: Callable[[nn.Module], DevResult],
        folder: Path,
        seed: int,
        device: str,
        listener: ProgressListener | None,
        monitor: SelectionMonitor | None,
        frozen: Sequence[nn.Module],
    ) -> None:
        self.model = model
        self.phases = phases
        self.train = train
        self.epoch_loader = epoch_loader
        self.evaluate = evaluate
        self.folder = folder
        self.seed = seed
        self.listener = listener or Silent()
        self.accelerator = make_accelerator(train, device)
        self.run_models = (model, *frozen)
        self.frozen = frozen
        self.compile_mode: str | None = None
        if any(phase.varying_tokens is not None for phase in phases):
            self.compile_mode = compile_mode(train, self.accelerator.device)
        self.lost: Tensor | None = None
        """0, or a loss since the last look that was no number; looking waits for the device."""
        self._saved = time.monotonic()
        self.monitor = monitor if self.accelerator.is_main_process else None
        self.report = FitReport()
        self.checkpoint = folder / "last.safetensors"
        self.auxiliary = next(
            (phase.auxiliary for phase in phases if phase.auxiliary is not None), None
        )
        # Which parameters a recipe trains at all; phases only narrow it.
        self.wanted = {p for p in self._parameters() if p.requires_grad}
        world = self.accelerator.num_processes
        self.batches_per_epoch = max(1, len(epoch_loader(0)) // world)
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / train.gradient_accumulation)

    def _parameters(self) -> list[nn.Parameter]:
        beside = [] if self.auxiliary is None else list(self.auxiliary.parameters())
        return [*self.model.parameters(), *beside]

    def execute(self, resume: bool) -> FitReport:
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model.to(self.accelerator.device)
        if self.auxiliary is not None:
            self.auxiliary.to(self.accelerator.device)
        if wanted(self.train.channels_last, self.accelerator.device):
            use_channels_last(self.run_models)
        tensors: dict[str, Tensor] | None = None
        state: dict[str, Any] = {"phase": 0, "step": 0, "elapsed_s": 0.0}
        log_path = self.folder / "log.jsonl"
        if resume and self.checkpoint.is_file():
            tensors, state = read_training_state(self.checkpoint)
            restore_model(self.model, tensors)
            if self.auxiliary is not None:
                restore_model(self.auxiliary, tensors, prefix="auxiliary.")
            best = state["best"]
            self.report.best = DevResult(**best) if best else None
            self.report.history = state["history"]
            if self.monitor is not None and state.get("monitor") is not None:
                self.monitor.restore(state["monitor"])
            self.report.resumed_at_step = state["step"]
            _truncate_log(log_path, state["phase"], state["step"])
        elif self.accelerator.is_main_process:
            log_path.unlink(missing_ok=True)
        with _Log(self.folder, self.accelerator.is_main_process) as log:
            for index in range(state["phase"], len(self.phases)):
                first = state["step"] if index == state["phase"] else 0
                moments = tensors if index == state["phase"] and first > 0 else None
                self._phase(index, first, moments, log, started - state["elapsed_s"])
        self.accelerator.wait_for_everyone()
        self.report.wall_s = time.monotonic() - started + state["elapsed_s"]
        if self.monitor is not None:
            self.report.warnings = self.monitor.warnings
        return self.report

    def _phase(
        self,
        index: int,
        first_step: int,
        moments: dict[str, Tensor] | None,
        log: _Log,
        started: float,
    ) -> None:
        phase = self.phases[index]
        total_steps = max(1, round(phase.epochs * self.steps_per_epoch))
        trained = {p for module in phase.trained for p in module.parameters()} & self.wanted
        for parameter in self._parameters():
            parameter.requires_grad_(parameter in trained)
        optimizer = make_optimizer(phase.trained, trained, self.train, self.accelerator.device)
        if moments is not None:
            restore_optimizer(optimizer, moments)
        objective, prepared = self.accelerator.prepare(phase.objective, optimizer)
        self.listener.phase(phase.name, total_steps, first_step)
        if phase.select and index > 0 and first_step == 0:
            self._select(phase, index, 0, log)
        self._training_mode(phase)
        compiling = self.compile_mode is not None and phase.varying_tokens is not None
        compiling = compiling and worth_compiling(self.train, total_steps - first_step)
        if compiling:
            # Forms of earlier phases had other shapes, and would be looked through at every call.
            torch.compiler.reset()
        compiled = CompiledBackbones(
            self.run_models,
            mode=self.compile_mode if compiling else None,
            batch_size=self.train.batch_size,
            varying=phase.varying_tokens is True,
        )
        # A black box explains itself by products of its own, outside of autocast.
        judges = [m for m in self.frozen if not getattr(m, "answers_from_whole_input", False)]
        weights = HalfWeights(judges, half_precision(self.accelerator))
        step, micro = first_step, 0
        while step < total_steps:
            epoch, skipped = divmod(step, self.steps_per_epoch)
            # Phases draw from different epochs, so that none repeats another's order.
            batches = self._batches(index * 1000 + epoch, skipped)
            with weights:
                for batch in batches:
                    if micro == 0:
                        self._seed_step(index, step)
                        self._set_learning_rate(optimizer, step, total_steps)
                    boundary = micro + 1 == self.train.gradient_accumulation or batches.last
                    progress = Progress(step, total_steps)
                    with compiled.active(start=micro == 0):
                        terms = (
                            self._take_turns(objective, prepared, batch, progress, phase, trained)
                            if phase.turns
                            else self._micro_step(
                                objective, prepared, batch, progress, boundary, phase
                            )
                        )
                    micro = 0 if boundary else micro + 1
                    if not boundary:
                        continue
                    step += 1
                    self.report.steps += 1
                    if step % LOG_EVERY_STEPS == 0 or step == total_steps:
                        self._require_finite(phase, step)
                        values = _numbers(terms)
                        rate = optimizer.param_groups[0]["lr"]
                        log.write(index, phase.name, step, {**values, "learning_rate": rate})
                        self.listener.step(values)
                    else:
                        self.listener.step({})
                    if self._is_checkpoint_due(step) and step < total_steps:
                        self._require_finite(phase, step)
                        if step % self.steps_per_epoch != 0:
                            self._save(index, step, optimizer, started)
                    if step >= total_steps:
                        break
            self._require_finite(phase, step)
            if phase.select:
                self._select(phase, index, step, log)
            if step < total_steps:
                self._save(index, step, optimizer, started)
        for parameter in self.wanted:
            parameter.requires_grad_(True)
        if phase.judge is not None and self.accelerator.is_main_process:
            # Before the checkpoint that says the phase is over: a killed run writes it again.
            save_model(self.folder / JUDGE_FILE, phase.judge)
        self._save(index + 1, 0, optimizer, started)

    def _is_checkpoint_due(self, step: int) -> bool:
        asked = self.train.checkpoint_every_steps
        if asked is not None:
            return step % asked == 0
        apart = time.monotonic() - self._saved
        return step % CHECKPOINT_STEPS == 0 and apart >= CHECKPOINT_APART_S

    def _batches(self, epoch: int, skipped_steps: int) -> _EpochBatches:
        return _EpochBatches(
            self.epoch_loader(epoch),
            skip=skipped_steps * self.train.gradient_accumulation,
            limit=self.batches_per_epoch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            device=self.accelerator.device,
        )

    def _take_turns(
        self,
        objective: nn.Module,
        optimizer: Any,
        batch: Batch,
        progress: Progress,
        phase: Phase,
        trained: set[nn.Parameter],
    ) -> LossTerms:
        """An update for each turn of the phase. A parameter without a gradient is one that the
        optimizer leaves as it is, moments included; so turns need no optimizer of their own."""
        terms: LossTerms = {}
        for place, turn in enumerate(phase.turns):
            moving = {p for module in turn.trained for p in module.parameters()}
            for parameter in trained:
                parameter.requires_grad_(parameter in moving)
            found = self._micro_step(
                objective, optimizer, batch, progress, True, phase, turn, tracked=place == 0
            )
            if place > 0:
                found[f"{turn.name}_loss"] = found.pop("loss")
            terms |= found
        for parameter in trained:
            parameter.requires_grad_(True)
        return terms

    def _micro_step(
        self,
        objective: nn.Module,
        optimizer: Any,
        batch: Batch,
        progress: Progress,
        boundary: bool,
        phase: Phase,
        turn: Turn | None = None,
        *,
        tracked: bool = True,
    ) -> LossTerms:
        with self.accelerator.autocast():
            terms: LossTerms = (
                objective(batch, progress)
                if turn is None
                else objective(batch, progress, turn.name)
            )
        loss = terms["loss"]
        lost = torch.zeros_like(loss) if self.lost is None else self.lost
        self.lost = torch.where(torch.isfinite(loss), lost, loss).detach()
        if loss.device.type == "cpu":
            self._require_finite(phase, progress.step)
        self.accelerator.backward(loss / self.train.gradient_accumulation)
        if boundary:
            watched = tracked and phase.select and progress.step % LOG_EVERY_STEPS == 0
            if self.monitor is not None and watched:
                self.monitor.track(self.model, terms)
            if self.train.gradient_clip is not None:
                # Accelerate's own clipping would divide fp16's gradients once for each group.
                self.accelerator.unscale_gradients(optimizer)
                for group in optimizer.param_groups:
                    nn.utils.clip_grad_norm_(group["params"], self.train.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {name: term.detach() for name, term in terms.items()}

    def _require_finite(self, phase: Phase, step: int) -> None:
        value = 0.0 if self.lost is None else self.lost.item()
        self.lost = None
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss became {value} in phase {phase.name!r} at step {step}; "
                "the last good checkpoint is kept",
                hint="lower train.learning_rate, or set train.precision to 'no', then --resume",
            )

    def _training_mode(self, phase: Phase) -> None:
        self.model.eval()
        for module in phase.trained:
            module.train()

    def _seed_step(self, phase_index: int, step: int) -> None:
        rank = self.accelerator.process_index
        mixed = (self.seed * 1_000_003 + phase_index) * 10_000_019 + step * 257 + rank
        torch.manual_seed(mixed % (2**63))

    def _set_learning_rate(
        self, optimizer: torch.optim.Optimizer, step: int, total_steps: int
    ) -> None:
        factor = learning_rate_factor(
            step, total_steps, warmup_share=self.train.lr_warmup_share, kind=self.train.lr_schedule
        )
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def _select(self, phase: Phase, index: int, step: int, log: _Log) -> None:
        self.model.eval()
        self._seed_step(index, step)  # where the evaluation draws masks
        result = self.evaluate(self.model)
        entry = {"phase": phase.name, "step": step, **result.values()}
        self.report.history.append(entry)
        log.write(index, f"{phase.name}/dev", step, result.values())
        self.listener.epoch(phase.name, result)
        if self.monitor is not None:
            look, warnings = self.monitor.observe(
                self.model, phase=phase.name, step=step, trained=phase.trained
            )
            log.write(index, f"{phase.name}/monitor", step, look.figures())
            for warning in warnings:
                log.warn(index, warning)
                self.listener.warning(warning)
        self._training_mode(phase)
        if result.better_than(self.report.best):
            self.report.best = result
            if self.accelerator.is_main_process:
                save_model(self.folder / "best" / "model.safetensors", self.model)

    def _save(
        self, phase: int, step: int, optimizer: torch.optim.Optimizer, started: float
    ) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "phase": phase,
            "step": step,
            "best": self.report.best.state() if self.report.best else None,
            "history": self.report.history,
            "monitor": self.monitor.state() if self.monitor is not None else None,
            "elapsed_s": time.monotonic() - started,
        }
        save_training_state(self.checkpoint, self.model, optimizer, state, self.auxiliary)
        self._saved = time.monotonic()


def _numbers(terms: LossTerms) -> dict[str, float]:
    """Scalars of the device in one transfer, rounded to six places."""
    values = torch.stack([term.float() for term in terms.values()]).tolist()
    return {name: round(value, 6) for name, value in zip(terms, values, strict=True)}


class _EpochBatches:
    """This process's share of an epoch, moved to its device; ``last`` is True on the final one."""

    def __init__(
        self,
        loader: BatchLoader,
        *,
        skip: int,
        limit: int,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self.loader = loader
        self.skip = skip
        self.limit = limit
        self.rank = rank
        self.world = world
        self.device = device
        self.last = False

    def __iter__(self) -> Iterator[Batch]:
        for position, batch in enumerate(self.loader):
            own, turn = divmod(position, self.world)
            if turn != self.rank or own < self.skip:
                continue
            if own >= self.limit:
                return
            self.last = own == self.limit - 1
            yield move_batch(batch, self.device)


class _Log:
    """One JSON object a line, and the same values for TensorBoard."""

    def __init__(self, folder: Path, active: bool) -> None:
        self.folder = folder
        self.active = active
        self._file: Any = None
        self._board: Any = None

    def __enter__(self) -> _Log:
        if self.active:
            from torch.utils.tensorboard import SummaryWriter

            self._file = (self.folder / "log.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        return self

    def __exit__(self, *exc: object) -> None:
        if self.active:
            self._file.close()
            self._board.close()

    def write(self, phase_index: int, name: str, step: int, values: dict[str, float]) -> None:
        if not self.active:
            return
        entry = {"phase_index": phase_index, "phase": name, "step": step, **values}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(f"{name}/{key}", value, step)

    def warn(self, phase_index: int, warning: TrainingWarning) -> None:
        if not self.active:
            return
        place = {"phase_index": phase_index, "phase": f"{warning.phase}/warning"}
        entry = {**place, "step": warning.step, "warning": asdict(warning)}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def _truncate_log(path: Path, phase_index: int, step: int) -> None:
    """Drops entries that the resumed run will write again."""
    if not path.is_file():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a killed process left half-written
        place = (entry["phase_index"], entry["step"])
        # A phase that starts anew also evaluates its start anew.
        if place < (phase_index, 0) or (step > 0 and place <= (phase_index, step)):
            kept.append(line)
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def make_accelerator(train: TrainSpec, device: str) -> Any:
    """Accelerate's ``Accelerator`` for this machine.

    Raises:
        UsageError: an unknown device, CUDA without CUDA, or fp16 or TF32 on the CPU.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    if device not in {"auto", "cpu", "cuda"}:
        raise UsageError(f"unknown device {device!r}", hint="use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available", hint="use --device cpu or auto")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu and train.precision in {"fp16", "tf32"}:
        raise UsageError(
            f"train.precision {train.precision} needs a CUDA device", hint="use 'bf16' or 'no'"
        )
    # Float32 means float32: PyTorch's own default rounds the products of convolutions.
    torch.set_float32_matmul_precision("high" if train.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = train.precision == "tf32"
    use_planless_attention()
    # Accelerate holds one precision for the whole process; teacher and student may differ.
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=_precision(train, on_cpu=on_cpu),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _precision(train: TrainSpec, *, on_cpu: bool) -> str:
    if train.precision == "tf32":
        return "no"
    if train.precision != "auto":
        return train.precision
    if on_cpu:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
        return "bf16" if native else "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def half_precision(accelerator: Any) -> torch.dtype | None:
    """What autocast rounds to; None without autocast."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(accelerator.mixed_precision))


def use_planless_attention() -> None:
    """Attention on a GPU by other kernels than cuDNN's from now on. cuDNN makes a plan for every
    shape that it has not seen, and the number of tokens changes from batch to batch where texts are
    read and where random subsets are; the other kernels take any shape."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def precision_in_use(train: TrainSpec, accelerator: Any) -> str:
    """``no``, ``tf32``, ``bf16`` or ``fp16``."""
    return train.precision if train.precision == "tf32" else str(accelerator.mixed_precision)


def make_optimizer(
    modules: Mapping[nn.Module, Rates],
    trained: set[nn.Parameter],
    train: TrainSpec,
    device: torch.device,
    *,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW with a group for each learning rate and weight decay, in one kernel if ``fused``, else
    as PyTorch does it by default (on a GPU a few kernels for all tensors together).

    Biases, norms and other one-dimensional parameters are not decayed, unless
    ``train.decay_all``.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module, rates in modules.items():
        for name, parameter in module.named_parameters():
            if parameter not in trained:
                continue
            rate = rates.head if name.startswith("head.") else rates.body
            decay = train.weight_decay if train.decay_all or parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        # False would also turn the default off: a loop of kernels for each tensor.
        fused=True if fused and device.type in {"cpu", "cuda"} else None,
    )
