"""The rationalist: a selector that scores tokens and a predictor that sees only the kept ones.

Lei et al. 2016 (select-predict); Dai & Goebel, arXiv 2601.22531 (REKD).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rekd_edge.models.encoder import Encoder, TokenReader, TokenView, key_mask, region_area
from rekd_edge.models.problem import Problem, Regression, SingleLabel
from rekd_edge.selection import (
    budget_fraction,
    gather_slots,
    gather_tokens,
    keep_units,
    rationale_budget,
    selection_threshold,
    slot_count,
    unit_mean,
    within_budget,
)


@dataclass(frozen=True, slots=True)
class Scores:
    """A selector's answer.

    ``score`` float ``[batch, token]`` is the log-odds of keeping a token, l1 - l0, or the mean of
    those of its unit; ``logits``
    ``[batch, token, 2]`` are (drop, keep), or ``[batch, token, 1]`` their difference where the
    head was folded; ``view`` holds the content tokens scored; ``hidden`` ``[batch, token,
    channel]`` is what the head read, None where scores are resized.
    """

    score: Tensor
    logits: Tensor
    view: TokenView
    hidden: Tensor | None = None

    @staticmethod
    def from_logits(logits: Tensor, view: TokenView, hidden: Tensor | None = None) -> Scores:
        score = logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]
        return Scores(unit_mean(score, view.unit), logits, view, hidden)


def selection_head(width: int) -> nn.Linear:
    """(drop, keep) logits from hidden states; starts near zero, so that nothing is preferred."""
    head = nn.Linear(width, 2)
    initialise_head(head, xavier=False)
    return head


class Selector(nn.Module, ABC):
    """Scores every content token with one pass over the whole input."""

    head: nn.Linear

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> Scores: ...

    def score_hidden(self, hidden: Tensor) -> Tensor:
        """The head's logits ``[batch, token, 1 or 2]``, in float32 under autocast too: of many
        scores rounded to bf16 some are equal, and then the place of a token decides."""
        if not torch.is_autocast_enabled(hidden.device.type):
            return self.head(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float())


class PublishedHead(nn.Linear):
    """The head of the published code: Xavier-uniform weights, dropout, and for text a hidden layer
    of ``width`` with ReLU before the (drop, keep) logits."""

    def __init__(
        self, channels: int, *, width: int | None = None, dropout: float = 0.0, xavier: bool = True
    ) -> None:
        super().__init__(width or channels, 2)
        self.hidden = nn.Identity() if width is None else nn.Linear(channels, width)
        self.activation = nn.Identity() if width is None else nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        for layer in (self, self.hidden):
            if isinstance(layer, nn.Linear):
                initialise_head(layer, xavier=xavier)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.dropout(self.activation(self.hidden(input))))


def initialise_head(head: nn.Linear, *, xavier: bool) -> None:
    """Weights from N(0, 0.02^2), or Xavier-uniform as in the published code; biases zero."""
    if xavier:
        nn.init.xavier_uniform_(head.weight)
    else:
        nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)


class BlockSelector(Selector):
    """A backbone and a head for each token; ``head`` None is a linear one."""

    def __init__(self, encoder: TokenReader, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = selection_head(encoder.token_dim) if head is None else head

    def forward(self, inputs: Mapping[str, Tensor]) -> Scores:
        view = self.encoder.view(inputs)
        hidden = self.encoder.token_features(view)
        return Scores.from_logits(self.score_hidden(hidden), view, hidden)

    def with_prefix(self, inputs: Mapping[str, Tensor]) -> tuple[Scores, Tensor]:
        """The scores of content, and the hidden states of the model's own tokens
        ``[batch, prefix, channel]`` (which :attr:`head` could score too)."""
        assert isinstance(self.encoder, Encoder)
        view = self.encoder.view(inputs)
        hidden = self.encoder(view.content, view.position, view.attended)
        count = self.encoder.num_prefix_tokens
        scores = Scores.from_logits(self.score_hidden(hidden[:, count:]), view)
        return scores, hidden[:, :count]


class Predictor(nn.Module):
    """Classifies from the tokens it is given and from nothing else."""

    def __init__(
        self,
        encoder: TokenReader,
        num_classes: int,
        *,
        pooling: str = "mean",
        dropout: float = 0.0,
        xavier: bool = False,
        problem: Problem | None = None,
    ) -> None:
        super().__init__()
        if pooling not in {"cls", "mean"}:
            raise ValueError(f"unknown pooling {pooling!r}")
        self.encoder = encoder
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        initialise_head(self.head, xavier=xavier)
        self.problem: Problem = SingleLabel() if problem is None else problem

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        key_weight: Tensor | None = None,
        scale: Tensor | None = None,
        prefix_scale: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[batch, class]``; arguments as in :meth:`Encoder.forward`."""
        return self.answer(self.represent(content, position, key_weight, scale, prefix_scale))

    def answer(self, representation: Tensor) -> Tensor:
        """Logits ``[batch, class]`` from :meth:`represent`; of a regression the values."""
        return self.problem.in_unit(self.head(self.dropout(representation)))

    @torch.no_grad()
    def fold_unit(self) -> None:
        """Gives the head of a regression the unit of its targets, so that it answers by itself."""
        problem = self.problem
        if isinstance(problem, Regression) and not problem.folded:
            self.head.weight.mul_(problem.deviation.unsqueeze(1))
            self.head.bias.mul_(problem.deviation).add_(problem.mean)
            problem.folded = True

    def represent(
        self,
        content: Tensor,
        position: Tensor,
        key_weight: Tensor | None = None,
        scale: Tensor | None = None,
        prefix_scale: Tensor | None = None,
    ) -> Tensor:
        """What the head reads, ``[batch, channel]``; arguments as in :meth:`forward`."""
        return self.encoder.pooled_features(
            content, position, key_weight, scale, self.pooling, prefix_scale
        )


