"""What each problem type makes of logits: losses, what is explained, when two answers agree.

A predictor holds the problem that it answers (:attr:`Predictor.problem`), and objectives,
attributions and measures ask it. Scores on a whole split are in :mod:`rekd_edge.problem`;
docs/problem-types.md and docs/adr/0032 say why each term is what it is.

Logits are float ``[batch, label]``; labels int64 ``[batch]`` of a single-label classification,
float ``[batch, label]`` of the others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekd_edge import losses
from rekd_edge.problem import PRIMARY, scores
from rekd_edge.types import ProblemType


class Problem(nn.Module, ABC):
    """Base of the three. Only regression has a state: the unit of its targets."""

    kind: ProblemType
    term_names: ClassVar[Mapping[str, str]] = {}
    """What the terms `ce` and `kl_prediction` of an objective are called in logs, if otherwise."""

    def in_unit(self, raw: Tensor) -> Tensor:
        """What the predictor's head says, as an answer."""
        return raw

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean of :meth:`loss_of_each`, a scalar."""
        return self.loss_of_each(logits, labels).mean()

    @abstractmethod
    def loss_of_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The task's loss of each example, float ``[batch]``."""

    @abstractmethod
    def prediction_loss(self, teacher: Tensor, student: Tensor, *, temperature: float) -> Tensor:
        """How far the student's logits are from the teacher's, the mean over the batch, without
        :meth:`prediction_weight`."""

    def prediction_weight(self, temperature: float) -> float:
        """By what that is multiplied: T^2, which makes up for softened gradients."""
        return temperature**2

    @abstractmethod
    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """A symmetric divergence of two answers, the mean over the batch."""

    @abstractmethod
    def decision(self, logits: Tensor) -> Tensor:
        """What is answered: class ``[batch]``, labels bool or values ``[batch, label]``."""

    @abstractmethod
    def quantities(self, logits: Tensor, explained: Tensor) -> tuple[Tensor, ...]:
        """What attributions explain, ``[batch]`` each; ``explained`` is like :meth:`decision`."""

    def contribution(self, effects: Sequence[Tensor]) -> Tensor:
        """What each token contributes, from its effects on the :meth:`quantities`,
        ``[batch, token]`` each: evidence for what is explained counts, evidence against it does
        not."""
        return effects[0]

    @abstractmethod
    def support(self, logits: Tensor, decision: Tensor) -> Tensor:
        """How much logits speak for a ``decision``, ``[batch]``: what sufficiency and
        comprehensiveness compare."""

    @abstractmethod
    def agreement(self, teacher: Tensor, student: Tensor) -> dict[str, float]:
        """How far a student's logits of a split answer as its teacher's; the first figure is
        simulability."""

    @abstractmethod
    def chance_loss(self, labels: Tensor, classes: int) -> float:
        """The task's loss of a model that knows nothing of its input."""

    @abstractmethod
    def constant(self, labels: Tensor) -> Tensor:
        """The answer that fits ``labels`` best of those that are the same for every example, as
        logits ``[1, label]``."""

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """:func:`rekd_edge.problem.scores` of a split."""
        return scores(logits.float().cpu().numpy(), labels.cpu().numpy(), self.kind)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """The primary one."""
        return self.scores(logits, labels)[PRIMARY[self.kind]]


