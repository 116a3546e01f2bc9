"""The encoders give what transformers and timm give, and what is excluded has no influence."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertModel

from rekd_edge.errors import UsageError
from rekd_edge.models.encoder import (
    BertEncoder,
    VitEncoder,
    _attend,
    deployed_attention,
    weighted_attention,
    weighted_formula,
)
from rekd_edge.models.rationalist import Predictor, Rationalist
from rekd_edge.models.selectors import SharedSelector

CLS, SEP = 101, 102


@pytest.fixture
def bert() -> BertEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    return BertEncoder(BertModel(config, add_pooling_layer=False), cls_id=CLS, sep_id=SEP).eval()


@pytest.fixture
def vit() -> VitEncoder:
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=64, depth=2
    )
    return VitEncoder(backbone).eval()


@pytest.fixture
def text() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[CLS, 7, 8, 9, 10, SEP], [CLS, 11, 12, SEP, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def test_bert_equals_transformers(bert: BertEncoder, text: dict[str, torch.Tensor]) -> None:
    view = bert.view(text)
    ours = bert(view.content, view.position, view.attended)
    theirs = bert.backbone(**text).last_hidden_state
    attended = text["attention_mask"].bool()
    assert torch.allclose(ours[attended], theirs[attended], atol=1e-5)


def test_special_tokens_and_padding_are_not_selectable(
    bert: BertEncoder, text: dict[str, torch.Tensor]
) -> None:
    view = bert.view(text)
    assert view.selectable.tolist() == [
        [True, True, True, True, False],
        [True, True, False, False, False],
    ]
    assert view.position[0].tolist() == [1, 2, 3, 4, 5]


def test_vit_equals_timm(vit: VitEncoder) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    view = vit.view({"pixel_values": pixels})
    assert view.content.shape == (2, 16, 3 * 16 * 16)
    ours = vit(view.content, view.position)
    assert torch.allclose(ours, vit.backbone.forward_features(pixels), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_gathered_weighted_and_excluded_are_one_function(
    family: str, request: pytest.FixtureRequest
) -> None:
    encoder = request.getfixturevalue(family)
    if family == "bert":
        inputs = request.getfixturevalue("text")
    else:
        inputs = {"pixel_values": torch.randn(2, 3, 64, 64)}
    view = encoder.view(inputs)
    index = torch.tensor([[0, 2], [0, 1]])
    keep = torch.zeros(view.content.shape[:2], dtype=torch.bool).scatter(1, index, True)
    prefix = encoder.num_prefix_tokens
    excluded = encoder(view.content, view.position, keep)
    weighted = encoder(view.content, view.position, keep.float())
    rows = torch.arange(2).unsqueeze(1)
    gathered = encoder(view.content[rows, index], view.position[rows, index])
    assert torch.allclose(excluded[:, :prefix], weighted[:, :prefix], atol=1e-5)
    assert torch.allclose(excluded[:, :prefix], gathered[:, :prefix], atol=1e-5)
    assert torch.allclose(excluded[:, prefix:][rows, index], gathered[:, prefix:], atol=1e-5)


def test_excluded_keys_have_a_gradient(bert: BertEncoder, text: dict[str, torch.Tensor]) -> None:
    view = bert.view(text)
    weight = torch.tensor([[1.0, 0, 0, 1, 0], [1.0, 0, 0, 0, 0]], requires_grad=True)
    bert(view.content, view.position, weight)[:, 0].pow(3).sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad.abs() > 0).all())


def test_bfloat16_attends_in_float32_on_the_cpu() -> None:
    query, key, value = (torch.randn(2, 3, 24, 16).bfloat16() for _ in range(3))
    allowed = torch.rand(2, 24) > 0.3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _attend(query, key, value, allowed, 0.0)
    expected = _attend(query.float(), key.float(), value.float(), allowed, 0.0)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_deployed_attention_is_attention_and_excludes_exactly(scale: float) -> None:
    torch.manual_seed(0)
    query, key, value = (scale * torch.randn(2, 3, 24, 16) for _ in range(3))
    allowed = torch.rand(2, 24) > 0.3
    found = deployed_attention(query, key, value, allowed)
    torch.testing.assert_close(found, _attend(query, key, value, allowed, 0.0))
    other = allowed[:, None, :, None]
    changed = deployed_attention(
        query, key.where(other, 1e6 * key), value.where(other, torch.randn(24, 16)), allowed
    )
    assert torch.equal(found, changed)
    torch.testing.assert_close(
        deployed_attention(query, key, value, None), _attend(query, key, value, None, 0.0)
    )
    assert bool(deployed_attention(query, key, value, torch.zeros_like(allowed)).isfinite().all())


def test_weighted_attention_survives_a_huge_excluded_logit() -> None:
    query = torch.ones(1, 1, 1, 4)
    key = torch.stack([torch.ones(4), torch.full((4,), 1e4)])[None, None]
    value = torch.tensor([[[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]]])
    weight = torch.tensor([[1.0, 0.0]], requires_grad=True)
    out = weighted_attention(query, key, value, weight)
    assert out.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]
    out.sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())


def _by_definition(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    counted = (query @ key.transpose(-2, -1) / 2).exp() * weight[:, None, None, :]
    return (counted / counted.sum(dim=-1, keepdim=True)) @ value


def test_weighted_attention_has_the_gradients_of_its_formula() -> None:
    """Derivatives, and of a weight of 0 what including the key once would change."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight = torch.tensor([[1.0, 0.0, 0.25, 0.0, 1.0, 1.0, 0.0], [1.0] * 7], dtype=torch.float64)
    query, key, value = inputs
    inputs.append(weight.requires_grad_(True))
    expected = _by_definition(query, key, value, weight)
    torch.testing.assert_close(weighted_formula(*inputs), expected)
    found = weighted_attention(*inputs)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    wanted = list(torch.autograd.grad(expected, inputs, upstream))
    for row, token in (weight == 0).nonzero().tolist():
        included = weight.detach().clone()
        included[row, token] = 1
        change = _by_definition(query, key, value, included) - expected
        wanted[3][row, token] = (change.detach() * upstream)[row].sum()
    for got in (found, weighted_formula(*inputs)):
        gradients = torch.autograd.grad(got, inputs, upstream)
        torch.testing.assert_close(list(gradients), wanted)
    compiled = torch.compile(weighted_attention, backend="eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(list(torch.autograd.grad(compiled, inputs, upstream)), wanted)


def test_an_excluded_key_that_would_take_all_attention_has_a_bounded_gradient() -> None:
    """Its derivative is e^10 as large as what including it can change, which drowned what the
    selector learned from everything else."""
    query = torch.ones(1, 1, 1, 4)
    key = torch.stack([torch.ones(4), torch.full((4,), 6.0)])[None, None]
    value = torch.tensor([[[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]]])
    for attention in (weighted_attention, weighted_formula):
        weight = torch.tensor([[1.0, 0.0]], requires_grad=True)
        attention(query, key, value, weight)[..., 1].sum().backward()
        assert weight.grad is not None
        assert weight.grad[0, 1].item() == pytest.approx(1.0, abs=1e-4)


def test_weighted_attention_is_not_differentiated_twice_by_mistake() -> None:
    query, key, value = (torch.randn(1, 1, 3, 4, requires_grad=True) for _ in range(3))
    weight = torch.ones(1, 3, requires_grad=True)
    out = weighted_attention(query, key, value, weight).square().sum()
    (first,) = torch.autograd.grad(out, [weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weighted_attention_keeps_the_type_of_its_values(dtype: torch.dtype) -> None:
    query, key, value = (torch.randn(2, 3, 9, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    weight = (torch.arange(9) % 2 == 0).float().expand(2, 9).clone().requires_grad_(True)
    out = weighted_attention(query, key, value, weight)
    assert out.dtype == dtype
    wide = weighted_attention(query.float(), key.float(), value.float(), weight)
    torch.testing.assert_close(out.float(), wide, atol=2e-2, rtol=2e-2)
    out.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "eva02_tiny_patch14_224"])
def test_backbones_that_cannot_skip_patches_are_refused(name: str) -> None:
    backbone = timm.create_model(name, pretrained=False, num_classes=0)
    with pytest.raises(UsageError, match="subset of its patches"):
        VitEncoder(backbone)


def test_weighted_attention_goes_back_through_normed_queries_and_keys_under_autocast() -> None:
    """Their norms answer in float32, values come in bfloat16; autocast is over in the backward
    pass, on a GPU as here."""
    torch.manual_seed(0)
    query, key = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in range(2))
    value = torch.randn(2, 3, 9, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(2, 9, requires_grad=True)
    given = [query, key, value, weight]
    with torch.autocast("cpu", torch.bfloat16):
        found = weighted_attention(*given)
    upstream = torch.randn(2, 3, 9, 8)
    gradients = torch.autograd.grad(found, given, upstream.to(found.dtype))
    assert [one.dtype for one in gradients] == [one.dtype for one in given]
    wide = weighted_attention(query, key, value.float(), weight)
    for got, wanted in zip(gradients, torch.autograd.grad(wide, given, upstream), strict=True):
        torch.testing.assert_close(got.float(), wanted.float(), atol=5e-2, rtol=5e-2)


def test_published_masking_of_images_leaves_a_gpu_its_fastest_attention(vit: VitEncoder) -> None:
    """No patch is padding, so there is no mask: as in the published code. Seen on tensors that only
    say they are on a GPU."""
    predictor = Predictor(vit, 2).eval()
    model = Rationalist(SharedSelector(vit, 1), predictor, 0.5)
    seen: list[object] = []
    vit.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    pixels = torch.randn(2, 3, 64, 64)
    model.selector({"pixel_values": pixels})
    view = vit.view({"pixel_values": pixels})
    answer = model.classify_zeroed(view, torch.ones(2, 16))
    assert [type(one) for one in seen] == [torch.Tensor, torch.Tensor]
    whole = predictor(view.content, view.position, None, torch.ones(2, 16))
    torch.testing.assert_close(whole, answer)
    seen.clear()
    model, mode = copy.deepcopy(model), FakeTensorMode()
    with mode:
        elsewhere = torch.empty_like(mode.from_tensor(pixels), device="cuda")
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(
                        torch.empty(parameter.shape, device="cuda")
                    )
        model.selector({"pixel_values": elsewhere})
        model.classify_zeroed(
            vit.view({"pixel_values": elsewhere}), torch.ones(2, 16, device="cuda")
        )
    assert seen == [None, None]
