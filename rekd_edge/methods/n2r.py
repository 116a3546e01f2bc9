"""N2R and MMI+N2R (Liu et al. 2025): the selector looks for what the predictor can use.

Two updates of each batch, each with a draw of its own, as in the official code:

    answer:  CE(Y, f_P(Z)) + Omega(M)         N2R detaches Z, so the selector gets Omega alone
    norm:    -lambda_norm * log ||v||_2 + Omega(M), the predictor held still

v is what ``objective.norm_of`` says: Enc(Z), which the predictor's head reads, or what the head
makes of it, the weights times Enc(Z) less their mean over the classes. The published encoders
(GRU, max-pooled) have representations whose norm grows with what they recognise; the last
LayerNorm of a transformer takes that away, while the part in the row space of the head is left
(docs/deviations.md). ``objective.norm_ratio`` lets the norm's update keep more tokens than the
answer's: of a ViT the gradient of the norm pointed at the evidence only where many were kept
(ADR 36); on texts that has not been measured.
"""

from __future__ import annotations

from torch import Tensor

from rekd_edge import losses
from rekd_edge.distill.loop import Turn
from rekd_edge.distill.objectives import Progress
from rekd_edge.methods.base import Method
from rekd_edge.models.encoder import TokenView
from rekd_edge.types import Batch


class N2r(Method):
    """``method: n2r`` and ``mmi_n2r``; the latter keeps the task's gradient for the selector."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        model = self.model
        return (Turn("answer", (model.selector, model.predictor)), Turn("norm", (model.selector,)))

    def step(
        self, batch: Batch, progress: Progress, turn: str | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores = self.model.selector(batch.inputs)
        ratio = self.spec.norm_ratio if turn == "norm" else None
        keep = self.draw(scores, progress, ratio=ratio).keep
        penalties = self.penalties(keep, scores.view)
        if turn == "norm":
            found = losses.norm_utilisation(self._utilised(scores.view, keep))
            return self.spec.lambda_norm * found + self.omega(penalties), {"norm": found}
        shown = keep.detach() if self.spec.method == "n2r" else keep
        logits = self.answer(scores.view, shown)
        terms = {"ce": self.task_loss(logits, batch), **penalties}
        loss = terms["ce"] + self.omega(penalties)
        return self.distil(loss, terms, batch, scores, logits, progress), terms

    def _utilised(self, view: TokenView, keep: Tensor) -> Tensor:
        """v of ``keep`` float ``[batch, token]``: ``[batch, channel]`` or ``[batch, class]``."""
        representation = self.represent(view, keep)
        if self.spec.norm_of == "representation":
            return representation
        weight = self.model.predictor.head.weight
        return representation @ (weight - weight.mean(dim=0)).T
