"""Gold rationales carried to the tokens of a model: spans through offsets, masks through area."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
from rekd_edge.data.split import Gold, Split
from rekd_edge.evaluate import eraser
from rekd_edge.evaluate.rationales import Rationales

GOLD_AREA = 0.5
"""A patch is gold if the mask covers at least this share of its area."""


@dataclass(frozen=True, slots=True)
class GoldAgreement:
    """Agreement with one kind of gold.

    ``without_gold`` examples have no gold token in what the model reads (none marked, cut off by
    ``max_length``, or thinner than half a patch) and are left out; ``cut_off`` counts examples that
    lose some of their gold to ``max_length``. ``scores`` is None where every example is left out.
    """

    name: str
    scores: eraser.Agreement | None
    without_gold: int
    cut_off: int


def compare_with_gold(
    name: str, rationales: Rationales, tokens: Sequence[np.ndarray], cut_off: int = 0
) -> GoldAgreement:
    """``tokens`` holds bool ``[token]`` for each example, content tokens as in ``rationales``."""
    keep, gold, score = [], [], []
    for row, marked in enumerate(tokens):
        selectable = rationales.selectable[row]
        own = marked[selectable]
        if own.any():
            keep.append(rationales.keep[row][selectable])
            gold.append(own)
            score.append(rationales.score[row][selectable])
    scores = eraser.agreement(keep, gold, score) if keep else None
    return GoldAgreement(name, scores, len(tokens) - len(keep), cut_off)


def text_gold(
    split: Split,
    preprocessor: TextPreprocessor,
    spans_of: Callable[[int], Sequence[tuple[int, int]]],
) -> tuple[list[np.ndarray], int]:
    """Gold content tokens of each text, bool ``[token]``, and the number of texts that lose gold
    to truncation. A token is gold if it shares a character with a span of ``spans_of(index)``."""
    rows: list[np.ndarray] = []
    cut_off = 0
    for index in range(len(split)):
        # The first token is [CLS], which is no content.
        offsets = np.asarray(preprocessor.offsets(str(split.raw(index)))[1:]).reshape(-1, 2)
        spans = spans_of(index)
        gold = np.zeros(len(offsets), dtype=bool)
        for start, end in spans:
            gold |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
        rows.append(gold)
        read_until = int(offsets[:, 1].max()) if len(offsets) else 0
        cut_off += any(end > read_until for _, end in spans)
    return rows, cut_off


def split_spans(split: Split) -> Callable[[int], Sequence[tuple[int, int]]]:
    """The character spans of a split that has them."""

    def spans(index: int) -> Sequence[tuple[int, int]]:
        assert split.gold is not None
        own: Gold = split.gold[index]
        assert isinstance(own, tuple)
        return own

    return spans


def image_gold(
    split: Split, preprocessor: ImagePreprocessor, grid: tuple[int, int]
) -> list[np.ndarray]:
    """Gold patches of each image, bool ``[patch]``, row by row."""
    assert split.gold is not None
    return [patch_share(np.asarray(mask), preprocessor, grid) >= GOLD_AREA for mask in split.gold]


def patch_share(
    mask: np.ndarray, preprocessor: ImagePreprocessor, grid: tuple[int, int]
) -> np.ndarray:
    """Share of each patch's area that ``mask``, bool ``[height, width]``, covers; float
    ``[patch]``. The mask is resized and cropped as its image is."""
    picture = np.repeat((mask.astype(np.uint8) * 255)[:, :, None], 3, axis=2)
    resized = preprocessor.resize(picture)[:, :, 0] / 255.0
    rows, columns = grid
    height, width = resized.shape[0] // rows, resized.shape[1] // columns
    blocks = resized[: rows * height, : columns * width].reshape(rows, height, columns, width)
    return blocks.mean(axis=(1, 3)).reshape(-1)