class SingleLabel(Problem):
    """One class of several: softmax."""

    kind = "single_label_classification"

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    def loss_of_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    def prediction_loss(self, teacher: Tensor, student: Tensor, *, temperature: float) -> Tensor:
        return losses.prediction_kl(teacher, student, temperature=temperature)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        return losses.jensen_shannon(first, second)

    def decision(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def quantities(self, logits: Tensor, explained: Tensor) -> tuple[Tensor, ...]:
        return (class_margin(logits, explained),)

    def support(self, logits: Tensor, decision: Tensor) -> Tensor:
        """The probability of the class."""
        return logits.float().softmax(dim=1).gather(1, decision.unsqueeze(1)).squeeze(1)

    def agreement(self, teacher: Tensor, student: Tensor) -> dict[str, float]:
        """The share of equal classes."""
        same = teacher.argmax(dim=1) == student.argmax(dim=1)
        return {"label_agreement": int(same.sum()) / max(1, len(same))}

    def chance_loss(self, labels: Tensor, classes: int) -> float:
        return math.log(classes)

    def constant(self, labels: Tensor) -> Tensor:
        """The commonest class."""
        counts = labels.bincount()
        return F.one_hot(counts.argmax(), len(counts)).unsqueeze(0)


class MultiLabel(Problem):
    """Any number of labels, each with a probability of its own: sigmoids."""

    kind = "multi_label_classification"

    def loss_of_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over labels."""
        return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none").mean(1)

    def prediction_loss(self, teacher: Tensor, student: Tensor, *, temperature: float) -> Tensor:
        return losses.bernoulli_prediction_kl(teacher, student, temperature=temperature)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """The Jensen-Shannon divergence of each label, the mean over labels."""
        pairs = [
            torch.stack([one, torch.zeros_like(one)], -1).flatten(0, 1) for one in (first, second)
        ]
        return losses.jensen_shannon(*pairs)

    def decision(self, logits: Tensor) -> Tensor:
        return logits > 0

    def quantities(self, logits: Tensor, explained: Tensor) -> tuple[Tensor, ...]:
        return (label_set_margin(logits, explained),)

    def support(self, logits: Tensor, decision: Tensor) -> Tensor:
        """The probability of the whole set of labels, which are independent given the input."""
        signs = decision.to(torch.float32) * 2 - 1
        return F.logsigmoid(logits.float() * signs).sum(dim=1).exp()

    def agreement(self, teacher: Tensor, student: Tensor) -> dict[str, float]:
        """The share of examples in which all labels are equal."""
        same = ((teacher > 0) == (student > 0)).all(dim=1)
        return {"label_agreement": int(same.sum()) / max(1, len(same))}

    def chance_loss(self, labels: Tensor, classes: int) -> float:
        """The entropy of the labels' shares, the mean over labels."""
        share = labels.double().mean(dim=0).clamp(1e-12, 1 - 1e-12)
        return float(-(share * share.log() + (1 - share) * (1 - share).log()).mean())

    def constant(self, labels: Tensor) -> Tensor:
        """The commonest labels, as many of them as score best."""
        count = labels.double().sum(dim=0)
        rank = count.argsort(descending=True, stable=True).argsort()
        sets = [rank <= most for most in range(len(count))]
        found = [
            2 * float(count[one].sum()) / (len(labels) * int(one.sum()) + float(count.sum()))
            for one in sets
        ]
        return torch.where(sets[int(np.argmax(found))], 1.0, -1.0).unsqueeze(0)


class Regression(Problem):
    """One or more numbers. The predictor's head speaks of targets with mean 0 and deviation 1, in
    which the losses are measured; its answers are in the unit of the data. ``mean`` and
    ``deviation``, float ``[target]``, are those of the training targets, kept with the weights."""

    kind = "regression"
    term_names: ClassVar[Mapping[str, str]] = {
        "ce": "squared_error",
        "kl_prediction": "squared_difference",
    }
    mean: Tensor
    deviation: Tensor

    def __init__(self, targets: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(targets))
        self.register_buffer("deviation", torch.ones(targets))
        self.folded = False
        """Whether the head has taken the unit in (:meth:`Predictor.fold_unit`)."""

    def take_unit(self, labels: np.ndarray) -> None:
        """The unit of training targets, float ``[example, target]``; each of them varies."""
        values = torch.from_numpy(np.asarray(labels, dtype=np.float64))
        self.mean.copy_(values.mean(dim=0))
        self.deviation.copy_(values.std(dim=0, correction=0))

    def in_unit(self, raw: Tensor) -> Tensor:
        return raw if self.folded else raw * self.deviation + self.mean

    def loss_of_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The squared error in deviations, the mean over targets."""
        return ((logits - labels) / self.deviation).square().mean(dim=1)

    def prediction_loss(self, teacher: Tensor, student: Tensor, *, temperature: float) -> Tensor:
        return self.task_loss(student, teacher)

    def prediction_weight(self, temperature: float) -> float:
        """1: values have no temperature."""
        return 1.0

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        raise NotImplementedError("values are no distributions: recipes with it are refused")

    def decision(self, logits: Tensor) -> Tensor:
        return logits

    def quantities(self, logits: Tensor, explained: Tensor) -> tuple[Tensor, ...]:
        """The values, in deviations, whatever is ``explained``."""
        return ((logits - self.mean) / self.deviation).unbind(dim=1)

    def contribution(self, effects: Sequence[Tensor]) -> Tensor:
        """The sum of absolute effects: a token that lowers a value is as much a part of it as one
        that raises it, and leaving out either moves the answer away."""
        return torch.stack([effect.abs() for effect in effects]).sum(dim=0)

    def support(self, logits: Tensor, decision: Tensor) -> Tensor:
        """Minus the distance from the values of ``decision``, in deviations, the mean over
        targets."""
        return -((logits - decision).float() / self.deviation).abs().mean(dim=1)

    def agreement(self, teacher: Tensor, student: Tensor) -> dict[str, float]:
        """R^2 of the student's values against the teacher's, and their correlation, the mean over
        targets (0 where either does not vary)."""
        found = scores(student.float().cpu().numpy(), teacher.float().cpu().numpy(), self.kind)
        one, other = (value.double() - value.double().mean(dim=0) for value in (teacher, student))
        scale = one.square().sum(dim=0).sqrt() * other.square().sum(dim=0).sqrt()
        correlation = (one * other).sum(dim=0) / scale.clamp_min(1e-12)
        return {"value_r2": found["r2"], "value_correlation": float(correlation.mean())}

    def chance_loss(self, labels: Tensor, classes: int) -> float:
        """That of always answering the mean: the variance in the training data's deviations."""
        spread = labels.float().cpu().var(dim=0, correction=0) / self.deviation.cpu().square()
        return float(spread.mean())

    def constant(self, labels: Tensor) -> Tensor:
        """The mean."""
        return labels.double().mean(dim=0, keepdim=True)


def class_margin(logits: Tensor, explained: Tensor) -> Tensor:
    """Logit of ``explained`` int64 ``[batch]`` minus the mean of the other logits; ``[batch]``."""
    own = logits.gather(1, explained.unsqueeze(1)).squeeze(1)
    others = (logits.sum(dim=1) - own) / max(1, logits.shape[1] - 1)
    return own - others


def label_set_margin(logits: Tensor, explained: Tensor) -> Tensor:
    """Mean logit of the labels in ``explained`` (bool or 0 and 1, ``[batch, label]``) minus the
    mean of the others; a side without labels counts 0. ``[batch]``; of one label it is
    :func:`class_margin`."""
    present = explained.to(logits.dtype)
    absent = 1 - present
    inside = (logits * present).sum(dim=1) / present.sum(dim=1).clamp_min(1)
    return inside - (logits * absent).sum(dim=1) / absent.sum(dim=1).clamp_min(1)


def make_problem(kind: ProblemType, labels: int) -> Problem:
    """The problem of a recipe with that many labels (classes, targets)."""
    if kind == "regression":
        return Regression(labels)
    return MultiLabel() if kind == "multi_label_classification" else SingleLabel()


def take_unit(model: nn.Module, labels: np.ndarray) -> None:
    """Gives every regression in ``model`` the unit of the training ``labels``."""
    for module in model.modules():
        if isinstance(module, Regression):
            module.take_unit(labels)
