"""Images that live on the device: cropped, flipped, resized and normalised there, batch by batch.

The pixels equal those of :func:`rekd_edge.data.loader.make_loader` to the last bit, so a run may
be resumed with either. What the processor still does for an epoch is to draw its order and crops.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rekd_edge.data.draws import crop_and_flip
from rekd_edge.data.loader import BucketSampler
from rekd_edge.data.preprocess import ImagePreprocessor, Preprocessor
from rekd_edge.data.resample import DeviceEncoder
from rekd_edge.data.split import ArraySplit, Split
from rekd_edge.errors import UsageError
from rekd_edge.machine import free_memory_bytes
from rekd_edge.recipe.schema import AugmentSpec
from rekd_edge.types import Batch, TeacherSide

_IMAGES: weakref.WeakKeyDictionary[Split, dict[torch.device, Tensor | str]] = (
    weakref.WeakKeyDictionary()
)
SHARE_OF_MEMORY = 0.25
"""Most of a GPU's free memory that a split may take."""
SHARE_OF_HOST_MEMORY = 0.5
"""Most of the host's free memory that the processes of a run may decode a split into together."""


def images_on_device(
    where: Literal["auto", "loader", "device"],
    split: Split,
    preprocessor: Preprocessor,
    device: torch.device,
    teacher: Preprocessor | None = None,
) -> DeviceImages | None:
    """The split on the device where ``data.augment.where`` says so; None: the loader's turn. A
    warning says why images are left to it on a CUDA device.

    Raises:
        UsageError: ``where`` is `device`, and the split cannot be held there.
        DataError: an image cannot be read.
    """
    if where == "loader" or (where == "auto" and device.type != "cuda"):
        return None
    held = DeviceImages.of(split, preprocessor, device, teacher)
    if isinstance(held, DeviceImages):
        return held
    if where == "device":
        raise UsageError(
            f"data.augment.where: device, but the {split.name} split cannot be held there: {held}",
            hint="set data.augment.where to auto or loader",
        )
    if isinstance(preprocessor, ImagePreprocessor):
        warnings.warn(
            f"data.augment.where: the loader prepares the images of the {split.name} split, not "
            f"the device: {held}. Set data.augment.where: loader to say so in the recipe",
            stacklevel=2,
        )
    return None


def split_images(split: Split, device: torch.device) -> Tensor | str:
    """All images of ``split`` on ``device``, uint8 ``[example, height, width, 3]``, kept while the
    split lives; or why they are not there: texts, images of several sizes, and more of them than
    fit on the device or, where they must be decoded first, on the host.

    Raises:
        DataError: an image cannot be read.
    """
    cached = _IMAGES.setdefault(split, {})
    if device not in cached:
        pixels = _pixels(split, device)
        cached[device] = pixels if isinstance(pixels, str) else torch.from_numpy(pixels).to(device)
    return cached[device]


def _pixels(split: Split, device: torch.device) -> np.ndarray | str:
    first = split.raw(0) if len(split) else ""
    if isinstance(first, str) or first.ndim != 3:
        return "it has no images"
    ready = split.examples if isinstance(split, ArraySplit) else None
    decoded = not (isinstance(ready, np.ndarray) and ready.flags.c_contiguous)
    lacking = _lacking(first.nbytes * len(split), device, decoded=decoded)
    if lacking is not None:
        return lacking
    if isinstance(ready, np.ndarray):
        return np.ascontiguousarray(ready)
    pixels = np.empty((len(split), *first.shape), dtype=np.uint8)
    for index in range(len(split)):
        image = split.raw(index)
        if isinstance(image, str) or image.shape != first.shape:
            return "its images are of several sizes"
        pixels[index] = image
    return pixels


def _lacking(size_bytes: int, device: torch.device, *, decoded: bool) -> str | None:
    """Which memory is too small for so many pixels; None: there is room. The host's matters where
    they are ``decoded`` into an array of their own, in each process of a run."""
    rooms: list[tuple[str, float]] = []
    if decoded:
        processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
        rooms.append(("the host", SHARE_OF_HOST_MEMORY * free_memory_bytes() / processes))
    if device.type == "cuda" and all(size_bytes <= room for _, room in rooms):
        rooms.append(("the GPU", SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]))
    for what, room in rooms:
        if size_bytes > room:
            return (
                f"its images take {size_bytes / 1e9:.3g} GB, and {what} has {room / 1e9:.3g} GB "
                "to spare for them"
            )
    return None


