"""``rekd-edge predict`` answers as the bundle's own runtime does, with the program's exit codes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.cli.app import app
from rekd_edge.errors import BackendError, IntegrityError, RekdEdgeError, UsageError


def predict(*words: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, words)], input=stdin)


def test_a_text_is_answered_with_its_words(text_bundle: Path) -> None:
    result = predict(text_bundle, "a gorgeous, witty film")
    assert result.exit_code == 0, result.output
    model = load_runtime().Rationalist.load(text_bundle)
    (expected,) = model.predict(["a gorgeous, witty film"])
    assert result.stdout == load_runtime().describe(expected, color=False) + "\n"
    assert "[" in result.stdout


def test_json_goes_to_standard_output_or_a_file(text_bundle: Path, tmp_path: Path) -> None:
    result = predict(text_bundle, "-", "--json", "-", stdin="good film\nword " + "w " * 60)
    document = json.loads(result.stdout)
    assert len(document["predictions"]) == 2
    assert document["predictions"][0]["source"] == "good film"
    assert result.stderr.startswith("note: input 2: truncated")
    result = predict(text_bundle, "good film", "--json", tmp_path / "answer.json")
    assert "[" in result.stdout
    assert json.loads((tmp_path / "answer.json").read_text())["modality"] == "text"


def test_an_image_is_answered_with_an_overlay(
    image_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").save("photo.png")
    result = predict(image_bundle, "photo.png", "--no-overlay")
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
    result = predict(image_bundle, "photo.png", "--json", "-")
    assert json.loads(result.stdout)["predictions"][0]["overlay"] == "photo.rationale.png"
    result = predict(image_bundle, "photo.png", "--overlay", "seen")
    assert "overlay: seen/photo.rationale.png" in result.stdout
    assert (tmp_path / "seen" / "photo.rationale.png").is_file()


def test_failures_keep_their_exit_codes(
    text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(kind: type[RekdEdgeError], *words: str | Path) -> str:
        error = predict(*words).exception
        assert type(error) is kind
        assert isinstance(error, RekdEdgeError)
        return error.message

    assert "does not exist" in fails(UsageError, tmp_path / "none", "x")
    assert "is not a bundle" in fails(IntegrityError, tmp_path, "x")
    assert "the text is empty" in fails(UsageError, text_bundle, "")
    broken = Path(shutil.copytree(text_bundle, tmp_path / "broken"))
    (broken / "labels.json").write_text('["a", "b", "c"]')
    assert "'labels.json' has" in fails(IntegrityError, broken, "x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "needs onnxruntime" in fails(BackendError, text_bundle, "x")


def test_code_inside_a_bundle_is_never_executed(text_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(text_bundle, tmp_path / "bundle"))
    trap = tmp_path / "trapped"
    code = f"open({str(trap)!r}, 'w')".encode()
    (folder / "runtime" / "rekd_runtime.py").write_bytes(code)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "runtime/rekd_runtime.py":
            entry.update(sha256=hashlib.sha256(code).hexdigest(), size_bytes=len(code))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert predict(folder, "good film").exit_code == 0
    assert not trap.exists()


def test_a_refused_bundle_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    code = "from rekd_edge.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", tmp_path, "x"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 6
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {tmp_path} is not a bundle: it has no manifest.json",
        "  hint: copy or export the bundle again",
    ]
