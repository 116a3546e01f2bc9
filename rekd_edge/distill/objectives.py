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
from rekd_edge.models.candidates import (
    ALL_CONTENT,
    Candidates,
    Positions,
    candidates,
    classify,
)
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.rationalist import Classifier, Rationalist, Scores
from rekd_edge.recipe.form import Masking
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.schedules import published_temperature_at, temperature_at
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
        self, model: Rationalist, spec: ObjectiveSpec, teacher: Rationalist | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        # Held outside the module tree: its parameters are neither trained nor saved.
        self._teacher = (teacher,)

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        spec, teacher = self.spec, self._teacher[0]
        view = self.model.predictor.encoder.view(batch.inputs)
        keep = random_subset(view, self.model.rationale_ratio)
        logits = self.model.classify_masked(view, keep)
        terms: LossTerms = {"ce": F.cross_entropy(logits, batch.labels)}
        loss = terms["ce"]
        if teacher is not None:
            with torch.no_grad():
                answer = teacher.classify_masked(view, keep)
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
        judge: Rationalist | None = None,
    ) -> None:
        super().__init__()
        if source in {"teacher", "teacher_and_own"} and teacher is None:
            raise ValueError("warm-up from the teacher needs a teacher")
        self.model = model
        self.source = source
        self.teacher = teacher
        self.rationale_temperature = rationale_temperature
        # Whose predictor is explained; held outside the module tree, like every teacher.
        self._judge = (model if judge is None else judge,)

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
        attribute = (
            attributions.occlusion if self.source == "occlusion" else attributions.mask_gradient
        )
        judge = self._judge[0].predictor
        attribution = attribute(judge, judge.encoder.view(batch.inputs))
        target = attributions.normalise_attribution(attribution, valid)
        if self.source == "teacher_and_own":
            assert self.teacher is not None
            theirs = attributions.centre(self.teacher(batch).margin, valid)
            target = target + attributions.normalise_attribution(theirs, valid)
        loss = losses.attribution_cross_entropy(scores.score, target, valid, temperature=1.0)
        return {"loss": loss}


def _own_margin(model: Rationalist, scores: Scores) -> Tensor:
    """Scores minus the example's own (detached) k-th threshold, ``[batch, token]``."""
    keep = model.keep(scores)
    threshold = selection_threshold(scores.score.detach(), scores.view.selectable, keep)
    return scores.score - threshold


def select_exactly_k(
    model: Rationalist, spec: ObjectiveSpec, scores: Scores, temperature: float
) -> tuple[Tensor, Tensor]:
    """Exactly k tokens of the scores, noised by ``selection_noise * temperature``: weights
    ``[batch, token]`` that carry a gradient, and the kept tokens, bool ``[batch, token]``."""
    tried = scores.score
    if spec.selection_noise > 0:
        scale = spec.selection_noise * temperature
        tried = tried + scale * (gumbel_noise(tried) - gumbel_noise(tried))
    return straight_through_top_k(
        tried,
        scores.view.selectable,
        model.budget(scores.view),
        temperature=temperature,
    )


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen teacher. ``targets`` are its deterministic answers, needed by some forms only;
    ``masking`` is how it was trained to see a rationale."""

    model: Rationalist
    masking: Masking
    targets: TargetSource | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A rationale in training: ``keep`` float ``[batch, position]`` with a gradient, its tokens as
    bool ``[batch, token]``, and the draw's log-probabilities ``[batch, position, 2]``."""

    found: Candidates
    keep: Tensor
    tokens: Tensor
    log_probability: Tensor | None


