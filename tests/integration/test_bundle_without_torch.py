"""What a device does: an environment with numpy, onnxruntime, tokenizers and Pillow, and nothing
of this project but the bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from rekd_edge.data import load_data
from rekd_edge.recipe import find_recipe, load_recipe

if TYPE_CHECKING:
    from rekd_edge.data.preprocess import TextPreprocessor
    from rekd_edge.fuse import FusedRationalist


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment, at the versions that run this test."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = ("numpy", "onnxruntime", "tokenizers", "pillow")
    pinned = [f"{name}=={metadata.version(name)}" for name in packages]
    # --no-deps: onnxruntime and tokenizers name packages that only their downloaders import.
    installed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
            *("--disable-pip-version-check", "--no-deps", "--only-binary=:all:", *pinned),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert installed.returncode == 0, installed.stderr
    return python


def run(python: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        [python, *words], capture_output=True, text=True, cwd=cwd, env=clean, timeout=120
    )


def test_nothing_of_this_project_is_installed_there(device: Path, tmp_path: Path) -> None:
    for package in ("torch", "transformers", "timm", "pydantic", "rekd_edge"):
        done = run(device, "-c", f"import {package}", cwd=tmp_path)
        assert f"No module named '{package}'" in done.stderr


def test_texts_get_the_labels_and_rationales_of_the_torch_model(
    device: Path,
    text_bundle: Path,
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    tmp_path: Path,
) -> None:
    import torch

    recipe = load_recipe(find_recipe("smoke/text"))
    test = load_data(recipe).test
    texts = [str(test.raw(position)) for position in range(20)]
    bundle = shutil.copytree(text_bundle, tmp_path / "bundle")
    (tmp_path / "review.txt").write_text(texts[-1], encoding="utf-8")
    words = [*("@" + text if text.startswith("@") else text for text in texts[:-1]), "@review.txt"]
    done = run(device, "bundle/runtime/rekd_runtime.py", "--json", "-", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predictions: list[dict[str, Any]] = json.loads(done.stdout)["predictions"]
    assert [prediction["source"] for prediction in predictions] == texts
    for text, prediction in zip(texts, predictions, strict=True):
        inputs = bundled_text_preprocessor.encode([text]).values()
        with torch.no_grad():
            logits, kept = bundled_text_model(*map(torch.from_numpy, inputs))[:2]
        assert prediction["label"] == bundled_text_model.label_names[int(logits.argmax())]
        tokens = sorted(token for span in prediction["rationale"] for token in span["tokens"])
        assert tokens == kept[0].nonzero().flatten().tolist()
    seen = run(device, "bundle/runtime/rekd_runtime.py", texts[0], cwd=tmp_path)
    assert seen.returncode == 0, seen.stderr
    assert seen.stdout.split()[0] == predictions[0]["label"]
    assert bundle.is_dir()


def test_several_labels_and_values_are_answered(
    device: Path,
    multi_label_bundle: Path,
    regression_bundle: Path,
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    tmp_path: Path,
) -> None:
    import torch

    text = "a gorgeous, witty film"
    inputs = bundled_text_preprocessor.encode([text]).values()
    with torch.no_grad():
        logits = bundled_text_model(*map(torch.from_numpy, inputs))[0][0].numpy()
    names = bundled_text_model.label_names

    def answered(bundle: Path) -> dict[str, Any]:
        script = bundle / "runtime" / "rekd_runtime.py"
        done = run(device, script, "--json", "-", text, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(done.stdout)["predictions"]
        assert found["rationale"]
        return found

    several = answered(multi_label_bundle)
    held = zip(names, logits, strict=True)
    assert several["labels"] == [name for name, logit in held if logit > 0]
    shares = [several["probabilities"][name] for name in names]
    np.testing.assert_allclose(shares, 1 / (1 + np.exp(-logits)), atol=1e-5)
    values = answered(regression_bundle)["values"]
    np.testing.assert_allclose([values[name] for name in names], logits, atol=1e-5)


def test_an_image_gets_an_overlay(device: Path, image_bundle: Path, tmp_path: Path) -> None:
    test = load_data(load_recipe(find_recipe("smoke/image"))).test
    Image.fromarray(np.asarray(test.raw(0))).save(tmp_path / "photo.png")
    script = image_bundle / "runtime" / "rekd_runtime.py"
    done = run(device, script, "photo.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "overlay: photo.rationale.png" in done.stdout
    assert done.stdout.count("#") == 4
    with Image.open(tmp_path / "photo.rationale.png") as overlay:
        assert overlay.size == (384, 384)


def test_a_bare_python_says_what_to_install(text_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = run(python, text_bundle / "runtime" / "rekd_runtime.py", "good film", cwd=tmp_path)
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr == (
        "error: numpy is missing (No module named 'numpy')\n  hint: python -m pip install numpy\n"
    )
