"""What fusing changed: accuracy under every way of selecting, and the gathered form's error."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rekd_edge.evaluate.accuracy import SelectionMode, evaluate_rationalist
from rekd_edge.fuse.folds import TOLERANCE, Fold, nearly_tied
from rekd_edge.fuse.fused import DeployModel, FusedRationalist
from rekd_edge.fuse.pair import FusedPair
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.selection import cut_units
from rekd_edge.types import Batch

SAMPLED_DRAWS = 3


@dataclass(frozen=True, slots=True)
class ModeResult:
    """The primary score (of a single-label classification its accuracy) under one selection mode,
    over ``draws`` draws, and the share kept."""

    accuracy: float
    accuracy_spread: float
    kept_share: float
    draws: int


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations for one example of ``tokens`` tokens (text: the mean length of
    the evaluated split), a multiply-add counted as two; matrix products and convolutions only.
    Of a pair, those of both students and of the exchange, which runs only where they disagree."""

    selector: int
    predictor: int
    plain: int
    """The predictor's backbone on all tokens: the black box to beat."""
    tokens: int

    @property
    def selector_share(self) -> float:
        """Cost of the selector relative to the plain classifier."""
        return self.selector / self.plain

    @property
    def student_share(self) -> float:
        """Cost of selector and predictor relative to the plain classifier."""
        return (self.selector + self.predictor) / self.plain

    def to_json(self) -> dict[str, Any]:
        shares = {
            "selector_share": round(self.selector_share, 4),
            "student_share": round(self.student_share, 4),
        }
        return asdict(self) | shares


@dataclass(frozen=True, slots=True)
class FuseReport:
    """``modes`` by name; ``masked_gathered_difference`` is the largest absolute difference of
    logits between key exclusion and gathering, ``fused_difference`` that between the trained
    model's gathered pass and the fused model, without the ``near_ties``: examples whose rationale
    rounding may change (:func:`~rekd_edge.fuse.folds.nearly_tied`). ``cut_units`` counts examples
    whose best unit is longer than the budget and cut to it; None where tokens are the units."""

    modes: dict[str, ModeResult]
    flops: Flops
    examples: int
    masked_gathered_difference: float
    fused_difference: float
    near_ties: int
    folds: tuple[Fold, ...]
    tolerance: float = TOLERANCE
    cut_units: int | None = None

    @property
    def passed(self) -> bool:
        """Whether the fused model is the trained model up to rounding, after each fold and in the
        end."""
        differences = [fold.max_difference for fold in self.folds]
        largest = max(self.masked_gathered_difference, self.fused_difference, *differences)
        return largest <= self.tolerance and all(fold.same_rationale for fold in self.folds)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "flops": self.flops.to_json(), "passed": self.passed}


def fuse_report(
    model: Rationalist,
    fused: FusedRationalist,
    make_loader: Callable[[], Iterable[Batch]],
    *,
    deployed_loader: Callable[[], Iterable[Batch]] | None = None,
    draws: int = SAMPLED_DRAWS,
) -> FuseReport:
    """Evaluates ``model`` under every selection mode and compares it with ``fused``.

    ``make_loader`` gives the evaluation batches anew each time, ``deployed_loader`` the same as
    ``fused`` reads them, where that differs. Accuracy spreads are sample
    standard deviations over the draws.
    """
    modes: dict[str, ModeResult] = {}
    masked = evaluate_rationalist(model, make_loader(), "top_k_masked")
    gathered = evaluate_rationalist(model, make_loader(), "top_k_gathered")
    for name, predictions in (("top_k_masked", masked), ("top_k_gathered", gathered)):
        modes[name] = ModeResult(predictions.accuracy, 0.0, predictions.kept_share, 1)
    deterministic: tuple[SelectionMode, ...] = ("top_k_zeroed", "threshold")
    for mode in deterministic:
        predictions = evaluate_rationalist(model, make_loader(), mode)
        modes[mode] = ModeResult(predictions.accuracy, 0.0, predictions.kept_share, 1)
    sampled: tuple[SelectionMode, ...] = ("sampled_top_k", "sampled_bernoulli")
    for mode in sampled:
        results = [
            evaluate_rationalist(model, make_loader(), mode, seed=draw) for draw in range(draws)
        ]
        accuracies = [result.accuracy for result in results]
        modes[mode] = ModeResult(
            statistics.fmean(accuracies),
            statistics.stdev(accuracies) if draws > 1 else 0.0,
            statistics.fmean(result.kept_share for result in results),
            draws,
        )
    fused_difference, near_ties, cut = _fused_difference(
        fused, gathered.logits, (deployed_loader or make_loader)()
    )
    return FuseReport(
        modes=modes,
        flops=count_flops(fused, mean_tokens(make_loader())),
        examples=len(gathered.labels),
        masked_gathered_difference=float((masked.logits - gathered.logits).abs().max()),
        fused_difference=fused_difference,
        near_ties=near_ties,
        folds=fused.folds,
        cut_units=None if fused.rationale_unit == "token" else cut,
    )


@torch.no_grad()
def _fused_difference(
    fused: FusedRationalist, expected: torch.Tensor, loader: Iterable[Batch]
) -> tuple[float, int, int]:
    """The largest difference from ``expected``, how many near ties it leaves out, and in how many
    examples a unit was cut."""
    largest, near_ties, cut = 0.0, 0, 0
    for batch in loader:
        logits, keep, score, margin, *_ = fused(*batch.inputs.values())
        view = fused.predictor.encoder.view(batch.inputs)
        if view.unit is not None:
            keep = keep[:, fused.token_offset :]
            cut += int(cut_units(view.selectable, view.unit, keep).sum())
        tied = nearly_tied(score, margin)
        near_ties += int(tied.sum())
        difference = (logits - expected[batch.index])[~tied].abs()
        if len(difference):
            largest = max(largest, float(difference.nan_to_num(nan=torch.inf).max()))
    return largest, near_ties, cut


def mean_tokens(loader: Iterable[Batch]) -> int:
    """Mean number of attended tokens of a text, 0 for images."""
    total, examples = 0, 0
    for batch in loader:
        if "attention_mask" not in batch.inputs:
            return 0
        total += int(batch.inputs["attention_mask"].sum())
        examples += len(batch.labels)
    return round(total / max(1, examples))


@torch.no_grad()
def model_flops(model: DeployModel, tokens: int) -> int:
    """Operations of an exportable model on one example, counted as :class:`Flops` does."""
    with FlopCounterMode(display=False) as counter:
        model(*model.example_inputs(1, max(tokens, 3)))
    return counter.get_total_flops()


@torch.no_grad()
def count_flops(fused: FusedRationalist, tokens: int) -> Flops:
    """Counts the operations of ``fused`` on one example; ``tokens`` has no meaning for images."""
    inputs = fused.example_inputs(1, max(tokens, 3))
    named = fused.named_inputs(inputs)
    with FlopCounterMode(display=False) as selector:
        scores = fused.selector(named)
        if isinstance(fused, FusedPair):
            fused.partner.selector(named)
    with FlopCounterMode(display=False) as whole:
        fused(*inputs)
    view = scores.view
    with FlopCounterMode(display=False) as plain:
        fused.predictor(view.content, view.position, view.attended)
    return Flops(
        selector.get_total_flops(),
        whole.get_total_flops() - selector.get_total_flops(),
        plain.get_total_flops(),
        view.content.shape[1],
    )
