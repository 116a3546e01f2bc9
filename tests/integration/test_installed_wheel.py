"""The package as users install it: from a wheel, outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment that holds the wheel; its dependencies come from the
    environment that runs the tests."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(folder)],
        check=True,
        timeout=120,
    )
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    python = binaries / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    # The tests run in an environment themselves, which --system-site-packages does not look into.
    # A path added this way has its own .pth files (an editable install) left out.
    (Path(own.stdout.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install"),
            *("--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return binaries


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=clean, timeout=120)


def test_the_wheel_holds_the_shipped_files_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for kind in ("recipes", "export/gates", "export/targets", "export/runtime/python"):
        shipped = {
            f"rekd_edge/_resources/{path.relative_to(ROOT).as_posix()}"
            for path in (ROOT / kind).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert shipped
        assert shipped <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "recipes/"))]
    assert not [name for name in names if "__pycache__" in name]


def test_commands_run_outside_the_checkout(environment: Path, tmp_path: Path) -> None:
    done = run(
        [environment / "rekd-edge", "recipe", "check", "text/movie-review-snippets"], tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "text/movie-review-snippets: ok" in done.stdout

    listed = run([environment / "rekd-edge", "recipe", "list", "--json", "-"], tmp_path)
    found = {row["name"] for row in json.loads(listed.stdout)["recipes"]}
    assert found == {
        path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
        for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert run([environment / "rekd-edge", "--help"], tmp_path).returncode == 0


def test_suites_are_not_shipped_and_it_is_said(environment: Path, tmp_path: Path) -> None:
    words = ["bench", "--suite", "latency", "--output", "out"]
    done = run([environment / "rekd-edge", *words], tmp_path)
    assert done.returncode == 2
    assert "suites are not part of the installed package" in done.stderr


def test_resources_come_from_the_installation(environment: Path, tmp_path: Path) -> None:
    code = "import rekd_edge.resources as r; print(r.recipes_dir()); print(r.export_dir())"
    done = run([environment / "python", "-c", code], tmp_path)
    recipes, export = map(Path, done.stdout.split())
    assert recipes.parent == export.parent
    assert recipes.is_relative_to(environment.parent)
    assert (export / "targets").is_dir()
