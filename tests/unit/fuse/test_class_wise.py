"""The model that is asked about a class: what it reads, and that its predictor is the answer's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from rekd_edge.check import structural_exclusion
from rekd_edge.convert import convert_to_onnx, load_target, predictor_graph
from rekd_edge.errors import UsageError
from rekd_edge.fuse import FusedClassWise, fuse, fuse_class_wise
from rekd_edge.models.class_wise import ClassHead, hidden_channels
from rekd_edge.models.intervention import intervene_selector
from rekd_edge.models.rationalist import BlockSelector, Predictor, PublishedHead, Rationalist
from rekd_edge.models.selectors import (
    LightSelector,
    LowResolutionSelector,
    PixelEmbedding,
    SharedSelector,
)
from rekd_edge.types import PixelScale
from tests.unit.class_wise_models import LABELS, bert, texts, vit

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = range(len(LABELS))
Pair = tuple[Rationalist, ClassHead]


@pytest.fixture(scope="module")
def text(class_wise_text: Pair) -> tuple[Rationalist, ClassHead, FusedClassWise]:
    model, head = class_wise_text
    return model, head, fuse_class_wise(model, head, label_names=LABELS, max_length=48)


def asked(count: int, label: int) -> Tensor:
    return torch.full((count,), label)


def test_it_answers_as_the_student_does_from_that_rationale(
    text: tuple[Rationalist, ClassHead, FusedClassWise],
) -> None:
    model, head, fused = text
    ids, valid = texts([9, 14, 3, 18])
    scores = model.selector({"input_ids": ids, "attention_mask": valid})
    assert scores.hidden is not None
    masks = []
    for label in CLASSES:
        logits, mask, score, margin, *_ = fused(ids, valid, asked(4, label))
        by_hand = head(scores.hidden)[..., label].masked_fill(~scores.view.selectable, -torch.inf)
        for row, length in enumerate((9, 14, 3, 18)):
            budget = -(-3 * length // 10)  # a ratio of 0.3
            best = by_hand[row].argsort(descending=True)
            assert mask[row].nonzero()[:, 0].tolist() == sorted((best[:budget] + 1).tolist())
            gap = by_hand[row][best[budget - 1]] - by_hand[row][best[budget]]
            assert margin[row].item() == pytest.approx(gap.item(), abs=1e-5)
        assert torch.allclose(
            score[:, 1:][scores.view.selectable], by_hand[by_hand.isfinite()], atol=1e-5
        )
        # The same predictor, by key exclusion instead of gathering.
        expected = model.classify_masked(scores.view, mask[:, 1:])
        assert torch.allclose(logits, expected, atol=1e-4)
        masks.append(mask)
    assert not torch.equal(masks[0], masks[1])


def test_what_it_says_of_a_class_depends_on_the_rationale_for_it_alone(
    text: tuple[Rationalist, ClassHead, FusedClassWise],
) -> None:
    _, _, fused = text
    ids, valid = texts([15] * 12)
    candidate = torch.arange(12) % 3
    logits, mask, _, _, index, kept = fused(ids, valid, candidate)
    held = fused.predict_from(ids, valid, candidate, index, kept)
    assert torch.equal(held, logits)
    other = torch.where(mask, ids, (ids + 7) % 600)
    assert torch.equal(fused.predict_from(other, 1 - valid, candidate, index, kept), logits)
    # Which class was asked for is nothing that the predictor knows.
    assert torch.equal(fused.predict_from(ids, valid, (candidate + 1) % 3, index, kept), logits)
    # The rationale of one class for the answer to another is another answer.
    wrong = fused(ids, valid, (candidate + 1) % 3)
    assert not torch.equal(fused.predict_from(ids, valid, candidate, wrong[4], wrong[5]), logits)


def test_neighbours_may_be_asked_about_other_classes(
    text: tuple[Rationalist, ClassHead, FusedClassWise],
) -> None:
    _, _, fused = text
    ids, valid = texts([11, 11, 11])
    together = fused(ids, valid, torch.tensor([2, 0, 1]))
    for row, label in enumerate((2, 0, 1)):
        alone = fused(ids[row : row + 1], valid[row : row + 1], asked(1, label))
        assert torch.equal(alone[1][0], together[1][row])
        assert torch.allclose(alone[0][0], together[0][row], atol=1e-5)


def test_the_student_is_not_touched(class_wise_text: Pair) -> None:
    model, head = class_wise_text
    before = copy.deepcopy(model.state_dict())
    fuse_class_wise(model, head, label_names=LABELS, max_length=48)
    answer = fuse(model, label_names=LABELS, max_length=48)
    again = fuse(copy.deepcopy(model), label_names=LABELS, max_length=48)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("class_head" in name for name in answer.state_dict())
    inputs = texts([9, 12])
    assert all(torch.equal(a, b) for a, b in zip(answer(*inputs), again(*inputs), strict=True))


def test_images_are_read_as_pixels_and_nothing_else_changes() -> None:
    torch.manual_seed(1)
    model = Rationalist(BlockSelector(vit()), Predictor(vit(), 2), 0.3)
    head = ClassHead.beside(model)
    torch.nn.init.normal_(head.weight)
    scale = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    options = {"label_names": ("cat", "dog"), "max_length": None}
    fused = fuse_class_wise(model.eval(), head, pixel_scale=scale, **options)
    assert all(fold.same_rationale and fold.max_difference < 1e-4 for fold in fused.folds)
    assert fused.example_inputs()[0].dtype == torch.uint8
    assert [tensor.name for tensor in fused.io_spec().inputs] == ["pixel_values", "candidate_class"]
    pixels, candidate = fused.example_inputs(batch=4)
    raw = fuse_class_wise(model, head, **options)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (scale.mean, scale.std))
    expected = raw((pixels / 255 - mean) / std, candidate)
    found = fused(pixels, candidate)
    assert torch.equal(found[1], expected[1])
    assert torch.allclose(found[0], expected[0], atol=1e-4)


def test_a_file_is_proven_for_every_class_and_a_predictor_that_knows_the_class_is_caught(
    text: tuple[Rationalist, ClassHead, FusedClassWise], tmp_path: Path
) -> None:
    _, _, fused = text
    target = load_target("onnx")
    convert_to_onnx(fused, fused.io_spec(), tmp_path / "w.onnx", target=target, metadata={})
    proto = onnx.load(str(tmp_path / "w.onnx"))
    proof = structural_exclusion(proto)
    assert proof.passed
    assert proof.gated_reads == ("input_ids",)
    inputs = [value.name for value in predictor_graph(proto).graph.input]
    assert "candidate_class" not in inputs
    for node in proto.graph.node:
        for position, name in enumerate(node.output):
            if name == "logits":
                node.output[position] = "logits_before"
    scale = numpy_helper.from_array(numpy_helper.to_array(helper.make_tensor("s", 1, [1], [1e-3])))
    scale.name = "leak_scale"
    axis = helper.make_tensor("leak_axis", onnx.TensorProto.INT64, [1], [1])
    proto.graph.initializer.extend([scale, axis])
    proto.graph.node.extend(
        [
            helper.make_node("Cast", ["candidate_class"], ["leak_0"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["leak_0", "leak_scale"], ["leak_1"]),
            helper.make_node("Unsqueeze", ["leak_1", "leak_axis"], ["leak"]),
            helper.make_node("Add", ["logits_before", "leak"], ["logits"]),
        ]
    )
    assert any("candidate_class" in leak for leak in structural_exclusion(proto).leaks)


def test_the_head_knows_what_every_selector_shows() -> None:
    encoder = bert()
    inputs = dict(zip(("input_ids", "attention_mask"), texts([5, 7]), strict=True))
    published = BlockSelector(encoder, PublishedHead(encoder.token_dim, width=7))
    adjusted = BlockSelector(bert())
    intervene_selector(adjusted, 3)
    for selector in (BlockSelector(encoder), published, adjusted, SharedSelector(encoder, 1)):
        hidden = selector.eval()(inputs).hidden
        assert hidden is not None
        assert hidden.shape[-1] == hidden_channels(selector) == 24
    patches = vit()
    light = LightSelector(PixelEmbedding(patches.grid, patches.patch_size, 8), []).eval()
    hidden = light({"pixel_values": torch.zeros(1, 3, 64, 64)}).hidden
    assert hidden is not None
    assert hidden.shape[-1] == hidden_channels(light) == 8
    coarse = LowResolutionSelector(patches, (8, 8), (8, 8))
    model = Rationalist(coarse, Predictor(vit(), 2), 0.3)
    with pytest.raises(UsageError, match="a smaller image has none"):
        ClassHead.beside(model)
