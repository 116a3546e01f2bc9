"""Several labels and values on their way to a device: exported by a real run folder, held to their
gates in ONNX Runtime, and answered by the runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from rekd_edge.bundle import open_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.calibrate.spec import AbstentionSpec
from rekd_edge.data.load import load_data
from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import TextPreprocessor
from rekd_edge.data.split import Split
from rekd_edge.errors import GateError, UsageError
from rekd_edge.export_pipeline import ExportResult, check_bundle, export_bundle
from rekd_edge.load_pipeline import load_examples, load_test
from rekd_edge.models.build import build_rationalist
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.precision_pipeline import export_fastest
from rekd_edge.problem import PRIMARY
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.report_pipeline import Report, build_report
from rekd_edge.run_folder import RECIPE_FILE, RUN_FILE, Run
from rekd_edge.runners import TorchRunner
from rekd_edge.types import Outputs, ProblemType
from tests.changed_bundle import with_config

SEVERAL: ProblemType = "multi_label_classification"
VALUES: ProblemType = "regression"
NAMES = {SEVERAL: ("plot", "acting", "music"), VALUES: ("stars", "length")}
SCALE = {SEVERAL: 1.0, VALUES: 1000.0}


def _labelled(split: Split, run: Run, problem: ProblemType) -> Split:
    """The split with labels that the untrained student gets partly right."""
    rng = np.random.default_rng(len(split))
    fused = run.fused()
    logits = np.zeros((len(split), len(NAMES[problem])), np.float32)
    for batch in make_loader(split, run.preprocessor.deployed(), batch_size=64, shuffle=False):
        with torch.no_grad():
            logits[batch.index.numpy()] = fused(*batch.inputs.values())[0].numpy()
    noise = rng.normal(size=logits.shape).astype(np.float32)
    labels = logits + logits.std(axis=0) * noise / 3
    other = split.take(np.arange(len(split)))
    other.labels = (labels > 0).astype(np.float32) if problem == SEVERAL else labels
    return other


def make_run(path: Path, problem: ProblemType) -> Run:
    """An untrained student of ``problem``, as training leaves one, over real sentences."""
    recipe = load_recipe(find_recipe("smoke/text"), ["data.limit.dev=120", "task=extract"])
    recipe = recipe.model_copy(update={"problem_type": problem, "teacher": None})
    names = NAMES[problem]
    torch.manual_seed(0)
    built = build_rationalist(recipe.student, recipe, len(names))
    assert isinstance(built.model, Rationalist)
    for head in (built.model.selector.head, built.model.predictor.head):
        torch.nn.init.normal_(head.weight, std=SCALE[problem])
    weights = path / "student" / "best"
    weights.mkdir(parents=True)
    save_file(built.model.state_dict(), weights / "model.safetensors")
    built.preprocessor.save(path / "preprocessor")
    run = Run(path, recipe, names, {"status": "finished"})
    data = load_data(load_recipe(find_recipe("smoke/text"), ["data.limit.dev=120"]))
    splits = {
        name: _labelled(getattr(data, name), run, problem) for name in ("train", "dev", "test")
    }
    run.__dict__["_data"] = replace(data, label_names=names, **splits)
    return run


@pytest.fixture(scope="module", params=[SEVERAL, VALUES])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("problem") / "run", request.param)


@pytest.fixture(scope="module")
def exported(run: Run) -> ExportResult:
    asked = AbstentionSpec(coverage=0.6) if run.recipe.problem_type == SEVERAL else None
    output = run.path / "bundle"
    return export_bundle(run, output=output, abstention=asked, twins=False, threads=1)


@pytest.fixture
def gates(tmp_path: Path) -> Path:
    """A user's file from the days of one label."""
    file = tmp_path / "mine.yaml"
    gate = "{metric: accuracy, goal: max-degradation, value: 0.01, reference: torch}"
    file.write_text(f"schema_version: 1\nname: mine\ngates:\n  - {gate}\n")
    return file


def test_it_becomes_a_bundle_that_says_what_it_answers(run: Run, exported: ExportResult) -> None:
    problem = run.recipe.problem_type
    assert exported.passed, exported.reasons
    bundle = open_bundle(exported.path)
    assert bundle.config.problem_type == problem
    assert bundle.config.schema_version == 3
    assert json.loads((exported.path / "labels.json").read_text()) == list(NAMES[problem])
    metadata = {p.key: p.value for p in onnx.load(str(bundle.model_path)).metadata_props}
    assert metadata["rekd_edge.problem_type"] == problem
    assert exported.report is not None
    assert exported.report.numerical is not None
    assert exported.report.numerical.changed_examples == 0
    left_out = {SEVERAL: "mean_value_error", VALUES: "label_agreement"}[problem]
    assert left_out not in {gate.metric for gate in bundle.manifest.gates}
    assert bundle.reports()["check"]["not_applicable"] == [left_out]
    score = exported.report.accuracy["onnx"].scores[PRIMARY[problem]]
    assert bundle.manifest.accuracy["student_onnx"] == score > 0.5
    # A temperature where there are probabilities.
    assert (bundle.config.calibration is None) == (problem == VALUES)
    assert ("calibration" in bundle.reports()) == (problem == SEVERAL)


