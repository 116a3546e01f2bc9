"""What every method has in common: the draw, its penalties, the answer and the teacher.

A method is the objective of joint training: given a batch and the progress of its phase it returns
named terms, of which ``loss`` is minimised. What it trains beside the model (``auxiliary``) is kept
in checkpoints and left out of the result, and ``turns`` are the updates that each batch gets.
Everything is drawn among content tokens and read by excluding or gathering, as it is deployed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from rekd_edge import losses
from rekd_edge.distill.loop import Turn
from rekd_edge.distill.objectives import (
    LossTerms,
    Progress,
    logged,
    own_margin,
    select_exactly_k,
)
from rekd_edge.distill.targets import TargetSource
from rekd_edge.models.encoder import TokenView, patch_grid
from rekd_edge.models.kept import can_classify_kept, represent_kept
from rekd_edge.models.problem import Problem
from rekd_edge.models.rationalist import Rationalist, Scores, Selector
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.schedules import (
    alpha_at,
    published_temperature_at,
    ratio_at,
    temperature_at,
)
from rekd_edge.selection import (
    bernoulli_straight_through,
    budget_fraction,
    hard_kuma,
    hard_kuma_kept_chance,
    scored_draw,
)
from rekd_edge.types import Batch


@dataclass(frozen=True, slots=True)
class Drawn:
    """A rationale in training, float ``[batch, token]`` in [0, 1], zero where nothing may be
    selected. ``log_chance`` ``[batch]``, where the draw itself has no gradient: log-probability of
    the whole draw. ``kept_chance`` ``[batch, token]``, where it is relaxed: chance not to be 0."""

    keep: Tensor
    log_chance: Tensor | None = None
    kept_chance: Tensor | None = None


SLOTS_APART = 8
"""Draws keep another number of tokens in each batch; slots are rounded up to a multiple, so that
there are few shapes."""


class Method(nn.Module, ABC):
    """Base of the methods; a subclass writes :meth:`step`."""

    gather: bool = False
    """Whether the backward pass runs through kept tokens alone (``train.gather``), where what is
    kept is 0 or 1 and the backbone is one that :func:`can_classify_kept` knows."""

    def __init__(
        self, model: Rationalist, spec: ObjectiveSpec, targets: TargetSource | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.targets = targets
        self.grid = patch_grid(model.predictor.encoder)

    @property
    def problem(self) -> Problem:
        """What the predictor answers."""
        return self.model.predictor.problem

    @property
    def auxiliary(self) -> nn.Module | None:
        """What is trained or kept beside the model and not deployed."""
        return None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The updates that each batch gets; none means one of everything."""
        return ()

    @property
    def trained_auxiliary(self) -> nn.Module | None:
        """What of ``auxiliary`` has parameters to train, at the selector's learning rates."""
        return self.auxiliary

    def forward(self, batch: Batch, progress: Progress, turn: str | None = None) -> LossTerms:
        loss, terms = self.step(batch, progress, turn)
        return logged(loss, terms, self.problem)

    @abstractmethod
    def step(
        self, batch: Batch, progress: Progress, turn: str | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one update, a scalar, and what is logged beside it."""

    def temperature(self, progress: Progress) -> float:
        """tau at this step."""
        capped = self.spec.form.tau_updates == "capped"
        clock: Callable[..., float] = temperature_at if capped else published_temperature_at
        return clock(progress.step, progress.total_steps, self.spec.temperature)

    def draw(self, scores: Scores, progress: Progress, *, ratio: float | None = None) -> Drawn:
        """A rationale as ``objective.selection`` draws it; of exactly k, ``ratio`` in place of the
        budget's share of this step."""
        selectable, selection = scores.view.selectable, self.spec.form.selection
        tau = self.temperature(progress)
        if selection == "bernoulli":
            keep, _ = bernoulli_straight_through(scores.logits, temperature=tau)
            return Drawn(keep * selectable)
        if selection == "hard_kuma":
            return Drawn(
                hard_kuma(scores.score) * selectable,
                kept_chance=hard_kuma_kept_chance(scores.score) * selectable,
            )
        if selection == "reinforce":
            return Drawn(*scored_draw(scores.score, selectable))
        if ratio is None:
            ratio = ratio_at(
                progress.step,
                progress.total_steps,
                self.spec.ratio_schedule,
                self.model.rationale_ratio,
            )
        weight, _ = select_exactly_k(self.spec, scores, budget_fraction(ratio), tau)
        return Drawn(weight)

    def penalties(self, keep: Tensor, view: TokenView) -> dict[str, Tensor]:
        """Omega of RNP, unweighted: `sparsity` where the count floats, and `coherence`."""
        terms = {"coherence": losses.contiguity(keep, view.selectable, self.grid)}
        if self.spec.form.selection != "exactly_k":
            share = losses.share_penalty(keep, view.selectable, self.model.rationale_ratio)
            terms = {"sparsity": share, **terms}
        return terms

    def omega(self, terms: dict[str, Tensor]) -> Tensor:
        """lambda_sparsity * sparsity + lambda_coherence * coherence."""
        total = self.spec.lambda_coherence * terms["coherence"]
        if "sparsity" in terms:
            total = total + self.spec.lambda_sparsity * terms["sparsity"]
        return total

    def represent(self, view: TokenView, keep: Tensor) -> Tensor:
        """Enc(Z), what the predictor's head reads of ``keep`` float ``[batch, token]``."""
        predictor, tokens = self.model.predictor, keep.shape[1]
        relaxed = self.spec.form.selection == "hard_kuma"
        if self.gather and not relaxed and can_classify_kept(predictor):
            slots = -(-max(1, int((keep > 0.5).sum(dim=1).max())) // SLOTS_APART) * SLOTS_APART
            if slots < tokens:
                return represent_kept(predictor, view, keep, slots)
        return predictor.represent(view.content, view.position, keep)

    def answer(self, view: TokenView, keep: Tensor) -> Tensor:
        """Logits ``[batch, class]`` from ``keep``, float ``[batch, token]``: weighed where it is
        relaxed or carries a gradient, otherwise gathered."""
        if keep.requires_grad or self.spec.form.selection == "hard_kuma":
            return self.model.predictor.answer(self.represent(view, keep))
        return self.model.classify_subset(view, keep > 0.5)

    def task_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """That of the problem, the mean over the batch."""
        return self.problem.task_loss(logits, batch.labels)

    def distil(
        self,
        loss: Tensor,
        terms: dict[str, Tensor],
        batch: Batch,
        scores: Scores,
        logits: Tensor,
        progress: Progress,
    ) -> Tensor:
        """alpha * loss + (1 - alpha) * [lambda_rationale * KL_R + T^2 * KL_Y] where there is a
        teacher; its terms are added to ``terms``."""
        if self.targets is None:
            return loss
        spec, theirs = self.spec, self.targets(batch)
        terms["kl_rationale"] = losses.rationale_kl(
            theirs.margin,
            own_margin(self.model, scores),
            scores.view.selectable,
            temperature=spec.rationale_temperature,
        )
        follows = spec.form.kd_schedule == "tau"
        temperature = self.temperature(progress) if follows else spec.kd_temperature
        terms["kl_prediction"] = self.problem.prediction_loss(
            theirs.logits, logits, temperature=temperature
        )
        alpha = alpha_at(progress.step, progress.total_steps, spec)
        distilled = (
            spec.lambda_rationale * terms["kl_rationale"]
            + self.problem.prediction_weight(temperature) * terms["kl_prediction"]
        )
        return alpha * loss + (1 - alpha) * distilled


@dataclass(frozen=True, slots=True)
class Parts:
    """What a method may ask for beside the model: another ``selector`` like the model's, the
    ``noise`` of the training data, and the number of ``classes``."""

    selector: Callable[[], Selector]
    noise: Callable[[], nn.Module]
    classes: int
