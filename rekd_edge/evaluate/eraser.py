"""Agreement of rationales with gold rationales, after ERASER (DeYoung et al. 2020).

Every function takes, for each example, arrays over its selectable tokens: ``keep`` and ``gold``
bool ``[token]``, ``score`` float ``[token]``. Tokens are the model's: word pieces or patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOU_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class F1:
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """``token_micro``: over all tokens of the split; ``token_macro``: means over the examples.

    ``iou``: spans are maximal runs of tokens, and a predicted span is a hit if its best IoU with a
    gold span is at least .5; micro over all spans, and macro as the F1 of the mean precision and
    the mean recall of the examples. ``auprc`` is the mean over examples of the area under the
    precision-recall curve of the scores, by trapezoids as in ERASER's code; ``average_precision``
    the same without interpolation. ``mean_iou`` is the mean over examples of shared over joined
    tokens. ``gold_share`` is the share of tokens that are gold: the precision of chance.
    """

    token_micro: F1
    token_macro: F1
    iou_micro: F1
    iou_macro: F1
    auprc: float
    average_precision: float
    mean_iou: float
    gold_share: float
    examples: int


def agreement(
    keep: Sequence[np.ndarray], gold: Sequence[np.ndarray], score: Sequence[np.ndarray]
) -> Agreement:
    """All measures; every example has at least one gold token.

    Raises:
        ValueError: no examples, or one without gold.
    """
    if not keep or not all(one.any() for one in gold):
        raise ValueError("every example needs a gold token")
    token_micro, token_macro = token_f1(keep, gold)
    iou_micro, iou_macro = iou_f1(keep, gold)
    joined = [(k & g).sum() / (k | g).sum() for k, g in zip(keep, gold, strict=True)]
    curves = [precision_recall(g, s) for g, s in zip(gold, score, strict=True)]
    return Agreement(
        token_micro=token_micro,
        token_macro=token_macro,
        iou_micro=iou_micro,
        iou_macro=iou_macro,
        auprc=float(np.mean([_trapezoids(*curve) for curve in curves])),
        average_precision=float(np.mean([_steps(*curve) for curve in curves])),
        mean_iou=float(np.mean(joined)),
        gold_share=sum(int(g.sum()) for g in gold) / sum(len(g) for g in gold),
        examples=len(keep),
    )


def token_f1(keep: Sequence[np.ndarray], gold: Sequence[np.ndarray]) -> tuple[F1, F1]:
    """Micro and macro token F1. Macro averages precision, recall and F1 of the examples, as
    ERASER's code does, so that its f1 is not that of its precision and recall."""
    shared = np.asarray([(k & g).sum() for k, g in zip(keep, gold, strict=True)], dtype=np.float64)
    kept = np.asarray([k.sum() for k in keep], dtype=np.float64)
    true = np.asarray([g.sum() for g in gold], dtype=np.float64)
    micro = _f1(_ratio(shared.sum(), kept.sum()), _ratio(shared.sum(), true.sum()))
    each = [
        _f1(_ratio(both, k), _ratio(both, g)) for both, k, g in zip(shared, kept, true, strict=True)
    ]
    macro = F1(
        float(np.mean([one.precision for one in each])),
        float(np.mean([one.recall for one in each])),
        float(np.mean([one.f1 for one in each])),
    )
    return micro, macro


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs of True in bool ``[token]``: (first, after the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def iou_f1(
    keep: Sequence[np.ndarray], gold: Sequence[np.ndarray], threshold: float = IOU_THRESHOLD
) -> tuple[F1, F1]:
    """Micro and macro F1 of spans, where a hit is an IoU of at least ``threshold``."""
    hits, predicted, true = [], [], []
    for own_keep, own_gold in zip(keep, gold, strict=True):
        spans, wanted = runs(own_keep), runs(own_gold)
        best = [max((_span_iou(span, one) for one in wanted), default=0.0) for span in spans]
        hits.append(sum(iou >= threshold for iou in best))
        predicted.append(len(spans))
        true.append(len(wanted))
    micro = _f1(_ratio(sum(hits), sum(predicted)), _ratio(sum(hits), sum(true)))
    precision = [_ratio(h, p) for h, p in zip(hits, predicted, strict=True) if p]
    recall = [_ratio(h, t) for h, t in zip(hits, true, strict=True) if t]
    return micro, _f1(_mean(precision), _mean(recall))


def precision_recall(gold: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at every distinct threshold, best scores first, after the point
    (precision 1, recall 0). Tokens of equal score enter together."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    found = np.cumsum(gold[order])[last]
    precision = np.concatenate([[1.0], found / (last + 1)])
    return precision, np.concatenate([[0.0], found / max(1, int(gold.sum()))])


def _trapezoids(precision: np.ndarray, recall: np.ndarray) -> float:
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))


def _steps(precision: np.ndarray, recall: np.ndarray) -> float:
    return float(np.sum(np.diff(recall) * precision[1:]))


def _span_iou(first: tuple[int, int], second: tuple[int, int]) -> float:
    shared = max(0, min(first[1], second[1]) - max(first[0], second[0]))
    return shared / (first[1] - first[0] + second[1] - second[0] - shared)


def _f1(precision: float, recall: float) -> F1:
    total = precision + recall
    return F1(precision, recall, 2 * precision * recall / total if total else 0.0)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
