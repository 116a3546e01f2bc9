"""Composites: what is pasted is what the mask says, and the choice of cut-outs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from rekd_edge.data import composited
from rekd_edge.data.archives import TUXPAINT_STAMPS
from rekd_edge.data.composited import CANVAS, stamp_class
from rekd_edge.data.fetch import is_cached
from rekd_edge.data.load import load_source
from rekd_edge.recipe.schema import DataSpec

ROOT = "usr/share/tuxpaint/stamps/"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("animals/birds/owl.png", "bird"),
        ("animals/birds/cartoon/tux.png", None),
        ("animals/birds/owl.txt", None),
        ("animals/mammals/bovines/yak.png", "hoofed"),
        ("animals/mammals/pig_golden.png", "hoofed"),
        ("animals/mammals/cats/tiger.png", None),
        ("animals/mammals/rodents/rat.png", "rodent"),
        ("animals/mammals/rodents/rabbit-2.png", None),
        ("animals/mammals/aquatic/orca.png", "sea"),
        ("animals/mammals/aquatic/otter.png", None),
        ("military/vehicles/bradley_mirror.png", None),
        ("vehicles/auto/beetle.png", "vehicle"),
    ],
)
def test_the_class_of_a_cut_out_is_in_its_name(name: str, expected: str | None) -> None:
    assert stamp_class(ROOT + name) == expected
    assert stamp_class(name) is None


def test_the_mask_is_where_the_object_hides_the_background() -> None:
    """A red object with a transparent half over a green background."""
    stamp = Image.new("RGBA", (100, 50), (255, 0, 0, 255))
    stamp.paste((0, 0, 255, 0), (50, 0, 100, 50))
    background = np.zeros((32, 32, 3), dtype=np.uint8)
    background[:, :, 1] = 200
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, mask = composited._composite(stamp, background, rng)
        assert image.shape == (CANVAS, CANVAS, 3)
        assert mask.shape == (CANVAS, CANVAS)
        assert (image[mask][:, 0] >= 127).all()
        assert (image[~mask][:, 0] <= 128).all()
        assert image[:, :, 2].max() == 0  # nothing of the transparent half shows
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.2 * CANVAS < width < 0.5 * CANVAS
        assert abs(height - width) <= 2


@pytest.mark.slow
@pytest.mark.skipif(
    not is_cached(TUXPAINT_STAMPS) and shutil.which("apt-get") is None,
    reason="the cut-outs are a package of Debian, and there is no apt-get",
)
def test_the_real_set_is_balanced_and_split_by_cut_out() -> None:
    data = load_source(DataSpec(source="cifar10-composited"), "image")
    assert len(data.label_names) == 9
    splits = (data.train, data.dev, data.test)
    assert [len(split) for split in splits] == [9 * 648, 9 * 72, 9 * 180]
    assert data.source["cut_outs"] == "36 test, 16 dev, 131 train"
    for split in splits:
        assert len(set(np.bincount(split.labels).tolist())) == 1
        assert split.gold is not None
        assert 0.1 < np.mean([np.asarray(mask).mean() for mask in split.gold[:500]]) < 0.3
    again = load_source(DataSpec(source="cifar10-composited", limit={"test": 9}), "image")  # type: ignore[arg-type]
    assert again.test.gold is not None
    assert len(again.test.gold) == 9
    pixels = {np.asarray(data.test.raw(index)).tobytes() for index in range(len(data.test))}
    assert all(np.asarray(again.test.raw(index)).tobytes() in pixels for index in range(9))
    kept = composited._stamp_files()
    assert sum(stamp_class(name) is not None for name in kept) == 183
