"""A2R (Yu et al. 2021): a soft predictor beside the hard one, so that they cannot interlock.

The selector's scores are also an attention over its own states, from which a linear soft predictor
answers; the rationale is the top-k of the same scores, without a gradient.

    selector and soft predictor:  CE(Y, soft) + lambda_divergence * JS(soft, hard), hard held still
    predictor:                    CE(Y, hard) + lambda_divergence * JS(soft, hard), soft held still

The soft predictor is not deployed. NIR (Storek et al. 2023) is built on this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rekd_edge.distill.objectives import Progress
from rekd_edge.distill.targets import TargetSource
from rekd_edge.methods.base import Method, Parts
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.rationalist import Rationalist, Scores, initialise_head
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.types import Batch


class A2r(Method):
    """``method: a2r``."""

    def __init__(
        self,
        model: Rationalist,
        spec: ObjectiveSpec,
        targets: TargetSource | None,
        parts: Parts,
    ) -> None:
        super().__init__(model, spec, targets)
        self.soft = nn.Linear(state_width(model), parts.classes)
        initialise_head(self.soft, xavier=False)

    @property
    def auxiliary(self) -> nn.Module | None:
        return self.soft

    def step(
        self, batch: Batch, progress: Progress, turn: str | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores = self.model.selector(batch.inputs)
        keep = self.draw(scores, progress).keep.detach()
        soft, hard = self.soft_answer(scores), self.hard_answer(scores.view, keep)
        terms = {
            "ce": self.task_loss(hard, batch),
            "soft_ce": self.task_loss(soft, batch),
            "divergence": self.problem.divergence(soft.detach(), hard),
        }
        back = self.problem.divergence(soft, hard.detach())
        divergence = self.spec.lambda_divergence * (terms["divergence"] + back)
        loss = terms["ce"] + terms["soft_ce"] + divergence
        return self.distil(loss, terms, batch, scores, hard, progress), terms

    def soft_answer(self, scores: Scores) -> Tensor:
        """Logits from the attention-weighted mean of the selector's states."""
        assert scores.hidden is not None
        lowest = torch.finfo(torch.float32).min
        score = scores.score.float().masked_fill(~scores.view.selectable, lowest)
        attention = score.softmax(dim=1).to(scores.hidden.dtype)
        return self.soft((attention.unsqueeze(2) * scores.hidden).sum(dim=1))

    def hard_answer(self, view: TokenView, keep: Tensor) -> Tensor:
        """The predictor's logits from the rationale alone."""
        return self.answer(view, keep)


def state_width(model: Rationalist) -> int:
    """Channels of what the selector's head reads."""
    head = model.selector.head
    first = getattr(head, "hidden", head)
    return int((first if isinstance(first, nn.Linear) else head).in_features)
