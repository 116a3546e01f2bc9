"""Training in int8: nearer to the fp32 student, repeatable, and nothing else is touched."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rekd_edge.convert import RecoverySpec, weights_sha256
from rekd_edge.convert.types import Part
from rekd_edge.data.preprocess import TextPreprocessor
from rekd_edge.data.split import ArraySplit
from rekd_edge.distill.recovery import Recovered, positional, recover
from rekd_edge.fuse import FusedRationalist
from rekd_edge.models.encoder import BertEncoder
from rekd_edge.models.selectors import SharedSelector
from rekd_edge.recipe.schema import TrainSpec

TEXTS = (
    "A dull and lifeless film that wastes a wonderful cast.",
    "It is warm, funny and beautifully acted from first to last.",
    "The plot makes no sense, and nobody seems to mind.",
    "One of the year's best surprises.",
    "An honest, moving story about people who rarely get one.",
    "Two hours of noise with a moral glued to the end.",
    "Clever enough to be interesting, but too pleased with itself.",
    "The children will laugh; their parents will look at their watches.",
)
BOTH: tuple[Part, ...] = ("selector", "predictor")


def spoil(encoder: nn.Module, factor: float = 300.0) -> None:
    """One channel of the attended values becomes large, and small again in the next product: the
    same function, but the range of an activation is ruined."""
    assert isinstance(encoder, BertEncoder)
    for layer in encoder.backbone.encoder.layer:
        joined = layer.get_submodule("attention.self.qkv")  # the value's rows are the last third
        after = layer.get_submodule("attention.output.dense")
        with torch.no_grad():
            row = 2 * joined.get_parameter("weight").shape[0] // 3 + 3
            joined.get_parameter("weight")[row] *= factor
            joined.get_parameter("bias")[row] *= factor
            after.get_parameter("weight")[:, 3] /= factor


@pytest.fixture(scope="module")
def spoilt(bundled_text_model: FusedRationalist) -> FusedRationalist:
    model = copy.deepcopy(bundled_text_model)
    spoil(model.predictor.encoder)
    spoil(model.selector.get_submodule("encoder"))
    return model


def recovered(
    model: FusedRationalist,
    preprocessor: TextPreprocessor,
    folder: Path,
    parts: Sequence[Part] = BOTH,
    seed: int = 0,
    epochs: float = 8,
) -> Recovered:
    texts = ArraySplit("train", np.zeros(len(TEXTS)), TEXTS)
    return recover(
        model,
        RecoverySpec(epochs=epochs, learning_rate=2e-3),
        precision="int8-dynamic",
        parts=parts,
        train=TrainSpec(batch_size=4),
        examples=texts,
        dev=texts,
        preprocessor=preprocessor,
        folder=folder,
        seed=seed,
        device="cpu",
    )


def test_a_spoilt_student_gets_nearer_to_its_fp32_answers_and_is_not_changed_itself(
    spoilt: FusedRationalist,
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    tmp_path: Path,
) -> None:
    inputs = bundled_text_preprocessor.encode(list(TEXTS))
    given = positional(spoilt, {name: torch.from_numpy(v) for name, v in inputs.items()})
    with torch.no_grad():
        assert torch.allclose(spoilt(*given)[0], bundled_text_model(*given)[0], atol=1e-4)
    before = weights_sha256(spoilt)
    first = recovered(spoilt, bundled_text_preprocessor, tmp_path / "first")
    assert weights_sha256(spoilt) == before
    assert first.steps == 16
    assert first.dev_loss_after < 0.8 * first.dev_loss_before
    assert not first.model.training
    assert not any(parameter.requires_grad for parameter in first.model.parameters())
    for name, module in first.model.named_modules():
        if isinstance(module, nn.Embedding):
            original = spoilt.get_submodule(name)
            assert torch.equal(module.weight, original.get_parameter("weight"))
    again = recovered(spoilt, bundled_text_preprocessor, tmp_path / "again")
    other = recovered(spoilt, bundled_text_preprocessor, tmp_path / "other", seed=1)
    assert weights_sha256(again.model) == weights_sha256(first.model)
    assert weights_sha256(other.model) != weights_sha256(first.model)


def test_where_the_predictor_alone_is_int8_the_selector_is_not_trained(
    spoilt: FusedRationalist, bundled_text_preprocessor: TextPreprocessor, tmp_path: Path
) -> None:
    made = recovered(spoilt, bundled_text_preprocessor, tmp_path, ("predictor",), epochs=1)
    assert weights_sha256(made.model.selector) == weights_sha256(spoilt.selector)
    assert weights_sha256(made.model.predictor) != weights_sha256(spoilt.predictor)


def test_a_selector_that_shares_the_predictors_blocks_keeps_its_scores(
    spoilt: FusedRationalist, bundled_text_preprocessor: TextPreprocessor, tmp_path: Path
) -> None:
    model = copy.deepcopy(spoilt)
    assert isinstance(model.predictor.encoder, BertEncoder)
    model.selector = SharedSelector(model.predictor.encoder, depth=1)
    model.requires_grad_(False).eval()
    made = recovered(model, bundled_text_preprocessor, tmp_path, ("predictor",), epochs=1)
    inputs = bundled_text_preprocessor.encode(list(TEXTS))
    given = positional(model, {name: torch.from_numpy(v) for name, v in inputs.items()})
    with torch.no_grad():
        before, after = model(*given), made.model(*given)
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[0], after[0])
