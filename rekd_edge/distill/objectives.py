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
    class_margin,
    normalise_attribution,
)
from rekd_edge.distill.features import patch_grid, pooled_features
from rekd_edge.distill.targets import TargetSource, TeacherTargets
from rekd_edge.distill.teacher import Teacher
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.rationalist import Classifier, Rationalist, Scores
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.schedules import alpha_at, ratio_at, temperature_at
from rekd_edge.selection import (
    bernoulli_straight_through,
    budget_fraction,
    gather_slots,
    keep_top_k,
    rationale_budget,
    select_top_k,
    selection_threshold,
    slot_count,
)
from rekd_edge.types import Batch


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a phase stands: ``step`` of ``total_steps``, counted from 0."""

    step: int
    total_steps: int


LossTerms = dict[str, Tensor]
"""Scalars by name; ``loss`` is the one to minimise, the others are logged."""


class ClassifyObjective(nn.Module):
    """Cross-entropy of a plain classifier."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        return {"loss": F.cross_entropy(self.model(batch.inputs), batch.labels)}


class PredictorWarmup(nn.Module):
    """The predictor on random subsets of ratio U(rationale_ratio, 1).

    L = CE, or with a teacher alpha * CE + (1 - alpha) * T^2 * KL_Y, where the teacher's predictor
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
        spec, teacher = self.spec, self.teacher
        view = self.model.predictor.encoder.view(batch.inputs)
        keep = random_subset(view, self.model.rationale_ratio)
        logits = self.model.classify_masked(view, keep)
        terms: LossTerms = {"ce": F.cross_entropy(logits, batch.labels)}
        loss = terms["ce"]
        if teacher is not None:
            answer = teacher.classify_masked(batch, keep)
            terms["kl_prediction"] = losses.prediction_kl(
                answer, logits, temperature=spec.kd_temperature
            )
            loss = spec.alpha * loss + (1 - spec.alpha) * (
                spec.kd_temperature**2 * terms["kl_prediction"]
            )
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def random_subset(view: TokenView, smallest_ratio: float) -> Tensor:
    """A uniformly random subset of each example, of ratio U(smallest_ratio, 1); bool
    ``[batch, token]``, never empty where a token is selectable."""
    count = view.selectable.sum(dim=1)
    ratio = torch.rand(count.shape, device=count.device) * (1 - smallest_ratio) + smallest_ratio
    budget = torch.minimum((count * ratio).ceil().long().clamp_min(1), count)
    noise = torch.rand(view.selectable.shape, device=count.device)
    return keep_top_k(noise, view.selectable, budget)


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
            _own_margin(self.model, scores),
            scores.view.selectable,
            temperature=self.rationale_temperature,
        )
        return {"loss": loss}


class AttributionWarmup(nn.Module):
    """The selector learns to rank tokens as an attribution does (amortised explanation).

    With ``teacher``, its centred scores are added to the attributions, both normalised.
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
        loss = losses.attribution_cross_entropy(scores.score, target, valid, temperature=1.0)
        return {"loss": loss}


class ValueRegression(nn.Module):
    """The selector's scores are regressed on the judge's answers from random subsets (FastSHAP,
    Jethani et al. 2022).

    L = mean over S of (v(S) - v(all) + sum of scores outside S)^2, divided by the variance of
    v(all) over the batch; v is the judge's margin of the explained class, and S is drawn with its
    complement from the Shapley kernel, P(|S| = k) proportional to 1 / (k (n - k)). Deviation:
    values are measured from the full input, not from the empty one, which the judge never saw,
    and nothing enforces that all scores sum to v(all) - v(none).
    """

    def __init__(self, model: Rationalist, judge: Rationalist, explain: str) -> None:
        super().__init__()
        self.model = model
        self.explain = explain
        # Held outside the module tree: its parameters are neither trained nor saved.
        self._judge = (judge,)

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        predictor = self._judge[0].predictor
        scores = self.model.selector(batch.inputs)
        valid = scores.view.selectable
        view = predictor.encoder.view(batch.inputs)
        subset = shapley_subset(valid)
        with torch.no_grad():
            logits = predictor(view.content, view.position, valid)
            explained = logits.argmax(dim=1) if self.explain == "prediction" else batch.labels
            full = class_margin(logits, explained)
        error = []
        for keep in (subset, valid & ~subset):
            with torch.no_grad():
                value = class_margin(predictor(view.content, view.position, keep), explained)
            dropped = (scores.score * (valid & ~keep)).sum(dim=1)
            error.append(full - value - dropped)
        loss = torch.stack(error).pow(2).mean() / full.var(correction=0).clamp_min(1e-3)
        return {"loss": loss}


def shapley_subset(selectable: Tensor) -> Tensor:
    """A subset of each example's selectable tokens, drawn from the Shapley kernel: bool
    ``[batch, token]``, neither empty nor full where two tokens are selectable."""
    count = selectable.sum(dim=1)
    size = torch.arange(1, selectable.shape[1] + 1, device=count.device).expand(len(count), -1)
    rest = count.unsqueeze(1) - size
    weight = torch.where(rest > 0, 1.0 / (size * rest.clamp_min(1)), 0.0)
    weight[:, 0] += (count <= 1).to(weight.dtype)  # nothing to choose from
    chosen = torch.multinomial(weight, 1).squeeze(1) + 1
    noise = torch.rand(selectable.shape, device=count.device)
    return keep_top_k(noise, selectable, torch.minimum(chosen, count))


def _own_margin(model: Rationalist, scores: Scores) -> Tensor:
    """Scores minus the example's own (detached) k-th threshold, ``[batch, token]``."""
    keep = model.keep(scores)
    threshold = selection_threshold(scores.score.detach(), scores.view.selectable, keep)
    return scores.score - threshold


