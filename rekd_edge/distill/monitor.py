"""Watches joint training for the known failures of select-predict models.

At every evaluation of a joint phase the monitor looks at some development examples: at the
selector's scores and rationales, at the predictor's answers from the rationale and from random
tokens of the same number, and at the answers of a *judge*, the predictor as it was after its
warm-up on random subsets (the idea of EVAL-X, Jethani et al. 2021). What it sees is logged; what
crosses a threshold becomes a :class:`TrainingWarning`. docs/warnings.md explains each.

It reads training and never changes it: no gradient, no global random state, evaluation mode.
"""

from __future__ import annotations

import base64
import copy
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rekd_edge.distill.checkpoint import JUDGE_FILE, load_model
from rekd_edge.distill.leakage import position_overlap, position_probe
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.problem import Problem
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.problem import PRIMARY
from rekd_edge.selection import gather_slots, of_unit
from rekd_edge.types import Batch

WarningKind = Literal[
    "empty_selection",
    "full_selection",
    "constant_scores",
    "positional_collapse",
    "interlocking",
    "stalled_selector",
    "label_in_positions",
    "label_in_selection",
]

ADVICE: dict[WarningKind, str] = {
    "empty_selection": "raise objective.lambda_select, warm the selector up "
    "(train.warmup.selector: mask_gradient), or train with objective.name: deploy",
    "full_selection": "raise objective.lambda_select, or train with objective.name: deploy",
    "constant_scores": "warm the selector up (train.warmup.selector: mask_gradient), or raise "
    "train.warmup.selector_epochs or train.selector_learning_rate",
    "positional_collapse": "warm the selector up (train.warmup.selector: mask_gradient) and lower "
    "train.selector_learning_rate; ignore this if the evidence really lies at one place",
    "interlocking": "warm the predictor up on random subsets (train.warmup.predictor_epochs: 1) "
    "and the selector on mask gradients, or start with a large budget (objective.ratio_schedule)",
    "stalled_selector": "raise objective.temperature.end or objective.selection_noise, try another "
    "objective.estimator, or raise train.selector_learning_rate",
    "label_in_positions": "lower train.selector_learning_rate (0 keeps the warmed-up selector), or "
    "raise objective.lambda_rationale with a teacher that does not do this",
    "label_in_selection": "lower train.selector_learning_rate (0 keeps the warmed-up selector), or "
    "raise train.warmup.predictor_epochs so that the predictor knows any subset",
}
"""What to do about each kind."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a look becomes a warning. Shares and accuracies are in 0..1."""

    examples: int = 100
    """Fewer development examples than this give no warning that rests on an accuracy."""
    empty_share: float = 0.1
    """Sampled selections: tokens above the threshold, relative to ``rationale_ratio``."""
    full_share: float = 0.9
    """Sampled selections: tokens above the threshold, on the way from ``rationale_ratio`` to 1."""
    score_deviation: float = 0.01
    """Median standard deviation of an example's scores (log-odds)."""
    position_overlap: float = 0.9
    """Share of the rationale that positions alone foretell, chance taken off."""
    better_than_random: float = 0.02
    """A rationale is better than random tokens if accuracy is higher by more than this."""
    fitted_share: float = 0.5
    """Training loss, relative to that of knowing nothing (ln(classes)), below which the predictor
    has fitted."""
    missing_accuracy: float = 0.05
    """What the judge reads from all tokens above what the predictor reads from the rationale."""
    gradient_ratio: float = 1e-5
    """Root-mean-square gradient of the selector relative to the predictor's."""
    moved_share: float = 0.001
    """Share of the kept tokens that changed since the last look."""
    leak: float = 0.1
    """Accuracy that only a leak explains; three standard errors if that is more."""
    leak_share: float = 0.5
    """Share of the predictor's edge: over guessing, which the mask alone explains if it is a leak;
    over random tokens, which the judge shares if it is none."""


