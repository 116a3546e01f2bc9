"""The check of files whose logits are several labels, or values."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from rekd_edge.check import CheckReport, Gate, GateSet, LabelledBatch, TextEdges, check_artefact
from rekd_edge.check.compare import differences, summarise
from rekd_edge.check.gates import METRICS, gates_dir, load_gates
from rekd_edge.convert import OnnxArtefact
from rekd_edge.errors import RecipeError, UsageError
from rekd_edge.fuse import FusedRationalist
from rekd_edge.problem import (
    PRIMARY,
    Reading,
    clear_answers,
    label_scores,
    penalised,
    scores,
    uninformed,
)
from rekd_edge.runners import TorchRunner
from rekd_edge.types import Outputs, ProblemType

SEVERAL: ProblemType = "multi_label_classification"
VALUES: ProblemType = "regression"
CheckAs = Callable[..., CheckReport]


@pytest.fixture
def check_as(
    tiny_text: FusedRationalist,
    tiny_text_onnx: OnnxArtefact,
    text_batches: list[LabelledBatch],
    text_edges: TextEdges,
) -> CheckAs:
    """Checks the text file as if its three logits meant something else. Labels are the model's own
    answers, a tenth of them changed, or values with a little noise."""

    def check(
        problem: ProblemType, path: Path | None = None, gates: str = "default"
    ) -> CheckReport:
        model = copy.copy(tiny_text)
        model.problem_type = problem
        names = tuple(tensor.name for tensor in model.io_spec().inputs)
        rng = np.random.default_rng(3)
        with TorchRunner(model, names) as runner:
            batches = []
            for batch in text_batches:
                logits = runner.run(batch.inputs).logits
                noise = rng.random(logits.shape)
                if problem == SEVERAL:
                    labels = ((logits > 0) != (noise < 0.1)).astype(np.float32)
                else:
                    labels = (logits + noise - 0.5).astype(np.float32)
                batches.append(LabelledBatch(batch.inputs, labels))
        return check_artefact(
            tiny_text_onnx.path if path is None else path,
            model=model,
            io_spec=model.io_spec(),
            label_names=("first", "second", "third"),
            batches=batches,
            gates=load_gates(gates),
            edges=text_edges,
            threads=1,
        )

    return check


def test_several_labels_pass_as_a_whole(check_as: CheckAs) -> None:
    report = check_as(SEVERAL)
    assert report.passed, report.failures
    assert report.problem_type == SEVERAL
    assert report.metrics["label_agreement"] == 1.0
    assert report.metrics["score"] == report.metrics["f1_micro"] == report.accuracy["torch"].overall
    assert 0.6 < report.metrics["score"] < 1
    assert report.metrics["accuracy"] < report.metrics["score"]
    assert not {"worst_class_accuracy", "mean_value_error", "r2"} & report.metrics.keys()
    assert report.not_applicable == ("mean_value_error",)
    assert "mean_value_error" not in {gate.metric for gate in report.gates}
    shown = report.to_json()["accuracy"]["onnx"]
    assert list(shown["scores"]) == ["f1_micro", "f1_macro", "accuracy"]
    assert set(shown["per_class"]) == {"first", "second", "third"}


def test_values_are_held_by_their_errors_and_not_by_labels(check_as: CheckAs) -> None:
    report = check_as(VALUES)
    assert report.passed, report.failures
    assert report.not_applicable == ("label_agreement",)
    assert "label_agreement" not in report.metrics
    assert "label_agreement" not in {gate.metric for gate in report.gates}
    assert 0 <= report.metrics["mean_value_error"] < 1e-4
    assert report.metrics["score"] == report.metrics["r2"] > 0.5
    assert {"mean_absolute_error", "root_mean_squared_error"} <= report.metrics.keys()
    assert report.comparison is not None
    assert "label_agreement" not in report.comparison.to_json()


@pytest.mark.parametrize("problem", [SEVERAL, VALUES])
def test_the_report_says_what_does_not_apply(problem: ProblemType, check_as: CheckAs) -> None:
    import io

    from rich.console import Console

    stream = io.StringIO()
    check_as(problem).render(Console(file=stream, width=160))
    shown = stream.getvalue()
    left_out = {SEVERAL: "mean_value_error", VALUES: "label_agreement"}[problem]
    title = {SEVERAL: "multi-label classification", VALUES: "regression"}[problem]
    assert f"not applicable to a {title}: {left_out}" in shown
    assert {SEVERAL: "micro F1 on the test split", VALUES: "R² on the test split"}[problem] in shown


@pytest.mark.parametrize("problem", [SEVERAL, VALUES])
@pytest.mark.parametrize(
    ("factor", "broken"),
    [(1.01, {"max_logit_error"}), (-1.0, {"max_logit_error", "score"}), (np.nan, {"score"})],
)
def test_a_corrupted_predictor_fails(
    problem: ProblemType,
    factor: float,
    broken: set[str],
    check_as: CheckAs,
    tiny_text_onnx: OnnxArtefact,
    tmp_path: Path,
) -> None:
    model = onnx.load(str(tiny_text_onnx.path))
    tensor = next(t for t in model.graph.initializer if t.name.startswith("predictor.head.weight"))
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(tmp_path / "wrong.onnx"))
    report = check_as(problem, tmp_path / "wrong.onnx")
    failed = {gate.metric for gate in report.gates if not gate.passed}
    agreement = {SEVERAL: "label_agreement", VALUES: "mean_value_error"}[problem]
    assert broken <= failed
    assert factor == 1.01 or agreement in failed


def test_the_strict_gates_know_who_always_answers_alike(check_as: CheckAs) -> None:
    found = {
        problem: next(
            g for g in check_as(problem, gates="strict").gates if g.reference == "majority"
        )
        for problem in (SEVERAL, VALUES)
    }
    assert found[VALUES].reference_value == pytest.approx(0)  # the mean explains nothing
    assert found[VALUES].outcome == "passed"
    several = found[SEVERAL]
    assert several.metric == "score"
    assert several.bound is not None
    assert several.reference_value is not None
    assert several.measured is not None
    assert several.bound == pytest.approx(several.reference_value + 0.05)
    assert several.passed == (several.measured >= several.bound)


# --- gates ------------------------------------------------------------------------------------


def gates_of(tmp_path: Path, *lines: str) -> GateSet:
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(["schema_version: 1", "name: mine", "gates:", *lines]) + "\n")
    return load_gates(str(file))


def test_accuracy_of_a_regression_is_refused_with_what_there_is(tmp_path: Path) -> None:
    gates = gates_of(
        tmp_path,
        "  - {metric: accuracy, goal: max-degradation, value: 0.01, reference: torch}",
        "  - {metric: label_agreement, value: 0.9}",
    )
    with pytest.raises(UsageError) as raised:
        gates.applicable(VALUES)
    assert raised.value.message == (
        "the gates 'mine' ask for accuracy, label_agreement, and a regression has no such metric"
    )
    assert "ask for score (r2)" in str(raised.value.hint)
    assert "mean_value_error" in str(raised.value.hint)
    assert "problem_types: [single_label_classification" in str(raised.value.hint)
    for problem in ("single_label_classification", SEVERAL):
        assert gates.applicable(problem) == gates


def test_a_gate_for_others_is_left_out_and_named(tmp_path: Path) -> None:
    gates = gates_of(
        tmp_path,
        "  - {metric: accuracy, value: 0.5, problem_types: [single_label_classification]}",
        "  - {metric: score, value: 0.1}",
    )
    assert [gate.metric for gate in gates.applicable(VALUES).gates] == ["score"]
    assert gates.not_applicable(VALUES) == ("accuracy",)
    assert gates.not_applicable("single_label_classification") == ()


def test_gates_that_are_all_for_others_are_refused(tmp_path: Path) -> None:
    gates = gates_of(tmp_path, "  - {metric: r2, value: 0.5, problem_types: [regression]}")
    with pytest.raises(UsageError, match="no gate of 'mine' is for a multi-label classification"):
        gates.applicable(SEVERAL)


def test_a_gate_for_a_type_without_its_metric_is_no_gate(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="r2 is no metric of a multi-label classification"):
        gates_of(tmp_path, f"  - {{metric: r2, value: 1, problem_types: [{VALUES}, {SEVERAL}]}}")
    with pytest.raises(ValidationError):
        Gate.model_validate({"metric": "score", "value": 1, "problem_types": ["ranking"]})
    with pytest.raises(ValidationError):
        Gate.model_validate({"metric": "score", "value": 1, "problem_types": []})


@pytest.mark.parametrize("problem", list(PRIMARY))
def test_every_shipped_gate_file_is_for_every_problem_type(problem: ProblemType) -> None:
    for path in gates_dir().glob("*.yaml"):
        asked = [gate.metric for gate in load_gates(path.stem).applicable(problem).gates]
        assert "score" in asked
        assert ("label_agreement" in asked) == (problem != VALUES)
        assert ("mean_value_error" in asked) == (problem == VALUES)


def test_every_score_is_a_metric_of_its_problem_type() -> None:
    labels: dict[ProblemType, np.ndarray] = {
        "single_label_classification": np.array([0, 1]),
        SEVERAL: np.eye(2),
        VALUES: np.eye(2),
    }
    for problem, truth in labels.items():
        for name in scores(np.eye(2), truth, problem):
            assert problem in METRICS[name].problem_types, name


# --- what a row of logits means ---------------------------------------------------------------


def outputs(logits: np.ndarray) -> Outputs:
    count = len(logits)
    mask = np.tile(np.array([[True, False]]), (count, 1))
    score = np.tile(np.array([[1.0, 0.0]], np.float32), (count, 1))
    return Outputs(logits.astype(np.float32), mask, score, np.ones(count, np.float32))


def test_errors_of_values_are_in_deviations_of_their_target() -> None:
    truth = np.array([[1000.0, 0.001], [3000.0, 0.003]])
    away = np.array([[10.0, 0.0], [0.0, 1e-4]])
    reading = Reading.of(VALUES, truth)
    assert reading.unit is not None
    np.testing.assert_allclose(reading.unit, [1000, 0.001])
    found = summarise(
        [differences(outputs(truth), outputs(truth + away), reading)],
        near_tie_margin=0.0,
    )
    assert found.max_logit_error == pytest.approx(0.1, rel=1e-3)  # the small target's
    assert found.mean_value_error == pytest.approx((0.01 + 0.1) / 4, rel=1e-3)
    assert found.label_agreement is None
    absolute = summarise([differences(outputs(truth), outputs(truth + away))], near_tie_margin=0.0)
    assert absolute.max_logit_error == pytest.approx(10)


def test_a_target_that_does_not_vary_has_unit_one() -> None:
    reading = Reading.of(VALUES, np.array([[5.0, 1.0], [5.0, 3.0]]))
    assert reading.unit is not None
    np.testing.assert_allclose(reading.unit, [1, 1])


def test_labels_agree_where_all_of_them_do() -> None:
    mine = np.array([[1.0, -1.0], [1.0, 1.0], [-2.0, -1.0]])
    other = np.array([[2.0, -3.0], [1.0, -0.1], [-1.0, -0.1]])
    part = differences(outputs(mine), outputs(other), Reading(SEVERAL))
    assert part.same_label is not None
    assert part.same_label.tolist() == [True, False, True]
    # As classes they would agree otherwise.
    single = differences(outputs(mine), outputs(other)).same_label
    assert single is not None
    assert single.tolist() == [True, True, True]


def test_whoever_does_not_look_answers_what_scores_best_or_the_mean() -> None:
    rng = np.random.default_rng(4)
    for shares in ((0.9, 0.3, 0.1), (0.02, 0.1, 0.05), (0.5, 0.5, 0.5)):
        labels = (rng.random((60, 3)) < shares).astype(np.float32)
        found = uninformed(labels, SEVERAL, 3)
        assert (found == found[0]).all()
        best = scores(found, labels, SEVERAL)["f1_micro"]
        assert best > 0
        for other in itertools.product((-1.0, 1.0), repeat=3):
            alike = np.broadcast_to(np.array(other), labels.shape)
            assert scores(alike, labels, SEVERAL)["f1_micro"] <= best
    values = np.array([[1.0], [2.0], [6.0]])
    assert uninformed(values, VALUES, 1).tolist() == [[3.0]] * 3
    assert scores(uninformed(values, VALUES, 1), values, VALUES)["r2"] == pytest.approx(0.0)
    single = uninformed(np.array([1, 2, 1]), "single_label_classification", 3)
    assert single.argmax(axis=1).tolist() == [1, 1, 1]


def test_what_is_not_finite_is_wrong() -> None:
    labels = np.array([[1, 0], [0, 1]], np.float32)
    logits = np.array([[5.0, -5.0], [np.nan, 5.0]])
    found = scores(penalised(logits, labels, SEVERAL), labels, SEVERAL)
    assert found["accuracy"] == 0.5
    assert found["f1_micro"] == pytest.approx(0.5)  # one hit, one false, one missed
    values = penalised(np.array([[1.0], [np.inf]]), np.array([[1.0], [2.0]]), VALUES)
    assert np.isnan(scores(values, np.array([[1.0], [2.0]]), VALUES)["r2"])
    classes = penalised(
        np.array([[np.nan, 1.0], [0.0, 1.0]]), np.array([0, 1]), "single_label_classification"
    )
    assert scores(classes, np.array([0, 1]), "single_label_classification")["accuracy"] == 0.5


def test_scores_of_each_label_by_hand() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 1]], np.float32)
    logits = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    each, support = label_scores(logits, labels, SEVERAL, 2)
    np.testing.assert_allclose(each, [0.5, 1.0])  # 1 hit of 2 found and 2 true; 2 of 2 and 2
    assert support.tolist() == [2, 2]
    each, support = label_scores(
        np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [3.0]]), VALUES, 1
    )
    np.testing.assert_allclose(each, [0.5])  # 1 - 1 / 2
    assert support.tolist() == [3]


@pytest.mark.parametrize(
    ("problem", "found", "expected"),
    [
        ("single_label_classification", [[0.0, 9.0], [9.0, 1.0]], [False]),
        (SEVERAL, [[5.0, -5.0], [-5.0, -1.0]], [False]),
        (VALUES, [[10.1, -10.0], [10.0, 0.0]], [True, False]),
    ],
)
def test_doubtful_answers_are_not_counted(
    problem: ProblemType, found: list[list[float]], expected: list[bool]
) -> None:
    reference = {
        "single_label_classification": [[10.0, 1.0], [10.0, 9.9]],
        SEVERAL: [[10.0, 10.0], [10.0, -0.1]],
        VALUES: [[10.0, -10.0], [10.0, 5.0]],
    }[problem]
    same = clear_answers(np.array(reference), np.array(found), problem, 0.02)
    assert same.tolist() == expected
