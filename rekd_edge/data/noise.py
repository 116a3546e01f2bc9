"""Examples that mean nothing: ``data.source: random``.

How fast a model is trained or answers depends on the shapes of its input, not on what is seen
there. Where no data set is at hand, these stand in for CIFAR-10's images and for sentences of film
reviews. Labels are random, so no accuracy can be learnt.
"""

from __future__ import annotations

import numpy as np

from rekd_edge.data.source import SourceData
from rekd_edge.data.split import ArraySplit
from rekd_edge.types import Modality

RANDOM = "random"
"""Name of the source."""
EXAMPLES = {"train": 10_000, "test": 2_000}
IMAGE_SIDE = 32
IMAGE_LABELS = tuple(f"class {number}" for number in range(10))
TEXT_LABELS = ("negative", "positive")
WORDS = (
    "a the of and to is in it that as with this film movie story for its but one on an be by not "
    "you are from has more have at like who his all than about so or good time just if what into "
    "her up comedy he some no most out characters way even life much too there makes only never "
    "love well little work enough drama best bad plot funny acting real first"
)
"""Each is one word piece of the usual vocabularies."""
MOST_WORDS = 60


def random_examples(modality: Modality) -> SourceData:
    """The same ones every time: images uint8 of 32 x 32 pixels in ten classes, or lower-case texts
    of 3 to 60 words, 19 in the middle, in two."""
    rng = np.random.default_rng(0)
    labels = IMAGE_LABELS if modality == "image" else TEXT_LABELS
    train, test = (
        ArraySplit(
            name,
            rng.permutation(np.arange(count) % len(labels)),
            _images(rng, count) if modality == "image" else _texts(rng, count),
        )
        for name, count in EXAMPLES.items()
    )
    facts = {"examples": "random; no accuracy means anything"}
    return SourceData(train, labels, test=test, facts=facts)


def _images(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 256, (count, IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)


def _texts(rng: np.random.Generator, count: int) -> list[str]:
    lengths = rng.lognormal(np.log(19), 0.5, count).round().clip(3, MOST_WORDS).astype(int)
    words = np.asarray(WORDS.split())
    return [" ".join(words[rng.integers(0, len(words), length)]) for length in lengths]