class Rationalist(nn.Module):
    """Selector and predictor with a fixed share of tokens to keep."""

    answers_from_whole_input: bool = False
    """Whether what is kept has no part in its answer (a plain classifier as a teacher)."""

    def __init__(self, selector: Selector, predictor: Predictor, rationale_ratio: float) -> None:
        super().__init__()
        self.selector = selector
        self.predictor = predictor
        self.rationale_ratio = rationale_ratio
        self.ratio_fraction = budget_fraction(rationale_ratio)

    def budget(self, view: TokenView) -> Tensor:
        """Tokens to keep of each example, int64 ``[batch]``."""
        return rationale_budget(view.selectable.sum(dim=1), *self.ratio_fraction)

    def keep(self, scores: Scores) -> Tensor:
        """The deterministic rationale, bool ``[batch, token]``."""
        return self.choose(scores.score, scores.view)

    def choose(self, score: Tensor, view: TokenView) -> Tensor:
        """The rationale of other scores, one for each unit, bool ``[batch, token]``."""
        return keep_units(score, view.selectable, self.budget(view), view.unit)

    def threshold(self, score: Tensor, view: TokenView, keep: Tensor) -> Tensor:
        """:func:`selection_threshold` of that rationale ``keep``, ``[batch, 1]``."""
        allowed = within_budget(view.unit, view.selectable, self.budget(view))
        return selection_threshold(score, allowed, keep)

    def whole(self, view: TokenView) -> Tensor:
        """What it reads of a whole input, bool ``[batch, token]``."""
        return view.selectable

    def classify_whole(self, view: TokenView) -> Tensor:
        """Logits from the whole input."""
        return self.predictor(view.content, view.position, key_mask(view, self.whole(view)))

    def classify_masked(self, view: TokenView, key_weight: Tensor) -> Tensor:
        """Logits from tokens with non-zero ``key_weight`` ``[batch, token]``, by key exclusion."""
        return self.predictor(view.content, view.position, key_weight)

    def classify_zeroed(
        self, view: TokenView, keep: Tensor, prefix_keep: Tensor | None = None
    ) -> Tensor:
        """Logits with word or patch embeddings multiplied by ``keep`` ``[batch, token]`` (the
        published masking); ``prefix_keep`` ``[batch, prefix]`` masks ``[CLS]`` too.

        Positions are added afterwards and zeroed tokens are still attended to, so the predictor
        can read the geometry of the mask. Padding is not attended, as in the official code.
        """
        attended = key_mask(view, view.attended)
        return self.predictor(view.content, view.position, attended, keep, prefix_keep)

    def classify_gathered(self, view: TokenView, index: Tensor, valid: Tensor | None) -> Tensor:
        """Logits from the content at ``index`` ``[batch, slot]`` where ``valid`` (None:
        everywhere); nothing else is read."""
        content = gather_tokens(view.content, index)
        position = gather_tokens(view.position, index)
        return self.predictor(content, position, valid)

    def classify_slots(self, view: TokenView, keep: Tensor, slots: int) -> Tensor:
        """Logits from the tokens that bool ``keep`` ``[batch, token]`` keeps, at most ``slots`` of
        an example, and of images as many."""
        index, valid = gather_slots(keep, slots)
        return self.classify_gathered(view, index, key_mask(view, valid))

    def classify_subset(self, view: TokenView, keep: Tensor, slots: int | None = None) -> Tensor:
        """Logits from the tokens that bool ``keep`` ``[batch, token]`` keeps, gathered into as many
        slots as any example needs: :meth:`classify_masked` for less. ``slots``, where the caller
        knows that every example needs as many, saves waiting for the device."""
        if slots is not None:
            return self.classify_slots(view, keep, slots)
        slots = max(1, int(keep.sum(dim=1).max()))
        return self.classify_gathered(view, *gather_slots(keep, slots))

    def slots(self, view: TokenView, fraction: tuple[int, int] | None = None) -> int:
        """Slots that hold any rationale of this batch, under another ``fraction`` than the model's
        where one is given."""
        count = slot_count(view.content.shape[1], *(fraction or self.ratio_fraction))
        region = region_area(self.predictor.encoder)
        return count if region is None else count // region * region

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits under the deterministic rationale, predictor on gathered tokens."""
        scores = self.selector(inputs)
        index, valid = gather_slots(self.keep(scores), self.slots(scores.view))
        return self.classify_gathered(scores.view, index, valid)


class Classifier(nn.Module):
    """The plain backbone on all tokens: the black box to beat."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        view = self.predictor.encoder.view(inputs)
        weight = None if view.content.dim() == 3 else view.attended
        return self.predictor(view.content, view.position, weight)
