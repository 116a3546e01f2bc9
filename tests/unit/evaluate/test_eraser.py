"""ERASER's measures against values computed by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from rekd_edge.evaluate.eraser import agreement, iou_f1, precision_recall, runs, token_f1


def flags(text: str) -> np.ndarray:
    return np.asarray([character == "x" for character in text])


KEEP = [flags("xx..x..."), flags("..xxxx")]
GOLD = [flags(".xxx...."), flags("..xxx.")]


def test_token_f1_by_hand() -> None:
    micro, macro = token_f1(KEEP, GOLD)
    # Example 1: 1 shared, 3 kept, 3 gold. Example 2: 3 shared, 4 kept, 3 gold.
    assert (micro.precision, micro.recall) == pytest.approx((4 / 7, 4 / 6))
    assert micro.f1 == pytest.approx(2 * 4 / 13)
    assert macro.precision == pytest.approx((1 / 3 + 3 / 4) / 2)
    assert macro.recall == pytest.approx((1 / 3 + 1) / 2)
    assert macro.f1 == pytest.approx((1 / 3 + 2 * 3 / 7) / 2)


def test_runs_are_maximal() -> None:
    assert runs(flags("xx.x")) == [(0, 2), (3, 4)]
    assert runs(flags("...")) == []
    assert runs(flags("xxx")) == [(0, 3)]


def test_iou_f1_by_hand() -> None:
    # Example 1: spans 0-2 and 4-5 against 1-4: IoU 1/4 and 0. Example 2: 2-6 against 2-5: 3/4.
    micro, macro = iou_f1(KEEP, GOLD)
    assert (micro.precision, micro.recall) == pytest.approx((1 / 3, 1 / 2))
    assert micro.f1 == pytest.approx(0.4)
    assert (macro.precision, macro.recall, macro.f1) == pytest.approx((0.5, 0.5, 0.5))
    # Half is enough, less is not.
    assert iou_f1([flags("xx..")], [flags("x...")])[0].f1 == 1.0
    assert iou_f1([flags("xxx.")], [flags("x...")])[0].f1 == 0.0
    assert iou_f1([flags("....")], [flags("x...")])[1].f1 == 0.0


def test_curve_by_hand_with_a_tie() -> None:
    gold, score = flags("x.x."), np.asarray([0.9, 0.5, 0.5, 0.1])
    precision, recall = precision_recall(gold, score)
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 2 / 4])
    np.testing.assert_allclose(recall, [0, 1 / 2, 1, 1])
    found = agreement([flags("x...")], [gold], [score])
    assert found.average_precision == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert found.auprc == pytest.approx(1 / 2 + 1 / 2 * (1 + 2 / 3) / 2)
    assert found.mean_iou == pytest.approx(1 / 2)
    assert found.gold_share == 0.5


@pytest.mark.parametrize("levels", [3, 1000])
def test_areas_are_those_of_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(50):
        count = int(rng.integers(2, 30))
        gold = rng.random(count) < 0.4
        gold[rng.integers(count)] = True
        score = rng.integers(0, levels, count).astype(np.float64)
        found = agreement([gold], [gold], [score])
        precision, recall, _ = precision_recall_curve(gold, score)
        assert found.auprc == pytest.approx(auc(recall, precision))
        assert found.average_precision == pytest.approx(average_precision_score(gold, score))


def test_an_example_without_gold_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a gold token"):
        agreement([flags("x.")], [flags("..")], [np.zeros(2)])
    with pytest.raises(ValueError, match="needs a gold token"):
        agreement([], [], [])
