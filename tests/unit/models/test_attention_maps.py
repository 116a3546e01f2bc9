"""Attention computed again from queries and keys, beside what the libraries themselves compute."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from rekd_edge.models.attention_maps import head_count, pooled_attention
from rekd_edge.models.convolution import ConvEncoder
from rekd_edge.models.encoder import BertEncoder, VitEncoder
from rekd_edge.models.rationalist import Predictor

LENGTHS = (7, 4)


def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    model.set_attn_implementation("eager")  # the only one that returns its attention
    return model


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_bert_attends_as_transformers_says(pooling: str) -> None:
    model = bert()
    encoder = BertEncoder(model, cls_id=1, sep_id=2)
    predictor = Predictor(encoder, 2, pooling=pooling)
    ids = torch.randint(3, 50, (2, max(LENGTHS)))
    ids[:, 0] = 1
    attended = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    inputs = {"input_ids": ids, "attention_mask": attended.long()}
    with torch.no_grad():
        theirs = torch.cat(model(**inputs, output_attentions=True).attentions, dim=1)
        found = pooled_attention(predictor, encoder.view(inputs))
        last = pooled_attention(predictor, encoder.view(inputs), last_block=True)
    for row, length in enumerate(LENGTHS):
        queries = theirs[row, :, :1] if pooling == "cls" else theirs[row, :, :length]
        assert torch.allclose(found[row], queries.mean(dim=1)[:, 1:], atol=1e-5)
        assert not found[row, :, length - 1 :].any()
    assert head_count(encoder) == 8
    assert torch.equal(last, found[:, 4:])


def test_a_mixture_of_logits_is_softmaxed_to_the_probability_of_one_query() -> None:
    encoder = BertEncoder(bert(), cls_id=1, sep_id=2)
    predictor = Predictor(encoder, 2, pooling="cls")
    ids = torch.tensor([[1, 7, 8, 9]])
    view = encoder.view({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with torch.no_grad():
        logit = pooled_attention(predictor, view, form="logit")
        probability = pooled_attention(predictor, view)
    among_content = probability / probability.sum(dim=2, keepdim=True)
    assert torch.allclose(logit.softmax(dim=2), among_content, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vit_attends_as_timm_says(pooling: str) -> None:
    torch.manual_seed(0)
    backbone: Any = timm.create_model("test_vit", img_size=48, num_classes=0, pretrained=False)
    backbone.eval()
    seen: list[Tensor] = []
    for block in backbone.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    images = torch.randn(2, 3, 48, 48)
    encoder = VitEncoder(backbone)
    with torch.no_grad():
        backbone.forward_features(images)
        found = pooled_attention(
            Predictor(encoder, 2, pooling=pooling), encoder.view({"pixel_values": images})
        )
    theirs, prefix = torch.cat(seen, dim=1), encoder.num_prefix_tokens
    pooled = [0] if pooling == "cls" else [0, *range(prefix, theirs.shape[2])]
    assert torch.allclose(found, theirs[:, :, pooled].mean(dim=2)[:, :, prefix:], atol=1e-5)
    assert head_count(encoder) == theirs.shape[1]


def test_a_convolution_has_no_attention() -> None:
    backbone = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    encoder = ConvEncoder(backbone, image_size=32, patch_size=16, depth=1)
    view = encoder.view({"pixel_values": torch.zeros(1, 3, 32, 32)})
    with pytest.raises(TypeError, match="ConvEncoder has no attention"):
        pooled_attention(Predictor(encoder, 2), view)
