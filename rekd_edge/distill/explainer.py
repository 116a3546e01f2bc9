"""Rationales of a teacher that is no rationalist: a plain classifier and what explains it.

To a student such a teacher is a rationalist whose selector is the explanation and whose answer
comes from the whole input (docs/black-box.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from rekd_edge.distill.attribution import (
    centre,
    gradient_x_input,
    mask_gradient,
    normalise_attribution,
)
from rekd_edge.distill.checkpoint import load_model, save_model
from rekd_edge.errors import UsageError
from rekd_edge.models.attention_maps import head_count, pooled_attention
from rekd_edge.models.encoder import Encoder, TokenView, excluding
from rekd_edge.models.rationalist import Classifier, Predictor, Rationalist, Scores, Selector
from rekd_edge.selection import sparsemax

Explained = Literal["attention", "gradient_x_input", "mask_gradient", "scaffold"]
"""How a black box is explained; the values of ``teacher.rationale`` but `rationalist`."""

HEADS_FILE = "explainer/heads.safetensors"
LEAST_SHARE = 0.01
"""A token that gets less than this share of an even part counts as if it got that much."""

Gradient = Callable[[Predictor, TokenView, Tensor | None, Tensor | None], Tensor]


class Explainer(Selector):
    """Scores the tokens of a predictor's input by how much they matter to its answer.

    The predictor is held outside the module tree: it is not the explainer's to train or save.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self._explained = (predictor,)

    @property
    def predictor(self) -> Predictor:
        return self._explained[0]

    @abstractmethod
    def effect(self, view: TokenView, explained: Tensor | None = None) -> Tensor:
        """What each token contributes, float ``[batch, token]``, extensive; 0 where nothing is
        selectable. ``explained`` int64 ``[batch]`` is the class in question; None: the predicted
        one."""

    @abstractmethod
    def score(self, effect: Tensor, selectable: Tensor) -> Tensor:
        """Effects, perhaps carried to other tokens, as scores of about unit spread."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Scores:
        view = self.predictor.encoder.view(inputs)
        score = self.score(self.effect(view), view.selectable)
        return Scores.from_logits(score.unsqueeze(2), view)


class GradientExplainer(Explainer):
    """A first-order attribution of the class margin; one backward pass an example."""

    def __init__(self, predictor: Predictor, gradient: Gradient) -> None:
        super().__init__(predictor)
        self.gradient = gradient

    def effect(self, view: TokenView, explained: Tensor | None = None) -> Tensor:
        return self.gradient(self.predictor, view, explained, view.attended)

    def score(self, effect: Tensor, selectable: Tensor) -> Tensor:
        return normalise_attribution(effect, selectable)


class _DistributionExplainer(Explainer):
    """Explanations that share out 1 among the tokens, whatever the class."""

    def score(self, effect: Tensor, selectable: Tensor) -> Tensor:
        count = selectable.sum(dim=1, keepdim=True)
        return centre((effect * count).clamp_min(LEAST_SHARE).log(), selectable)


class AttentionExplainer(_DistributionExplainer):
    """Attention of what is pooled in the last block, the mean over its heads."""

    @torch.no_grad()
    def effect(self, view: TokenView, explained: Tensor | None = None) -> Tensor:
        received = pooled_attention(self.predictor, view, last_block=True).mean(dim=1)
        received = received * view.selectable
        return received / received.sum(dim=1, keepdim=True).clamp_min(1e-12)


class HeadWeights(nn.Module):
    """One number for each attention head, of which sparsemax makes a mixture; at first an even
    one."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((heads,), 1.0 / heads))

    def forward(self) -> Tensor:
        return sparsemax(self.logit)


class HeadMixture(_DistributionExplainer):
    """The explainer of SMaT (Fernandes et al. 2022): softmax over the tokens of a mixture of the
    attention logits of all heads of all blocks."""

    def __init__(self, predictor: Predictor, weights: HeadWeights) -> None:
        super().__init__(predictor)
        self.weights = weights

    @torch.no_grad()
    def logits(self, view: TokenView) -> Tensor:
        """What is mixed, ``[batch, head, token]``."""
        return pooled_attention(self.predictor, view, form="logit")

    @staticmethod
    def mix(logits: Tensor, weights: Tensor, selectable: Tensor) -> Tensor:
        """The distribution ``[batch, token]`` under ``weights`` ``[head]``; differentiable."""
        with torch.autocast(logits.device.type, enabled=False):
            mixed = torch.einsum("h,bht->bt", weights.float(), logits.float())
            return (mixed + excluding(selectable)).softmax(dim=1) * selectable

    def effect(self, view: TokenView, explained: Tensor | None = None) -> Tensor:
        return self.mix(self.logits(view), self.weights(), view.selectable)


class BlackBox(Rationalist):
    """A plain classifier with an explainer in the place of its selector.

    It answers from the whole input, as it was trained; its rationale are the best tokens of the
    explanation.
    """

    answers_from_whole_input = True
    selector: Explainer

    def __init__(self, classifier: Classifier, explainer: Explainer, ratio: float) -> None:
        super().__init__(explainer, classifier.predictor, ratio)

    def whole(self, view: TokenView) -> Tensor:
        return view.attended

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.classify_whole(self.predictor.encoder.view(inputs))


def black_box(classifier: Classifier, explained: Explained, ratio: float) -> BlackBox:
    """``classifier`` as a teacher; the mixture of `scaffold` is even until it is learned.

    Raises:
        UsageError: attention of a network that has none.
    """
    return BlackBox(classifier, _explainer(classifier.predictor, explained), ratio)


def _explainer(predictor: Predictor, explained: Explained) -> Explainer:
    if explained == "gradient_x_input":
        return GradientExplainer(predictor, gradient_x_input)
    if explained == "mask_gradient":
        return GradientExplainer(predictor, mask_gradient)
    if not isinstance(predictor.encoder, Encoder):
        raise UsageError(
            f"teacher.rationale {explained!r} reads attention, and the teacher is a convolutional "
            "network, which has none",
            hint="use teacher.rationale: mask_gradient or gradient_x_input",
        )
    if explained == "attention":
        return AttentionExplainer(predictor)
    return HeadMixture(predictor, HeadWeights(head_count(predictor.encoder)))


def save_heads(run: Path, explainer: HeadMixture) -> None:
    save_model(run / HEADS_FILE, explainer.weights)


def load_heads(run: Path, explainer: HeadMixture) -> None:
    """Takes the mixture that was learned in ``run``.

    Raises:
        IntegrityError: it is missing, or of another teacher.
    """
    load_model(run / HEADS_FILE, explainer.weights)
