"""CIFAR-10 images with cut-out objects on top: their masks are the gold rationale.

The cut-outs are photographs with transparency from Debian's ``tuxpaint-stamps-default``. The
label is the class of the cut-out, or of several cut-outs the set of their classes; the background
is drawn without regard to it, so that it says nothing about the label. Composites are made in
memory and never stored.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rekd_edge.data.archives import TUXPAINT_STAMPS
from rekd_edge.data.debian import read_deb_files
from rekd_edge.data.fetch import fetch
from rekd_edge.data.image_sets import cifar10
from rekd_edge.data.source import SourceData
from rekd_edge.data.split import ArraySplit, stratified_split
from rekd_edge.data.storage import atomic_file, cache_dir
from rekd_edge.errors import IntegrityError
from rekd_edge.recipe.schema import SplitSpec

if TYPE_CHECKING:
    from PIL import Image

    Compose = Callable[
        [str, list[Image.Image], np.ndarray, np.ndarray, int, tuple[int, int]], ArraySplit
    ]

CANVAS = 64
"""Side of a composite in pixels; the background is enlarged to it."""
LONGER_SIDE = (0.5, 0.9)
"""Range of the object's longer side, as a share of the canvas."""
IMAGES_PER_CLASS = 900
OBJECT_IMAGES = 4500
MOST_OBJECTS = 3
OBJECT_SIDE = (0.35, 0.6)
"""As :data:`LONGER_SIDE`, where an image holds up to :data:`MOST_OBJECTS`."""
LEAST_VISIBLE = 0.6
"""Share of each object that those pasted after it leave visible."""
ATTEMPTS = 10

_ROOT = "usr/share/tuxpaint/stamps/"
_CLASSES: dict[str, tuple[str, ...]] = {
    "bird": ("animals/birds/",),
    "fruit": ("food/fruit/",),
    "hoofed": (
        "animals/mammals/bovines/",
        "animals/mammals/camel/",
        "animals/mammals/deer/",
        "animals/mammals/equines/",
        "animals/mammals/giraffe",
        "animals/mammals/hippopotamus",
        "animals/mammals/pig",
        "animals/mammals/rhino",
        "animals/mammals/wildboar",
    ),
    "insect": ("animals/insects/",),
    "instrument": ("hobbies/music/",),
    "plant": ("plants/",),
    "rodent": ("animals/mammals/rodents/",),
    "sea": (
        "animals/fish/",
        "animals/mammals/aquatic/dolphin",
        "animals/mammals/aquatic/orca",
        "animals/mammals/aquatic/sea_lion",
        "animals/mammals/aquatic/whale",
    ),
    "vehicle": ("vehicles/", "military/vehicles/"),
}
"""Class -> how the names of its cut-outs begin."""
_LEFT_OUT = (
    "/cartoon/", "/plastic/", "/mushrooms/",  # drawings, and what is no plant
    "_mirror", "sedan_police", "7spoke256", "wheel_tractor", "ww2_german_gun",
    "insects/Brown_slug", "insects/Woodlouse", "rodents/rabbit", "trees/pinecone",
    "trees/rambutan",
)  # fmt: skip
"""Parts of the names of cut-outs that are no photograph of a whole object of the class."""


def stamp_class(name: str) -> str | None:
    """The class of a file of the package, or None for one that is not used."""
    stamp = name.removeprefix(_ROOT)
    if not name.startswith(_ROOT) or not stamp.endswith(".png"):
        return None
    if any(part in stamp for part in _LEFT_OUT):
        return None
    for label, beginnings in _CLASSES.items():
        if stamp.startswith(beginnings):
            return label
    return None


def cifar10_composited(split: SplitSpec) -> SourceData:
    """900 composites of each of nine classes, 64x64 pixels, with the object's mask as gold.

    Cut-outs are cut into splits before anything is composited, and so are the backgrounds (test
    backgrounds are CIFAR-10 test images). Everything depends on ``split`` alone. The gold mask is
    where the resized alpha is at least one half.
    """
    return _composed(split, _one_object, IMAGES_PER_CLASS)


def cifar10_objects(split: SplitSpec) -> SourceData:
    """4,500 images of none to three objects of different classes (a quarter of each number), 64x64
    pixels; a label for each class that is there. Gold are the visible parts of all objects.

    Cut into splits as :func:`cifar10_composited`. An object that would hide more than 40% of one
    below it is put elsewhere, or left out after ten attempts.
    """
    return _composed(split, _several_objects, OBJECT_IMAGES)


def _composed(split: SplitSpec, compose: Compose, images: int) -> SourceData:
    """What ``compose`` makes of each split's own cut-outs and backgrounds; ``images`` is its number
    for the whole."""
    stamps, labels, label_names = _stamps()
    shares = {"test": split.test, "dev": split.dev * (1 - split.test)}
    parts = stratified_split(labels, shares, rest="train", seed=split.seed)
    backgrounds = _backgrounds(shares["dev"], split.seed)
    shares["train"] = 1 - shares["test"] - shares["dev"]
    splits = {
        name: compose(
            name,
            [stamps[index] for index in part],
            labels[part],
            backgrounds[name],
            round(images * shares[name]),
            (split.seed, number),
        )
        for number, (name, part) in enumerate(sorted(parts.items()))
    }
    return SourceData(
        splits["train"],
        label_names,
        test=splits["test"],
        dev=splits["dev"],
        facts={"cut_outs": ", ".join(f"{len(part)} {name}" for name, part in parts.items())},
    )


