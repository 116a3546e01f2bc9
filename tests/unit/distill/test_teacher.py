"""What a teacher of other patches or other words says about its student's tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from transformers import BertConfig, BertModel

from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
from rekd_edge.data.split import ArraySplit
from rekd_edge.distill.targets import CachedTargets, rationale_and_answer
from rekd_edge.distill.teacher import Teacher
from rekd_edge.models.convolution import ConvEncoder
from rekd_edge.models.encoder import BertEncoder, TokenReader, VitEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
from rekd_edge.recipe.schema import AugmentSpec
from rekd_edge.selection import keep_top_k
from rekd_edge.types import Batch, TeacherSide

TEXTS = [
    "A dull and lifeless film.",
    "Wonderful, warm and utterly unforgettable storytelling!",
    "no",
    "It wastes a wonderful cast; nobody cares.",
]


def rationalist(selector: TokenReader, predictor: TokenReader, ratio: float) -> Rationalist:
    model = Rationalist(BlockSelector(selector), Predictor(predictor, 3), ratio)
    for head in (model.selector.head, model.predictor.head):
        torch.nn.init.normal_(head.weight)
    return model.eval()


def vit(image_size: int) -> VitEncoder:
    return VitEncoder(
        timm.create_model("test_vit", img_size=image_size, num_classes=0, depth=1, pretrained=False)
    )


def convolution(image_size: int, patch_size: int) -> ConvEncoder:
    backbone = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    return ConvEncoder(backbone, image_size=image_size, patch_size=patch_size, depth=2)


def image_teacher(patch_size: int) -> tuple[Teacher, Batch]:
    """A ViT on 4 x 4 patches of 64 pixels, and a convolutional student that sees 48 pixels."""
    torch.manual_seed(0)
    theirs = rationalist(vit(64), vit(64), 0.25)
    mine = rationalist(convolution(48, patch_size), convolution(48, patch_size), 0.25)
    images = {size: torch.randn(5, 3, size, size) for size in (48, 64)}
    side = TeacherSide({"pixel_values": images[64]})
    index = torch.arange(5)
    return Teacher(theirs, mine), Batch({"pixel_values": images[48]}, index, index, side)


def test_equal_grids_carry_nothing() -> None:
    teacher, batch = image_teacher(12)
    assert batch.teacher is not None
    scores, keep, logits = rationale_and_answer(teacher.model, batch.teacher.inputs)
    targets = teacher.targets(batch)
    assert torch.equal(targets.keep, keep)
    assert torch.equal(targets.logits, logits)
    assert torch.equal(teacher.score(batch), scores.score)
    masked = teacher.model.classify_masked(scores.view, keep)
    assert torch.allclose(teacher.classify_subset(batch, keep), masked, atol=1e-5)


@pytest.mark.parametrize(("patch_size", "kept"), [(6, 16), (16, 3), (24, 1), (48, 1)])
def test_the_rationale_has_the_students_budget(patch_size: int, kept: int) -> None:
    teacher, batch = image_teacher(patch_size)
    targets = teacher.targets(batch)
    assert targets.keep.shape == (5, (48 // patch_size) ** 2)
    assert targets.keep.sum(dim=1).tolist() == [kept] * 5
    assert batch.teacher is not None
    _, _, own = rationale_and_answer(teacher.model, batch.teacher.inputs)
    assert torch.equal(targets.logits, own)
    if patch_size == 6:  # each of the teacher's patches is four of the student's
        theirs = rationale_and_answer(teacher.model, batch.teacher.inputs)[1]
        finer = theirs.reshape(5, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)
        assert torch.equal(targets.keep, finer.flatten(1))


def test_effects_add_up_to_what_the_teacher_said() -> None:
    teacher, batch = image_teacher(16)
    exact, _ = image_teacher(12)
    exact.model = teacher.model
    torch.testing.assert_close(
        teacher.mask_gradient(batch).sum(dim=1), exact.mask_gradient(batch).sum(dim=1)
    )


def test_the_teacher_judges_the_same_part_of_the_image() -> None:
    teacher, batch = image_teacher(24)
    assert batch.teacher is not None
    upper_left = torch.zeros(5, 4, dtype=torch.bool)
    upper_left[:, 0] = True
    theirs = torch.zeros(5, 4, 4, dtype=torch.bool)
    theirs[:, :2, :2] = True
    view = teacher.model.predictor.encoder.view(batch.teacher.inputs)
    expected = teacher.model.classify_masked(view, theirs.flatten(1))
    assert torch.allclose(teacher.classify_subset(batch, upper_left), expected, atol=1e-5)
    zeroed = teacher.model.classify_zeroed(view, theirs.flatten(1).float())
    assert torch.equal(teacher.answer(batch, upper_left.float()), expected)
    published = Teacher(teacher.model, teacher.student, "zero")
    assert torch.equal(published.answer(batch, upper_left.float()), zeroed)


def test_a_subset_too_small_for_any_patch_of_the_teacher_keeps_one() -> None:
    teacher, batch = image_teacher(3)
    keep = torch.zeros(5, 256, dtype=torch.bool)
    keep[:, 9] = True  # row 0, column 9: inside the teacher's third patch
    assert batch.teacher is not None
    view = teacher.model.predictor.encoder.view(batch.teacher.inputs)
    third = torch.zeros(5, 16, dtype=torch.bool)
    third[:, 2] = True
    expected = teacher.model.classify_masked(view, third)
    assert torch.allclose(teacher.classify_subset(batch, keep), expected, atol=1e-5)


def bert(preprocessor: TextPreprocessor, vocabulary: int) -> BertEncoder:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    special = preprocessor.special_ids
    backbone = BertModel(config, add_pooling_layer=False)
    return BertEncoder(backbone, cls_id=special["cls"], sep_id=special["sep"])


@pytest.fixture
def text_split() -> ArraySplit:
    return ArraySplit("train", np.asarray([0, 1, 0, 1]), TEXTS)


@pytest.fixture
def text(
    bundled_text_preprocessor: TextPreprocessor, piece_tokenizer: Path, text_split: ArraySplit
) -> tuple[Teacher, Batch, TextPreprocessor, TextPreprocessor]:
    """A student of word pieces and a teacher of pairs of letters that reads 24 of them."""
    torch.manual_seed(0)
    mine, theirs = bundled_text_preprocessor, TextPreprocessor(piece_tokenizer, 24)
    student = rationalist(bert(mine, 30522), bert(mine, 30522), 0.3)
    teacher = rationalist(bert(theirs, 3000), bert(theirs, 3000), 0.2)
    loader = make_loader(text_split, mine, batch_size=4, shuffle=False, teacher=theirs)
    return Teacher(teacher, student), next(iter(loader)), mine, theirs


def test_words_are_carried_by_their_characters(
    text: tuple[Teacher, Batch, TextPreprocessor, TextPreprocessor],
) -> None:
    teacher, batch, mine, theirs = text
    side = batch.teacher
    assert side is not None
    own = teacher.model.selector(side.inputs).score.detach()
    carried = teacher.score(batch)
    for row, index in enumerate(batch.index.tolist()):
        ours = mine.offsets(TEXTS[index])[1:]
        other = theirs.offsets(TEXTS[index])[1:]
        expected = []
        for start, end in ours:
            shared = [max(0, min(end, b) - max(start, a)) for a, b in other]
            total = sum(n * float(own[row, j]) for j, n in enumerate(shared))
            expected.append(total / sum(shared) if sum(shared) else None)
        lowest = min(value for value in expected if value is not None)
        for position, value in enumerate(expected):
            if ours[position] != (0, 0):
                assert carried[row, position].item() == pytest.approx(
                    lowest if value is None else value, abs=1e-5
                )


def test_text_targets_have_the_students_budget_and_survive_the_cache(
    text: tuple[Teacher, Batch, TextPreprocessor, TextPreprocessor], text_split: ArraySplit
) -> None:
    teacher, batch, mine, theirs = text
    view = teacher.student.predictor.encoder.view(batch.inputs)
    targets = teacher.targets(batch)
    budget = teacher.student.budget(view)
    assert torch.equal(targets.keep.sum(dim=1), budget)
    expected = keep_top_k(teacher.score(batch), view.selectable, budget)
    assert torch.equal(targets.keep, expected)
    single = make_loader(text_split, mine, batch_size=1, shuffle=False, teacher=theirs)
    cached = CachedTargets(teacher.targets, single)(batch)
    assert torch.equal(cached.keep, targets.keep)
    valid = view.selectable
    torch.testing.assert_close(cached.margin[valid], targets.margin[valid], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cached.logits, targets.logits, atol=1e-4, rtol=1e-4)


def test_a_text_subset_is_judged_by_the_pieces_half_in_it(
    text: tuple[Teacher, Batch, TextPreprocessor, TextPreprocessor],
) -> None:
    teacher, batch, mine, theirs = text
    side = batch.teacher
    assert side is not None
    view = teacher.student.predictor.encoder.view(batch.inputs)
    other = teacher.model.predictor.encoder.view(side.inputs)
    keep = view.selectable & (torch.arange(view.content.shape[1]) < 2)
    wanted = torch.zeros_like(other.selectable)
    for row, index in enumerate(batch.index.tolist()):
        kept = {
            character
            for (start, end), kept in zip(
                mine.offsets(TEXTS[index])[1:], keep[row].tolist(), strict=False
            )
            if kept
            for character in range(start, end)
        }
        read = {c for start, end in mine.offsets(TEXTS[index]) for c in range(start, end)}
        for position, (start, end) in enumerate(theirs.offsets(TEXTS[index])[1:]):
            characters = set(range(start, end)) & read
            if characters and len(characters & kept) * 2 >= len(characters):
                wanted[row, position] = True
    assert bool(wanted.any(dim=1).all())
    expected = teacher.model.classify_masked(other, wanted)
    assert torch.allclose(teacher.classify_subset(batch, keep), expected, atol=1e-5)


def test_images_of_both_sides_are_augmented_alike() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    split = ArraySplit("train", np.arange(6), images)
    mine = ImagePreprocessor(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    theirs = ImagePreprocessor(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    loader = make_loader(
        split,
        mine,
        batch_size=6,
        shuffle=True,
        epoch=3,
        augment=AugmentSpec(crop_padding=4, flip=True),
        teacher=theirs,
    )
    batch = next(iter(loader))
    assert batch.teacher is not None
    raw = batch.teacher.inputs["pixel_values"]
    torch.testing.assert_close(batch.inputs["pixel_values"], raw * 2 - 1, atol=1e-5, rtol=0)