@dataclass(frozen=True, slots=True)
class DeviceImages:
    """A split's images on a device, uint8 ``[example, height, width, 3]``, its labels
    (:class:`~rekd_edge.data.split.Split`) on the processor, and how pixels become the inputs of
    student and teacher."""

    images: Tensor
    labels: Tensor
    encoder: DeviceEncoder
    teacher: DeviceEncoder | None

    @staticmethod
    def of(
        split: Split,
        preprocessor: Preprocessor,
        device: torch.device,
        teacher: Preprocessor | None = None,
    ) -> DeviceImages | str:
        """Or why the loader's batches cannot be had on ``device`` to the last bit.

        Raises:
            DataError: an image cannot be read.
        """
        if not isinstance(preprocessor, ImagePreprocessor):
            return "it has no images"
        images = split_images(split, device)
        if isinstance(images, str):
            return images
        encoder = _encoder(preprocessor, images)
        theirs = _encoder(teacher, images) if isinstance(teacher, ImagePreprocessor) else None
        if not encoder.exact or not (theirs is None or theirs.exact):
            return "resizing there gives other pixels than the loader's"
        return DeviceImages(images, torch.from_numpy(split.labels), encoder, theirs)

    def batches(
        self,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        epoch: int = 0,
        augment: AugmentSpec | None = None,
        drop_last: bool = False,
    ) -> DeviceLoader:
        """As :func:`rekd_edge.data.loader.make_loader`."""
        sampler = BucketSampler(
            None,
            len(self.labels),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            epoch=epoch,
            drop_last=drop_last,
        )
        return DeviceLoader(self, sampler, augment, seed, epoch)


class DeviceLoader:
    """An epoch of batches whose inputs are made on the device."""

    def __init__(
        self,
        data: DeviceImages,
        sampler: BucketSampler,
        augment: AugmentSpec | None,
        seed: int,
        epoch: int,
    ) -> None:
        self.data = data
        self.sampler = sampler
        self.augment = augment
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        batches = list(self.sampler)
        order = np.asarray([index for batch in batches for index in batch], dtype=np.int64)
        device = self.data.images.device
        rows = torch.from_numpy(order).to(device)
        crops: Tensor | None = None
        if self.augment is not None:
            start, flipped = crop_and_flip(self.seed, self.epoch, order, self.augment)
            table = np.concatenate([start, flipped[:, None]], axis=1).astype(np.int64)
            crops = torch.from_numpy(table).to(device)
        first = 0
        for batch in batches:
            part = slice(first, first + len(batch))
            first += len(batch)
            yield self._batch(
                rows[part],
                None if crops is None else crops[part],
                torch.from_numpy(order[part].copy()),
            )

    def _batch(self, rows: Tensor, crops: Tensor | None, index: Tensor) -> Batch:
        data = self.data
        images = data.images[rows]
        if crops is not None and self.augment is not None:
            images = crop_images(images, crops, self.augment.crop_padding)
        side = None if data.teacher is None else TeacherSide(data.teacher(images))
        return Batch(data.encoder(images), data.labels[index], index, side)


def crop_images(images: Tensor, crops: Tensor, padding: int) -> Tensor:
    """:func:`rekd_edge.data.loader.augment_image` of a batch uint8 ``[batch, height, width, 3]``;
    ``crops`` int64 ``[batch, 3]``: first row, first column, and 1 where the crop is flipped."""
    height, width = images.shape[1:3]
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device).expand(len(images), -1)
    column = torch.where(crops[:, 2:] > 0, width - 1 - column, column)
    batch = torch.arange(len(images), device=images.device)
    return padded[
        batch[:, None, None],
        (crops[:, :1] + row)[:, :, None],
        (crops[:, 1:2] + column)[:, None, :],
    ]


_ENCODERS: dict[tuple[object, ...], DeviceEncoder] = {}


def _encoder(preprocessor: ImagePreprocessor, images: Tensor) -> DeviceEncoder:
    height, width = images.shape[1:3]
    key = (
        preprocessor.fingerprint,
        preprocessor.model_normalises,
        height,
        width,
        str(images.device),
    )
    if key not in _ENCODERS:
        _ENCODERS[key] = DeviceEncoder(preprocessor, height, width, images.device)
    return _ENCODERS[key]
