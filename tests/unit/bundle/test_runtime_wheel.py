"""The runtime as a wheel of its own: small, typed, and the same file that lies in bundles."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from rekd_edge import __version__
from rekd_edge.bench.load import program_path
from rekd_edge.bundle.runtime import load_runtime, runtime_path
from tests.bench_program import write_texts

LARGEST_BYTES = 100_000
FOLDER = runtime_path().parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime-wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


def test_it_is_small_and_holds_the_runtime_and_its_benchmark(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST_BYTES
    archive = zipfile.ZipFile(wheel)
    names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == [
        "rekd_runtime/__init__.py",
        "rekd_runtime/__main__.py",
        "rekd_runtime/bench.py",
        "rekd_runtime/py.typed",
    ]
    assert archive.read("rekd_runtime/__init__.py") == runtime_path().read_bytes()
    assert archive.read("rekd_runtime/bench.py") == program_path().read_bytes()


def test_it_says_what_it_needs_and_that_is_not_torch(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    told = Parser().parsestr(archive.read(name).decode())
    assert told["Name"] == "rekd-edge-runtime"
    assert told["Version"] == __version__ == load_runtime().__version__
    needs = told.get_all("Requires-Dist")
    assert needs is not None
    always = {need.split(">")[0] for need in needs if "extra ==" not in need}
    assert always == {"numpy", "onnxruntime"}
    assert not any("torch" in need for need in needs)
    assert set(told.get_all("Provides-Extra") or ()) == {"text", "image", "openvino"}
    (licence,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
    assert archive.read(licence) == (Path(__file__).parents[3] / "LICENSE").read_bytes()


def test_it_answers_from_the_archive_itself(wheel: Path, text_bundle: Path, tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import rekd_runtime as r; r.main()"
    words = [str(wheel), "--bundle", str(text_bundle), "a gorgeous, witty film"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "from 2 of 5 tokens" in done.stdout
    done = subprocess.run(
        [sys.executable, "-c", code, str(wheel), "good film"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--bundle" in done.stderr


def test_it_measures_from_the_archive_itself(
    wheel: Path, text_bundle: Path, tmp_path: Path
) -> None:
    examples = write_texts(tmp_path, ["a gorgeous, witty film"])
    asked = {"schema_version": 1, "scenario": "Offline", "quick": True, "threads": 1}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from rekd_runtime.bench import main; sys.exit(main())"
    )
    words = [str(wheel), str(text_bundle), "--examples", str(examples)]
    words += ["--request", str(tmp_path / "request.json"), "--report", str(tmp_path / "out.json")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["result_invalid_reason"].startswith("quick")
    assert report["cold_start"]["time_to_first_answer_ns"][0] > 0
