"""Answers of a classifier or a rationalist over a whole split, and how good they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rekd_edge.models.candidates import ALL_CONTENT, Positions, candidates, classify
from rekd_edge.models.problem import Problem, SingleLabel
from rekd_edge.models.rationalist import Classifier, Rationalist
from rekd_edge.selection import (
    bernoulli_straight_through,
    gather_slots,
    gumbel_noise,
    of_unit,
)
from rekd_edge.types import Batch

SelectionMode = Literal[
    "top_k_gathered",
    "top_k_masked",
    "top_k_zeroed",
    "threshold",
    "sampled_top_k",
    "sampled_top_k_zeroed",
    "sampled_bernoulli",
    "sampled_bernoulli_zeroed",
    "full",
]
"""How the rationale is chosen and shown to the predictor.

``top_k_*``: the deterministic exactly-k rationale, by gathering, by key exclusion, or by zeroed
embeddings. ``threshold``: every token with log-odds above 0. ``sampled_top_k``: exactly k of
noised scores. ``sampled_bernoulli``: one hard Gumbel draw a token. ``full``: every valid token.
Where units are kept whole, there is one log-odds and one draw for each.
"""

_SINGLE_LABEL = SingleLabel()

DRAWN = ("sampled_bernoulli", "sampled_bernoulli_zeroed")
"""Modes that draw for each position; the others choose among content tokens."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """``logits`` float ``[example, class]`` and ``labels`` (:class:`~rekd_edge.data.split.Split`)
    in split order, and for each example how many positions were ``kept`` of those ``counted``,
    ``[example]``; answers to ``problem``."""

    logits: Tensor
    labels: Tensor
    kept: Tensor
    counted: Tensor
    problem: Problem = _SINGLE_LABEL

    @property
    def kept_share(self) -> float:
        """Kept positions of all counted ones."""
        return float(self.kept.sum()) / max(1.0, float(self.counted.sum()))

    @property
    def accuracy(self) -> float:
        """The primary score (:data:`rekd_edge.problem.PRIMARY`), of one class the accuracy."""
        return next(iter(self.scores.values()))

    @property
    def scores(self) -> dict[str, float]:
        """Every score, the primary one first."""
        return self.problem.scores(self.logits, self.labels)

    @property
    def loss(self) -> float:
        """The mean of the task's loss."""
        return float(self.problem.task_loss(self.logits, self.labels))

    def per_label(self) -> list[float]:
        """The primary score of each label or target by itself."""
        if self.labels.dim() == 1:
            return self.per_class()
        columns = zip(self.logits.unbind(dim=1), self.labels.unbind(dim=1), strict=True)
        return [
            self.problem.score(found.unsqueeze(1), truth.unsqueeze(1)) for found, truth in columns
        ]

    def per_class(self) -> list[float]:
        """Recall of each class, in label order; NaN for a class without examples."""
        hit = (self.logits.argmax(dim=1) == self.labels).double()
        return [float(hit[self.labels == label].mean()) for label in range(self.logits.shape[1])]


Answer = tuple[Tensor, Tensor, Tensor]
"""Logits ``[batch, class]``, kept and counted positions of each example ``[batch]``."""


def selection_forward(
    model: Rationalist,
    inputs: Mapping[str, Tensor],
    mode: SelectionMode,
    positions: Positions = ALL_CONTENT,
) -> Answer:
    """One forward pass under ``mode``; ``positions`` matters to the modes of :data:`DRAWN`.

    A hard Gumbel draw keeps a position with the same chance at any temperature, so none is asked
    for (docs/adr/0001).
    """
    if mode in DRAWN:
        found = candidates(model, inputs, positions)
        logits, unit = found.logits, found.scores.view.unit
        if unit is not None:
            # Only the difference of the two logits matters, noised or not.
            logits = torch.stack([torch.zeros_like(found.scores.score), found.scores.score], dim=2)
        drawn, _ = bernoulli_straight_through(logits, temperature=1.0)
        keep = (of_unit(drawn, unit) > 0.5) & found.counted
        if mode.endswith("zeroed"):
            weight = keep.to(found.logits.dtype)
            logits = classify(model, found.scores.view, weight, found.num_prefix, "zero")
        else:
            view = found.scores.view
            logits = model.classify_subset(view, keep[:, found.num_prefix :] & view.selectable)
        return logits, keep.sum(dim=1), found.counted.sum(dim=1)
    scores = model.selector(inputs)
    view, selectable = scores.view, scores.view.selectable
    if mode == "threshold":
        keep = (scores.score > 0) & selectable
    elif mode.startswith("sampled_top_k"):
        noised = scores.score + gumbel_noise(scores.score) - gumbel_noise(scores.score)
        keep = model.choose(of_unit(noised, view.unit), view)
    elif mode == "full":
        keep = selectable
    else:
        keep = model.keep(scores)
    if mode in {"top_k_gathered", "sampled_top_k"}:
        index, valid = gather_slots(keep, model.slots(view))
        logits = model.classify_gathered(view, index, valid)
    elif mode == "threshold":
        logits = model.classify_subset(view, keep)
    elif mode.endswith("zeroed"):
        logits = model.classify_zeroed(view, keep.to(scores.score.dtype))
    else:
        logits = model.classify_masked(view, keep)
    return logits, keep.sum(dim=1), selectable.sum(dim=1)


@torch.no_grad()
def evaluate_rationalist(
    model: Rationalist,
    loader: Iterable[Batch],
    mode: SelectionMode = "top_k_gathered",
    *,
    positions: Positions = ALL_CONTENT,
    seed: int = 0,
) -> Predictions:
    """Runs ``model`` in evaluation mode over ``loader``; ``seed`` drives the sampled modes.

    The global random state is left as it was.
    """

    def answer(inputs: Mapping[str, Tensor]) -> Answer:
        return selection_forward(model, inputs, mode, positions)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _collect(model, loader, answer)


@torch.no_grad()
def evaluate_classifier(model: Classifier, loader: Iterable[Batch]) -> Predictions:
    """Runs a plain classifier in evaluation mode over ``loader``."""

    def answer(inputs: Mapping[str, Tensor]) -> Answer:
        logits = model(inputs)
        count = torch.ones(logits.shape[0])
        return logits, count, count

    return _collect(model, loader, answer)


def _collect(
    model: Rationalist | Classifier,
    loader: Iterable[Batch],
    answer: Callable[[Mapping[str, Tensor]], Answer],
) -> Predictions:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits, labels, index, kept, counted = [], [], [], [], []
    for batch in loader:
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        batch_logits, batch_kept, batch_counted = answer(inputs)
        logits.append(batch_logits.float().cpu())
        labels.append(batch.labels)
        index.append(batch.index)
        kept.append(batch_kept.cpu())
        counted.append(batch_counted.cpu())
    model.train(was_training)
    order = torch.cat(index).argsort()
    found, truth, keeps, counts = (
        torch.cat(column)[order] for column in (logits, labels, kept, counted)
    )
    # The unit of a regression, beside its answers on the CPU.
    problem = copy.deepcopy(model.predictor.problem).cpu()
    return Predictions(found, truth, keeps, counts, problem)
