"""The mask-only probe finds a label that is written into the mask, and nothing where none is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from rekd_edge.evaluate.probe import mask_features, probe_masks
from rekd_edge.evaluate.rationales import Rationales

Draw = Callable[[np.random.Generator, int], np.ndarray]


def split(draw: Draw, count: int, seed: int, classes: int = 2) -> Rationales:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    keep = [draw(rng, int(label)) for label in labels]
    return Rationales(
        keep=keep,
        score=[np.zeros(len(own)) for own in keep],
        selectable=[np.ones(len(own), dtype=bool) for own in keep],
        labels=labels,
        predicted=None,
    )


def splits(draw: Draw, classes: int = 2) -> tuple[Rationales, Rationales, Rationales]:
    return (
        split(draw, 600, 1, classes),
        split(draw, 200, 2, classes),
        split(draw, 400, 3, classes),
    )


def random_text(rng: np.random.Generator, label: int) -> np.ndarray:
    length = int(rng.integers(8, 30))
    own = np.zeros(length, dtype=bool)
    own[rng.permutation(length)[: -(-length // 5)]] = True
    return own


def leaking_text(rng: np.random.Generator, label: int) -> np.ndarray:
    """Label 1 keeps neighbours, label 0 keeps tokens apart: only gaps and runs tell."""
    length = int(rng.integers(12, 30))
    own = np.zeros(length, dtype=bool)
    start = int(rng.integers(0, length - 4))
    own[start : start + 2 if label else start + 4 : 1 if label else 3] = True
    return own


def text_of_a_telling_length(rng: np.random.Generator, label: int) -> np.ndarray:
    length = int(rng.integers(8, 18) if label else rng.integers(18, 30))
    own = np.zeros(length, dtype=bool)
    own[rng.permutation(length)[:3]] = True
    return own


def test_random_masks_tell_nothing() -> None:
    state = torch.get_rng_state()
    found = probe_masks(*splits(random_text), "text")
    assert torch.equal(torch.get_rng_state(), state)
    assert abs(found.excess_points) < 3 * found.standard_error_points + 2
    assert (found.train_examples, found.test_examples) == (600, 400)


def test_a_label_in_the_shape_of_a_text_mask_is_found() -> None:
    found = probe_masks(*splits(leaking_text), "text")
    assert found.accuracy > 0.97
    assert found.excess_points > 40
    assert found.length_accuracy is not None
    assert found.length_accuracy < 0.6
    assert found.excess_over_length_points is not None
    assert found.excess_over_length_points > 35


def test_what_the_length_tells_is_not_laid_on_the_mask() -> None:
    found = probe_masks(*splits(text_of_a_telling_length), "text")
    assert found.length_accuracy is not None
    assert found.length_accuracy > 0.97
    assert found.excess_over_length_points is not None
    assert abs(found.excess_over_length_points) < 3


def test_a_label_in_an_image_mask_is_found_even_without_a_linear_rule() -> None:
    def linear(rng: np.random.Generator, label: int) -> np.ndarray:
        own = rng.random(16) < 0.3
        own[label] = True
        own[(label + 1) % 3] = False
        return own

    found = probe_masks(*splits(linear, classes=3), "image")
    assert found.accuracy > 0.9
    assert found.length_accuracy is None

    def exclusive_or(rng: np.random.Generator, label: int) -> np.ndarray:
        own = rng.random(16) < 0.5
        own[1] = own[0] ^ bool(label)
        return own

    found = probe_masks(*splits(exclusive_or), "image")
    assert found.chosen == "mlp"
    assert found.mlp_accuracy > 0.9
    assert found.logistic_accuracy < 0.65


def test_features_see_positions_and_not_tokens() -> None:
    masks = [np.asarray([True, False, False, True]), np.asarray([False] * 5), np.asarray([True])]
    features = mask_features(masks, "text")
    assert np.isfinite(features).all()
    assert features.shape[0] == 3
    image = mask_features([masks[0], masks[0]], "image")
    np.testing.assert_array_equal(image, [[1, 0, 0, 1]] * 2)
