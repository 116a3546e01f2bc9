"""Weights of a frozen teacher are rounded once, and are what autocast would make of them."""

from __future__ import annotations

import torch
from torch import nn

from rekd_edge.distill.compiled import HalfWeights
from rekd_edge.models.encoder import VitEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist


def rationalist() -> Rationalist:
    import timm

    def encoder() -> VitEncoder:
        return VitEncoder(
            timm.create_model("test_vit", img_size=64, num_classes=0, depth=1, pretrained=False)
        )

    return Rationalist(BlockSelector(encoder()), Predictor(encoder(), 3), 0.25).eval()


def types_of(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def test_answers_under_autocast_are_the_same_to_the_bit_and_weights_come_back() -> None:
    torch.manual_seed(0)
    frozen = rationalist().requires_grad_(False)
    inputs = {"pixel_values": torch.randn(3, 3, 64, 64)}
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    weights = HalfWeights([frozen], torch.bfloat16)

    def answer() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            return frozen.selector(inputs).score, frozen(inputs)

    expected = answer()
    with weights:
        rounded = types_of(frozen)
        addresses = {name: p.data_ptr() for name, p in frozen.named_parameters()}
        found = answer()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    halves = {name for name, dtype in rounded.items() if dtype == torch.bfloat16}
    assert any(name.endswith("qkv.weight") for name in halves)
    assert any(name.endswith("fc1.bias") for name in halves)
    assert not any("head" in name or "norm" in name or "patch_embed" in name for name in halves)
    assert frozen.state_dict().keys() == before.keys()
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with weights:  # at the same place again, as CUDA graphs need it
        assert addresses == {name: p.data_ptr() for name, p in frozen.named_parameters()}


def test_what_is_trained_keeps_its_precision_and_none_changes_nothing() -> None:
    student = rationalist()
    student.selector.requires_grad_(False)
    with HalfWeights([student], torch.bfloat16):
        trained = {n: p.dtype for n, p in student.named_parameters() if p.requires_grad}
        assert set(trained.values()) == {torch.float32}
        assert torch.bfloat16 in types_of(student.selector).values()
    with HalfWeights([student], None):
        assert set(types_of(student).values()) == {torch.float32}
