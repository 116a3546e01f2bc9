"""A backward pass through kept tokens alone has the gradients of one through all."""

from __future__ import annotations

import pytest
import torch

from rekd_edge.models.encoder import BertEncoder, Encoder, VitEncoder
from rekd_edge.models.kept import can_classify_kept, classify_kept
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
from rekd_edge.selection import select_top_k, slot_count


def bert() -> Encoder:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=300,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=101, sep_id=102)


def vit() -> Encoder:
    import timm

    return VitEncoder(
        timm.create_model("test_vit", img_size=64, num_classes=0, depth=2, pretrained=False)
    )


def text_inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(103, 300, (5, 20))
    lengths = torch.tensor([20, 4, 11, 17, 3])
    attended = torch.arange(20) < lengths.unsqueeze(1)
    ids[:, 0] = 101
    ids[torch.arange(5), lengths - 1] = 102
    return {"input_ids": ids * attended, "attention_mask": attended.long()}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_answer_and_all_gradients_are_those_of_the_masked_form(kind: str, pooling: str) -> None:
    torch.manual_seed(0)
    encoder = bert if kind == "text" else vit
    inputs = text_inputs() if kind == "text" else {"pixel_values": torch.randn(5, 3, 64, 64)}
    model = Rationalist(BlockSelector(encoder()), Predictor(encoder(), 3, pooling=pooling), 0.3)
    model = model.double()
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
    for head in (model.selector.head, model.predictor.head):
        torch.nn.init.normal_(head.weight)
    labels = torch.randint(0, 3, (5,))
    slots = slot_count(len(model.selector(inputs).view.content[0]), *model.ratio_fraction)

    def gradients(kept: bool, filled: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        scores = model.selector(inputs)
        weight, keep = select_top_k(
            "sigmoid",
            scores.score,
            scores.view.selectable,
            model.budget(scores.view),
            temperature=5.0,
        )
        assert 0 < keep.sum() < scores.view.selectable.sum()
        if kept:
            logits = classify_kept(model.predictor, scores.view, weight, slots, filled=filled)
        else:
            logits = model.classify_masked(scores.view, weight)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return logits.detach(), named

    logits, expected = gradients(kept=False)
    for filled in (False, True) if kind == "image" else (False,):
        found_logits, found = gradients(True, filled)
        torch.testing.assert_close(found_logits, logits, rtol=0, atol=1e-6)
        assert found.keys() == expected.keys()
        assert any(name.startswith("selector.encoder") for name in found)
        for name, gradient in expected.items():
            scale = float(gradient.abs().max()) + 1e-9
            torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=0, atol=1e-6)


def test_scores_are_float32_and_kept_weights_are_one_in_bf16() -> None:
    torch.manual_seed(0)
    model = Rationalist(BlockSelector(vit()), Predictor(vit(), 3), 0.25)
    torch.nn.init.normal_(model.selector.head.weight)
    inputs = {"pixel_values": torch.randn(4, 3, 64, 64)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.selector(inputs)
        weight, keep = select_top_k(
            *("sigmoid", scores.score, scores.view.selectable, model.budget(scores.view)),
            temperature=1.0,
        )
    assert scores.score.dtype == torch.float32
    assert len(scores.score.unique()) == scores.score.numel()  # in bf16 some of 64 would be equal
    assert torch.equal(weight, keep.float())


def test_in_bf16_all_parameters_get_their_gradient() -> None:
    torch.manual_seed(0)
    predictor = Predictor(vit(), 3)
    pixels = torch.randn(2, 3, 64, 64)
    view = predictor.encoder.view({"pixel_values": pixels})
    keep = torch.zeros(2, 16)
    keep[:, ::4] = 1.0
    keep.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = classify_kept(predictor, view, keep, 4).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in predictor.parameters())
    assert keep.grad is not None
    assert (keep.grad[:, 1] != 0).all()  # what the answer would gain from a token that was dropped


def test_a_convolutional_network_has_no_such_form() -> None:
    from rekd_edge.models.convolution import ConvEncoder, new_convolutional

    backbone = new_convolutional("test_resnet", "random:test_resnet", 32, None)
    encoder = ConvEncoder(backbone, image_size=32, patch_size=8)
    assert not can_classify_kept(Predictor(encoder, 2))
