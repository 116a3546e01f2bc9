"""What each phase of training minimises.

An objective is a module (so that Accelerate can wrap it for several processes): it takes a batch
and the progress of its phase, and returns named loss terms of which ``loss`` is optimised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekd_edge import losses
from rekd_edge.distill.attribution import (
    AttributionSource,
    centre,
    normalise_attribution,
)
from rekd_edge.distill.targets import TargetSource, TeacherTargets
from rekd_edge.distill.teacher import Teacher
from rekd_edge.models.candidates import (
    ALL_CONTENT,
    Candidates,
    Positions,
    candidates,
    classify,
)
from rekd_edge.models.encoder import TokenView, patch_grid
from rekd_edge.models.kept import can_classify_kept, classify_kept
from rekd_edge.models.problem import Problem
from rekd_edge.models.rationalist import Classifier, Rationalist, Scores
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
    keep_top_k,
    keep_units,
    of_unit,
    rationale_budget,
    select_top_k,
    unit_mean,
)
from rekd_edge.types import Batch


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a phase stands: ``step`` of ``total_steps``, counted from 0."""

    step: int
    total_steps: int


LossTerms = dict[str, Tensor]
"""Scalars by name; ``loss`` is the one to minimise, the others are logged."""


def logged(loss: Tensor, terms: LossTerms, problem: Problem) -> LossTerms:
    """``loss``, and the terms without a gradient under the names that ``problem`` has for them."""
    names = problem.term_names
    return {"loss": loss, **{names.get(n, n): term.detach() for n, term in terms.items()}}


