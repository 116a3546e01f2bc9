"""Images prepared on the device are those of the loader, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rekd_edge.data import on_device
from rekd_edge.data.draws import crop_and_flip, draw_crop
from rekd_edge.data.loader import make_loader
from rekd_edge.data.on_device import DeviceImages, images_on_device, split_images
from rekd_edge.data.preprocess import ImagePreprocessor, Interpolation
from rekd_edge.data.resample import DeviceEncoder
from rekd_edge.data.split import ArraySplit, FileSplit, JoinedSplit
from rekd_edge.errors import UsageError
from rekd_edge.recipe.schema import AugmentSpec

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.21, 0.22)


def noise(count: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    pixels = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    pixels[0] = 255 * (pixels[0] > 127)
    return pixels


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [24, 56])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 28), (28, 41), (56, 56), (70, 90)])
def test_pixels_are_pillows(
    height: int, width: int, size: int, interpolation: Interpolation
) -> None:
    images = noise(3, height, width)
    for deployed in (False, True):
        preprocessor = ImagePreprocessor(size, MEAN, STD, interpolation, model_normalises=deployed)
        encoder = DeviceEncoder(preprocessor, height, width, CPU)
        assert encoder.exact
        found = encoder(torch.from_numpy(images))["pixel_values"].numpy()
        expected = preprocessor.encode(list(images))["pixel_values"]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 2003), (2**32 - 1, 5), (2**40, 1)])
@pytest.mark.parametrize("spec", [(4, True), (4, False), (0, True), (13, True)])
def test_draws_are_numpys(seed: int, epoch: int, spec: tuple[int, bool]) -> None:
    augment = AugmentSpec(crop_padding=spec[0], flip=spec[1])
    examples = np.r_[np.arange(150), 49_999, 2**31 + 5]
    start, flipped = crop_and_flip(seed, epoch, examples, augment)
    for row, example in enumerate(examples.tolist()):
        rng = np.random.default_rng((seed, epoch, example))
        expected, flip = draw_crop(rng, augment)
        assert start[row].tolist() == expected.tolist()
        assert bool(flipped[row]) == flip
    assert len(np.unique(start)) == 2 * spec[0] + 1


@pytest.mark.parametrize(
    "augment", [None, AugmentSpec(crop_padding=4, flip=True), AugmentSpec(flip=True)]
)
def test_batches_are_the_loaders_for_student_and_teacher(augment: AugmentSpec | None) -> None:
    split = ArraySplit("train", np.arange(23) % 3, noise(23, 20, 24))
    student = ImagePreprocessor(28, MEAN, STD)
    teacher = ImagePreprocessor(32, MEAN, MEAN)
    held = DeviceImages.of(split, student, CPU, teacher)
    assert isinstance(held, DeviceImages)
    for shuffle in (True, False):
        mine = held.batches(batch_size=5, shuffle=shuffle, seed=3, epoch=2, augment=augment)
        theirs = make_loader(
            split,
            student,
            batch_size=5,
            shuffle=shuffle,
            seed=3,
            epoch=2,
            augment=augment,
            teacher=teacher,
        )
        assert len(mine) == len(theirs) == 5
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one.index, other.index)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])
            assert one.teacher is not None
            assert other.teacher is not None
            assert torch.equal(
                one.teacher.inputs["pixel_values"], other.teacher.inputs["pixel_values"]
            )


def test_files_and_joined_splits_are_held_if_they_are_alike(tmp_path: Path) -> None:
    from PIL import Image

    images = noise(4, 12, 12)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    Image.fromarray(noise(1, 12, 13)[0]).save(tmp_path / "wide.png")
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    files = FileSplit("train", np.zeros(4, np.int64), paths)
    joined = JoinedSplit("train", [files, ArraySplit("train", np.zeros(4, np.int64), images)])
    found = split_images(joined, CPU)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), np.concatenate([images, images]))
    mixed = FileSplit("train", np.zeros(5, np.int64), [*paths, tmp_path / "wide.png"])
    assert split_images(mixed, CPU) == "its images are of several sizes"
    texts = ArraySplit("train", np.zeros(1, np.int64), ["a film"])
    assert split_images(texts, CPU) == "it has no images"


def files_of(folder: Path, count: int) -> FileSplit:
    from PIL import Image

    paths = [folder / f"{number}.png" for number in range(count)]
    for path, image in zip(paths, noise(count, 12, 12), strict=True):
        Image.fromarray(image).save(path)
    return FileSplit("train", np.zeros(count, np.int64), paths)


def test_files_that_the_host_cannot_hold_decoded_are_left_to_the_loader_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessor = ImagePreprocessor(24, MEAN, STD)
    needed = 4 * 12 * 12 * 3
    gpu = torch.device("cuda")  # never asked: the host is too small

    def decoded(index: int) -> np.ndarray:
        raise AssertionError(f"image {index} was decoded")

    for free, processes in ((2 * needed - 2, ""), (4 * needed - 2, "2")):
        monkeypatch.setattr(on_device, "free_memory_bytes", lambda free=free: free)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        split = files_of(tmp_path, 4)
        first = split.raw(0)
        monkeypatch.setattr(split, "raw", lambda i, f=first: f if i == 0 else decoded(i))
        with pytest.warns(UserWarning, match=r"loader prepares .* train .* the host has .* GB"):
            assert images_on_device("auto", split, preprocessor, gpu) is None
        with pytest.raises(UsageError, match=r"where: device, .* the host has") as raised:
            images_on_device("device", split, preprocessor, CPU)
        assert raised.value.exit_code == 2
    monkeypatch.setattr(on_device, "free_memory_bytes", lambda: 4 * needed)
    assert images_on_device("device", files_of(tmp_path, 4), preprocessor, CPU) is not None


def test_images_that_are_one_array_already_take_no_more_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_device, "free_memory_bytes", lambda: 0)
    images = noise(3, 12, 12)
    found = split_images(ArraySplit("train", np.zeros(3, np.int64), images), CPU)
    assert isinstance(found, torch.Tensor)
    assert found.data_ptr() == images.ctypes.data
