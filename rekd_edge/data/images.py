"""Any image file as 8-bit RGB. Pillow only: the bundle's runtime does the same.

Rules: EXIF orientation is applied; grey and palette images become RGB; CMYK is converted;
transparency is composited over white; 16-bit grey keeps its upper 8 bits.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rekd_edge.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def rgb_from_file(path: Path) -> np.ndarray:
    """Read an image file as uint8 ``[height, width, 3]``.

    Raises:
        DataError: it cannot be read; the message names the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return rgb_from_bytes(content, str(path))


def require_image_header(path: Path) -> None:
    """Look at the first bytes of an image file without decoding it.

    Raises:
        DataError: it is missing, unreadable or not an image. Damage further inside is found by
            :func:`rgb_from_file`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path):
            pass
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image, or of an unknown format") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: the image is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: cannot be read: {reason}") from error


def rgb_from_bytes(content: bytes, place: str) -> np.ndarray:
    """Decode the contents of an image file as uint8 ``[height, width, 3]``.

    Raises:
        DataError: corrupt, truncated, too large or not an image; the message names ``place``.
    """
    import warnings

    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Broken metadata that does not keep Pillow from decoding the pixels.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return _rgb_array(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise DataError(f"{place}: not an image, or of an unknown format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{place}: the image is too large: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{place}: the image is corrupt or truncated: {error}") from error


def _rgb_array(image: Image.Image) -> np.ndarray:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, in 16 or 32 bits
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        foreground = image.convert("RGBA")
        background = Image.new("RGBA", foreground.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, foreground)
    return np.array(image.convert("RGB"), dtype=np.uint8)
