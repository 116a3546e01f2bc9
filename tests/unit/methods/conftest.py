"""Tiny rationalists over texts and images, with random weights that make distinct answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rekd_edge.methods import Method, Parts
    from rekd_edge.models.rationalist import Rationalist
    from rekd_edge.types import Batch

CLASSES = 3
RATIO = 0.25


def _text_model(shared: bool) -> Rationalist:
    import torch
    from transformers import BertConfig, BertModel

    from rekd_edge.models.encoder import BertEncoder
    from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
    from rekd_edge.models.selectors import SharedSelector

    def encoder() -> BertEncoder:
        config = BertConfig(
            vocab_size=60,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            initializer_range=0.3,
        )
        return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=1, sep_id=2)

    predictor = Predictor(encoder(), CLASSES)
    reader = predictor.encoder
    assert isinstance(reader, BertEncoder)
    selector = SharedSelector(reader, None) if shared else BlockSelector(encoder())
    for head in (selector.head, predictor.head):
        torch.nn.init.normal_(head.weight)
    return Rationalist(selector, predictor, RATIO)


@pytest.fixture
def text_model() -> Rationalist:
    import torch

    torch.manual_seed(0)
    return _text_model(shared=False).eval()


@pytest.fixture
def folded_model() -> Rationalist:
    import torch

    torch.manual_seed(0)
    return _text_model(shared=True).eval()


@pytest.fixture
def parts() -> Parts:
    import torch

    from rekd_edge.methods import Parts, WordNoise
    from rekd_edge.models.encoder import TokenView

    words = torch.arange(5, 60).repeat(2, 1)
    seen = torch.ones_like(words, dtype=torch.bool)
    view = TokenView(words, words, seen, seen)

    def noise() -> WordNoise:
        return WordNoise([view], 60)

    return Parts(lambda: _text_model(shared=False).selector.eval(), noise, CLASSES)


@pytest.fixture
def examples() -> Batch:
    """Four texts of 4 to 13 words."""
    import torch

    from rekd_edge.types import Batch

    rows = []
    for row in range(4):
        generator = torch.Generator().manual_seed(row)
        words = torch.randint(5, 60, (4 + 3 * row,), generator=generator)
        rows.append(torch.cat([torch.tensor([1]), words, torch.tensor([2])]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    return Batch(inputs, torch.arange(4) % CLASSES, torch.arange(4))


@pytest.fixture
def make_method(text_model: Rationalist, parts: Parts) -> Callable[..., Method]:
    """``make_method("n2r", lambda_norm=2)``: the method over the text model, noiseless exactly-k
    unless told otherwise."""
    from rekd_edge.methods import build_method
    from rekd_edge.recipe.schema import ObjectiveSpec

    def make(name: str, model: Rationalist | None = None, **keys: object) -> Method:
        stated: dict[str, object] = {"selection": "exactly_k", "selection_noise": 0, **keys}
        spec = ObjectiveSpec.model_validate({"method": name, **stated})
        return build_method(text_model if model is None else model, spec, None, parts)

    return make
