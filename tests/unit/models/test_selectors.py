"""Every kind of selector: same tokens, padding without influence, an equal fused form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rekd_edge.convert import convert_to_onnx, load_target
from rekd_edge.distill.checkpoint import load_model, save_model
from rekd_edge.errors import RecipeError, UsageError
from rekd_edge.fuse import FusedRationalist, fuse
from rekd_edge.fuse.report import count_flops
from rekd_edge.models.build import build_rationalist
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.models.selectors import LightSelector, WordEmbedding
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.runners import OnnxRunner

KINDS = {
    "text": (
        ("kind=blocks",),
        ("kind=convolution", "width=16", "kernel=3"),
        ("kind=convolution", "layers=0"),
        ("kind=narrow", "width=32", "layers=1"),
        ("kind=shared", "depth=1"),
    ),
    "image": (
        ("kind=blocks",),
        ("kind=blocks", "resolution=0.5"),
        ("kind=convolution", "width=16", "kernel=3"),
        ("kind=narrow", "width=32", "layers=1"),
        ("kind=shared", "depth=1"),
    ),
}
CASES = [(modality, keys) for modality, rows in KINDS.items() for keys in rows]


def build(modality: str, keys: tuple[str, ...], *extra: str) -> Rationalist:
    overrides = [f"student.selector.{key}" for key in keys] + list(extra)
    recipe = load_recipe(find_recipe(f"smoke/{modality}"), overrides)
    torch.manual_seed(0)
    model = build_rationalist(recipe.student, recipe, 3).model
    assert isinstance(model, Rationalist)
    torch.nn.init.normal_(model.selector.head.weight)
    torch.nn.init.normal_(model.predictor.head.weight)
    return model.eval()


def fused(model: Rationalist, modality: str) -> FusedRationalist:
    length = 32 if modality == "text" else None
    return fuse(model, label_names=("a", "b", "c"), max_length=length)


@pytest.mark.parametrize(("modality", "keys"), CASES)
def test_the_fused_form_is_the_trained_model(modality: str, keys: tuple[str, ...]) -> None:
    model = build(modality, keys)
    deployed = fused(model, modality)
    inputs = deployed.example_inputs(batch=4, tokens=21)
    named = deployed.named_inputs(inputs)
    logits, keep, score, *_ = deployed(*inputs)
    own = model.selector(named)
    assert torch.allclose(
        score[:, deployed.token_offset :][keep[:, deployed.token_offset :]],
        own.score[keep[:, deployed.token_offset :]],
        atol=1e-5,
    )
    assert torch.allclose(logits, model(named), atol=1e-5)
    assert (
        float(own.score[own.view.selectable].detach().std()) > 1e-4
    )  # the scores tell tokens apart


@pytest.mark.parametrize(("modality", "keys"), CASES)
def test_onnx_runtime_keeps_the_same_tokens(
    modality: str, keys: tuple[str, ...], tmp_path: Path
) -> None:
    deployed = fused(build(modality, keys), modality)
    artefact = convert_to_onnx(
        deployed,
        deployed.io_spec(),
        tmp_path / "model.onnx",
        target=load_target("onnx"),
        metadata={},
    )
    for batch, tokens in ((1, 7), (3, 30)):
        inputs = deployed.example_inputs(batch=batch, tokens=tokens)
        logits, keep, *_ = deployed(*inputs)
        with OnnxRunner(artefact.path) as runner:
            answer = runner.run({k: v.numpy() for k, v in deployed.named_inputs(inputs).items()})
        assert np.array_equal(answer.rationale_mask, keep.numpy())
        assert np.allclose(answer.logits, logits.numpy(), atol=1e-4)


@pytest.mark.parametrize("keys", KINDS["text"])
def test_padding_does_not_change_a_score(keys: tuple[str, ...]) -> None:
    deployed = fused(build("text", keys), "text")
    ids, attended = deployed.example_inputs(batch=1, tokens=12)
    padded = torch.nn.functional.pad(ids, (0, 9))
    short = deployed(ids, attended)
    long = deployed(padded, torch.nn.functional.pad(attended, (0, 9)))
    assert torch.allclose(short[2], long[2][:, :12], atol=1e-5)
    assert torch.equal(short[1], long[1][:, :12])


def test_folding_leaves_only_the_projected_embeddings() -> None:
    model = build("text", ("kind=convolution", "width=16"))
    selector = fused(model, "text").selector
    assert isinstance(selector, LightSelector)
    assert isinstance(selector.embedding, WordEmbedding)
    assert selector.embedding.words.weight.shape == (30522, 16)
    assert sum(p.numel() for p in selector.parameters()) < 30522 * 16 + 10_000
    assert isinstance(model.selector, LightSelector)  # the model in training keeps its own
    assert isinstance(model.selector.embedding, WordEmbedding)
    assert model.selector.embedding.words.weight.shape[1] == 128


def test_a_shared_selector_ships_its_blocks_once(tmp_path: Path) -> None:
    shared = build("text", ("kind=shared", "depth=1"))
    own = build("text", ("kind=blocks",))
    count = sum(p.numel() for p in shared.parameters())
    assert count < 0.6 * sum(p.numel() for p in own.parameters())
    deployed = fused(shared, "text")
    assert deployed.selector._shared[0] is deployed.predictor.encoder  # type: ignore[attr-defined]
    save_model(tmp_path / "model.safetensors", shared)
    again = build("text", ("kind=shared", "depth=1"))
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    load_model(tmp_path / "model.safetensors", again)
    inputs = deployed.named_inputs(deployed.example_inputs())
    assert torch.equal(again(inputs), shared(inputs))


def test_light_selectors_cost_less() -> None:
    shares = {
        keys: count_flops(fused(build("text", keys), "text"), 30).selector_share
        for keys in (("kind=blocks",), ("kind=convolution", "width=16", "kernel=3"))
    }
    full = shares[("kind=blocks",)]
    # One of one block; the 2-logit head per token and [CLS] are the difference.
    assert full == pytest.approx(1.0, abs=0.02)
    assert shares[("kind=convolution", "width=16", "kernel=3")] < 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("student.selector.kind=convolution", "student.selector.kernel=4"), "must be odd"),
        (("student.selector.kind=narrow", "student.selector.width=40"), "multiple of 32"),
        (("student.selector.resolution=0.5",), "for images"),
        (("student.selector.kind=conv",), "convolution"),
    ],
)
def test_recipes_that_make_no_selector_are_refused(override: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(find_recipe("smoke/text"), override)


def test_a_shared_selector_deeper_than_the_predictor_is_refused() -> None:
    with pytest.raises(UsageError, match="the predictor has 1 block\\(s\\)"):
        build("text", ("kind=shared", "depth=2"))


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_gathered_subset_answers_as_a_masked_one(modality: str) -> None:
    model = build(modality, ("kind=blocks",))
    deployed = fused(model, modality)
    inputs = deployed.named_inputs(deployed.example_inputs(batch=5, tokens=19))
    view = model.predictor.encoder.view(inputs)
    torch.manual_seed(0)
    keep = (torch.rand(view.selectable.shape) < 0.4) & view.selectable
    keep[0] = False  # nothing kept: the class token alone answers
    assert torch.allclose(
        model.classify_subset(view, keep), model.classify_masked(view, keep), atol=1e-5
    )
