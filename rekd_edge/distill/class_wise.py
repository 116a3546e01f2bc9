"""Training of class-wise rationales, after the student, whose weights are held still.

One phase and one small head: it learns to rank the tokens as the predictor's mask gradients do,
each example for one class drawn at random, so that a step costs the same for any number of classes.
Nothing is played between players as in CAR (Chang et al. 2019): the predictor that reads the
rationales is the deployed one and cannot move. Maximising log p(c | z_c) through a straight-through
selection besides made the test split worse (docs/adr/0034).
"""

from __future__ import annotations

import torch
from torch import nn

from rekd_edge import losses
from rekd_edge.distill.attribution import mask_gradient, normalise_attribution
from rekd_edge.distill.loop import Phase, Rates
from rekd_edge.distill.objectives import LossTerms, Progress
from rekd_edge.models.class_wise import ClassHead, select_class
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.types import Batch

PHASE = "class-wise rationales"
FEWEST_STEPS = 100
"""At least so many, and at least one epoch: more did not help (docs/adr/0034)."""
LEARNING_RATE = 1e-2


class ClassAttribution(nn.Module):
    """The scores of a class are ranked as the predictor's mask gradients for it: L = CE of
    softmax(score) against softmax(normalised gradient), as in the selector's own warm-up."""

    def __init__(self, model: Rationalist, head: ClassHead) -> None:
        super().__init__()
        self.head = head
        # Held outside the module tree: its parameters are neither trained nor saved.
        self._model = (model,)

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        (model,) = self._model
        with torch.no_grad():
            scores = model.selector(batch.inputs)
        assert scores.hidden is not None
        # Drawn on the processor, so that every device asks for the same classes.
        candidate = torch.randint(self.head.out_features, batch.labels.shape)
        candidate = candidate.to(batch.labels.device)
        asked = select_class(scores, self.head(scores.hidden), candidate)
        view = model.predictor.encoder.view(batch.inputs)
        gradient = mask_gradient(model.predictor, view, candidate).float()
        valid = scores.view.selectable
        target = normalise_attribution(gradient, valid)
        loss = losses.attribution_cross_entropy(asked.score, target, valid, temperature=1.0)
        return {"loss": loss}


def class_wise_phase(model: Rationalist, head: ClassHead, steps_per_epoch: int) -> Phase:
    """Trains ``head`` alone."""
    return Phase(
        PHASE,
        ClassAttribution(model, head),
        max(1.0, FEWEST_STEPS / max(1, steps_per_epoch)),
        {head: Rates(LEARNING_RATE, LEARNING_RATE)},
        select=True,
    )
