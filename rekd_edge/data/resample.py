"""Pillow's resampling of 8-bit images as two matrices, bit for bit.

Pillow resizes along the width and then along the height, each time with weights in fixed point
(22 fractional bits) and a result rounded to 8 bits (libImaging/Resample.c). A product in float64 of
such weights with 8-bit pixels is exact, so the same two steps as matrix products give the same
pixels on any device.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rekd_edge.data.preprocess import ImagePreprocessor, Interpolation

FRACTION_BITS = 32 - 8 - 2


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _bicubic(x: float) -> float:
    """Keys' kernel with a = -0.5."""
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


_KERNEL = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0), "lanczos": (_lanczos, 3.0)}


@lru_cache(maxsize=64)
def resampling_weights(size: int, wanted: int, interpolation: Interpolation) -> np.ndarray:
    """Whole numbers, in units of 2^-22, float64 ``[wanted, size]``; the identity where nothing is
    resized."""
    if size == wanted:
        return np.eye(size) * 2.0**FRACTION_BITS
    kernel, support = _KERNEL[interpolation]
    scale = size / wanted
    stretch = max(1.0, scale)
    support *= stretch
    weights = np.zeros((wanted, size))
    for row in range(wanted):
        centre = (row + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(size, int(centre + support + 0.5))
        line = [kernel((x - centre + 0.5) * (1.0 / stretch)) for x in range(first, last)]
        total = sum(line)
        for x, weight in zip(range(first, last), line, strict=True):
            share = weight / total if total != 0.0 else weight
            weights[row, x] = math.trunc(share * 2**FRACTION_BITS + math.copysign(0.5, share))
    return weights


class DeviceEncoder:
    """:meth:`ImagePreprocessor.encode` on a device, for images of one size: the same to the last
    bit where :attr:`exact`."""

    def __init__(
        self, preprocessor: ImagePreprocessor, height: int, width: int, device: torch.device
    ) -> None:
        size, interpolation = preprocessor.image_size, preprocessor.interpolation
        if width <= height:
            new_width, new_height = size, max(size, size * height // width)
        else:
            new_width, new_height = max(size, size * width // height), size
        left, top = (new_width - size) // 2, (new_height - size) // 2
        across = resampling_weights(width, new_width, interpolation)[left : left + size]
        down = resampling_weights(height, new_height, interpolation)[top : top + size]
        self._across = torch.from_numpy(across.T.copy()).to(device)
        self._down = torch.from_numpy(down.copy()).to(device)
        self._same = (height, width) == (size, size)
        std = np.asarray(preprocessor.std, dtype=np.float32)
        scale = np.float32(1 / 255) / std
        shift = np.asarray(preprocessor.mean, dtype=np.float32) / std
        self._scale = torch.from_numpy(scale).to(device).view(1, 3, 1, 1)
        self._shift = torch.from_numpy(shift).to(device).view(1, 3, 1, 1)
        self._normalise = not preprocessor.model_normalises
        noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        noise[1] = 255 * (noise[1] > 127)
        found = self(torch.from_numpy(noise).to(device))["pixel_values"].cpu().numpy()
        self.exact = np.array_equal(found, preprocessor.encode(list(noise))["pixel_values"])
        """Whether images of this size come out as Pillow makes them. It may take the two steps in
        the other order, as for very high images."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """``pixel_values`` ``[batch, 3, image_size, image_size]`` from uint8
        ``[batch, height, width, 3]``."""
        pixels = images.permute(0, 3, 1, 2)
        if not self._same:
            across = _eight_bits(pixels.double() @ self._across)
            pixels = _eight_bits(self._down @ across).to(torch.uint8)
        if not self._normalise:
            return {"pixel_values": pixels.contiguous()}
        values = pixels.float() * self._scale - self._shift
        return {"pixel_values": values.contiguous()}


def _eight_bits(fixed_point: Tensor) -> Tensor:
    return ((fixed_point + 2.0 ** (FRACTION_BITS - 1)) / 2.0**FRACTION_BITS).floor().clamp(0, 255)