class ClassifyObjective(nn.Module):
    """The task's loss of a plain classifier."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        problem = self.model.predictor.problem
        return {"loss": problem.task_loss(self.model(batch.inputs), batch.labels)}


class PredictorWarmup(nn.Module):
    """The predictor on random subsets, of one ratio U(rationale_ratio, 1) for each batch.

    L = CE (the task's loss, :mod:`rekd_edge.models.problem`), or with a teacher
    alpha * CE + (1 - alpha) * T^2 * KL_Y, where the teacher's predictor
    answers from the same subset (it was trained on random subsets too, and is an honest judge of
    any of them). Afterwards the predictor can judge any subset, and no early selection has been
    overfitted (the guard against interlocking).
    """

    def __init__(
        self, model: Rationalist, spec: ObjectiveSpec, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.teacher = teacher

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        spec, teacher, problem = self.spec, self.teacher, self.model.predictor.problem
        view = self.model.predictor.encoder.view(batch.inputs)
        keep, slots = _random_subset(view, self.model.rationale_ratio)
        logits = self.model.classify_subset(view, keep, slots)
        terms: LossTerms = {"ce": problem.task_loss(logits, batch.labels)}
        loss = terms["ce"]
        if teacher is not None:
            answer = teacher.classify_subset(batch, keep, slots)
            terms["kl_prediction"] = problem.prediction_loss(
                answer, logits, temperature=spec.kd_temperature
            )
            loss = spec.alpha * loss + (1 - spec.alpha) * (
                problem.prediction_weight(spec.kd_temperature) * terms["kl_prediction"]
            )
        return logged(loss, terms, problem)


def random_subset(view: TokenView, smallest_ratio: float) -> Tensor:
    """A uniformly random subset of each example, of one ratio U(smallest_ratio, 1) for the whole
    batch, so that its examples need about the same number of slots; of whole units, where there
    are such; bool ``[batch, token]``, never empty where a token is selectable."""
    return _random_subset(view, smallest_ratio)[0]


def _random_subset(view: TokenView, smallest_ratio: float) -> tuple[Tensor, int | None]:
    """:func:`random_subset`, and how many it keeps of each example where that is one number, as of
    images. The ratio is drawn on the processor, which then need not ask the device for it."""
    count = view.selectable.sum(dim=1)
    ratio = torch.rand(()) * (1 - smallest_ratio) + smallest_ratio
    budget = torch.minimum((count * ratio).ceil().long().clamp_min(1), count)
    noise = of_unit(torch.rand(view.selectable.shape, device=count.device), view.unit)
    keep = keep_units(noise, view.selectable, budget, view.unit)
    if view.content.dim() != 3 or view.unit is not None:
        return keep, None
    most = view.selectable.shape[1]
    return keep, min(most, max(1, int((torch.tensor(most) * ratio).ceil())))


class RationaleWarmup(nn.Module):
    """The selector learns the teacher's rationale: L = KL_R, noiseless and threshold-centred."""

    def __init__(
        self, model: Rationalist, teacher: TargetSource, rationale_temperature: float
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.rationale_temperature = rationale_temperature

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        scores = self.model.selector(batch.inputs)
        loss = losses.rationale_kl(
            self.teacher(batch).margin,
            own_margin(self.model, scores),
            scores.view.selectable,
            temperature=self.rationale_temperature,
        )
        return {"loss": loss}


class AttributionWarmup(nn.Module):
    """The selector learns to rank tokens as an attribution does (amortised explanation).

    With ``teacher``, its centred scores are added to the attributions, both normalised. Of a unit
    the target is the mean of its tokens', as its score is.
    """

    def __init__(
        self,
        model: Rationalist,
        attributions: AttributionSource,
        teacher: TargetSource | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.attributions = attributions
        self.teacher = teacher

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        scores = self.model.selector(batch.inputs)
        valid = scores.view.selectable
        target = normalise_attribution(self.attributions(batch), valid)
        if self.teacher is not None:
            theirs = centre(self.teacher(batch).margin, valid)
            target = target + normalise_attribution(theirs, valid)
        target = unit_mean(target, scores.view.unit)
        loss = losses.attribution_cross_entropy(scores.score, target, valid, temperature=1.0)
        return {"loss": loss}


class ValueRegression(nn.Module):
    """The selector's scores are regressed on the judge's answers from random subsets (FastSHAP,
    Jethani et al. 2022).

    L = mean over S of (v(S) - v(all) + sum of scores outside S)^2, divided by the variance of
    v(all) over the batch; v is the judge's margin of the explained class (or labels), and S is
    drawn with its complement from the Shapley kernel, P(|S| = k) proportional to
    1 / (k (n - k)). Deviation: values are measured from the full input, not from the empty one,
    which the judge never saw, and nothing enforces that all scores sum to v(all) - v(none). Units
    are drawn whole; the value of one is then the sum of its tokens' scores.
    """

    def __init__(self, model: Rationalist, judge: Rationalist, explain: str) -> None:
        super().__init__()
        self.model = model
        self.explain = explain
        # Held outside the module tree: its parameters are neither trained nor saved.
        self._judge = (judge,)

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        predictor = self._judge[0].predictor
        problem = predictor.problem
        scores = self.model.selector(batch.inputs)
        valid = scores.view.selectable
        view = predictor.encoder.view(batch.inputs)
        subset = shapley_subset(valid, scores.view.unit)
        with torch.no_grad():
            logits = predictor(view.content, view.position, valid)
            chosen = self.explain == "prediction"
            explained = problem.decision(logits) if chosen else batch.labels
            (full,) = problem.quantities(logits, explained)
        error = []
        for keep in (subset, valid & ~subset):
            with torch.no_grad():
                logits = predictor(view.content, view.position, keep)
                (value,) = problem.quantities(logits, explained)
            dropped = (scores.score * (valid & ~keep)).sum(dim=1)
            error.append(full - value - dropped)
        loss = torch.stack(error).pow(2).mean() / full.var(correction=0).clamp_min(1e-3)
        return {"loss": loss}


def shapley_subset(selectable: Tensor, unit: Tensor | None = None) -> Tensor:
    """A subset of each example's selectable tokens, or of its units, drawn from the Shapley kernel:
    bool ``[batch, token]``, neither empty nor full where two are selectable."""
    if unit is not None:
        first = selectable & (unit == torch.arange(unit.shape[1], device=unit.device))
        return of_unit(shapley_subset(first), unit) & selectable
    count = selectable.sum(dim=1)
    size = torch.arange(1, selectable.shape[1] + 1, device=count.device).expand(len(count), -1)
    rest = count.unsqueeze(1) - size
    weight = torch.where(rest > 0, 1.0 / (size * rest.clamp_min(1)), 0.0)
    weight[:, 0] += (count <= 1).to(weight.dtype)  # nothing to choose from
    chosen = torch.multinomial(weight, 1).squeeze(1) + 1
    noise = torch.rand(selectable.shape, device=count.device)
    return keep_top_k(noise, selectable, torch.minimum(chosen, count))


def own_margin(model: Rationalist, scores: Scores) -> Tensor:
    """Scores minus the example's own (detached) k-th threshold, ``[batch, token]``."""
    keep = model.keep(scores)
    return scores.score - model.threshold(scores.score.detach(), scores.view, keep)


def select_exactly_k(
    spec: ObjectiveSpec, scores: Scores, fraction: tuple[int, int], temperature: float
) -> tuple[Tensor, Tensor]:
    """Exactly k tokens of the scores, or the whole units that fit into k, noised by
    ``selection_noise * temperature``, where k is the budget of that ``fraction``: weights
    ``[batch, token]`` that carry the gradient of the estimator, and the kept tokens, bool
    ``[batch, token]``."""
    selectable = scores.view.selectable
    return select_top_k(
        spec.estimator,
        scores.score,
        selectable,
        rationale_budget(selectable.sum(dim=1), *fraction),
        temperature=temperature,
        noise_scale=spec.selection_noise * temperature,
        samples=spec.estimator_samples,
        unit=scores.view.unit,
    )


@dataclass(frozen=True, slots=True)
class Draw:
    """A rationale in training: ``keep`` float ``[batch, position]`` with a gradient, of which the
    first ``num_prefix`` are the model's own tokens; the ``logits`` ``[batch, position, 2]`` behind
    it and, where each position was drawn, their noised log-probabilities."""

    keep: Tensor
    logits: Tensor
    num_prefix: int = 0
    log_probability: Tensor | None = None

    @staticmethod
    def bernoulli(logits: Tensor, counted: Tensor, num_prefix: int, tau: float) -> Draw:
        drawn, log_probability = bernoulli_straight_through(logits, temperature=tau)
        return Draw(drawn * counted, logits, num_prefix, log_probability)


class JointObjective(nn.Module):
    """Joint training of selector and predictor, in the form that the objective's keys give it.

    L = alpha * [CE + lambda_select * L_sel] + (1 - alpha) * [lambda_rationale * KL_R + T^2 * KL_Y]
    + lambda_contiguity * TV, where CE and KL_Y are those of the problem; without a teacher,
    L = CE + lambda_select * L_sel + lambda_contiguity * TV. Only Bernoulli selection has L_sel; TV
    is noiseless and threshold-centred. The preset `deploy` trains exactly what is exported: exactly
    k kept, all other keys excluded, and noise only perturbs which tokens are tried. The preset
    `paper` is arXiv 2601.22531 as its official code has it.
    """

    def __init__(
        self,
        model: Rationalist,
        spec: ObjectiveSpec,
        teacher: Teacher | None,
        targets: TargetSource | None = None,
        positions: Positions = ALL_CONTENT,
        *,
        gather: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.gather = gather and can_classify_kept(model.predictor)
        self.form = spec.form
        self.positions = positions
        self.teacher = teacher
        self.targets = targets

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        spec, form, problem = self.spec, self.form, self.model.predictor.problem
        clock = temperature_at if form.tau_updates == "capped" else published_temperature_at
        tau = clock(progress.step, progress.total_steps, spec.temperature)
        found = candidates(self.model, batch.inputs, self.positions)
        fraction = self._ratio_fraction(progress)
        chosen = self._choose(found, tau, fraction)
        logits = self._classify(found.scores.view, chosen, fraction)
        terms: LossTerms = {"ce": problem.task_loss(logits, batch.labels)}
        loss = terms["ce"]
        if form.selection == "bernoulli":
            terms["budget"] = losses.budget_penalty(
                chosen.keep, found.counted, self.model.rationale_ratio
            )
            terms["selected_share"] = chosen.keep.sum() / found.counted.sum()
            loss = loss + spec.lambda_select * terms["budget"]
        if self.teacher is not None:
            temperature = tau if form.kd_schedule == "tau" else spec.kd_temperature
            targets = self.targets(batch) if self.targets is not None else None
            terms["kl_rationale"], answer = self._compare(
                self.teacher, targets, batch, found, chosen, tau
            )
            terms["kl_prediction"] = problem.prediction_loss(
                answer, logits, temperature=temperature
            )
            distilled = (
                spec.lambda_rationale * terms["kl_rationale"]
                + problem.prediction_weight(temperature) * terms["kl_prediction"]
            )
            alpha = alpha_at(progress.step, progress.total_steps, spec)
            loss = alpha * loss + (1 - alpha) * distilled
        if spec.lambda_contiguity > 0:
            probability = torch.sigmoid(
                own_margin(self.model, found.scores) / spec.rationale_temperature
            )
            grid = patch_grid(self.model.predictor.encoder)
            terms["contiguity"] = losses.contiguity(probability, found.scores.view.selectable, grid)
            loss = loss + spec.lambda_contiguity * terms["contiguity"]
        return logged(loss, terms, problem)

    def _ratio_fraction(self, progress: Progress) -> tuple[int, int]:
        model, schedule = self.model, self.spec.ratio_schedule
        ratio = ratio_at(progress.step, progress.total_steps, schedule, model.rationale_ratio)
        return budget_fraction(ratio)

    def _choose(self, found: Candidates, tau: float, fraction: tuple[int, int]) -> Draw:
        if self.form.selection == "exactly_k":
            weight, _ = select_exactly_k(self.spec, found.scores, fraction, tau)
            return Draw(weight, found.logits)
        return Draw.bernoulli(found.logits, found.counted, found.num_prefix, tau)

    def _classify(self, view: TokenView, chosen: Draw, fraction: tuple[int, int]) -> Tensor:
        if self.form.selection == "bernoulli" or self.form.masking == "zero":
            return classify(self.model, view, chosen.keep, chosen.num_prefix, self.form.masking)
        slots = self.model.slots(view, fraction)
        if not chosen.logits.requires_grad:
            # No gradient into the scores: the predictor may run on the kept tokens alone.
            return self.model.classify_slots(view, chosen.keep > 0.5, slots)
        if self.gather and slots < view.content.shape[1]:
            # Of images every patch can be kept, so every example keeps as many as there are slots.
            filled = patch_grid(self.model.predictor.encoder) is not None
            return classify_kept(self.model.predictor, view, chosen.keep, slots, filled=filled)
        return self.model.classify_masked(view, chosen.keep)

    def _compare(
        self,
        teacher: Teacher,
        targets: TeacherTargets | None,
        batch: Batch,
        found: Candidates,
        chosen: Draw,
        tau: float,
    ) -> tuple[Tensor, Tensor]:
        """KL_R, and the teacher's logits ``[batch, class]`` for KL_Y."""
        draw = None
        if self.form.uses_teacher_draws:
            draw = self._teacher_draw(teacher, batch, tau)
        divergence = self._rationale_kl(found, chosen, targets, draw, tau)
        if self.form.answers_from_targets:
            assert targets is not None
            return divergence, targets.logits
        shown = chosen
        if self.form.teacher_prediction == "own_rationale":
            assert draw is not None
            shown = draw
        keep, own = shown.keep.detach(), shown.num_prefix
        answer = teacher.answer(batch, keep[:, own:], keep[:, :own] if own else None)
        return divergence, answer

    def _rationale_kl(
        self,
        found: Candidates,
        chosen: Draw,
        targets: TeacherTargets | None,
        draw: Draw | None,
        tau: float,
    ) -> Tensor:
        if self.form.rationale_kd == "centred":
            assert targets is not None
            width = targets.margin.shape[1]  # counted padding is not among the targets
            return losses.rationale_kl(
                targets.margin,
                own_margin(self.model, found.scores)[:, :width],
                found.scores.view.selectable[:, :width],
                temperature=self.spec.rationale_temperature,
            )
        assert draw is not None
        ours, theirs = chosen.log_probability, draw.log_probability
        if self.form.rationale_kd == "noiseless":
            ours = F.log_softmax(found.logits / tau, dim=-1)
            theirs = F.log_softmax(draw.logits / tau, dim=-1)
        elif ours is None:  # exactly k has no draw a token: KL_R makes its own
            _, ours = bernoulli_straight_through(found.logits, temperature=tau)
        assert theirs is not None
        return losses.rationale_kl_summed(theirs, ours, found.counted)

    @torch.no_grad()
    def _teacher_draw(self, teacher: Teacher, batch: Batch, tau: float) -> Draw:
        """The teacher's own draw, with noise of its own, on the student's positions."""
        if self.positions == ALL_CONTENT:
            score = teacher.score(batch)
            # Only the difference of the two logits matters, noised or not.
            logits = torch.stack([torch.zeros_like(score), score], dim=2)
            selectable = self.model.predictor.encoder.view(batch.inputs).selectable
            return Draw.bernoulli(logits, selectable, 0, tau)
        found = candidates(teacher.model, batch.inputs, self.positions)
        return Draw.bernoulli(found.logits, found.counted, found.num_prefix, tau)


__all__ = [
    "AttributionWarmup",
    "ClassifyObjective",
    "JointObjective",
    "LossTerms",
    "PredictorWarmup",
    "Progress",
    "RationaleWarmup",
    "TeacherTargets",
    "ValueRegression",
    "logged",
    "own_margin",
    "random_subset",
    "select_exactly_k",
    "shapley_subset",
]
