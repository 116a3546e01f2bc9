"""Small fused rationalists of real architectures, with weights that make distinct answers.

torch and the backbones are imported inside the fixtures, so that collecting tests stays quick.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from rekd_edge.check import LabelledBatch, TextEdges
    from rekd_edge.convert import OnnxArtefact
    from rekd_edge.fuse import FusedPair, FusedRationalist, PlainClassifier
    from rekd_edge.models.class_wise import ClassHead
    from rekd_edge.models.encoder import Encoder
    from rekd_edge.models.rationalist import Rationalist

CLS, SEP, PAD = 101, 102, 0
MAX_LENGTH = 48
LABELS = ("negative", "neutral", "positive")


def _bert() -> Encoder:
    from transformers import BertConfig, BertModel

    from rekd_edge.models.encoder import BertEncoder

    config = BertConfig(
        vocab_size=600,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.3,
    )
    return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=CLS, sep_id=SEP)


def _vit() -> Encoder:
    import timm

    from rekd_edge.models.encoder import VitEncoder

    return VitEncoder(
        timm.create_model("test_vit", img_size=64, num_classes=0, depth=1, pretrained=False)
    )


def _fused(
    encoder: Callable[[], Encoder], max_length: int | None, seed: int = 0
) -> FusedRationalist:
    import torch

    from rekd_edge.fuse import fuse
    from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist

    torch.manual_seed(seed)
    model = Rationalist(BlockSelector(encoder()), Predictor(encoder(), len(LABELS)), 0.3)
    for head in (model.selector.head, model.predictor.head):
        torch.nn.init.normal_(head.weight)
    return fuse(model, label_names=LABELS, max_length=max_length)


@pytest.fixture(scope="session")
def tiny_text() -> FusedRationalist:
    """Text, three classes, ratio 0.3, up to 48 tokens."""
    return _fused(_bert, MAX_LENGTH)


@pytest.fixture(scope="session")
def tiny_image() -> FusedRationalist:
    """Images of 64 pixels in 16 patches, three classes, ratio 0.3."""
    return _fused(_vit, None)


@pytest.fixture(scope="session")
def tiny_pair(tiny_text: FusedRationalist) -> FusedPair:
    """The text model with a partner of other weights."""
    from rekd_edge.fuse import fuse_pair

    return fuse_pair(tiny_text, _fused(_bert, MAX_LENGTH, seed=1))


@pytest.fixture(scope="session")
def class_wise_text() -> tuple[Rationalist, ClassHead]:
    """A text rationalist, not fused, three classes, ratio 0.3, and a class head beside it."""
    from tests.unit.class_wise_models import text_model

    return text_model()


@pytest.fixture(scope="session")
def tiny_plain(tiny_text: FusedRationalist) -> PlainClassifier:
    from rekd_edge.fuse import PlainClassifier

    plain = PlainClassifier(tiny_text.predictor, label_names=LABELS, max_length=MAX_LENGTH)
    return plain.eval()


@pytest.fixture(scope="session")
def text_edges() -> TextEdges:
    from rekd_edge.check import TextEdges

    return TextEdges(CLS, SEP, PAD, MAX_LENGTH)


@pytest.fixture(scope="session")
def text_batches() -> list[LabelledBatch]:
    """Padded batches of mixed lengths; ids stay inside the vocabulary."""
    from rekd_edge.check import LabelledBatch

    rng = np.random.default_rng(0)
    batches = []
    for size, longest in ((8, 20), (8, 11), (3, 30)):
        ids = rng.integers(200, 600, (size, longest))
        lengths = rng.integers(4, longest + 1, size)
        lengths[0] = longest
        valid = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        ids[:, 0] = CLS
        ids[np.arange(size), lengths - 1] = SEP
        inputs = {"input_ids": np.where(valid, ids, PAD).astype(np.int64), "attention_mask": valid}
        batches.append(LabelledBatch(inputs, rng.integers(0, len(LABELS), size)))
    return batches


@pytest.fixture(scope="session")
def image_batches() -> list[LabelledBatch]:
    from rekd_edge.check import LabelledBatch

    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((9, 3, 64, 64), dtype=np.float32)
    return [LabelledBatch({"pixel_values": pixels}, rng.integers(0, len(LABELS), 9))]


@pytest.fixture(scope="session")
def tiny_text_onnx(
    tiny_text: FusedRationalist, tmp_path_factory: pytest.TempPathFactory
) -> OnnxArtefact:
    """The text model as exported; tests copy it before they change it."""
    from rekd_edge.convert import convert_to_onnx, load_target

    path: Path = tmp_path_factory.mktemp("tiny-text") / "model.onnx"
    return convert_to_onnx(
        tiny_text,
        tiny_text.io_spec(),
        path,
        target=load_target("onnx"),
        metadata={"recipe": "tiny"},
    )


@pytest.fixture(scope="session")
def tiny_pair_onnx(tiny_pair: FusedPair, tmp_path_factory: pytest.TempPathFactory) -> OnnxArtefact:
    from rekd_edge.convert import convert_to_onnx, load_target

    path: Path = tmp_path_factory.mktemp("tiny-pair") / "model.onnx"
    return convert_to_onnx(
        tiny_pair, tiny_pair.io_spec(), path, target=load_target("onnx"), metadata={}
    )


@pytest.fixture(scope="session")
def tiny_image_onnx(
    tiny_image: FusedRationalist, tmp_path_factory: pytest.TempPathFactory
) -> OnnxArtefact:
    from rekd_edge.convert import convert_to_onnx, load_target

    path: Path = tmp_path_factory.mktemp("tiny-image") / "model.onnx"
    return convert_to_onnx(
        tiny_image, tiny_image.io_spec(), path, target=load_target("onnx"), metadata={}
    )
