"""`data.source: random`, for measuring speed without a data set."""

from __future__ import annotations

import numpy as np
import pytest

from rekd_edge.data.load import TaskData, load_source
from rekd_edge.data.split import ArraySplit
from rekd_edge.errors import RecipeError
from rekd_edge.recipe.schema import DataSpec
from rekd_edge.types import Modality


def load(modality: Modality) -> TaskData:
    return load_source(DataSpec(source="random"), modality)


def test_images_and_texts_of_the_usual_shapes_are_the_same_every_time() -> None:
    images, again = load("image"), load("image")
    assert len(images.label_names) == 10
    assert (len(images.train) + len(images.dev), len(images.test)) == (10_000, 2_000)
    first, second = images.train, again.train
    assert isinstance(first, ArraySplit)
    assert isinstance(second, ArraySplit)
    assert isinstance(first.examples, np.ndarray)
    assert (first.examples.shape[1:], first.examples.dtype) == ((32, 32, 3), np.uint8)
    assert np.array_equal(first.examples[:50], second.examples[:50])
    assert np.array_equal(first.labels, second.labels)
    texts = load("text")
    lengths = [len(str(texts.train.raw(index)).split()) for index in range(1000)]
    assert 17 <= np.median(lengths) <= 21
    assert (min(lengths), max(lengths)) >= (3, 50)
    assert max(lengths) <= 60
    assert texts.source["examples"].startswith("random")


def test_other_problems_are_refused() -> None:
    with pytest.raises(RecipeError, match="is for problem_type 'single_label_classification'"):
        load_source(DataSpec(source="random"), "image", "regression")