@dataclass(frozen=True, slots=True)
class TrainingWarning:
    """A failure seen at ``step`` of ``phase`` and last at ``last_step``.

    ``message`` says what was seen, ``advice`` what to do; ``evidence`` holds the figures.
    """

    kind: WarningKind
    phase: str
    step: int
    last_step: int
    message: str
    advice: str
    evidence: dict[str, float]

    def __str__(self) -> str:
        return f"{self.message}: {self.advice}"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the development examples saw. None where it cannot be said.

    ``kept_ratio`` is the mean share of selectable tokens in the rationale, ``threshold_share`` the
    share with log-odds above 0, ``moved`` the share of the kept tokens that the last look did not
    keep. Accuracies are those of the predictor (from the rationale, from random tokens) and of the
    judge (from all tokens too); of another problem than one class its primary score, 0 at least.
    ``probe`` reads labels from mask positions alone, ``probe_chance`` is the better of the same
    from random masks and of the commonest label.
    """

    examples: int
    kept_ratio: float
    threshold_share: float
    score_deviation: float
    position_overlap: float
    accuracy: float
    random_accuracy: float
    probe: float
    probe_chance: float
    judge_accuracy: float | None = None
    judge_random_accuracy: float | None = None
    judge_full_accuracy: float | None = None
    moved: float | None = None
    gradient_ratio: float | None = None
    train_loss: float | None = None

    def figures(self) -> dict[str, float]:
        """Everything that is known, for logs."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: round(float(value), 6) for name, value in known.items()}


def failures(
    look: Look,
    *,
    chance_loss: float,
    rationale_ratio: float,
    sampled: bool,
    selector_trained: bool,
    thresholds: Thresholds | None = None,
    score: str = "accuracy",
) -> dict[WarningKind, tuple[str, tuple[str, ...]]]:
    """Which failures a look shows: kind -> (message, names of the figures that show it).

    ``chance_loss`` is the task's loss of a model that knows nothing, ``score`` what accuracies are.
    ``sampled``: training draws each token by itself, so that a selection can be empty or full.
    """
    limit = thresholds or Thresholds()
    found: dict[WarningKind, tuple[str, tuple[str, ...]]] = {}
    if sampled:
        share, full = look.threshold_share, limit.full_share
        if share < limit.empty_share * rationale_ratio:
            message = f"the selector gives {share:.1%} of the tokens a chance above one half"
            found["empty_selection"] = (message, ("threshold_share",))
        elif share > rationale_ratio + full * (1 - rationale_ratio):
            message = f"the selector gives {share:.1%} of the tokens a chance above one half"
            found["full_selection"] = (message, ("threshold_share",))
    if look.score_deviation < limit.score_deviation:
        message = f"the selector scores all tokens alike (deviation {look.score_deviation:.1e})"
        found["constant_scores"] = (message, ("score_deviation",))
    elif look.position_overlap > limit.position_overlap:
        message = "the selector keeps the same positions of every example"
        found["positional_collapse"] = (message, ("position_overlap",))
    blind = look.gradient_ratio is not None and look.gradient_ratio < limit.gradient_ratio
    if selector_trained and blind:
        found["stalled_selector"] = ("the selector gets no gradient", ("gradient_ratio",))
    if look.examples >= limit.examples:
        found |= _interlocking(look, limit, chance_loss, selector_trained)
        found |= _leaks(look, limit, "right" if score == "accuracy" else score)
    return found


def _interlocking(
    look: Look, limit: Thresholds, chance_loss: float, selector_trained: bool
) -> dict[WarningKind, tuple[str, tuple[str, ...]]]:
    if look.accuracy > look.random_accuracy + limit.better_than_random:
        return {}
    compared = f"({look.accuracy:.3f}) than from random tokens ({look.random_accuracy:.3f})"
    names = ("accuracy", "random_accuracy")
    loss = look.train_loss
    fitted = loss is not None and loss <= limit.fitted_share * chance_loss
    missing = (
        look.judge_full_accuracy is None
        or look.judge_full_accuracy > look.accuracy + limit.missing_accuracy
    )
    if fitted and missing:
        message = (
            "the predictor fitted selections that are no evidence: on new examples it answers no "
            f"better from the rationale {compared}"
        )
        shown = (*names, "train_loss", "judge_full_accuracy", "moved")
        return {"interlocking": (message, shown)}
    if selector_trained and look.moved is not None and look.moved < limit.moved_share:
        message = f"rationales stopped changing where answers are no better {compared}"
        return {"stalled_selector": (message, (*names, "moved"))}
    return {}


