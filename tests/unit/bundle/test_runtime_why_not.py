"""The Python runtime asked "why not?": other classes, from a file of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rekd_edge.bundle import open_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.class_wise_files import asked_batches
from rekd_edge.errors import UsageError

if TYPE_CHECKING:
    from rekd_edge.check import LabelledBatch
    from rekd_edge.data.preprocess import TextPreprocessor
    from rekd_edge.fuse import FusedClassWise, FusedRationalist

runtime = load_runtime()
TEXT = "a good but long film"


@pytest.fixture(scope="module")
def asked(text_why_not: tuple[Path, FusedClassWise]) -> FusedClassWise:
    return text_why_not[1]


@pytest.fixture(scope="module")
def bundle(text_why_not: tuple[Path, FusedClassWise]) -> Path:
    return text_why_not[0]


def test_each_other_class_gets_its_best_case(bundle: Path, asked: FusedClassWise) -> None:
    model = runtime.Rationalist.load(bundle, threads=1)
    (plain,) = model.predict([TEXT])
    (found,) = model.predict([TEXT], why_not=True)
    assert plain.why_not is None
    assert {name: getattr(found, name) for name in ("label", "probabilities", "rationale")} == {
        name: getattr(plain, name) for name in ("label", "probabilities", "rationale")
    }
    others = sorted(set(asked.label_names) - {plain.label}, key=plain.probabilities.__getitem__)
    assert [one.label for one in found.why_not] == others[::-1]
    encoded = model.encode(TEXT)
    inputs = [torch.from_numpy(encoded.arrays[n]) for n in ("input_ids", "attention_mask")]
    for one in found.why_not:
        label = asked.label_names.index(one.label)
        logits, mask, *_ = asked(*inputs, torch.tensor([label]))
        expected = logits[0].softmax(dim=0)
        assert one.probability == pytest.approx(expected[label].item(), abs=1e-5)
        assert one.says == asked.label_names[int(expected.argmax())]
        assert one.convinces is (one.says == one.label)
        assert one.answer_probability == plain.probabilities[one.label]
        tokens = {token for span in one.rationale for token in span.tokens}
        assert tokens == set(mask[0].nonzero()[:, 0].tolist())
        assert one.kept == len(tokens)


def test_people_and_programs_see_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runtime.main([TEXT, "--bundle", str(bundle), "--why-not"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("why not ") == 2
    assert shown.count("[") >= 3
    assert runtime.main([TEXT, "--bundle", str(bundle), "--why-not", "--json", "-"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["predictions"]
    assert [set(one) for one in answer["why_not"]] == [set(runtime.ClassRationale.__slots__)] * 2
    assert runtime.main([TEXT, "--bundle", str(bundle), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["why_not"] is None


def test_many_classes_are_asked_for_up_to_a_bound(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "WHY_NOT_CLASSES", 1)
    model = runtime.Rationalist.load(bundle, threads=1)
    (found,) = model.predict([TEXT], why_not=True)
    assert len(found.why_not) == 1
    assert found.notices == ("why not: asked for the 1 most probable of the 2 other classes",)


def test_a_bundle_without_it_says_so_and_describes_itself_as_before(text_bundle: Path) -> None:
    assert "why_not" not in json.loads((text_bundle / "config.json").read_text())
    assert open_bundle(text_bundle).why_not_path is None
    model = runtime.Rationalist.load(text_bundle, threads=1)
    with pytest.raises(runtime.InputError, match="no class-wise rationales"):
        model.predict([TEXT], why_not=True)


def test_only_one_class_of_several_can_be_asked_about(
    multi_label_bundle: Path, regression_bundle: Path
) -> None:
    for bundle in (multi_label_bundle, regression_bundle):
        model = runtime.Rationalist.load(bundle, threads=1)
        with pytest.raises(runtime.InputError, match="does not answer with one class") as refused:
            model.predict([TEXT], why_not=True)
        assert "problem_type single_label_classification" in str(refused.value.hint)


def test_the_file_is_part_of_what_is_verified(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.why_not_path == bundle / "why_not.onnx"
    assert "why_not.onnx" in {entry.path for entry in opened.manifest.files}
    assert "Why not another class?" in (bundle / "README.md").read_text()
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    with (changed / "why_not.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(runtime.IntegrityError, match=r"why_not\.onnx"):
        runtime.Rationalist.load(changed)
    late = tmp_path / "late"
    shutil.copytree(bundle, late)
    model = runtime.Rationalist.load(late, threads=1)
    shutil.copyfile(late / "model.onnx", late / "why_not.onnx")
    with pytest.raises(runtime.IntegrityError, match="has changed while it was opened"):
        model.predict([TEXT], why_not=True)


def test_config_and_files_must_agree(
    bundle: Path,
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    make_bundle: Callable[..., Any],
    asked: FusedClassWise,
    tmp_path: Path,
) -> None:
    parts = (tmp_path / "b", bundle / "model.onnx", bundled_text_model, bundled_text_preprocessor)
    with pytest.raises(UsageError, match="whether there is a why_not"):
        make_bundle(*parts, why_not=(None, asked.io_spec()))
    assert not (tmp_path / "b").exists()


def test_each_example_is_asked_for_one_class_in_turn(text_batches: list[LabelledBatch]) -> None:
    found = list(asked_batches(text_batches, 3))
    asked_for = [int(label) for batch in found for label in batch.labels]
    assert asked_for == [position % 3 for position in range(19)]
    for batch, original in zip(found, text_batches, strict=True):
        assert (batch.inputs["candidate_class"] == batch.labels).all()
        assert batch.inputs["input_ids"] is original.inputs["input_ids"]
