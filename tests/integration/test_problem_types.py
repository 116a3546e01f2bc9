"""Numbers and sets of labels from recipe to a trained, evaluated run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rekd_edge.compare import compare
from rekd_edge.data import TaskData, load_data
from rekd_edge.distill.loop import Silent
from rekd_edge.errors import UsageError
from rekd_edge.evaluate import evaluate_rationalist
from rekd_edge.evaluate_pipeline import evaluate_run
from rekd_edge.pipeline import train_run
from rekd_edge.problem import PRIMARY
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.schema import Recipe
from rekd_edge.report_pipeline import build_report
from rekd_edge.run_folder import Run, open_run

SCORES = {
    "regression": ("r2", "mean_absolute_error", "root_mean_squared_error"),
    "multi_label_classification": ("f1_micro", "f1_macro", "accuracy"),
}


class InterruptAfter(Silent):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, terms: dict[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def smoke(name: str, *overrides: str) -> Recipe:
    return load_recipe(find_recipe(f"smoke/{name}"), overrides)


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """Composing images takes seconds; every run here reads the same ones."""
    read: dict[str, TaskData] = {}

    def load(recipe: Recipe) -> TaskData:
        key = recipe.data.model_dump_json() + recipe.problem_type
        return read[key] if key in read else read.setdefault(key, load_data(recipe))

    with pytest.MonkeyPatch.context() as patch:
        for place in ("pipeline", "run_folder"):
            patch.setattr(f"rekd_edge.{place}.load_data", load)
        yield


@pytest.fixture(scope="module", params=["regression", "multi-label"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "run"
    return train_run(smoke(request.param), path, device="cpu")


def test_a_run_reports_its_scores_and_reopens_with_them(finished: Run) -> None:
    kind = finished.recipe.problem_type
    distill = finished.report("distill")
    assert distill is not None
    for role in ("teacher", "student"):
        test = distill[role]["test"]
        assert tuple(test)[:3] == SCORES[kind]
        assert set(test["per_label"]) == set(finished.label_names)
        assert set(SCORES[kind]) < set(distill[role]["dev"])
        assert PRIMARY[kind] in distill[role]["test_own"]
    # What is opened answers in the unit of the data by its head alone.
    student = finished.student()
    predictions = evaluate_rationalist(student, finished.loader("test"))
    assert predictions.scores == pytest.approx(
        {name: distill["student"]["test"][name] for name in SCORES[kind]}, abs=1e-5
    )
    assert predictions.loss == pytest.approx(distill["student"]["test"]["loss"], abs=1e-5)
    if kind == "regression":
        labels = finished.data().train.labels
        bias = float(student.predictor.head.bias.detach())
        assert abs(bias - float(labels.mean())) < 0.2 * float(labels.std())
        written = load_file(finished.path / "student" / "best" / "model.safetensors")
        assert float(written["predictor.problem.deviation"]) == pytest.approx(labels.std(), 1e-5)
    agreement = distill["agreement_with_teacher"]
    simulated = finished.simulability()
    assert simulated is not None
    named = "value_r2" if kind == "regression" else "label_agreement"
    assert simulated.with_rationales == agreement[named]


def test_its_logs_name_the_terms(finished: Run) -> None:
    lines = (finished.path / "student" / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    joint = next(entry for entry in entries if entry["phase"] == "joint")
    regression = finished.recipe.problem_type == "regression"
    names = {"squared_error", "squared_difference"} if regression else {"ce", "kl_prediction"}
    assert names <= set(joint)
    assert any(entry["phase"] == "joint/monitor" for entry in entries)


def test_its_rationales_are_evaluated_under_its_own_names(finished: Run) -> None:
    kind = finished.recipe.problem_type
    report = evaluate_run(finished, device="cpu", save=False)
    content = report.to_json()
    assert tuple(content["scores"]) == SCORES[kind]
    assert "accuracy" not in content
    assert content["probe"][PRIMARY[kind]] == report.probe.accuracy
    scores = report.faithfulness.scores
    assert scores is not None
    assert content["faithfulness"]["scores"][f"judge_{PRIMARY[kind]}"] == scores.judge_accuracy
    if kind == "regression":  # distances have no sign
        assert scores.sufficiency > 0
        assert scores.comprehensiveness > 0
    gold = "lexicon proxy" if kind == "regression" else "object masks"
    assert [found.name for found in report.gold] == [gold]


def test_its_page_shows_teacher_and_student_as_training_left_them(finished: Run) -> None:
    content = (report := build_report([finished.path], examples=6)).content
    distill = finished.report("distill") or {}
    teacher, student = content.results
    for found, role in ((teacher, "teacher"), (student, "student")):
        stated = distill[role]["test"]
        names = SCORES[finished.recipe.problem_type]
        assert found.scores == pytest.approx({name: stated[name] for name in names}, abs=1e-5)
        assert found.per_class == pytest.approx(stated["per_label"], abs=1e-5)
    shared, stated = student.agreement, distill["agreement_with_teacher"]
    assert shared is not None
    assert shared.rationale_jaccard == pytest.approx(stated["rationale_jaccard"], abs=1e-6)
    if finished.recipe.problem_type == "regression":
        (value,) = shared.values
        assert value.correlation == pytest.approx(stated["value_correlation"], abs=1e-4)
        assert "R² on the development split" in report.page
    else:
        assert shared.labels == stated["label_agreement"]
        assert "micro F1 on the development split" in report.page
    assert all(training.dev for training in content.trainings)
    assert content.examples == 6
    limited = build_report([finished.path], examples=0, limit=12).content
    assert limited.results[0].examples == 12


def test_resumed_with_a_transfer_set_it_ends_the_same(finished: Run, tmp_path: Path) -> None:
    changes = [f"teacher.run={finished.path}"]
    name = "multi-label"
    if finished.recipe.problem_type == "regression":
        name = "regression"
        changes += ["transfer.source=rotten-tomatoes", "transfer.limit=16"]
    recipe = smoke(name, *changes)
    whole = train_run(recipe, tmp_path / "whole", device="cpu", with_fuse_report=False)
    with pytest.raises(KeyboardInterrupt):
        train_run(recipe, tmp_path / "broken", device="cpu", listener=InterruptAfter(10))
    train_run(recipe, tmp_path / "broken", device="cpu", resume=True, with_fuse_report=False)
    expected, found = (
        load_file(tmp_path / run / "student" / "best" / "model.safetensors")
        for run in ("whole", "broken")
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    transfer = (whole.report("distill") or {}).get("transfer")
    if name == "regression":
        assert transfer is not None
        assert set(transfer["answers"]["rating"]) == {"mean", "deviation"}


def test_a_teacher_of_another_problem_is_refused(finished: Run, tmp_path: Path) -> None:
    other = "regression" if finished.recipe.problem_type != "regression" else "multi-label"
    with pytest.raises(UsageError, match="knows the labels"):
        train_run(smoke(other, f"teacher.run={finished.path}"), tmp_path / "run", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("rationale", ["mask_gradient", "attention"])
def test_a_black_box_of_numbers_teaches(rationale: str, tmp_path: Path) -> None:
    recipe = smoke(
        "regression", f"teacher.rationale={rationale}", "objective.teacher_prediction=full_input"
    )
    run = train_run(recipe, tmp_path / "run", device="cpu")
    report = open_run(run.path).report("distill")
    assert report is not None
    assert "r2" in report["teacher"]["test"]


@pytest.mark.slow
def test_a_comparison_is_in_the_primary_score(tmp_path: Path) -> None:
    found = compare(smoke("regression"), tmp_path / "runs", seeds=[0], device="cpu")
    content = found.to_json()
    assert found.score == "r2"
    assert set(content["r2"]) == set(content["r2_per_seed"])
    assert "accuracy" not in content
