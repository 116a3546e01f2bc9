"""A2I (Liu et al. 2025, "Adversarial Cooperative Rationalization"): an attacker shows the predictor
what it should not have learnt.

The attacker is a second selector that looks for tokens from which the predictor answers another
label. Two updates of each batch:

    model:     CE(Y, f_P(Z)) + Omega(M) - lambda_attack * min(CE(Y', f_P(Z_A)), log C)
    attacker:  CE(Y', f_P(Z_A)) + Omega(M_A)

Each holds the other still. Y' is the other label of two, or a random other one of more. The
attacker is not deployed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekd_edge import losses
from rekd_edge.distill.loop import Turn
from rekd_edge.distill.objectives import Progress
from rekd_edge.distill.targets import TargetSource
from rekd_edge.methods.base import Method, Parts
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.types import Batch


class A2i(Method):
    """``method: a2i``."""

    def __init__(
        self,
        model: Rationalist,
        spec: ObjectiveSpec,
        targets: TargetSource | None,
        parts: Parts,
    ) -> None:
        super().__init__(model, spec, targets)
        self.attacker = parts.selector()
        self.classes = parts.classes

    @property
    def auxiliary(self) -> nn.Module | None:
        return self.attacker

    @property
    def turns(self) -> tuple[Turn, ...]:
        model = self.model
        return (
            Turn("model", (model.selector, model.predictor)),
            Turn("attacker", (self.attacker,)),
        )

    def step(
        self, batch: Batch, progress: Progress, turn: str | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        wrong = other_labels(batch.labels, self.classes)
        if turn == "attacker":
            attack = self.attacker(batch.inputs)
            keep = self.draw(attack, progress).keep
            fooled = F.cross_entropy(self.answer(attack.view, keep), wrong)
            penalties = self.penalties(keep, attack.view)
            return fooled + self.omega(penalties), {"attack": fooled}
        scores = self.model.selector(batch.inputs)
        keep = self.draw(scores, progress).keep
        logits = self.answer(scores.view, keep)
        terms = {"ce": self.task_loss(logits, batch), **self.penalties(keep, scores.view)}
        with torch.no_grad():
            attack = self.attacker(batch.inputs)
            shown = self.draw(attack, progress).keep
        terms["doubt"] = losses.doubt(self.answer(attack.view, shown), wrong)
        loss = terms["ce"] + self.omega(terms) + self.spec.lambda_attack * terms["doubt"]
        return self.distil(loss, terms, batch, scores, logits, progress), terms


def other_labels(labels: Tensor, classes: int) -> Tensor:
    """A label that is not the right one, uniformly drawn; of two classes the other."""
    away = torch.randint(1, classes, labels.shape, device=labels.device)
    return (labels + away) % classes
