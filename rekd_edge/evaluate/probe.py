"""The mask-only probe: how well the label can be read from the shape of the rationale alone.

A selector can write its answer into *which positions* it keeps, whatever the tokens are ("label
encoding"). A small classifier that sees only the mask's geometry should then do no better than one
that always answers the most frequent class (and, for texts, than one that knows the length).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from rekd_edge.evaluate.eraser import runs
from rekd_edge.evaluate.rationales import Rationales
from rekd_edge.models.problem import Problem, make_problem, take_unit
from rekd_edge.types import Modality

POSITION_BINS = 10
_HIDDEN = 32
_MLP_STEPS = 200
_RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Test accuracies in 0..1 (of another problem than one class its primary score);
    ``excess_points`` is 100 * (accuracy - prior).

    ``accuracy`` is that of the probe (``chosen``) that did better on the dev masks; ``prior`` that
    of the best constant answer to the training examples, the most frequent class.
    ``length_accuracy``, for texts, is the better probe that sees the number of tokens alone, and
    ``excess_over_length_points`` what the mask adds to it. ``standard_error_points`` is that of
    ``accuracy``, of other scores over :data:`_RESAMPLES` bootstrap samples of the test examples.
    """

    accuracy: float
    prior: float
    excess_points: float
    standard_error_points: float
    chosen: str
    logistic_accuracy: float
    mlp_accuracy: float
    length_accuracy: float | None
    excess_over_length_points: float | None
    train_examples: int
    test_examples: int


def probe_masks(
    train: Rationales, dev: Rationales, test: Rationales, modality: Modality, *, seed: int = 0
) -> ProbeResult:
    """Trains the probes on ``train``, chooses on ``dev`` and measures on ``test``.

    The three hold one model's rationales of disjoint splits. The random state is left as it was.
    """
    parts = (train, dev, test)
    features = [mask_features(part.masks(), modality) for part in parts]
    labels = [torch.from_numpy(part.labels) for part in parts]
    problem = make_problem(test.problem, labels[2].shape[-1])
    take_unit(problem, train.labels)
    chosen, answers = _best_probe(problem, features, labels, seed)
    accuracies = {name: problem.score(logits, labels[2]) for name, logits in answers.items()}
    constant = problem.constant(labels[0]).expand(len(labels[2]), -1)
    prior = problem.score(constant, labels[2])
    accuracy = accuracies[chosen]
    length = None
    if modality == "text":
        lengths = [length_features(part.masks()) for part in parts]
        length_chosen, length_answers = _best_probe(problem, lengths, labels, seed)
        length = problem.score(length_answers[length_chosen], labels[2])
    return ProbeResult(
        accuracy=accuracy,
        prior=prior,
        excess_points=100 * (accuracy - prior),
        standard_error_points=100 * _standard_error(problem, answers[chosen], labels[2]),
        chosen=chosen,
        logistic_accuracy=accuracies["logistic"],
        mlp_accuracy=accuracies["mlp"],
        length_accuracy=length,
        excess_over_length_points=None if length is None else 100 * (accuracy - length),
        train_examples=len(train),
        test_examples=len(test),
    )


def mask_features(masks: Sequence[np.ndarray], modality: Modality) -> np.ndarray:
    """float32 ``[example, feature]`` from bool ``[token]`` masks.

    Images: the mask itself, a number for each patch. Texts: length and count, where the kept
    tokens lie relative to the length, and the gaps and runs between them. Nothing says which
    tokens they are.
    """
    if modality == "image":
        return np.stack(masks).astype(np.float32)
    return np.stack([_text_features(own) for own in masks])


def length_features(masks: Sequence[np.ndarray]) -> np.ndarray:
    """float32 ``[example, 3]`` from the number of tokens alone (it also decides the budget)."""
    length = np.asarray([len(own) for own in masks], dtype=np.float32)
    return np.stack([length, np.log(length), 1 / length], axis=1)


def _text_features(own: np.ndarray) -> np.ndarray:
    length = len(own)
    kept = np.flatnonzero(own)
    general = [length, np.log(length), 1 / length, len(kept), len(kept) / length]
    if not len(kept):
        return np.asarray([*general, *[0.0] * (POSITION_BINS + 13)], dtype=np.float32)
    place = (kept + 0.5) / length
    bins = np.histogram(place, bins=POSITION_BINS, range=(0.0, 1.0))[0] / len(kept)
    gaps = np.diff(kept) if len(kept) > 1 else np.zeros(1)
    lengths = [end - start for start, end in runs(own)]
    shape = [
        place.mean(), place.std(), place[0], place[-1], kept[0], length - 1 - kept[-1],
        gaps.mean(), gaps.std(), gaps.max(), len(lengths), max(lengths),
        float(own[0]), float(own[-1]),
    ]  # fmt: skip
    return np.asarray([*general, *bins, *shape], dtype=np.float32)


def _best_probe(
    problem: Problem,
    features: Sequence[np.ndarray],
    labels: Sequence[torch.Tensor],
    seed: int,
) -> tuple[str, dict[str, torch.Tensor]]:
    """Name of the probe that is better on dev, and the answers of both to the test examples."""
    mean, spread = features[0].mean(axis=0), features[0].std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1.0)
    train, dev, test = (torch.from_numpy((part - mean) / spread).float() for part in features)
    several = labels[0].dim() == 2
    outputs = labels[0].shape[1] if several else max(int(part.max()) for part in labels) + 1
    on_dev, on_test = {}, {}
    with torch.random.fork_rng(devices=[]):
        for name in ("logistic", "mlp"):
            torch.manual_seed(seed)
            fitted = _fit(name, problem, train, labels[0], outputs)
            with torch.no_grad():
                on_dev[name] = problem.score(problem.in_unit(fitted(dev)), labels[1])
                on_test[name] = problem.in_unit(fitted(test))
    return max(on_dev, key=lambda name: on_dev[name]), on_test


def _fit(
    name: str, problem: Problem, features: torch.Tensor, labels: torch.Tensor, outputs: int
) -> nn.Module:
    """A model fitted to the whole training set at once; ``logistic`` is linear in any problem."""
    width = features.shape[1]
    if name == "logistic":
        linear = nn.Linear(width, outputs)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        optimizer = torch.optim.LBFGS(
            linear.parameters(), max_iter=100, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = problem.task_loss(problem.in_unit(linear(features)), labels)
            loss = loss + 1e-3 * linear.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return linear
    network = nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, outputs))
    adam = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(_MLP_STEPS):
        adam.zero_grad()
        problem.task_loss(problem.in_unit(network(features)), labels).backward()
        adam.step()
    return network


def _standard_error(problem: Problem, logits: torch.Tensor, labels: torch.Tensor) -> float:
    count = len(labels)
    if problem.kind == "single_label_classification":
        accuracy = problem.score(logits, labels)
        return float(np.sqrt(accuracy * (1 - accuracy) / count))
    random = np.random.default_rng(0)
    draws = (torch.from_numpy(random.integers(count, size=count)) for _ in range(_RESAMPLES))
    return float(np.std([problem.score(logits[rows], labels[rows]) for rows in draws], ddof=1))
