"""RNP (Lei et al. 2016; Chang et al. 2020), FR and Inter_RAT, which share its objective.

    min over both of CE(Y, f_P(M * X)) + lambda_sparsity * | ||M||_1 / L - s |
                     + lambda_coherence * mean |m_t - m_(t-1)|

FR (Liu et al. 2022) is this with one encoder (``selector.kind: shared``), Inter_RAT (Yue et al.
2023) with heads that adjust for the labels (:mod:`rekd_edge.models.intervention`). With
``selection: reinforce`` the selector learns from the chance of what was drawn, with ``hard_kuma``
the count is held by a Lagrange multiplier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rekd_edge import losses
from rekd_edge.distill.objectives import Progress
from rekd_edge.distill.targets import TargetSource
from rekd_edge.methods.base import Drawn, Method
from rekd_edge.models.encoder import TokenView
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.recipe.schema import ObjectiveSpec
from rekd_edge.types import Batch


class Multiplier(nn.Module):
    """The weight of a constraint c <= 0, raised while c is above it and lowered below (Bastings et
    al. 2019, after Rezende & Viola 2018): average <- m * average + (1 - m) * c, weight <- weight *
    exp(rate * average), within bounds. The term is weight * c, of which the value is that of the
    average and the gradient that of c."""

    average: Tensor
    weight: Tensor

    def __init__(
        self,
        *,
        initial: float = 1.0,
        rate: float = 0.05,
        momentum: float = 0.5,
        bounds: tuple[float, float] = (1e-12, 5.0),
    ) -> None:
        super().__init__()
        self.rate, self.momentum, self.bounds = rate, momentum, bounds
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("weight", torch.tensor(initial))

    def forward(self, constraint: Tensor) -> Tensor:
        with torch.no_grad():
            own = constraint.detach().float()
            self.average.mul_(self.momentum).add_((1 - self.momentum) * own)
            self.weight.mul_((self.rate * self.average).exp()).clamp_(*self.bounds)
        smoothed = constraint + (self.average - constraint.detach())
        return self.weight.clone() * smoothed


class Rnp(Method):
    """One update of both parts towards the task and the penalties."""

    def __init__(
        self, model: Rationalist, spec: ObjectiveSpec, targets: TargetSource | None = None
    ) -> None:
        super().__init__(model, spec, targets)
        if spec.form.selection == "hard_kuma":
            self.multiplier = Multiplier()

    @property
    def auxiliary(self) -> nn.Module | None:
        return getattr(self, "multiplier", None)

    @property
    def trained_auxiliary(self) -> nn.Module | None:
        return None  # the multiplier moves by a rule of its own

    def step(
        self, batch: Batch, progress: Progress, turn: str | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores = self.model.selector(batch.inputs)
        drawn = self.draw(scores, progress)
        logits = self.answer(scores.view, drawn.keep)
        terms = {"ce": self.task_loss(logits, batch)}
        if drawn.log_chance is not None:
            loss = self._scored(drawn, drawn.log_chance, logits, batch, scores.view, terms)
        elif drawn.kept_chance is not None:
            loss = terms["ce"] + self._relaxed(drawn.kept_chance, scores.view, terms)
        else:
            terms |= self.penalties(drawn.keep, scores.view)
            loss = terms["ce"] + self.omega(terms)
        terms["selected_share"] = drawn.keep.sum() / scores.view.selectable.sum().clamp_min(1)
        return self.distil(loss, terms, batch, scores, logits, progress), terms

    def _scored(
        self,
        drawn: Drawn,
        log_chance: Tensor,
        logits: Tensor,
        batch: Batch,
        view: TokenView,
        terms: dict[str, Tensor],
    ) -> Tensor:
        """CE, which trains the predictor, and the mean of cost * log p(M | X), whose gradient is
        that of the expected cost: CE of the example and its own penalties, no baseline."""
        spec, valid = self.spec, view.selectable
        cost = self.problem.loss_of_each(logits.detach(), batch.labels)
        sparsity = losses.share_penalty_of_each(drawn.keep, valid, self.model.rationale_ratio)
        coherence = losses.coherence_of_each(drawn.keep, valid, self.grid)
        terms |= {"sparsity": sparsity.mean(), "coherence": coherence.mean()}
        cost = cost + spec.lambda_sparsity * sparsity + spec.lambda_coherence * coherence
        return terms["ce"] + (cost * log_chance).mean()

    def _relaxed(self, chance: Tensor, view: TokenView, terms: dict[str, Tensor]) -> Tensor:
        """Penalties on what is expected to be kept: the count held by the multiplier, and the
        expected transitions."""
        valid = view.selectable
        share = (chance.sum(dim=1) / valid.sum(dim=1).clamp_min(1)).mean()
        transitions = losses.expected_transitions(chance, valid, self.grid)
        terms |= {"expected_share": share, "coherence": transitions}
        held = self.multiplier(share - self.model.rationale_ratio)
        terms["multiplier"] = self.multiplier.weight.clone()
        return held + self.spec.lambda_coherence * transitions