def _leaks(
    look: Look, limit: Thresholds, score: str
) -> dict[WarningKind, tuple[str, tuple[str, ...]]]:
    found: dict[WarningKind, tuple[str, tuple[str, ...]]] = {}

    def far(high: float, low: float) -> bool:
        """Whether ``high`` is above ``low`` by more than ``leak`` and three standard errors."""
        error = math.sqrt((high * (1 - high) + low * (1 - low)) / look.examples)
        return high - low > max(limit.leak, 3 * error)

    edge = look.accuracy - look.probe_chance
    if far(look.probe, look.probe_chance):
        if look.probe - look.probe_chance > limit.leak_share * edge:
            message = (
                f"labels can be read from the kept positions alone ({look.probe:.3f} {score}, "
                f"{look.probe_chance:.3f} by chance)"
            )
            found["label_in_positions"] = (message, ("probe", "probe_chance", "accuracy"))
    judge, chance = look.judge_accuracy, look.judge_random_accuracy
    if judge is not None and chance is not None and far(look.accuracy, judge):
        gain, shared = look.accuracy - look.random_accuracy, judge - chance
        if far(look.accuracy, look.random_accuracy) and shared < limit.leak_share * gain:
            message = (
                f"the predictor reads {look.accuracy:.3f} from rationales in which a predictor of "
                f"random subsets finds little evidence ({judge:.3f}; random tokens {chance:.3f})"
            )
            shown = ("accuracy", "random_accuracy", "judge_accuracy", "judge_random_accuracy")
            found["label_in_selection"] = (message, shown)
    return found


