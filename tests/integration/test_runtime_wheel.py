"""The runtime's wheel in an environment of its own, without torch: it answers 1,000 real texts and
images as the torch models do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from rekd_edge.bundle.runtime import runtime_path
from rekd_edge.data import load_data
from rekd_edge.recipe import find_recipe, load_recipe
from tests.bench_program import write_texts

if TYPE_CHECKING:
    from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
    from rekd_edge.fuse import FusedRationalist

pytestmark = pytest.mark.slow
COUNT = 1000
NEAR_TIE = 1e-4
"""Margin below which rounding may choose another rationale."""


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment with the wheel and what it needs, at the versions
    that run this test."""
    folder = tmp_path_factory.mktemp("device")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=runtime_path().parent, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    place = environment / ("Scripts" if os.name == "nt" else "bin")
    packages = ("numpy", "onnxruntime", "tokenizers", "pillow")
    pinned = [f"{name}=={metadata.version(name)}" for name in packages]
    # --no-deps: onnxruntime and tokenizers name packages that only their downloaders import.
    installed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(place / "python"), "install"),
            *("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"),
            *(*pinned, str(wheel)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert installed.returncode == 0, installed.stderr
    return place


def run(*words: str | Path, cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        words, capture_output=True, text=True, input=given, cwd=cwd, env=clean, timeout=300
    )


def answers(binaries: Path, bundle: Path, lines: list[str], cwd: Path) -> list[dict[str, Any]]:
    command = (binaries / "rekd-runtime", "--bundle", bundle, "--no-overlay", "--json", "-", "-")
    done = run(*command, cwd=cwd, given="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["predictions"]


def test_nothing_else_is_installed_there_and_it_says_what_it_is(
    binaries: Path, tmp_path: Path
) -> None:
    for package in ("torch", "transformers", "pydantic", "rekd_edge"):
        done = run(binaries / "python", "-c", f"import {package}", cwd=tmp_path)
        assert f"No module named '{package}'" in done.stderr
    done = run(binaries / "rekd-runtime", "--version", cwd=tmp_path)
    assert done.stdout == f"rekd-edge-runtime {metadata.version('rekd-edge')}\n"


def test_a_thousand_texts_get_the_answers_of_torch(
    binaries: Path,
    text_bundle: Path,
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    tmp_path: Path,
) -> None:
    import torch

    limit = f"data.limit={{train: 2, dev: 2, test: {COUNT}}}"
    test = load_data(load_recipe(find_recipe("smoke/text"), [limit])).test
    texts = [" ".join(str(test.raw(position)).split()) for position in range(COUNT)]
    found = answers(binaries, text_bundle, texts, tmp_path)
    assert len(found) == COUNT
    for text, answer in zip(texts, found, strict=True):
        inputs = bundled_text_preprocessor.encode([text]).values()
        with torch.no_grad():
            logits, kept, _, margin = bundled_text_model(*map(torch.from_numpy, inputs))[:4]
        tokens = sorted(token for span in answer["rationale"] for token in span["tokens"])
        same = tokens == kept[0].nonzero().flatten().tolist()
        assert same or float(margin) < NEAR_TIE
        if same:
            assert answer["label"] == bundled_text_model.label_names[int(logits.argmax())]
            expected = torch.softmax(logits[0].double(), dim=0).numpy()
            np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)


def test_a_thousand_images_get_the_answers_of_torch(
    binaries: Path,
    image_bundle: Path,
    bundled_image_model: FusedRationalist,
    bundled_image_preprocessor: ImagePreprocessor,
    tmp_path: Path,
) -> None:
    import torch

    limit = f"data.limit={{train: 10, dev: 10, test: {COUNT}}}"
    test = load_data(load_recipe(find_recipe("smoke/image"), [limit])).test
    paths = []
    for position in range(COUNT):
        paths.append(str(tmp_path / f"{position}.png"))
        Image.fromarray(np.asarray(test.raw(position))).save(paths[-1])
    found = answers(binaries, image_bundle, paths, tmp_path)
    assert len(found) == COUNT
    for position, answer in enumerate(found):
        pixels = bundled_image_preprocessor.encode([np.asarray(test.raw(position))])
        with torch.no_grad():
            logits, kept, _, margin = bundled_image_model(torch.from_numpy(pixels["pixel_values"]))[
                :4
            ]
        patches = [4 * box["row"] + box["column"] for box in answer["rationale"]]
        same = patches == kept[0].nonzero().flatten().tolist()
        assert same or float(margin) < NEAR_TIE
        if same:
            assert answer["label"] == bundled_image_model.label_names[int(logits.argmax())]


def test_its_cold_start_can_be_measured(binaries: Path, text_bundle: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "cold_start.py"
    command = [
        *(sys.executable, str(script), "--python", str(binaries / "python")),
        *("--rounds", "2", "--part-rounds", "1", "--output", str(tmp_path)),
        f"{text_bundle}=a gorgeous, witty film",
    ]
    # A process counts the peak of the one that made it as its own: a shell stands in between.
    through_shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh", *command]
    subprocess.run(through_shell, check=True, capture_output=True, timeout=120)
    found = json.loads((tmp_path / "cold-start.json").read_text())
    assert [row["form"] for row in found["rows"]] == ["script", "wheel"]
    for row in found["rows"]:
        assert len(row["samples_s"]) == 2
        assert 0 < row["processor_s"] < row["first_answer_s"]["most"] + 5
        # More than Python and numpy, so it is the child that was looked at.
        assert found["starter_peak_mb"] < row["peak_rss_mb"] < 400
        assert set(row["parts_processor_ms"]) >= {"read and hash", "open session", "first answer"}
    assert "| text fp32 | " in (tmp_path / "cold-start.md").read_text()


def test_its_load_test_runs_without_torch(
    binaries: Path, text_bundle: Path, tmp_path: Path
) -> None:
    examples = write_texts(tmp_path / "examples", ["a gorgeous, witty film", "dull"], [2, 0])
    asked = {"schema_version": 1, "scenario": "SingleStream", "quick": True}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    command = (binaries / "python", "-m", "rekd_runtime.bench", text_bundle)
    files = ("--examples", examples, "--request", "request.json", "--report", "out.json")
    done = run(*command, *files, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["result_query_count"] >= 20
    assert report["cold_start"]["peak_rss_bytes"][0] < 200e6


def test_the_types_can_be_checked_from_outside(binaries: Path, tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "from rekd_runtime import Prediction, Rationalist\n"
        "answer: Prediction = Rationalist.load('b').predict(['a text'])[0]\n"
        "label: str = answer.label\n"
        "abstain: bool = answer.abstain\n"
        "wrong: int = answer.label\n"
    )
    python = str(binaries / "python")
    command = (sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", python, "use.py")
    done = run(*command, cwd=tmp_path)
    problems = json.loads(done.stdout)["generalDiagnostics"]
    assert [problem["range"]["start"]["line"] for problem in problems] == [4]