def test_the_runtime_answers_as_the_torch_model(run: Run, exported: ExportResult) -> None:
    runtime = load_runtime()
    model = runtime.Rationalist.load(exported.path, threads=1)
    test = run.data().test
    assert isinstance(run.preprocessor, TextPreprocessor)
    texts = [str(test.raw(index)) for index in range(len(test))]
    fused, answers = run.fused(), model.predict(texts)
    for text, answer in zip(texts, answers, strict=True):
        with torch.no_grad():
            inputs = run.preprocessor.encode([text]).values()
            logits = fused(*map(torch.from_numpy, inputs))[0][0].numpy()
        if answer.values is not None:
            np.testing.assert_allclose(list(answer.values.values()), logits, rtol=1e-4)
            continue
        held = zip(model.config.label_names, logits, strict=True)
        assert answer.labels == tuple(name for name, logit in held if logit > 0)
        temperature = model.config.calibration.temperature
        np.testing.assert_allclose(
            list(answer.probabilities.values()), 1 / (1 + np.exp(-logits / temperature)), atol=1e-4
        )
    withheld = np.mean([answer.abstain for answer in answers])
    if exported.calibration is None:
        assert withheld == 0
        return
    assert exported.calibration.dev.coverage == pytest.approx(0.6, abs=0.01)
    assert 1 - withheld == pytest.approx(exported.calibration.test.coverage, abs=0.05)


def test_it_is_checked_again_and_a_lie_is_found(run: Run, exported: ExportResult) -> None:
    report, place = check_bundle(exported.path, run=run, threads=1)
    assert report.passed, report.failures
    assert place == exported.path
    other = {SEVERAL: VALUES, VALUES: SEVERAL}[run.recipe.problem_type]
    lie = with_config(exported.path, run.path / "lie", problem_type=other, calibration=None)
    with pytest.raises(GateError, match=f"config.json says problem_type is {other}, the run"):
        check_bundle(lie, run=run, threads=1, reject_failed=False)


def test_a_gate_of_one_label_is_held_as_a_whole_or_refused(
    run: Run, exported: ExportResult, gates: Path
) -> None:
    output = run.path / "refused"
    if run.recipe.problem_type == SEVERAL:
        report, _ = check_bundle(exported.path, run=run, gates=str(gates), threads=1)
        assert report.passed
        assert report.gates[0].measured == report.accuracy["onnx"].scores["accuracy"]
        return
    with pytest.raises(UsageError, match="a regression has no such metric") as raised:
        export_bundle(run, output=output, gates=str(gates), threads=1)
    assert "score (r2)" in str(raised.value.hint)
    with pytest.raises(UsageError, match="nothing says how sure it is"):
        export_bundle(run, output=output, abstention=AbstentionSpec(coverage=0.9), threads=1)
    with pytest.raises(UsageError, match="a regression has no such metric"):
        export_fastest(run, output=output, gates=str(gates), threads=1)
    assert not output.exists()
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]


def test_the_load_test_scores_what_the_check_scored(run: Run, exported: ExportResult) -> None:
    examples = load_examples(exported.path, run=run, limit=None)
    asked = {"schema_version": 1, "scenario": "SingleStream", "mode": "AccuracyOnly", "threads": 1}
    quality = load_test(exported.path, asked, examples).document["quality"]
    assert quality["problem_type"] == run.recipe.problem_type
    assert exported.report is not None
    # In the check whole batches, here one by one.
    assert quality["accuracy"] == pytest.approx(exported.report.metrics["score"], abs=1e-3)
    assert len(quality["predicted"][0]) == len(NAMES[run.recipe.problem_type])