class SelectionMonitor:
    """Looks, compares with the last look, and remembers what it warned of.

    ``examples`` gives the same development batches each time. ``sampled`` and ``zeroed`` say how
    the objective selects (:func:`failures`) and masks. ``judged``: the predictor was warmed up on
    random subsets, so its state at the first look is a judge; a resumed run finds it in ``folder``,
    the role's, where the loop keeps it.
    """

    def __init__(
        self,
        examples: Callable[[], Iterable[Batch]],
        folder: Path,
        *,
        sampled: bool = False,
        zeroed: bool = False,
        judged: bool = False,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.examples = examples
        self.sampled = sampled
        self.zeroed = zeroed
        self.judged = judged
        self.thresholds = thresholds or Thresholds()
        self._judge_file = folder / JUDGE_FILE
        self._judge: Rationalist | None = None
        self._judge_constants: dict[str, float] = {}
        self._last_keep: Tensor | None = None
        self._losses: list[float] = []
        self._gradient_ratios: list[float] = []
        self._warnings: dict[WarningKind, TrainingWarning] = {}

    @property
    def warnings(self) -> list[TrainingWarning]:
        """What was warned of so far, in the order of its first sight."""
        return list(self._warnings.values())

    def track(self, model: nn.Module, terms: dict[str, Tensor]) -> None:
        """Notes a training step between backward and the optimizer's step: the task loss, and how
        large the selector's gradient is beside the predictor's."""
        assert isinstance(model, Rationalist)
        task = model.predictor.problem.term_names.get("ce", "ce")
        if task in terms:
            self._losses.append(float(terms[task].detach()))
        selector, predictor = _rms_gradient(model.selector), _rms_gradient(model.predictor)
        if selector is not None and predictor:
            self._gradient_ratios.append(selector / predictor)

    def observe(
        self, model: nn.Module, *, phase: str, step: int, trained: Collection[nn.Module]
    ) -> tuple[Look, list[TrainingWarning]]:
        """One look at ``model`` (in evaluation mode) and the warnings that are new with it.

        The look at step 0 of a phase is what later ones are compared with; it warns of nothing,
        since nothing was trained jointly yet.
        """
        assert isinstance(model, Rationalist)
        judge = self._judge_of(model, first=step == 0)
        look, keep, chance_loss = self._look(model, judge)
        look = replace(
            look,
            moved=_moved(self._last_keep, keep),
            gradient_ratio=_median(self._gradient_ratios),
            train_loss=sum(self._losses) / len(self._losses) if self._losses else None,
        )
        self._last_keep, self._losses, self._gradient_ratios = keep, [], []
        if step == 0:
            return look, []
        found = failures(
            look,
            chance_loss=chance_loss,
            rationale_ratio=model.rationale_ratio,
            sampled=self.sampled,
            selector_trained=any(module is model.selector for module in trained),
            thresholds=self.thresholds,
            score=PRIMARY[model.predictor.problem.kind],
        )
        new = []
        figures = look.figures()
        for kind, (message, names) in found.items():
            known = self._warnings.get(kind)
            if known is not None:
                self._warnings[kind] = replace(known, last_step=step)
                continue
            evidence = {name: figures[name] for name in names if name in figures}
            warning = TrainingWarning(kind, phase, step, step, message, ADVICE[kind], evidence)
            self._warnings[kind] = warning
            new.append(warning)
        return look, new

    def state(self) -> dict[str, Any]:
        """JSON values from which :meth:`restore` goes on as if never interrupted."""
        keep = None
        if self._last_keep is not None:
            packed = np.packbits(self._last_keep.numpy()).tobytes()
            keep = {
                "shape": list(self._last_keep.shape),
                "bits": base64.b64encode(packed).decode("ascii"),
            }
        return {
            "last_keep": keep,
            "losses": self._losses,
            "gradient_ratios": self._gradient_ratios,
            "judge_constants": self._judge_constants,
            "warnings": [asdict(warning) for warning in self._warnings.values()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        keep = state["last_keep"]
        if keep is not None:
            rows, width = keep["shape"]
            packed = np.frombuffer(base64.b64decode(keep["bits"]), dtype=np.uint8)
            bits = np.unpackbits(packed, count=rows * width).reshape(rows, width)
            self._last_keep = torch.from_numpy(bits.astype(np.bool_))
        self._losses = list(state["losses"])
        self._gradient_ratios = list(state["gradient_ratios"])
        self._judge_constants = dict(state["judge_constants"])
        self._warnings = {entry["kind"]: TrainingWarning(**entry) for entry in state["warnings"]}

    def _judge_of(self, model: Rationalist, *, first: bool) -> Rationalist | None:
        if not self.judged:
            return None
        if first:
            self._judge = _with_own_predictor(model)
            self._judge_constants = {}
        elif self._judge is None and self._judge_file.is_file():  # resumed
            self._judge = _with_own_predictor(model)
            load_model(self._judge_file, self._judge.predictor)
        return self._judge

    @torch.no_grad()
    def _look(self, model: Rationalist, judge: Rationalist | None) -> tuple[Look, Tensor, float]:
        """A look, the rationales of all examples ``[example, token]``, and the loss of chance."""
        generator = torch.Generator().manual_seed(0)
        device = next(model.parameters()).device
        seen = _Seen(model.predictor.problem)
        fixed = judge is not None and not self._judge_constants
        for batch in self.examples():
            inputs = {name: value.to(device) for name, value in batch.inputs.items()}
            scores = model.selector(inputs)
            view, keep = scores.view, model.keep(scores)
            noise = torch.rand(keep.shape, generator=generator).to(device)
            chance = model.choose(of_unit(noise, view.unit), view)
            seen.add_selection(scores.score, view.selectable, keep, chance, batch.labels)
            logits = _answer(model, view, keep, zeroed=self.zeroed)
            seen.classes = logits.shape[1]
            seen.add_answer("accuracy", logits)
            random = _answer(model, view, chance, zeroed=self.zeroed)
            seen.add_answer("random_accuracy", random)
            if judge is None:
                continue
            if not fixed:
                seen.add_answer("judge_accuracy", _answer(judge, view, keep))
                continue
            if self.zeroed:
                logits, random = _answer(judge, view, keep), _answer(judge, view, chance)
            # Otherwise this is the judge itself, answering as it does.
            seen.add_answer("judge_accuracy", logits)
            seen.add_answer("judge_random_accuracy", random)
            everything = judge.classify_masked(view, view.selectable)
            seen.add_answer("judge_full_accuracy", everything)
        accuracies = seen.accuracies()
        if fixed:
            names = ("judge_random_accuracy", "judge_full_accuracy")
            self._judge_constants = {name: accuracies[name] for name in names}
        look, keep = seen.look(accuracies | self._judge_constants)
        return look, keep, seen.chance_loss()


class _Seen:
    """Gathers what a look sees, batch by batch, on the CPU."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.classes = 0
        self._selectable: list[Tensor] = []
        self._keep: list[Tensor] = []
        self._chance: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._deviations: list[Tensor] = []
        self._above = 0
        self._answers: dict[str, list[Tensor]] = {}

    def add_selection(
        self, score: Tensor, selectable: Tensor, keep: Tensor, chance: Tensor, labels: Tensor
    ) -> None:
        count = selectable.sum(dim=1)
        values = score.float() * selectable
        mean = values.sum(dim=1) / count.clamp_min(1)
        squares = ((score.float() - mean.unsqueeze(1)) * selectable).pow(2).sum(dim=1)
        self._deviations.append((squares / count.clamp_min(1)).sqrt()[count > 1].cpu())
        self._above += int(((score > 0) & selectable).sum())
        for rows, new in (
            (self._selectable, selectable),
            (self._keep, keep),
            (self._chance, chance),
            (self._labels, labels),
        ):
            rows.append(new.cpu())

    def add_answer(self, name: str, logits: Tensor) -> None:
        self._answers.setdefault(name, []).append(logits.float().cpu())

    def accuracies(self) -> dict[str, float]:
        labels = torch.cat(self._labels)
        return {
            name: max(0.0, self.problem.score(torch.cat(logits), labels))
            for name, logits in self._answers.items()
        }

    def chance_loss(self) -> float:
        return self.problem.chance_loss(torch.cat(self._labels), self.classes)

    def look(self, accuracies: dict[str, float]) -> tuple[Look, Tensor]:
        selectable, keep = _stack(self._selectable), _stack(self._keep)
        labels = torch.cat(self._labels)
        available = max(1, int(selectable.sum()))
        deviations = torch.cat(self._deviations)
        problem, constant = self.problem, self.problem.constant(labels)
        commonest = max(0.0, problem.score(constant.expand(len(labels), -1), labels))
        by_chance = position_probe(_stack(self._chance), selectable, labels, self.classes, problem)
        look = Look(
            examples=len(labels),
            kept_ratio=int(keep.sum()) / available,
            threshold_share=self._above / available,
            # One token an example has no spread to speak of: never "constant".
            score_deviation=float(deviations.median()) if len(deviations) else math.inf,
            position_overlap=position_overlap(keep, selectable),
            probe=position_probe(keep, selectable, labels, self.classes, problem),
            probe_chance=max(commonest, by_chance),
            **accuracies,
        )
        return look, keep


def _stack(rows: list[Tensor]) -> Tensor:
    """Bool batches of several widths as one ``[example, token]``, False where a row ends."""
    width = max(batch.shape[1] for batch in rows)
    padded = [nn.functional.pad(batch, (0, width - batch.shape[1])) for batch in rows]
    return torch.cat(padded)


def _answer(model: Rationalist, view: TokenView, keep: Tensor, *, zeroed: bool = False) -> Tensor:
    if zeroed:
        return model.classify_zeroed(view, keep.float())
    return model.classify_gathered(view, *gather_slots(keep, model.slots(view)))


def _with_own_predictor(model: Rationalist) -> Rationalist:
    judge = Rationalist(model.selector, copy.deepcopy(model.predictor), model.rationale_ratio)
    judge.predictor.requires_grad_(False).eval()
    return judge


def _moved(before: Tensor | None, now: Tensor) -> float | None:
    if before is None or before.shape != now.shape:
        return None
    return float((now & ~before).sum() / now.sum().clamp_min(1))


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def _rms_gradient(module: nn.Module) -> float | None:
    """Root mean square of the gradient; None where nothing is trained."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return None
    norm = float(nn.utils.get_total_norm(gradients))
    return norm / math.sqrt(sum(gradient.numel() for gradient in gradients))
