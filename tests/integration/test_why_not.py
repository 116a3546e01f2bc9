"""Class-wise rationales from recipe to bundle: trained, exported, checked and asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rekd_edge.bundle import open_bundle
from rekd_edge.check import CheckReport, load_gates
from rekd_edge.class_wise_files import check_class_wise
from rekd_edge.convert import load_target
from rekd_edge.errors import GateError, IntegrityError, UsageError
from rekd_edge.evaluate_pipeline import evaluate_run
from rekd_edge.export_pipeline import check_bundle, convert_run, export_bundle
from rekd_edge.export_pipeline import test_batches as batches_of
from rekd_edge.pipeline import train_run
from rekd_edge.precision_pipeline import export_fastest
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.load import InvalidRecipeError
from rekd_edge.recipe.schema import Recipe
from rekd_edge.report_pipeline import build_report
from rekd_edge.run_folder import Run, open_run

STUDENT = Path("student") / "best" / "model.safetensors"
HEAD = Path("class_wise") / "best" / "model.safetensors"


def recipe(*overrides: str) -> Recipe:
    alone = ("task=extract", "student.train.warmup.selector=none")
    return load_recipe(find_recipe("smoke/text"), [*alone, *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    asked = recipe("class_wise_rationales=true")
    return train_run(asked, tmp_path_factory.mktemp("runs") / "run", device="cpu")


@pytest.fixture(scope="module")
def bundle(run: Run) -> Path:
    result = export_bundle(run, output=run.path / "bundle", threads=1, twins=False)
    assert result.reasons == ()
    return result.path


@pytest.fixture(scope="module")
def checked(bundle: Path) -> CheckReport:
    report, place = check_bundle(bundle, threads=1)
    assert place == bundle
    return report


def test_the_student_and_its_file_are_what_they_are_without(
    run: Run, bundle: Path, tmp_path: Path
) -> None:
    alone = train_run(recipe(), tmp_path / "run", device="cpu", with_fuse_report=False)
    mine, theirs = (load_file(one.path / STUDENT) for one in (alone, run))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    convert_run(alone, alone.fused(), load_target("onnx"), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    with pytest.raises(UsageError, match="trained without"):
        export_bundle(alone, output=tmp_path / "c", class_wise=True)
    # A bundle that claims it of a run without is refused.
    shutil.copytree(bundle, tmp_path / "forged")
    with pytest.raises(GateError, match="why_not is"):
        check_bundle(tmp_path / "forged", run=alone, threads=1, reject_failed=False)


def test_the_page_says_how_often_they_convince(run: Run, bundle: Path, tmp_path: Path) -> None:
    """Of a run, and of a bundle whose run is not there."""
    stated = (run.report("distill") or {})["class_wise"]["test"]
    alone = Path(shutil.copytree(bundle, tmp_path / "alone"))
    for path in (run.path, alone):
        content = build_report([path], examples=0, limit=4).content
        (found,) = content.class_wise
        assert (found.examples, found.above_chance) == (32, stated["above_chance"])
        assert [one.label for one in found.classes] == ["negative", "positive"]
        assert [one.reach for one in found.classes] == [c["reach"] for c in stated["classes"]]


def test_training_reports_what_the_rationales_are_worth_and_can_be_resumed(
    run: Run, tmp_path: Path
) -> None:
    found = (run.report("distill") or {})["class_wise"]
    assert found["steps"] == 100
    assert found["train_wall_s"] >= 0
    assert [one["label"] for one in found["test"]["classes"]] == ["negative", "positive"]
    assert all(one["examples"] == 32 for one in found["test"]["classes"])
    again = tmp_path / "run"
    shutil.copytree(run.path, again, ignore=shutil.ignore_patterns("bundle", "class_wise"))
    resumed = train_run(run.recipe, again, resume=True, device="cpu", with_fuse_report=False)
    assert (again / HEAD).read_bytes() == (run.path / HEAD).read_bytes()
    report = resumed.report("distill") or {}
    assert report["class_wise"]["test"] == found["test"]
    measured = evaluate_run(run, device="cpu", save=False, limit=16)
    assert measured.class_wise is not None
    assert measured.class_wise_gold
    assert measured.class_wise_gold[0].name.endswith("for the label")
    assert json.dumps(measured.to_json()["class_wise"])
    (again / HEAD).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        open_run(again).fused_class_wise()


def test_the_bundle_is_checked_and_answers_why_not(
    run: Run, bundle: Path, checked: CheckReport
) -> None:
    assert checked.passed
    beside = checked.class_wise
    assert beside is not None
    assert beside.structural is not None
    assert beside.structural.passed
    assert beside.numerical is not None
    assert beside.numerical.passed
    assert checked.to_json()["class_wise"]["passed"]
    opened = open_bundle(bundle)
    assert any(gate.name == "why_not exclusion_leaks" for gate in opened.manifest.gates)
    text = str(run.data().test.raw(0))
    asked = [sys.executable, str(bundle / "runtime" / "rekd_runtime.py"), text, "--json", "-"]
    plain, why_not = (
        json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        for words in (asked, [*asked, "--why-not"])
    )
    (answer,), (explained,) = plain["predictions"], why_not["predictions"]
    (other,) = explained.pop("why_not")
    assert answer.pop("why_not") is None
    assert answer == explained
    assert {answer["label"], other["label"]} == {"negative", "positive"}
    assert other["kept"] == answer["kept"]


def test_a_file_of_another_head_fails(run: Run, bundle: Path, checked: CheckReport) -> None:
    other = run.fused_class_wise()
    assert other is not None
    other.class_head.weight.neg_()
    report = check_class_wise(
        bundle / "why_not.onnx",
        other,
        replace(checked, class_wise=None),
        batches=batches_of(run.data().test, run.preprocessor),
        edges=None,
        gates=load_gates("default"),
        target=load_target("onnx"),
    )
    assert not report.passed
    assert any("rationale_exact" in reason for reason in report.failures)
    assert all(reason.startswith("class-wise rationales: ") for reason in report.failures)


def test_what_cannot_be_had_is_refused_in_words(run: Run, tmp_path: Path) -> None:
    for target, reason in (
        ("onnx-int8", "is in int8-dynamic, the one that is asked in fp32"),
        ("onnx-fp16", "is in fp16"),
        ("aoti", "come from a package"),
    ):
        with pytest.raises(UsageError, match=reason) as refused:
            export_bundle(run, target=target, output=tmp_path / "b")
        assert "--no-why-not" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="--precision auto"):
        export_fastest(run, output=tmp_path / "b")
    assert not (tmp_path / "b").exists()
    wanted = "class_wise_rationales=true"
    with pytest.raises(InvalidRecipeError, match="trains a plain classifier"):
        recipe(wanted, "task=classify")
    partner = "{selector: {weights: ['random:x']}, predictor: {weights: ['random:x']}}"
    with pytest.raises(InvalidRecipeError, match="is for one student"):
        recipe(wanted, f"ensemble={{partner: {partner}}}")
    with pytest.raises(InvalidRecipeError, match=r"student\.selector\.resolution: 1"):
        load_recipe(find_recipe("smoke/image"), [wanted, "student.selector.resolution=0.5"])