def _stamps() -> tuple[list[Image.Image], np.ndarray, tuple[str, ...]]:
    """Cut-outs in RGBA, cropped to what is not transparent; labels int64 ``[stamp]``."""
    from PIL import Image

    label_names = tuple(_CLASSES)
    stamps: list[Image.Image] = []
    labels: list[int] = []
    for name, content in sorted(_stamp_files().items()):
        label = stamp_class(name)
        if label is None:
            continue
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            stamp = picture.convert("RGBA")
        box = stamp.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
        if box is None:
            continue
        stamp = stamp.crop(box)
        stamp.thumbnail((2 * CANVAS, 2 * CANVAS))
        stamps.append(stamp)
        labels.append(label_names.index(label))
    if len(set(labels)) < len(label_names):
        raise IntegrityError(f"{TUXPAINT_STAMPS.filename} lacks the cut-outs of a class")
    return stamps, np.asarray(labels, dtype=np.int64), label_names


def _stamp_files() -> dict[str, bytes]:
    """The cut-outs' files by name. To find them takes many seconds of decompression, so they are
    also kept, as they are, in a zip archive of the cache (whose checksums are verified)."""
    path = fetch(TUXPAINT_STAMPS)
    kept = cache_dir() / "prepared" / f"stamps-{TUXPAINT_STAMPS.sha256[:12]}.zip"
    try:
        with zipfile.ZipFile(kept) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except FileNotFoundError:
        pass
    except (zipfile.BadZipFile, zlib.error, EOFError):
        kept.unlink()
    # All files of the folders, so that another choice among them finds them here as well.
    folders = tuple(_ROOT + beginning for group in _CLASSES.values() for beginning in group)
    files = read_deb_files(path, lambda n: n.startswith(folders) and n.endswith(".png"))
    with atomic_file(kept) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return files


def _backgrounds(dev_share: float, seed: int) -> dict[str, np.ndarray]:
    """Disjoint CIFAR-10 images for each split, uint8 ``[image, 32, 32, 3]``."""
    source = cifar10()
    assert isinstance(source.train, ArraySplit)
    assert isinstance(source.test, ArraySplit)
    images, test = np.asarray(source.train.examples), np.asarray(source.test.examples)
    order = np.random.default_rng((seed, 0)).permutation(len(images))
    dev_count = round(dev_share * len(images))
    return {"train": images[order[dev_count:]], "dev": images[order[:dev_count]], "test": test}


def _one_object(
    name: str,
    stamps: list[Image.Image],
    stamp_labels: np.ndarray,
    backgrounds: np.ndarray,
    per_class: int,
    seed: tuple[int, int],
) -> ArraySplit:
    """``per_class`` composites of every class; its cut-outs take turns."""
    rng = np.random.default_rng(seed)
    classes = np.unique(stamp_labels)
    labels = np.repeat(classes, per_class)
    images = np.empty((len(labels), CANVAS, CANVAS, 3), dtype=np.uint8)
    masks = np.empty((len(labels), CANVAS, CANVAS), dtype=bool)
    members = {label: np.flatnonzero(stamp_labels == label) for label in classes}
    for row, label in enumerate(labels):
        own = members[label]
        background = backgrounds[rng.integers(len(backgrounds))]
        images[row], masks[row] = _composite(stamps[own[row % len(own)]], background, rng)
    order = rng.permutation(len(labels))
    return ArraySplit(name, labels[order], images[order], list(masks[order]))


def _several_objects(
    name: str,
    stamps: list[Image.Image],
    stamp_labels: np.ndarray,
    backgrounds: np.ndarray,
    images: int,
    seed: tuple[int, int],
) -> ArraySplit:
    rng = np.random.default_rng(seed)
    classes = np.unique(stamp_labels)
    labels = np.zeros((images, len(_CLASSES)), dtype=np.float32)
    pixels = np.empty((images, CANVAS, CANVAS, 3), dtype=np.uint8)
    masks: list[np.ndarray] = []
    for row in range(images):
        canvas = _canvas(backgrounds[rng.integers(len(backgrounds))])
        visible: list[np.ndarray] = []
        least: list[float] = []
        for label in rng.choice(classes, rng.integers(0, MOST_OBJECTS + 1), replace=False):
            stamp = stamps[rng.choice(np.flatnonzero(stamp_labels == label))]
            for _ in range(ATTEMPTS):
                small, place, mask = _placed(stamp, OBJECT_SIDE, rng)
                left = [one & ~mask for one in visible]
                if all(one.sum() >= area for one, area in zip(left, least, strict=True)):
                    canvas.paste(small, place, small)
                    visible = [*left, mask]
                    least.append(LEAST_VISIBLE * float(mask.sum()))
                    labels[row, label] = 1.0
                    break
        pixels[row] = np.asarray(canvas)
        nothing = np.zeros((CANVAS, CANVAS), dtype=bool)
        masks.append(np.logical_or.reduce([nothing, *visible]))
    return ArraySplit(name, labels, pixels, masks)


def _composite(
    stamp: Image.Image, background: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    small, place, mask = _placed(stamp, LONGER_SIDE, rng)
    canvas = _canvas(background)
    canvas.paste(small, place, small)
    return np.asarray(canvas), mask


def _canvas(background: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(background).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)


def _placed(
    stamp: Image.Image, side: tuple[float, float], rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, int], np.ndarray]:
    """A cut-out in a random size, a random place for it (left, top), and its mask there."""
    from PIL import Image

    longer = rng.uniform(*side) * CANVAS
    scale = longer / max(stamp.size)
    width, height = (max(1, round(side * scale)) for side in stamp.size)
    small = stamp.resize((width, height), Image.Resampling.BICUBIC)
    left = int(rng.integers(0, CANVAS - width + 1))
    top = int(rng.integers(0, CANVAS - height + 1))
    mask = np.zeros((CANVAS, CANVAS), dtype=bool)
    mask[top : top + height, left : left + width] = np.asarray(small.getchannel("A")) >= 128
    return small, (left, top), mask
