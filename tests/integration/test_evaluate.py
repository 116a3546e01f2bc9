"""`rekd-edge evaluate` on real tiny runs: the judge that training keeps, the report, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from rekd_edge.cli.app import app
from rekd_edge.data.load import load_data
from rekd_edge.data.loader import make_loader
from rekd_edge.data.split import ArraySplit
from rekd_edge.distill.loop import Silent
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.evaluate_pipeline import evaluate_run
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.run_folder import Run, open_run
from rekd_edge.types import Batch

ROOT = Path(__file__).parents[2]
PLANTED = ("data.source=planted-evidence", "data.max_length=64", "rationale_ratio=0.25")


class InterruptAfter(Silent):
    """Raises KeyboardInterrupt after a number of steps, as Ctrl-C would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, terms: dict[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def train(path: Path, *overrides: str) -> Run:
    return train_run(load_recipe(find_recipe("smoke/text"), overrides), path, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def planted(folder: Path) -> Run:
    return train(folder / "planted", *PLANTED)


@pytest.fixture(scope="module")
def other_seed(folder: Path) -> Run:
    return train(folder / "other", *PLANTED, "seed=1")


@pytest.fixture(scope="module")
def without_judge(folder: Path) -> Run:
    return train(
        folder / "bare",
        "task=extract",
        "student.train.warmup.predictor_epochs=0",
        "student.train.warmup.selector_epochs=0",
    )


def evaluate(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def test_the_report_on_planted_evidence(planted: Run, other_seed: Run) -> None:
    report = evaluate_run(planted, against=[other_seed], device="cpu")
    written = json.loads((planted.path / "reports" / "quality.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert written["split"] == "test"
    assert written["examples"] == 32
    distilled = planted.report("distill")
    assert distilled is not None
    assert report.accuracy == pytest.approx(distilled["student"]["test"]["accuracy"])
    assert written["faithfulness"]["judge"] == "teacher judge"
    shares = [entry["share"] for entry in written["faithfulness"]["scores"]["by_share"]]
    assert shares == [0.01, 0.05, 0.1, 0.2, 0.5]
    assert [gold["name"] for gold in written["gold"]] == ["planted evidence", "lexicon proxy"]
    evidence = report.gold[0]
    assert evidence.scores is not None
    # Documents of four sentences, cut at 64 tokens: some lose their evidence.
    assert evidence.cut_off > 0
    assert evidence.scores.examples + evidence.without_gold == 32
    assert 0.15 < evidence.scores.gold_share < 0.6
    (against,) = report.stability.runs
    assert (against.seed, against.differs_in) == (1, ("seed",))
    assert 0 < against.overlap.jaccard < 1
    assert report.stability.all_runs == against.overlap
    assert report.probe.train_examples == 64
    assert any("extrapolates at 1%, 5%, 10%, 20%" in note for note in report.notes)


def test_evaluating_twice_says_the_same(planted: Run) -> None:
    first, second = (evaluate_run(planted, device="cpu").to_json() for _ in range(2))
    assert {**first, "wall_s": 0} == {**second, "wall_s": 0}


def test_the_judge_is_the_predictor_before_it_met_a_selection(planted: Run) -> None:
    for role in ("teacher", "student"):
        judge = load_file(planted.path / role / "judge" / "model.safetensors")
        best = load_file(planted.path / role / "best" / "model.safetensors")
        predictor = {
            name.removeprefix("predictor."): value
            for name, value in best.items()
            if name.startswith("predictor.")
        }
        assert judge.keys() == predictor.keys()
        opened = planted.judge(role)
        assert opened is not None
        assert all(torch.equal(opened.state_dict()[name], judge[name]) for name in judge)


# 2 stops inside the teacher's predictor warm-up, 6 after it, 13 inside the student's.
@pytest.mark.parametrize("steps", [2, 6, 13])
def test_the_judges_of_a_resumed_run_are_the_same(planted: Run, tmp_path: Path, steps: int) -> None:
    recipe = load_recipe(find_recipe("smoke/text"), PLANTED)
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(recipe, path, device="cpu", listener=InterruptAfter(steps))
    train_run(recipe, path, device="cpu", resume=True)
    for role in ("teacher", "student"):
        file = Path(role, "judge", "model.safetensors")
        expected, found = load_file(planted.path / file), load_file(path / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not list(path.rglob("*.tmp"))


def test_training_never_sees_the_gold(planted: Run) -> None:
    assert {field.name for field in fields(Batch)} == {"inputs", "labels", "index", "teacher"}
    data = load_data(planted.recipe)
    assert isinstance(data.train, ArraySplit)
    assert data.train.gold is not None
    blind = ArraySplit("train", data.train.labels, data.train.examples)
    for one, other in zip(
        make_loader(data.train, planted.preprocessor, batch_size=8, shuffle=True),
        make_loader(blind, planted.preprocessor, batch_size=8, shuffle=True),
        strict=True,
    ):
        assert one.inputs.keys() == other.inputs.keys() == {"input_ids", "attention_mask"}
        assert one.teacher is None
        assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


def test_without_a_judge_the_rest_is_measured_and_another_run_can_lend_one(
    without_judge: Run, folder: Path
) -> None:
    assert without_judge.judge("teacher") is None
    assert without_judge.judge("student") is None
    report = evaluate_run(without_judge, device="cpu")
    assert report.faithfulness.scores is None
    assert any("faithfulness is not judged" in note for note in report.notes)
    lender = train(folder / "lender", "task=extract")
    lent = evaluate_run(without_judge, judge_run=lender, device="cpu")
    assert lent.faithfulness.scores is not None
    assert lent.faithfulness.judge == f"student judge of {lender.path}"


def test_a_teacher_of_another_run_brings_its_judge(planted: Run, folder: Path) -> None:
    run = train(folder / "apprentice", *PLANTED, f"teacher.run={planted.path}")
    assert not (run.path / "teacher" / "judge").exists()
    judge, original = run.judge("teacher"), planted.judge("teacher")
    assert judge is not None
    assert original is not None
    assert torch.equal(judge.head.weight, original.head.weight)


def test_other_splits_have_reports_of_their_own(planted: Run) -> None:
    before = (planted.path / "reports" / "quality.json").read_bytes()
    report = evaluate_run(planted, split="dev", device="cpu")
    assert report.split == "dev"
    assert (planted.path / "reports" / "quality-dev.json").is_file()
    assert (planted.path / "reports" / "quality.json").read_bytes() == before
    assert any("which it has seen" in note for note in report.notes)


def test_images_with_masks(smoke_run: Callable[[str, Path], Run], tmp_path: Path) -> None:
    """The image path with the gold of a source: CIFAR-10 with a mask over its upper left."""
    run = smoke_run("image", tmp_path / "image")
    test = run.data().test
    assert isinstance(test, ArraySplit)
    assert evaluate_run(run, device="cpu").gold == ()
    mask = np.zeros((32, 32), dtype=bool)
    mask[:16, :16] = True
    test.gold = [mask] * len(test)
    report = evaluate_run(run, device="cpu")
    (gold,) = report.gold
    assert gold.scores is not None
    # A quarter of 4 x 4 patches.
    assert gold.scores.gold_share == 0.25
    assert gold.scores.token_micro.precision == gold.scores.token_micro.recall
    assert report.probe.length_accuracy is None
    with pytest.raises(UsageError, match="--lexicon is for texts"):
        evaluate_run(run, lexicon=True, device="cpu")


def test_the_command_prints_a_table_or_json(planted: Run, other_seed: Run) -> None:
    done = evaluate(planted.path, "--against", other_seed.path, "--device", "cpu")
    assert done.exit_code == 0, done.output
    for words in ("accuracy", "sufficiency", "AOPC", "token F1", "IOU F1", "Jaccard with other"):
        assert words in done.stdout
    assert "judged by: teacher judge" in done.stdout
    done = evaluate(planted.path, "--json", "-", "--no-lexicon")
    document = json.loads(done.stdout)
    assert [gold["name"] for gold in document["gold"]] == ["planted evidence"]


def test_bad_input_is_named(
    planted: Run, other_seed: Run, without_judge: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in (
        ((tmp_path / "empty",), "is no run folder"),
        ((planted.path, "--device", "tpu"), "unknown device 'tpu'"),
        ((planted.path, "--against", tmp_path / "none"), "is no run folder"),
        ((planted.path, "--judge", tmp_path / "none"), "is no run folder"),
        ((planted.path, "--against", planted.path), "this run is given twice"),
        ((planted.path, "--against", without_judge.path), "it was trained on other data"),
        ((planted.path, "--judge", without_judge.path), "it reads its input as other tokens"),
        (
            (without_judge.path, "--judge", without_judge.path),
            "kept no predictor of random subsets",
        ),
    ):
        done = evaluate(*words)
        assert isinstance(done.exception, UsageError), done.output
        assert done.exception.exit_code == 2
        assert message in str(done.exception)
        assert done.stdout == ""


def test_an_unknown_split_exits_with_2_and_one_message(planted: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rekd_edge", "evaluate", str(planted.path), "--split", "all"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == ("error: --split 'all': no such split\n  hint: use train, dev or test\n")
    assert done.stdout == ""


def test_runs_that_cannot_be_measured_are_refused(planted: Run, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", *PLANTED, "task=classify")
    with pytest.raises(UsageError, match="holds a plain classifier"):
        evaluate_run(plain, device="cpu")
    with pytest.raises(UsageError, match="holds a plain classifier"):
        evaluate_run(planted, against=[plain], device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train_run(
            load_recipe(find_recipe("smoke/text")),
            tmp_path / "half",
            device="cpu",
            listener=InterruptAfter(3),
        )
    with pytest.raises(UsageError, match="is not finished") as caught:
        evaluate_run(open_run(tmp_path / "half"), device="cpu")
    assert "--resume" in str(caught.value)
    assert not (tmp_path / "half" / "reports").exists()


def test_a_broken_judge_is_an_integrity_error(other_seed: Run) -> None:
    file = other_seed.path / "teacher" / "judge" / "model.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:500])
        with pytest.raises(IntegrityError, match="not a readable safetensors file") as caught:
            evaluate_run(other_seed, device="cpu")
        assert caught.value.exit_code == 6
    finally:
        file.write_bytes(content)