class DeployObjective(nn.Module):
    """Joint training of exactly what is exported: exactly k kept, all other keys excluded.

    L = alpha * CE + (1 - alpha) * [lambda_rationale * KL_R + T^2 * KL_Y + lambda_feature * SP]
    + lambda_contiguity * TV; without a teacher, L = CE + lambda_contiguity * TV. KL_R and TV are
    noiseless and threshold-centred; noise only perturbs which tokens are tried.
    """

    def __init__(
        self, model: Rationalist, spec: ObjectiveSpec, teacher: TargetSource | None
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.teacher = teacher

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        spec = self.spec
        temperature = temperature_at(progress.step, progress.total_steps, spec.temperature)
        scores = self.model.selector(batch.inputs)
        selectable = scores.view.selectable
        fraction = self._ratio_fraction(progress)
        weight, keep = select_top_k(
            spec.estimator,
            scores.score,
            selectable,
            rationale_budget(selectable.sum(dim=1), *fraction),
            temperature=temperature,
            noise_scale=spec.selection_noise * temperature,
            samples=spec.estimator_samples,
        )
        with pooled_features(self.model.predictor) as pooled:
            if scores.score.requires_grad:
                logits = self.model.classify_masked(scores.view, weight)
            else:  # no gradient into the scores: the predictor may run on the kept tokens alone
                slots = slot_count(keep.shape[1], *fraction)
                logits = self.model.classify_gathered(scores.view, *gather_slots(keep, slots))
        terms: LossTerms = {"ce": F.cross_entropy(logits, batch.labels)}
        loss = terms["ce"]
        if self.teacher is not None:
            targets = self.teacher(batch)
            terms["kl_rationale"] = losses.rationale_kl(
                targets.margin,
                _own_margin(self.model, scores),
                selectable,
                temperature=spec.rationale_temperature,
            )
            terms["kl_prediction"] = losses.prediction_kl(
                targets.logits, logits, temperature=spec.kd_temperature
            )
            distilled = (
                spec.lambda_rationale * terms["kl_rationale"]
                + spec.kd_temperature**2 * terms["kl_prediction"]
            )
            if spec.lambda_feature > 0:
                assert targets.features is not None
                terms["feature"] = losses.similarity_preserving(targets.features, pooled[0])
                distilled = distilled + spec.lambda_feature * terms["feature"]
            alpha = alpha_at(progress.step, progress.total_steps, spec)
            loss = alpha * loss + (1 - alpha) * distilled
        if spec.lambda_contiguity > 0:
            probability = torch.sigmoid(
                _own_margin(self.model, scores) / spec.rationale_temperature
            )
            grid = patch_grid(self.model.predictor)
            terms["contiguity"] = losses.contiguity(probability, selectable, grid)
            loss = loss + spec.lambda_contiguity * terms["contiguity"]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _ratio_fraction(self, progress: Progress) -> tuple[int, int]:
        model, schedule = self.model, self.spec.ratio_schedule
        ratio = ratio_at(progress.step, progress.total_steps, schedule, model.rationale_ratio)
        return budget_fraction(ratio)


class PaperObjective(nn.Module):
    """The published formula (arXiv 2601.22531): Bernoulli straight-through Gumbel-Softmax,
    zero-masking, batch-mean budget, noised KL_R, one tau for Gumbel noise and KD.

    As in the official code the student's mask is fed to the teacher's predictor. Deviations: the
    class token is never masked, and padding neither counts nor is attended.
    """

    def __init__(self, model: Rationalist, spec: ObjectiveSpec, teacher: Teacher | None) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.teacher = teacher

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        spec, model, teacher = self.spec, self.model, self.teacher
        tau = temperature_at(progress.step, progress.total_steps, spec.temperature)
        scores = model.selector(batch.inputs)
        valid = scores.view.selectable
        keep, log_probability = bernoulli_straight_through(scores.logits, temperature=tau)
        keep = keep * valid
        logits = model.classify_zeroed(scores.view, keep)
        terms: LossTerms = {
            "ce": F.cross_entropy(logits, batch.labels),
            "budget": losses.budget_penalty(keep, valid, model.rationale_ratio),
        }
        loss = terms["ce"] + spec.lambda_select * terms["budget"]
        if teacher is not None:
            teacher_logits, teacher_log_probability = self._teacher_answer(
                teacher, batch, keep.detach(), tau
            )
            terms["kl_rationale"] = losses.rationale_kl_sampled(
                teacher_log_probability, log_probability, valid
            )
            terms["kl_prediction"] = losses.prediction_kl(teacher_logits, logits, temperature=tau)
            alpha = alpha_at(progress.step, progress.total_steps, spec)
            loss = alpha * loss + (1 - alpha) * (
                spec.lambda_rationale * terms["kl_rationale"] + tau**2 * terms["kl_prediction"]
            )
        terms["selected_share"] = keep.sum() / valid.sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    @staticmethod
    @torch.no_grad()
    def _teacher_answer(
        teacher: Teacher, batch: Batch, student_keep: Tensor, tau: float
    ) -> tuple[Tensor, Tensor]:
        score = teacher.score(batch)
        # Only the difference of the two logits matters, noised or not.
        logits = torch.stack([torch.zeros_like(score), score], dim=2)
        _, log_probability = bernoulli_straight_through(logits, temperature=tau)
        return teacher.classify_zeroed(batch, student_keep), log_probability


__all__ = [
    "AttributionWarmup",
    "ClassifyObjective",
    "DeployObjective",
    "LossTerms",
    "PaperObjective",
    "PredictorWarmup",
    "Progress",
    "RationaleWarmup",
    "TeacherTargets",
    "ValueRegression",
    "random_subset",
    "shapley_subset",
]
