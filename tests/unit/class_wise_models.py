"""Small rationalists with a class head, unfused, and texts for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rekd_edge.models.class_wise import ClassHead
from rekd_edge.models.encoder import BertEncoder, VitEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist

if TYPE_CHECKING:
    from rekd_edge.types import Batch

CLS, SEP, PAD = 101, 102, 0
LABELS = ("negative", "neutral", "positive")


def bert() -> BertEncoder:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=600,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=48,
        initializer_range=0.3,
    )
    return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=CLS, sep_id=SEP)


def vit() -> VitEncoder:
    import timm

    return VitEncoder(
        timm.create_model("test_vit", img_size=64, num_classes=0, depth=1, pretrained=False)
    )


def text_model() -> tuple[Rationalist, ClassHead]:
    """Three classes, ratio 0.3."""
    torch.manual_seed(0)
    model = Rationalist(BlockSelector(bert()), Predictor(bert(), len(LABELS)), 0.3).eval()
    head = ClassHead.beside(model).eval()
    for layer in (model.selector.head, model.predictor.head, head):
        torch.nn.init.normal_(layer.weight)
    return model, head


def texts(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Padded texts with so many words each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths) + 2), PAD)
    for row, length in enumerate(lengths):
        words = torch.randint(200, 600, (length,), generator=generator)
        ids[row, : length + 2] = torch.tensor([CLS, *words.tolist(), SEP])
    return ids, (ids != PAD).to(torch.int64)


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    from rekd_edge.types import Batch

    ids, valid = texts(lengths, seed)
    count = len(lengths)
    labels = torch.arange(count) % len(LABELS)
    return Batch({"input_ids": ids, "attention_mask": valid}, labels, torch.arange(count))
