"""Learning to scaffold (SMaT, Fernandes et al. 2022): an explainer that teaches well.

A student practises: in each step it learns from the teacher's answers and from the explainer's
rationales of half a batch, and the explainer is moved so that this very step makes the student
answer more as the teacher does on the other half, where it sees no explanation.

Inner, theta' = theta - eta * grad_theta [T^2 KL_Y + beta * KL(e_phi(x) || softmax(s_theta(x)))];
outer, phi is moved along -grad_phi T^2 KL_Y(theta'(phi)). e_phi is the mixture of attention heads,
s_theta are the scores of the student's selector, and KL_Y compares the student's answer from the
tokens that it selects (exactly k, with the straight-through gradient) with the teacher's from the
whole input. The practising student is thrown away; docs/black-box.md says what differs from the
publication.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rekd_edge.distill.explainer import HeadMixture, HeadWeights
from rekd_edge.distill.loop import DevResult, Phase, Rates, move_batch
from rekd_edge.distill.objectives import (
    LossTerms,
    PredictorWarmup,
    Progress,
    select_exactly_k,
)
from rekd_edge.distill.teacher import Teacher
from rekd_edge.models.encoder import TokenView, excluding
from rekd_edge.models.rationalist import Rationalist, Scores
from rekd_edge.recipe.schema import ObjectiveSpec, Recipe, ScaffoldSpec
from rekd_edge.selection import unit_mean
from rekd_edge.types import Batch, TeacherSide

SELECTION_WIDTH = 1.0
"""Width of the straight-through gradient; explanations and scores have about unit spread."""


class Practice(nn.Module):
    """A student that is thrown away, and the weights of the heads that explain to it."""

    def __init__(self, student: Rationalist, weights: HeadWeights) -> None:
        super().__init__()
        self.student = student
        self.weights = weights


def scaffold_phases(
    practice: Practice, teacher: Teacher, recipe: Recipe, *, batches_per_epoch: int
) -> list[Phase]:
    """The predictor practises on random subsets, then student and head weights take turns."""
    assert recipe.teacher is not None
    spec, train, objective = recipe.teacher.scaffold, recipe.student.train, recipe.objective
    student = practice.student
    rate = train.warmup.selector_learning_rate or train.learning_rate
    # The loop counts optimizer steps, and so do the recipe's keys.
    per_epoch = math.ceil(batches_per_epoch / train.gradient_accumulation)
    phases = [
        Phase(
            "scaffold: learning to teach",
            ScaffoldObjective(practice, teacher, objective, spec),
            spec.steps / per_epoch,
            {
                student.selector: Rates(rate, rate),
                student.predictor: Rates.of(train),
                practice.weights: Rates(spec.learning_rate, spec.learning_rate),
            },
            select=True,
        )
    ]
    if spec.warmup_steps > 0:
        warmup = Phase(
            "scaffold: predictor warm-up",
            PredictorWarmup(student, objective, teacher),
            spec.warmup_steps / per_epoch,
            {student.predictor: Rates.first_of(train)},
        )
        phases.insert(0, warmup)
    return phases


class _Answer(nn.Module):
    """The student's logits from its exactly-k selection, and its scores."""

    def __init__(self, student: Rationalist, objective: ObjectiveSpec) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Scores]:
        student = self.student
        scores = student.selector(inputs)
        weight, _ = select_exactly_k(
            self.objective, scores, student.ratio_fraction, SELECTION_WIDTH
        )
        return student.classify_masked(scores.view, weight), scores