def test_the_command_line_shows_the_answer(exported: ExportResult, run: Run) -> None:
    from rekd_edge.cli.app import app

    words = ["predict", str(exported.path), "a gorgeous film", "--json", "-"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["problem_type"] == run.recipe.problem_type
    key = {SEVERAL: "labels", VALUES: "values"}[run.recipe.problem_type]
    assert key in document["predictions"][0]


@pytest.fixture(scope="module")
def page(run: Run, exported: ExportResult) -> Report:
    """Of the bundle, whose run is the one at hand: it was never written as training writes one."""
    shutil.copy(exported.path / RECIPE_FILE, run.path / RECIPE_FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rekd_edge.report_pipeline.find_run", lambda bundle: run)
        return build_report([exported.path], examples=10)


def test_the_page_finds_what_the_check_found(
    page: Report, run: Run, exported: ExportResult
) -> None:
    problem, names = run.recipe.problem_type, NAMES[run.recipe.problem_type]
    assert exported.report is not None
    student, file = page.content.results
    checked = exported.report.accuracy["onnx"]
    assert file.name == page.content.primary == "bundle (fp32)"
    assert file.scores == pytest.approx(checked.scores, rel=1e-3)
    assert file.per_class == pytest.approx(checked.per_class, rel=1e-3)
    assert file.support == checked.support
    low, high = file.intervals[PRIMARY[problem]]
    assert low < file.accuracy < high
    agreement = file.agreement
    assert agreement is not None
    assert (agreement.other, agreement.rationale_exact) == ("student", 1.0)
    assert (agreement.labels, len(agreement.values)) == {SEVERAL: (1.0, 0), VALUES: (None, 2)}[
        problem
    ]
    truth = run.data().test.labels
    for place, name in enumerate(names):
        if problem == SEVERAL:
            one = file.labels[place]
            assert (one.name, one.both + one.missing) == (name, int(truth[:, place].sum()))
            assert one.both + one.missing + one.extra + one.neither == len(truth)
        else:
            value = file.values[place]
            assert value.mean_absolute_error < value.root_mean_squared_error
            assert agreement.values[place].distance < 0.01 * float(truth[:, place].std())
            assert agreement.values[place].correlation == pytest.approx(1.0)
    document = page.to_json()
    assert document["problem_type"] == problem
    assert json.dumps(document, allow_nan=False)
    assert student.agreement is None  # there is no teacher


def test_the_page_shows_what_the_device_answers(
    page: Report, run: Run, exported: ExportResult
) -> None:
    device = load_runtime().Rationalist.load(exported.path)
    truth, names = run.data().test.labels, NAMES[run.recipe.problem_type]
    shown = [example for group in page.content.groups for example in group.examples]
    assert len({example.index for example in shown}) == len(shown) == 10
    for example in shown:
        assert example.text is not None
        answer = next(one for one in example.answers if one.model == "bundle (fp32)")
        expected = device.predict([example.text])[0]
        assert answer.withheld == expected.refused_for
        assert answer.margin == pytest.approx(expected.margin, rel=1e-4)
        if expected.values is not None:
            found = {mark.name: mark.value for mark in answer.values}
            assert found == pytest.approx(dict(expected.values), rel=1e-4)
            errors = [mark.error for mark in answer.values]
            true = truth[example.index]
            np.testing.assert_allclose(errors, list(found.values()) - true, rtol=1e-4)
            continue
        given = [mark.name for mark in answer.labels if mark.state != "missing"]
        there = [mark.name for mark in answer.labels if mark.state != "extra"]
        assert given == list(expected.labels)
        assert there == [n for n, one in zip(names, truth[example.index], strict=True) if one]
        for mark in answer.labels:
            assert mark.probability == pytest.approx(expected.probabilities[mark.name], abs=1e-5)


def test_the_page_says_how_sure_answers_are_where_something_does(
    page: Report, exported: ExportResult
) -> None:
    if exported.calibration is None:
        assert page.content.confidences == ()
        assert "Nothing says how sure a value is" in page.page
        return
    (seen,) = page.content.confidences
    stated = exported.calibration.test
    assert seen.calibration_error == pytest.approx(stated.calibrated.ece, abs=1e-5)
    assert seen.risk_at(1.0) == pytest.approx(1 - stated.accuracy)
    assert len(seen.by_label) == len(NAMES[SEVERAL])
    ((_, stored),) = page.content.calibrations
    assert stored is not None
    assert (stored.coverage, stored.ece_after) == (stated.coverage, stated.calibrated.ece)


def test_a_model_whose_answers_are_no_numbers_is_said_not_to_have_been_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(TorchRunner):
        def run(self, inputs: Mapping[str, np.ndarray]) -> Outputs:
            found = super().run(inputs)
            return replace(found, logits=found.logits * np.nan)

    monkeypatch.setattr("rekd_edge.report_pipeline.TorchRunner", Broken)
    monkeypatch.setattr("rekd_edge.report_pipeline.open_run", lambda path: run)
    for name in (RECIPE_FILE, RUN_FILE):
        (run.path / name).touch()
    made = build_report([run.path])
    assert made.content.results == ()
    assert made.content.notes == (
        "student was not run: it answers with numbers that are not finite",
    )


def test_the_page_of_a_bundle_alone_and_of_two_types(
    exported: ExportResult, run: Run, tmp_path: Path
) -> None:
    alone = shutil.copytree(exported.path, tmp_path / "alone")
    made = build_report([alone])
    assert exported.report is not None
    checked = exported.report.accuracy["onnx"]
    file = made.content.result("alone (fp32)")
    assert file is not None
    assert file.scores == checked.scores
    assert file.examples == checked.examples == 32
    assert (file.labels, file.values, file.intervals) == ((), (), {})
    assert "no model could be run on the test split" in made.page
    other = {SEVERAL: VALUES, VALUES: SEVERAL}[run.recipe.problem_type]
    lie = with_config(exported.path, tmp_path / "lie", problem_type=other, calibration=None)
    with pytest.raises(UsageError, match="a page is about one problem type"):
        build_report([alone, lie])