class JointObjective(nn.Module):
    """Joint training of selector and predictor, in the form that the objective's keys give it.

    L = alpha * [CE + lambda_select * L_sel] + (1 - alpha) * [lambda_rationale * KL_R + T^2 * KL_Y];
    without a teacher, L = CE + lambda_select * L_sel. Only Bernoulli selection has L_sel. The
    preset `deploy` trains exactly what is exported: exactly k kept, all other keys excluded, and
    noise only perturbs which tokens are tried. The preset `paper` is arXiv 2601.22531 as its
    official code has it.
    """

    def __init__(
        self,
        model: Rationalist,
        spec: ObjectiveSpec,
        teacher: Teacher | None,
        positions: Positions = ALL_CONTENT,
    ) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.form = spec.form
        self.positions = positions
        # A dataclass is no module: the teacher's parameters are neither trained nor saved.
        self.teacher = teacher

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        spec, form = self.spec, self.form
        clock = temperature_at if form.tau_updates == "capped" else published_temperature_at
        tau = clock(progress.step, progress.total_steps, spec.temperature)
        chosen = self._choose(batch, tau)
        logits = self._classify(chosen)
        terms: LossTerms = {"ce": F.cross_entropy(logits, batch.labels)}
        loss = terms["ce"]
        if form.selection == "bernoulli":
            counted = chosen.found.counted
            terms["budget"] = losses.budget_penalty(
                chosen.keep, counted, self.model.rationale_ratio
            )
            terms["selected_share"] = chosen.keep.sum() / counted.sum()
            loss = loss + spec.lambda_select * terms["budget"]
        if self.teacher is not None:
            temperature = tau if form.kd_schedule == "tau" else spec.kd_temperature
            terms["kl_rationale"], answer = self._compare(self.teacher, batch, chosen, tau)
            terms["kl_prediction"] = losses.prediction_kl(answer, logits, temperature=temperature)
            loss = spec.alpha * loss + (1 - spec.alpha) * (
                spec.lambda_rationale * terms["kl_rationale"]
                + temperature**2 * terms["kl_prediction"]
            )
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _choose(self, batch: Batch, tau: float) -> Chosen:
        found = candidates(self.model, batch.inputs, self.positions)
        if self.form.selection == "exactly_k":
            weight, keep = select_exactly_k(self.model, self.spec, found.scores, tau)
            return Chosen(found, weight, keep, None)
        return _bernoulli(found, tau)

    def _classify(self, chosen: Chosen) -> Tensor:
        view = chosen.found.scores.view
        if self.form.selection == "bernoulli" or self.form.masking == "zero":
            return classify(
                self.model, view, chosen.keep, chosen.found.num_prefix, self.form.masking
            )
        if chosen.keep.requires_grad:
            return self.model.classify_masked(view, chosen.keep)
        # No gradient into the scores: the predictor may run on the kept tokens alone.
        index, valid = gather_slots(chosen.tokens, self.model.slots(view))
        return self.model.classify_gathered(view, index, valid)

    def _compare(
        self, teacher: Teacher, batch: Batch, chosen: Chosen, tau: float
    ) -> tuple[Tensor, Tensor]:
        """KL_R, and the teacher's logits ``[batch, class]`` for KL_Y."""
        targets, draw = None, None
        if self.form.uses_teacher_targets:
            assert teacher.targets is not None
            targets = teacher.targets(batch)
        if self.form.uses_teacher_draws:
            draw = self._teacher_draw(teacher, batch, tau)
        divergence = self._rationale_kl(chosen, targets, draw, tau)
        return divergence, self._teacher_logits(teacher, chosen, targets, draw)

    def _rationale_kl(
        self, chosen: Chosen, targets: TeacherTargets | None, draw: Chosen | None, tau: float
    ) -> Tensor:
        found = chosen.found
        if self.form.rationale_kd == "centred":
            assert targets is not None
            width = targets.margin.shape[1]  # counted padding is not among the targets
            return losses.rationale_kl(
                targets.margin,
                _own_margin(self.model, found.scores)[:, :width],
                found.scores.view.selectable[:, :width],
                temperature=self.spec.rationale_temperature,
            )
        assert draw is not None
        ours, theirs = chosen.log_probability, draw.log_probability
        if self.form.rationale_kd == "noiseless":
            ours = F.log_softmax(found.logits / tau, dim=-1)
            theirs = F.log_softmax(draw.found.logits / tau, dim=-1)
        elif ours is None:  # exactly k has no draw a token: KL_R makes its own
            _, ours = bernoulli_straight_through(found.logits, temperature=tau)
        assert theirs is not None
        return losses.rationale_kl_summed(theirs, ours, found.counted)

    def _teacher_logits(
        self,
        teacher: Teacher,
        chosen: Chosen,
        targets: TeacherTargets | None,
        draw: Chosen | None,
    ) -> Tensor:
        keep = chosen.keep.detach()
        if self.form.teacher_prediction == "own_rationale":
            if self.form.selection == "exactly_k":
                assert targets is not None
                return targets.logits
            assert draw is not None
            keep = draw.keep
        found = chosen.found
        with torch.no_grad():
            return classify(
                teacher.model, found.scores.view, keep, found.num_prefix, teacher.masking
            )

    @torch.no_grad()
    def _teacher_draw(self, teacher: Teacher, batch: Batch, tau: float) -> Chosen:
        """The teacher's own draw, with noise of its own."""
        return _bernoulli(candidates(teacher.model, batch.inputs, self.positions), tau)


def _bernoulli(found: Candidates, tau: float) -> Chosen:
    drawn, log_probability = bernoulli_straight_through(found.logits, temperature=tau)
    keep = drawn * found.counted
    return Chosen(found, keep, keep[:, found.num_prefix :] > 0.5, log_probability)


__all__ = [
    "ClassifyObjective",
    "JointObjective",
    "LossTerms",
    "PredictorWarmup",
    "Progress",
    "SelectorWarmup",
    "Teacher",
    "TeacherTargets",
    "random_subset",
    "select_exactly_k",
]