class ScaffoldObjective(nn.Module):
    """One step of both levels. The loss has the inner loss's value and gradient for the student,
    and the outer loss's gradient for the head weights."""

    def __init__(
        self, practice: Practice, teacher: Teacher, objective: ObjectiveSpec, spec: ScaffoldSpec
    ) -> None:
        super().__init__()
        self.practice = practice
        self.answer = _Answer(practice.student, objective)
        self.spec = spec
        self.temperature = objective.kd_temperature
        # Held outside the module tree: neither trained nor saved.
        self._teacher = (teacher,)

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        # fp32: second derivatives are small.
        with torch.autocast(batch.labels.device.type, enabled=False):
            return self._step(*halves(batch))

    def _step(self, first: Batch, second: Batch) -> LossTerms:
        weights = self.practice.weights
        with torch.enable_grad():
            explanation = self._explain(first, weights())
            simulated, explained = self._inner(first, explanation)
            inner = simulated + self.spec.beta * explained
            trained = {n: p for n, p in self.answer.named_parameters() if p.requires_grad}
            ahead = after_one_step(
                trained,
                inner,
                explained,
                rate=self.spec.inner_learning_rate,
                beta=self.spec.beta,
            )
            logits, _ = functional_call(
                self.answer, {name: value for name, (value, _) in ahead.items()}, (second.inputs,)
            )
            outer = self._simulation(second, logits)
            (direction,) = torch.autograd.grad(outer, weights.logit)
        loss = (weights.logit * direction).sum()
        for name, parameter in trained.items():
            gradient = ahead[name][1]
            if gradient is not None:
                loss = loss + (parameter * gradient).sum()
        return {
            "loss": loss - loss.detach() + inner.detach(),
            "simulation": outer.detach(),
            "explanation": explained.detach(),
            "heads": (weights() > 0).sum().float(),
        }

    def _explain(self, batch: Batch, weights: Tensor) -> Tensor:
        """The explainer's distribution on the student's tokens, ``[batch, token]``."""
        teacher = self._teacher[0]
        explainer = teacher.model.selector
        assert isinstance(explainer, HeadMixture)

        def mixed(view: TokenView) -> Tensor:
            return explainer.mix(explainer.logits(view), weights, view.selectable)

        return teacher.carried(mixed, batch)

    def _inner(self, batch: Batch, explanation: Tensor) -> tuple[Tensor, Tensor]:
        """T^2 KL_Y and the explanation loss of a batch."""
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            logits, scores = self.answer(batch.inputs)
        return self._simulation(batch, logits), explanation_kl(explanation, scores)

    def _simulation(self, batch: Batch, logits: Tensor) -> Tensor:
        teacher = self._teacher[0].whole_answer(batch)
        problem = self.practice.student.predictor.problem
        return problem.prediction_weight(self.temperature) * problem.prediction_loss(
            teacher, logits, temperature=self.temperature
        )


def after_one_step(
    parameters: Mapping[str, Tensor], inner: Tensor, explained: Tensor, *, rate: float, beta: float
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Each parameter after one step of gradient descent on ``inner``, and its gradient.

    The step is a function of what ``explained`` depends on. ``inner`` contains ``beta`` times that
    and nothing else that depends on it, so that alone is differentiated twice.
    """
    values = list(parameters.values())
    gradients = torch.autograd.grad(inner, values, retain_graph=True, allow_unused=True)
    parts = torch.autograd.grad(explained, values, create_graph=True, allow_unused=True)
    ahead: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, value, gradient, part in zip(parameters, values, gradients, parts, strict=True):
        moved = value.detach()
        if gradient is not None:
            moved = moved - rate * gradient
        if part is not None:
            moved = moved - rate * beta * (part - part.detach())
        ahead[name] = moved, gradient
    return ahead


def explanation_kl(explanation: Tensor, scores: Scores) -> Tensor:
    """KL(explanation || softmax(scores)) over each example's selectable tokens, batch mean;
    ``explanation`` ``[batch, token]`` sums to 1 and may carry a gradient. It is spread evenly over
    each unit, as the scores are."""
    valid = scores.view.selectable
    explanation = unit_mean(explanation, scores.view.unit)
    mine = F.log_softmax(scores.score.float() + excluding(valid), dim=1)
    theirs = explanation.clamp_min(1e-9).log()
    return (explanation * (theirs - mine).masked_fill(~valid, 0.0)).sum(dim=1).mean()


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Every other example, and the rest; twice the same where there is one example only."""
    count = len(batch.labels)
    first = slice(0, None, 2)
    return _rows(batch, first), _rows(batch, slice(1, None, 2) if count > 1 else first)


def _rows(batch: Batch, rows: slice) -> Batch:
    side = batch.teacher
    if side is not None:
        side = TeacherSide(
            {name: value[rows] for name, value in side.inputs.items()},
            None if side.spans is None else side.spans[rows],
            None if side.student_spans is None else side.student_spans[rows],
        )
    inputs = {name: value[rows] for name, value in batch.inputs.items()}
    return Batch(inputs, batch.labels[rows], batch.index[rows], side)


@torch.no_grad()
def simulability(student: Rationalist, teacher: Teacher, batches: Iterable[Batch]) -> DevResult:
    """Share of the examples in which the student answers as its teacher (of a regression R^2), as
    the accuracy, and the mean KL_Y at T = 1, of which the least is the best."""
    device = next(student.parameters()).device
    problem = student.predictor.problem
    answers: list[Tensor] = []
    theirs: list[Tensor] = []
    divergence, count = 0.0, 0
    for raw in batches:
        batch = move_batch(raw, device)
        answer, logits = teacher.whole_answer(batch), student(batch.inputs)
        theirs.append(answer.float().cpu())
        answers.append(logits.float().cpu())
        divergence += float(problem.prediction_loss(answer, logits, temperature=1.0)) * len(answer)
        count += len(answer)
    loss = divergence / max(1, count)
    same = next(iter(problem.agreement(torch.cat(theirs), torch.cat(answers)).values()))
    return DevResult(same, loss, criterion=loss)
