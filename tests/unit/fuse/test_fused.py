"""The fused model is the trained model, and reads nothing but the rationale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from transformers import BertConfig, BertModel

from rekd_edge.fuse import FuseReport, fuse
from rekd_edge.fuse.folds import FOLDS, Fold, apply_folds
from rekd_edge.fuse.fused import FusedRationalist, PlainClassifier, masked_form, plain_form
from rekd_edge.fuse.report import Flops, fuse_report
from rekd_edge.models.convolution import ConvEncoder
from rekd_edge.models.encoder import BertEncoder, TokenReader, VitEncoder, fold_into
from rekd_edge.models.rationalist import (
    BlockSelector,
    Classifier,
    Predictor,
    Rationalist,
    Selector,
)
from rekd_edge.models.selectors import (
    ConvolutionMixer,
    LightSelector,
    LowResolutionSelector,
    PixelEmbedding,
    SharedSelector,
    WordEmbedding,
)
from rekd_edge.types import Batch, PixelScale


def text_encoder() -> TokenReader:
    config = BertConfig(
        vocab_size=3000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
    )
    return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=101, sep_id=102)


def image_encoder() -> TokenReader:
    backbone = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=64, depth=1
    )
    return VitEncoder(backbone)


def convolution() -> TokenReader:
    backbone = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    return ConvEncoder(backbone, image_size=64, patch_size=16)


def rationalist(encoder: TokenReader, other: TokenReader, ratio: float = 0.25) -> Rationalist:
    model = Rationalist(BlockSelector(encoder), Predictor(other, 3), ratio)
    torch.nn.init.normal_(model.selector.head.weight)
    torch.nn.init.normal_(model.predictor.head.weight)
    return model.eval()


def fused_models() -> list[tuple[Rationalist, FusedRationalist]]:
    torch.manual_seed(0)
    pairs = []
    for make in (text_encoder, image_encoder, convolution):
        model = rationalist(make(), make())
        pairs.append((model, fuse(model, label_names=("a", "b", "c"), max_length=64)))
    return pairs


def test_fused_equals_the_trained_model() -> None:
    for model, fused in fused_models():
        inputs = fused.example_inputs(batch=3, tokens=14)
        logits, keep, score, margin, index, valid = fused(*inputs)
        assert torch.allclose(logits, model(fused.named_inputs(inputs)), atol=1e-6)
        assert keep.shape == score.shape
        assert margin.shape == (3,)
        # 12 selectable words or 16 patches
        expected = 3 if fused.modality == "text" else 4
        assert keep.sum(dim=1).tolist() == [expected] * 3
        for row in range(3):
            assert index[row][valid[row]].tolist() == keep[row].nonzero().flatten().tolist()


SCALE = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def selectors_over(encoder: VitEncoder) -> list[Selector]:
    small = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=32, depth=1
    )
    embedding = PixelEmbedding((4, 4), (16, 16), 8)
    return [
        BlockSelector(image_encoder()),
        SharedSelector(encoder, 1),
        LowResolutionSelector(VitEncoder(small), (4, 4), (16, 16)),
        LightSelector(embedding, [ConvolutionMixer(8, 3, (4, 4))]),
    ]


@pytest.mark.parametrize("kind", range(5))
def test_eight_bit_pixels_give_the_answer_of_normalised_ones(kind: int) -> None:
    torch.manual_seed(kind)
    if kind == 4:
        model = rationalist(convolution(), convolution())
    else:
        encoder = image_encoder()
        assert isinstance(encoder, VitEncoder)
        selector = selectors_over(encoder)[kind]
        model = Rationalist(selector, Predictor(encoder, 3), 0.25).eval()
        torch.nn.init.normal_(model.predictor.head.weight)
    fused = fuse(model, label_names=("a", "b", "c"), max_length=None, pixel_scale=SCALE)
    (pixels,) = fused.example_inputs(batch=3)
    assert pixels.dtype == torch.uint8
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SCALE.mean, SCALE.std))
    normalised = {"pixel_values": (pixels / 255 - mean) / std}
    logits, keep, *_ = fused(pixels)
    # The trained model is left as it was.
    assert torch.allclose(logits, model(normalised), atol=2e-5)
    assert torch.equal(keep, model.keep(model.selector(normalised)))
    masked = masked_form(fused)
    assert torch.equal(masked(pixels)[1], keep)
    plain = plain_form(
        Classifier(model.predictor), label_names=("a", "b", "c"), max_length=None, pixel_scale=SCALE
    )
    assert torch.allclose(plain(pixels)[0], Classifier(model.predictor)(normalised), atol=2e-5)


def test_normalisation_is_not_folded_into_a_padded_projection() -> None:
    with pytest.raises(ValueError, match="padded"):
        fold_into(torch.nn.Conv2d(3, 4, 3, padding=1), SCALE)


def test_a_class_token_is_never_kept_and_scores_lowest() -> None:
    _, fused = fused_models()[0]
    _, keep, score, *_ = fused(*fused.example_inputs(batch=4, tokens=10))
    assert not keep[:, 0].any()
    assert not keep[:, -1].any()
    assert bool((score[:, 0] == torch.finfo(torch.float32).min).all())


def test_unselected_content_does_not_reach_the_logits() -> None:
    for _, fused in fused_models():
        inputs = fused.example_inputs(batch=2, tokens=20)
        logits, keep, _, _, index, valid = fused(*inputs)
        changed = list(inputs)
        if fused.modality == "text":
            other = torch.randint(200, 3000, inputs[0].shape)
            changed[0] = torch.where(keep, inputs[0], other)
        else:
            pixels = keep.reshape(2, 4, 4).repeat_interleave(16, 1).repeat_interleave(16, 2)
            changed[0] = torch.where(pixels.unsqueeze(1), inputs[0], torch.randn_like(inputs[0]))
        assert not torch.equal(changed[0], inputs[0])
        again = fused.predict_from(*changed, index, valid)
        assert torch.equal(again, fused.predict_from(*inputs, index, valid))
        assert torch.allclose(again, logits, atol=1e-6)


def test_padding_does_not_change_an_answer() -> None:
    _, fused = fused_models()[0]
    ids, attended = fused.example_inputs(batch=1, tokens=12)
    padded = torch.nn.functional.pad(ids, (0, 9))
    short = fused(ids, attended)
    long = fused(padded, torch.nn.functional.pad(attended, (0, 9)))
    assert torch.allclose(short[0], long[0], atol=1e-5)
    assert torch.equal(short[1], long[1][:, :12])
    assert not long[1][:, 12:].any()


def test_fusing_copies_the_weights() -> None:
    model, fused = fused_models()[0]
    with torch.no_grad():
        model.predictor.head.weight.zero_()
    assert bool(fused.predictor.head.weight.abs().sum() > 0)


def test_comparison_forms_share_inputs_and_labels() -> None:
    torch.manual_seed(0)
    for _, fused in fused_models():
        inputs = fused.example_inputs()
        masked = masked_form(fused)
        assert torch.equal(masked(*inputs)[1], fused(*inputs)[1])
        assert masked.io_spec() == fused.io_spec()
    plain = plain_form(
        Classifier(Predictor(text_encoder(), 2)), label_names=("a", "b"), max_length=64
    )
    (logits,) = plain(*plain.example_inputs(batch=5))
    assert logits.shape == (5, 2)


def test_each_fold_is_exact_and_saves_what_it_says() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        num_classes=0,
        img_size=64,
        depth=2,
        init_values=0.5,
    )
    blocks: Any = backbone.blocks
    for block in blocks:
        torch.nn.init.normal_(block.ls1.gamma)
        torch.nn.init.normal_(block.ls2.gamma)
    model = rationalist(VitEncoder(backbone), image_encoder())
    fused = fuse(model, label_names=("a", "b", "c"), max_length=None, pixel_scale=SCALE)
    folds = {fold.name: fold for fold in fused.folds}
    assert list(folds) == ["selection head", "layer scale", "attention", "pixels"]
    assert all(fold.same_rationale and fold.max_difference < 1e-4 for fold in fused.folds)
    # 192 weights and a bias of the head's second row; two scales in each of two blocks.
    assert folds["selection head"].weights == 193
    assert folds["layer scale"].weights == 4 * 192
    assert folds["selection head"].flops == 2 * 192 * 16
    assert [fold.name for fold in fuse_text().folds] == [
        "word table",
        "selection head",
        "embeddings",
        "convolution",
        "attention",
        "query, key and value",
    ]
    # 32 channels projected to 8 for each of 14 tokens, and what is left of 3000 word vectors.
    assert fuse_text().folds[0].flops == 2 * 32 * 8 * 15


def test_folds_leave_no_module_in_training_mode() -> None:
    backbone = timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        num_classes=0,
        img_size=64,
        depth=1,
        init_values=0.5,
    )
    for encoder, length in ((VitEncoder(backbone), None), (text_encoder(), 64)):
        plain = PlainClassifier(Predictor(encoder, 2), label_names=("a", "b"), max_length=length)
        assert apply_folds(plain.eval(), None)
        assert not any(module.training for module in plain.modules())


def fuse_text() -> FusedRationalist:
    encoder = text_encoder()
    assert isinstance(encoder, BertEncoder)
    selector = LightSelector(WordEmbedding(encoder, 8), [ConvolutionMixer(8, 3, None)])
    model = Rationalist(selector, Predictor(text_encoder(), 3), 0.25).eval()
    return fuse(model, label_names=("a", "b", "c"), max_length=64)


def test_a_fold_that_changes_the_rationale_fails_the_report() -> None:
    report = FuseReport({}, Flops(1, 1, 2, 4), 1, 0.0, 0.0, 0, ())
    assert report.passed
    for bad in (Fold("x", 0.0, False, 0, 0), Fold("x", 1e-2, True, 0, 0)):
        assert not replace(report, folds=(bad,)).passed


def test_rounding_may_settle_a_near_tie_otherwise_and_nothing_else() -> None:
    """A collapsed selector: its scores differ by less than its two logits are rounded to."""
    encoder = text_encoder()
    assert isinstance(encoder, BertEncoder)
    selector = LightSelector(WordEmbedding(encoder, 8), [ConvolutionMixer(8, 3, None)])
    with torch.no_grad():
        selector.head.weight.mul_(1e-6)
        selector.head.bias.fill_(100.0)
    model = Rationalist(selector, Predictor(text_encoder(), 3), 0.25).eval()
    fused = fuse(model, label_names=("a", "b", "c"), max_length=64)
    inputs = fused.example_inputs()
    scores = model.selector(fused.named_inputs(inputs))
    assert not torch.equal(model.keep(scores), fused(*inputs)[1][:, 1:])
    assert all(fold.same_rationale and fold.max_difference < 1e-4 for fold in fused.folds)
    labels = torch.zeros(2, dtype=torch.long)
    batch = Batch(fused.named_inputs(inputs), labels, torch.arange(2))
    report = fuse_report(model, fused, lambda: [batch], draws=1)
    assert report.near_ties == 2
    assert report.passed


def test_a_fold_that_prefers_other_tokens_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: torch.nn.Module) -> bool:
        if not isinstance(module, Selector):
            return False
        module.head.weight.neg_()
        return True

    monkeypatch.setitem(FOLDS, "broken", broken)
    assert not fuse_text().folds[-1].same_rationale


def test_a_fold_that_ends_in_nan_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: torch.nn.Module) -> bool:
        if not isinstance(module, Predictor):
            return False
        module.head.weight.fill_(torch.nan)
        return True

    monkeypatch.setitem(FOLDS, "broken", broken)
    fold = fuse_text().folds[-1]
    assert fold.name == "broken"
    assert fold.max_difference == float("inf")
