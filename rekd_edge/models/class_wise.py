"""Class-wise rationales: for each class, the tokens that speak for it most.

A linear head beside the selection head reads the selector's hidden states and scores every token
for every class; the rationale for class c is the k best tokens by score c, as many as the answer's
own, and the same predictor reads them (class-wise rationalization, Chang et al. 2019, CAR). The
answer and its rationale are not touched: the head is a module of its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rekd_edge.errors import UsageError
from rekd_edge.models.intervention import InterventionHead
from rekd_edge.models.rationalist import (
    PublishedHead,
    Rationalist,
    Scores,
    Selector,
    initialise_head,
)
from rekd_edge.models.selectors import LowResolutionSelector


class ClassHead(nn.Linear):
    """One score a class from hidden states: ``[batch, token, channel]`` to
    ``[batch, token, class]``; starts near zero."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes)
        initialise_head(self, xavier=False)

    @staticmethod
    def beside(model: Rationalist) -> ClassHead:
        """A new head for the hidden states and the classes of ``model``.

        Raises:
            UsageError: the selector shows no hidden states of the predictor's tokens.
        """
        channels = hidden_channels(model.selector)
        return ClassHead(channels, model.predictor.head.out_features)

    def scores(self, scores: Scores, candidate: Tensor) -> Scores:
        """``scores`` with those of each example's ``candidate`` class, int64 ``[batch]``, in place
        of its own.

        Raises:
            UsageError: the selector showed no hidden states.
        """
        if scores.hidden is None:
            raise no_hidden_states()
        return select_class(scores, self(scores.hidden), candidate)


def hidden_channels(selector: Selector) -> int:
    """Channels of ``Scores.hidden``.

    Raises:
        UsageError: the selector shows no hidden states.
    """
    head = selector.head
    if isinstance(selector, LowResolutionSelector):
        raise no_hidden_states()
    if isinstance(head, InterventionHead):  # it reads as many channels of context besides
        return head.in_features // 2
    if isinstance(head, PublishedHead) and isinstance(head.hidden, nn.Linear):
        return head.hidden.in_features
    return head.in_features


def select_class(scores: Scores, by_class: Tensor, candidate: Tensor) -> Scores:
    """``by_class`` ``[batch, token, class]`` at class ``candidate`` int64 ``[batch]``, as
    scores."""
    wanted = candidate.view(-1, 1, 1).expand(-1, by_class.shape[1], 1)
    score = torch.gather(by_class, 2, wanted)
    return replace(scores, score=score.squeeze(2), logits=score)


def no_hidden_states() -> UsageError:
    return UsageError(
        "class-wise rationales need the selector's hidden states, one for each token of the "
        "predictor; one that sees a smaller image has none",
        hint="set student.selector.resolution to 1, or class_wise_rationales to false",
    )
