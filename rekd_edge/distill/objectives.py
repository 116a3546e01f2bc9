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
from rekd_edge.distill import attribution as attributions
from rekd_edge.distill.targets import TargetSource, TeacherTargets
from rekd_edge.distill.teacher import Teacher
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.rationalist import Classifier, Rationalist, Scores
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.schedules import temperature_at
from rekd_edge.selection import (
    bernoulli_straight_through,
    gather_slots,
    gumbel_noise,
    keep_top_k,
    selection_threshold,
    straight_through_top_k,
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


class SelectorWarmup(nn.Module):
    """The selector learns attributions of the frozen predictor, or the teacher's rationale."""

    def __init__(
        self,
        model: Rationalist,
        source: str,
        *,
        teacher: TargetSource | None,
        rationale_temperature: float,
        judge: Teacher | None = None,
    ) -> None:
        super().__init__()
        if source in {"teacher", "teacher_and_own"} and teacher is None:
            raise ValueError("warm-up from the teacher needs a teacher")
        self.model = model
        self.source = source
        self.teacher = teacher
        self.rationale_temperature = rationale_temperature
        self.judge = judge

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        scores = self.model.selector(batch.inputs)
        valid = scores.view.selectable
        if self.source == "teacher":
            assert self.teacher is not None
            margin = _own_margin(self.model, scores)
            loss = losses.rationale_kl(
                self.teacher(batch).margin,
                margin,
                valid,
                temperature=self.rationale_temperature,
            )
            return {"loss": loss}
        if self.judge is not None:
            attribution = self.judge.mask_gradient(batch)
        elif self.source == "occlusion":
            attribution = attributions.occlusion(self.model.predictor, self._view(batch))
        else:
            attribution = attributions.mask_gradient(self.model.predictor, self._view(batch))
        target = attributions.normalise_attribution(attribution, valid)
        if self.source == "teacher_and_own":
            assert self.teacher is not None
            theirs = attributions.centre(self.teacher(batch).margin, valid)
            target = target + attributions.normalise_attribution(theirs, valid)
        loss = losses.attribution_cross_entropy(scores.score, target, valid, temperature=1.0)
        return {"loss": loss}

    def _view(self, batch: Batch) -> TokenView:
        return self.model.predictor.encoder.view(batch.inputs)


def _own_margin(model: Rationalist, scores: Scores) -> Tensor:
    """Scores minus the example's own (detached) k-th threshold, ``[batch, token]``."""
    keep = model.keep(scores)
    threshold = selection_threshold(scores.score.detach(), scores.view.selectable, keep)
    return scores.score - threshold


class DeployObjective(nn.Module):
    """Joint training of exactly what is exported: exactly k kept, all other keys excluded.

    L = alpha * CE + (1 - alpha) * [lambda_rationale * KL_R + T^2 * KL_Y]; without a teacher,
    L = CE. KL_R is noiseless and threshold-centred; noise only perturbs which tokens are tried.
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
        tried = scores.score
        if spec.selection_noise > 0:
            scale = spec.selection_noise * temperature
            tried = tried + scale * (gumbel_noise(tried) - gumbel_noise(tried))
        weight, keep = straight_through_top_k(
            tried,
            scores.view.selectable,
            self.model.budget(scores.view),
            temperature=temperature,
        )
        if tried.requires_grad:
            logits = self.model.classify_masked(scores.view, weight)
        else:  # no gradient into the scores: the predictor may run on the kept tokens alone
            index, valid = gather_slots(keep, self.model.slots(scores.view))
            logits = self.model.classify_gathered(scores.view, index, valid)
        terms: LossTerms = {"ce": F.cross_entropy(logits, batch.labels)}
        loss = terms["ce"]
        if self.teacher is not None:
            targets = self.teacher(batch)
            terms["kl_rationale"] = losses.rationale_kl(
                targets.margin,
                _own_margin(self.model, scores),
                scores.view.selectable,
                temperature=spec.rationale_temperature,
            )
            terms["kl_prediction"] = losses.prediction_kl(
                targets.logits, logits, temperature=spec.kd_temperature
            )
            loss = spec.alpha * loss + (1 - spec.alpha) * (
                spec.lambda_rationale * terms["kl_rationale"]
                + spec.kd_temperature**2 * terms["kl_prediction"]
            )
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


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
            loss = spec.alpha * loss + (1 - spec.alpha) * (
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
    "ClassifyObjective",
    "DeployObjective",
    "LossTerms",
    "PaperObjective",
    "PredictorWarmup",
    "Progress",
    "SelectorWarmup",
    "TeacherTargets",
    "random_subset",
]
