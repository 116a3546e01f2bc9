"""The rationales of a whole split, token by token: what the other measures are made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rekd_edge.models.rationalist import Rationalist
from rekd_edge.problem import scores
from rekd_edge.selection import gather_slots, gumbel_noise, of_unit
from rekd_edge.types import Batch, ProblemType


@dataclass(frozen=True, slots=True)
class Rationales:
    """A model's deterministic rationales over a split, in the order of the split.

    ``keep`` bool, ``score`` float32 and ``selectable`` bool hold an array ``[token]`` for each
    example: its content tokens without padding. ``labels`` are those of the split, ``predicted``
    the answers to ``problem`` (:func:`rekd_edge.problem.answers`), None where only the selector was
    run.
    """

    keep: list[np.ndarray]
    score: list[np.ndarray]
    selectable: list[np.ndarray]
    labels: np.ndarray
    predicted: np.ndarray | None
    problem: ProblemType = "single_label_classification"

    def __len__(self) -> int:
        return len(self.keep)

    @property
    def scores(self) -> dict[str, float]:
        """Every score of the answers, the primary one first."""
        if self.predicted is None:
            raise ValueError("only the selector was run")
        if self.problem == "single_label_classification":
            return {"accuracy": float((self.predicted == self.labels).mean())}
        found = self.predicted
        logits = np.where(found, 1.0, -1.0) if found.dtype == np.bool_ else found
        return scores(logits, self.labels, self.problem)

    @property
    def accuracy(self) -> float:
        """The primary score, of one class the accuracy."""
        return next(iter(self.scores.values()))

    @property
    def kept_share(self) -> float:
        """Kept tokens of all selectable ones."""
        kept = sum(int(keep.sum()) for keep in self.keep)
        return kept / max(1, sum(int(one.sum()) for one in self.selectable))

    def masks(self) -> list[np.ndarray]:
        """``keep`` over selectable tokens only, bool ``[selectable]`` each."""
        return [keep[one] for keep, one in zip(self.keep, self.selectable, strict=True)]


@torch.no_grad()
def collect_rationales(
    model: Rationalist,
    loader: Iterable[Batch],
    *,
    predict: bool = True,
    noise_seed: int | None = None,
) -> Rationales:
    """Runs ``model`` in evaluation mode over ``loader``.

    With ``noise_seed`` the scores carry the noise of sampling (a difference of two Gumbel
    variables, as in training), and the k best of those are kept; the global random state is left
    as it was.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    problem = model.predictor.problem
    rows: dict[int, tuple[Any, ...]] = {}
    with torch.random.fork_rng(devices=[]):
        if noise_seed is not None:
            torch.manual_seed(noise_seed)
        for batch in loader:
            inputs = {name: value.to(device) for name, value in batch.inputs.items()}
            scores = model.selector(inputs)
            view, score = scores.view, scores.score.float()
            if noise_seed is not None:
                noise = gumbel_noise(score.cpu()) - gumbel_noise(score.cpu())
                score = of_unit(score + noise.to(device), view.unit)
            keep = model.choose(score, view)
            predicted = torch.full((len(keep),), -1)
            if predict:
                index, valid = gather_slots(keep, model.slots(view))
                predicted = model.classify_gathered(view, index, valid)
                predicted = problem.decision(predicted.float())
            _store(rows, batch, keep, score, view.selectable, view.attended, predicted)
    model.train(was_training)
    order = sorted(rows)
    return Rationales(
        keep=[rows[i][0] for i in order],
        score=[rows[i][1] for i in order],
        selectable=[rows[i][2] for i in order],
        labels=np.asarray([rows[i][3] for i in order]),
        predicted=np.asarray([rows[i][4] for i in order]) if predict else None,
        problem=problem.kind,
    )


def _store(
    rows: dict[int, tuple[Any, ...]],
    batch: Batch,
    keep: Tensor,
    score: Tensor,
    selectable: Tensor,
    attended: Tensor,
    predicted: Tensor,
) -> None:
    arrays = [tensor.cpu().numpy() for tensor in (keep, score, selectable)]
    lengths = attended.sum(dim=1).tolist()
    labels, answers = batch.labels.cpu().numpy(), predicted.cpu().numpy()
    for row, example in enumerate(batch.index.tolist()):
        own_keep, own_score, own_selectable = (a[row, : lengths[row]].copy() for a in arrays)
        rows[example] = (own_keep, own_score, own_selectable, labels[row], answers[row])


def padded(arrays: list[np.ndarray], width: int) -> Tensor:
    """Arrays ``[token]`` as one tensor ``[batch, width]``, zeros at the end."""
    whole = np.zeros((len(arrays), width), dtype=arrays[0].dtype)
    for row, array in enumerate(arrays):
        whole[row, : len(array)] = array
    return torch.from_numpy(whole)
