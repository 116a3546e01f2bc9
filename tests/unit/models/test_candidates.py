"""Who can be dropped and who counts, in text and in images."""

from __future__ import annotations

import pytest
import timm
import torch
from transformers import BertConfig, BertModel

from rekd_edge.models.candidates import ALL_CONTENT, Positions, candidates, classify
from rekd_edge.models.encoder import BertEncoder, Encoder, VitEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, PublishedHead, Rationalist
from rekd_edge.models.selectors import SharedSelector

CLS, SEP = 101, 102


def bert() -> Encoder:
    config = BertConfig(
        vocab_size=200,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=CLS, sep_id=SEP)


def vit() -> Encoder:
    return VitEncoder(
        timm.create_model("test_vit", img_size=64, num_classes=0, depth=1, pretrained=False)
    )


@pytest.fixture
def text_model() -> Rationalist:
    torch.manual_seed(0)
    return Rationalist(BlockSelector(bert()), Predictor(bert(), 2, pooling="cls"), 0.25).eval()


@pytest.fixture
def text() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[CLS, 7, 8, 9, 10, SEP], [CLS, 11, 12, SEP, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize(
    ("positions", "counts", "width", "num_prefix"),
    [
        (ALL_CONTENT, [4, 2], 5, 0),
        (Positions(special=True), [6, 4], 6, 1),
        (Positions(padded_length=9), [7, 7], 8, 0),
        (Positions(special=True, padded_length=9), [9, 9], 9, 1),
    ],
)
def test_what_counts_in_text(
    positions: Positions,
    counts: list[int],
    width: int,
    num_prefix: int,
    text_model: Rationalist,
    text: dict[str, torch.Tensor],
) -> None:
    found = candidates(text_model, text, positions)
    assert found.counted.sum(dim=1).tolist() == counts
    assert found.logits.shape == (2, width, 2)
    assert found.num_prefix == num_prefix
    content = found.logits[:, num_prefix:]
    plain = text_model.selector(text)
    assert torch.allclose(content[:, :5], plain.logits, atol=1e-5)


def test_cls_can_be_masked_in_text(text_model: Rationalist, text: dict[str, torch.Tensor]) -> None:
    found = candidates(text_model, text, Positions(special=True, padded_length=9))
    keep = torch.ones(2, 9)
    whole = classify(text_model, found.scores.view, keep, found.num_prefix, "zero")
    keep[:, 0] = 0
    without = classify(text_model, found.scores.view, keep, found.num_prefix, "zero")
    assert not torch.allclose(whole, without, atol=1e-4)


def test_padding_counts_but_is_not_attended(
    text_model: Rationalist, text: dict[str, torch.Tensor]
) -> None:
    found = candidates(text_model, text, Positions(special=True, padded_length=9))
    keep = torch.ones(2, 9)
    for masking in ("zero", "exclude"):
        whole = classify(text_model, found.scores.view, keep, 1, masking)
        dropped = keep.clone()
        dropped[0, 6:] = 0
        dropped[1, 4:] = 0
        without = classify(text_model, found.scores.view, dropped, 1, masking)
        assert torch.allclose(whole, without, atol=1e-6)


def test_a_zeroed_token_hides_its_word_and_not_its_place(
    text_model: Rationalist, text: dict[str, torch.Tensor]
) -> None:
    keep = torch.tensor([[1.0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    other = {**text, "input_ids": text["input_ids"].clone()}
    other["input_ids"][0, 2] = 99  # the dropped word is another one
    view = text_model.predictor.encoder.view
    zeroed = text_model.classify_zeroed(view(text), keep)
    assert torch.equal(zeroed, text_model.classify_zeroed(view(other), keep))
    excluded = text_model.classify_masked(view(text), keep.bool())
    assert not torch.allclose(zeroed[0], excluded[0], atol=1e-4)
    # Transformers' own embeddings, given the masked words, are what the blocks see.
    encoder = text_model.predictor.encoder
    assert isinstance(encoder, BertEncoder)
    words = encoder.backbone.embeddings.word_embeddings(text["input_ids"])
    mask = torch.cat([torch.ones(2, 1), keep], dim=1).unsqueeze(2)
    hidden = encoder.backbone(
        inputs_embeds=words * mask, attention_mask=text["attention_mask"]
    ).last_hidden_state
    assert torch.allclose(text_model.predictor.head(hidden[:, 0]), zeroed, atol=1e-5)


def test_images_keep_their_class_token_and_their_positions() -> None:
    torch.manual_seed(0)
    model = Rationalist(BlockSelector(vit()), Predictor(vit(), 2, pooling="cls"), 0.25).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 64, 64)}
    found = candidates(model, inputs, Positions(special=True, padded_length=9))
    assert found.num_prefix == 0
    assert found.counted.sum(dim=1).tolist() == [16, 16]
    keep = torch.zeros(2, 16)
    keep[:, 3] = 1
    zeroed = model.classify_zeroed(found.scores.view, keep)
    # timm's own blocks on masked patch embeddings, positions and class token added afterwards.
    encoder = model.predictor.encoder
    assert isinstance(encoder, VitEncoder)
    backbone = encoder.backbone
    patches = backbone.patch_embed(inputs["pixel_values"]).flatten(1, 2) * keep.unsqueeze(2)
    assert backbone.num_prefix_tokens == 1
    tokens = torch.cat([backbone.cls_token.expand(2, -1, -1), patches], dim=1)
    tokens = tokens + backbone.pos_embed
    hidden = backbone.norm(backbone.blocks(backbone.norm_pre(tokens)))
    assert torch.allclose(model.predictor.head(hidden[:, 0]), zeroed, atol=1e-5)


def test_a_selector_that_shares_blocks_cannot_score_special_tokens(
    text: dict[str, torch.Tensor],
) -> None:
    encoder = bert()
    model = Rationalist(SharedSelector(encoder, 1), Predictor(encoder, 2), 0.25)
    with pytest.raises(ValueError, match="special tokens"):
        candidates(model, text, Positions(special=True))


def test_the_published_head_has_its_layers_and_starts_xavier_uniform() -> None:
    torch.manual_seed(0)
    head = PublishedHead(64, width=256, dropout=0.5)
    assert isinstance(head.hidden, torch.nn.Linear)
    bound = (6 / (64 + 256)) ** 0.5
    largest = float(head.hidden.weight.detach().abs().max())
    assert 0.95 * bound < largest <= bound
    head.eval()
    hidden = torch.randn(3, 64)
    expected = torch.relu(hidden @ head.hidden.weight.T) @ head.weight.T
    assert torch.allclose(head(hidden), expected, atol=1e-6)
    torch.manual_seed(1)
    assert not torch.allclose(head.train()(hidden), expected)
