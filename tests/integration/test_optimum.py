"""Bundles made here, opened by optimum in an environment of its own (``make test-optimum``).

optimum's ONNX part needs a transformers that this project cannot run with, so the tests that open
the bundles (``tests/optimum``) are run by the Python that ``REKD_OPTIMUM_PYTHON`` names.
``REKD_OPTIMUM_BUNDLES`` names more bundles to open.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from rekd_edge.data import load_data
from rekd_edge.recipe import find_recipe, load_recipe

if TYPE_CHECKING:
    from rekd_edge.bundle import BundleManifest
    from rekd_edge.data.preprocess import ImagePreprocessor
    from rekd_edge.fuse import FusedRationalist

TESTS = Path(__file__).resolve().parents[1] / "optimum"
PYTHON = os.environ.get("REKD_OPTIMUM_PYTHON", "")
BUNDLES = [Path(word).resolve() for word in os.environ.get("REKD_OPTIMUM_BUNDLES", "").split()]
COUNT = 110

pytestmark = pytest.mark.skipif(not PYTHON, reason="needs optimum's environment: test-optimum")


def real_texts() -> list[str]:
    test = load_data(load_recipe(find_recipe("smoke/text"), [f"data.limit.test={COUNT}"])).test
    texts = [str(test.raw(position)) for position in range(COUNT)]
    return [*texts, " ".join(texts), "wörld — ½ “naïve” 中文", "a"]  # far too long, odd, shortest


def write_images(folder: Path) -> list[str]:
    """Small squares, large photographs of both orientations, one to be turned, grey and palette."""
    from sklearn.datasets import load_sample_image

    folder.mkdir()
    test = load_data(load_recipe(find_recipe("smoke/image"), [f"data.limit.test={COUNT}"])).test
    photo = Image.fromarray(np.asarray(load_sample_image("china.jpg")))
    named = {f"{index}.png": Image.fromarray(np.asarray(test.raw(index))) for index in range(COUNT)}
    named |= {
        "photo.jpg": photo,
        "upright.png": photo.transpose(Image.Transpose.ROTATE_90),
        "odd.png": photo.crop((0, 0, 101, 338)),
        "grey.png": photo.convert("L"),
        "palette.png": photo.quantize(64),
    }
    for name, image in named.items():
        image.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif)
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture
def pixel_bundle(
    bundled_image_model: FusedRationalist,
    bundled_image_preprocessor: ImagePreprocessor,
    make_bundle: Callable[..., BundleManifest],
    tmp_path: Path,
) -> Path:
    """An image bundle that takes 8-bit pixels, as exported ones do."""
    from rekd_edge.convert import convert_to_onnx, load_target

    model = copy.deepcopy(bundled_image_model)
    model.read_pixels(bundled_image_preprocessor.pixel_scale)
    onnx = tmp_path / "pixels.onnx"
    convert_to_onnx(model, model.io_spec(), onnx, target=load_target("onnx"), metadata={})
    make_bundle(tmp_path / "pixels", onnx, model, bundled_image_preprocessor.deployed())
    return tmp_path / "pixels"


def test_bundles_open_in_optimum_and_in_pipelines(
    text_bundle: Path,
    pixel_bundle: Path,
    multi_label_bundle: Path,
    regression_bundle: Path,
    tmp_path: Path,
) -> None:
    bundles = {"text": text_bundle, "image": pixel_bundle}
    bundles |= {"multi-label": multi_label_bundle, "regression": regression_bundle}
    bundles |= {f"{bundle.name}-{number}": bundle for number, bundle in enumerate(BUNDLES)}
    cases = {
        "bundles": {name: str(folder) for name, folder in bundles.items()},
        "texts": real_texts(),
        "images": write_images(tmp_path / "images"),
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean |= {
        "HF_HUB_OFFLINE": "1",  # a bundle needs nothing from a hub
        "PYTHONDONTWRITEBYTECODE": "1",
        "REKD_OPTIMUM_CASES": str(tmp_path / "cases.json"),
    }
    words = [PYTHON, "-m", "pytest", "-q", "-c", TESTS / "pytest.ini", TESTS]
    done = subprocess.run(
        words, env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-4_000:]}"
    passed = int(done.stdout.split(" passed")[0].split()[-1])
    assert passed >= 6 * len(bundles) + 2, done.stdout  # of 8, one is for texts in fp32
