"""Every kind of image becomes 8-bit RGB, or a message that names the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rekd_edge.data.images import require_image_header, rgb_from_bytes, rgb_from_file
from rekd_edge.errors import DataError

SHADES = np.arange(0, 250, 2, dtype=np.uint8)[: 8 * 15].reshape(8, 15)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_grey_repeats_its_channel(tmp_path: Path) -> None:
    rgb = rgb_from_file(saved(Image.fromarray(SHADES), tmp_path / "grey.png"))
    assert rgb.shape == (8, 15, 3)
    assert rgb.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(rgb[:, :, channel], SHADES)


def test_cmyk_jpeg_is_converted(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    rgb = rgb_from_file(saved(red, tmp_path / "cmyk.jpg", quality=95))
    assert rgb.shape == (16, 16, 3)
    assert np.abs(rgb.mean(axis=(0, 1)) - [250, 10, 10]).max() < 5


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)
    pixels[0, 1] = (255, 0, 0, 0)
    pixels[1, 0] = (0, 0, 0, 51)  # a fifth of black
    rgb = rgb_from_file(saved(Image.fromarray(pixels), tmp_path / "alpha.png"))
    assert rgb[0, 0].tolist() == [255, 0, 0]
    assert rgb[0, 1].tolist() == [255, 255, 255]
    assert rgb[1, 0].tolist() == [204, 204, 204]


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    rgb = rgb_from_file(saved(image, tmp_path / "palette.png", transparency=0))
    assert rgb.tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    rgb = rgb_from_file(saved(Image.fromarray(values), tmp_path / "deep.png"))
    assert rgb[0, :, 0].tolist() == [0, 0, 1, 255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate a quarter to the right to view
    rgb = rgb_from_file(saved(image, tmp_path / "turned.jpg", exif=exif))
    assert rgb.shape == (20, 10, 3)


def test_corrupt_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    good = saved(Image.fromarray(pixels), tmp_path / "good.png")
    content = good.read_bytes()
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(content[: len(content) // 2])
    foreign = tmp_path / "text.png"
    foreign.write_text("this is no image")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    problems = {
        truncated: "corrupt or truncated",
        foreign: "not an image",
        empty: "not an image",
        tmp_path / "absent.png": "No such file",
    }
    for path, words in problems.items():
        with pytest.raises(DataError, match=words) as caught:
            rgb_from_file(path)
        assert str(path) in caught.value.message
        assert caught.value.exit_code == 2
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match="corrupt"):
        rgb_from_bytes(bytes(flipped), "row 7")


def test_header_check_finds_what_is_no_image_without_decoding(tmp_path: Path) -> None:
    good = saved(Image.new("RGB", (5, 5)), tmp_path / "good.png")
    require_image_header(good)
    foreign = tmp_path / "text.png"
    foreign.write_text("this is no image")
    with pytest.raises(DataError, match=r"text\.png: not an image"):
        require_image_header(foreign)
    with pytest.raises(DataError, match=r"absent\.png: cannot be read: No such file"):
        require_image_header(tmp_path / "absent.png")


def test_absurdly_large_image_is_refused() -> None:
    # A PNG header that promises 60,000 x 60,000 pixels; no pixel data follow.
    header = io.BytesIO()
    Image.new("L", (1, 1)).save(header, format="PNG")
    content = bytearray(header.getvalue())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match="too large"):
        rgb_from_bytes(bytes(content), "row 1")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), tmp_path / "float.tiff")
    with pytest.raises(DataError, match="no defined range"):
        rgb_from_file(path)
