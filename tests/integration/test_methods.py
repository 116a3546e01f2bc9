"""Every method from a recipe to a trained run, and to a checked bundle."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rekd_edge.distill.loop import DevResult
from rekd_edge.distill.monitor import TrainingWarning
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.export_pipeline import export_bundle
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.load import InvalidRecipeError
from rekd_edge.recipe.methods import METHODS
from rekd_edge.recipe.schema import Recipe
from rekd_edge.run_folder import Run

TINY = (
    "task=extract",
    "data.limit={train: 48, dev: 16, test: 16}",
    "student.train.batch_size=16",
    "student.train.checkpoint_every_steps=1",
    "student.train.warmup.selector=mask_gradient",
    "objective.temperature={start: 1.0, end: 1.0}",
)
NAMES = [name for name in METHODS if name != "rekd"]
Train = Callable[[str, str], Run]
WITH_SELECTIONS = [*NAMES, "rnp-hard_kuma", "rnp-reinforce", "fr-exactly_k"]


def recipe(modality: str, name: str, *overrides: str) -> Recipe:
    method, _, selection = name.partition("-")
    stated = [*TINY, f"objective.method={method}"]
    if selection:
        stated.append(f"objective.selection={selection}")
    if method == "fr":
        stated.append("student.selector.kind=shared")
    return load_recipe(find_recipe(f"smoke/{modality}"), [*stated, *overrides])


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The finished run of a modality and method, trained once."""
    folder = tmp_path_factory.mktemp("methods")

    @functools.cache
    def trained(modality: str, name: str) -> Run:
        path = folder / f"{modality}-{name}"
        return train_run(recipe(modality, name), path, device="cpu", with_fuse_report=False)

    return trained


def require_bundle(run: Run, folder: Path) -> Path:
    """The model file of the run's bundle, which passed every gate."""
    result = export_bundle(run, output=folder / "bundle", threads=1, twins=False)
    assert result.passed, result.reasons
    return result.path / "model.onnx"


@torch.no_grad()
def require_same_answers(run: Run) -> None:
    """The deployed form answers as the trained model, from the same tokens."""
    student, fused = run.student(), run.fused()
    assert all(fold.same_rationale for fold in fused.folds)
    batch = next(iter(run.loader("test")))
    scores = student.selector(batch.inputs)
    inputs = tuple(batch.inputs.values())
    if fused.reads_pixels:
        return  # reads 8-bit pixels; the folds above compare it with the trained model
    logits, mask = fused(*inputs)[:2]
    keep = student.keep(scores)
    same = (mask[:, fused.token_offset :] == keep).all(dim=1)
    assert same.float().mean() >= 0.9  # random weights: ties within rounding
    torch.testing.assert_close(logits[same], student(batch.inputs)[same], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WITH_SELECTIONS)
def test_a_method_trains_on_texts_and_is_deployed_as_it_is(name: str, train: Train) -> None:
    run = train("text", name)
    report = run.report("distill")
    assert report is not None
    assert 0 <= report["student"]["test"]["accuracy"] <= 1
    assert report["student"]["test_own"]["kept_share"] < 0.3
    # What was trained beside the model is not in it.
    best = load_file(run.path / "student" / "best" / "model.safetensors")
    assert {key.partition(".")[0] for key in best} == {"selector", "predictor"}
    require_same_answers(run)


@pytest.mark.parametrize("name", ["fr", "nir", "a2i"])
def test_a_method_trains_on_images(name: str, train: Train) -> None:
    require_same_answers(train("image", name))


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("name", WITH_SELECTIONS)
def test_every_method_ends_in_a_checked_bundle(
    modality: str, name: str, train: Train, tmp_path: Path
) -> None:
    require_bundle(train(modality, name), tmp_path)


def test_a_method_starts_from_the_predictor_of_another_run(train: Train, tmp_path: Path) -> None:
    first = train("text", "rnp")
    taken = f"student.train.warmup.predictor_run={first.path}"
    # What only the rest of training reads may differ.
    stated = recipe("text", "n2r", taken, "student.train.epochs=1", "student.train.gather=true")
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(stated, path, device="cpu", listener=InterruptAfter(4))
    run = train_run(stated, path, device="cpu", resume=True, with_fuse_report=False)
    theirs = load_file(first.path / "student" / "judge" / "model.safetensors")
    kept = load_file(run.path / "student" / "judge" / "model.safetensors")
    assert all(torch.equal(theirs[name], kept[name]) for name in theirs)
    log = (run.path / "student" / "log.jsonl").read_text().splitlines()
    phases = {json.loads(line)["phase"].partition("/")[0] for line in log}
    assert phases == {"selector warm-up (mask gradient)", "joint"}
    best = load_file(run.path / "student" / "best" / "model.safetensors")

    whole = train_run(stated, tmp_path / "whole", device="cpu", with_fuse_report=False)
    expected = load_file(whole.path / "student" / "best" / "model.safetensors")
    assert all(torch.equal(expected[name], best[name]) for name in expected)


def test_a_predictor_that_does_not_fit_is_refused(train: Train, tmp_path: Path) -> None:
    first = train("text", "rnp")
    taken = f"student.train.warmup.predictor_run={first.path}"
    with pytest.raises(UsageError, match=r"predictor of .* knows the labels negative, positive"):
        train_run(recipe("image", "rnp", taken), tmp_path / "image", device="cpu")
    with pytest.raises(IntegrityError, match="does not fit the recipe's architecture"):
        train_run(recipe("text", "inter_rat", taken), tmp_path / "head", device="cpu")
    unwarmed = tmp_path / "unwarmed"
    train_run(
        recipe("text", "rnp", "student.train.warmup={predictor_epochs: 0, selector: none}"),
        unwarmed,
        device="cpu",
        with_fuse_report=False,
    )
    taken = f"student.train.warmup.predictor_run={unwarmed}"
    with pytest.raises(UsageError, match="keeps no predictor of a warm-up"):
        train_run(recipe("text", "rnp", taken), tmp_path / "none", device="cpu")
    with pytest.raises(InvalidRecipeError, match="state the predictor_epochs that it had"):
        recipe("text", "rnp", taken, "student.train.warmup.predictor_epochs=0")


def test_an_adjusted_head_is_checked_and_bundled(train: Train, tmp_path: Path) -> None:
    run = train("text", "inter_rat")
    require_bundle(run, tmp_path)
    judge = run.judge("student")
    assert judge is not None
    assert float(judge.head.get_buffer("prior").sum()) == pytest.approx(1.0)


def test_one_encoder_is_half_the_weights_and_half_the_file(train: Train, tmp_path: Path) -> None:
    one, two = train("text", "fr"), train("text", "rnp")
    weights = [
        (run.path / "student" / "best" / "model.safetensors").stat().st_size for run in (one, two)
    ]
    file = require_bundle(one, tmp_path).stat().st_size
    assert 0.45 < weights[0] / weights[1] < 0.55
    assert 0.45 < file / weights[1] < 0.6


class InterruptAfter:
    def __init__(self, steps: int) -> None:
        self.left = steps

    def phase(self, name: str, total_steps: int, done_steps: int) -> None:
        return

    def epoch(self, name: str, result: DevResult) -> None:
        return

    def warning(self, warning: TrainingWarning) -> None:
        return

    def step(self, terms: dict[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


# 3 steps of each warm-up come first: 1 is in the first, 8 in joint training.
@pytest.mark.parametrize(
    ("name", "steps"), [("n2r", 8), ("nir", 1), ("a2i", 8), ("rnp-hard_kuma", 8)]
)
def test_a_resumed_method_has_the_weights_of_an_uninterrupted_one(
    name: str, steps: int, train: Train, tmp_path: Path
) -> None:
    expected, stated = train("text", name), recipe("text", name)
    path = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        train_run(stated, path, device="cpu", listener=InterruptAfter(steps))
    train_run(stated, path, device="cpu", resume=True, with_fuse_report=False)
    for file in ("best/model.safetensors", "last.safetensors"):
        whole = load_file(expected.path / "student" / file)
        cut = load_file(path / "student" / file)
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole), file
    with safe_open(path / "student" / "last.safetensors", framework="pt") as checkpoint:
        beside = [key for key in checkpoint.keys() if key.startswith("auxiliary.")]  # noqa: SIM118
    assert bool(beside) == (name != "n2r")
    log = (path / "student" / "log.jsonl").read_text().splitlines()
    places = [(row["phase"], row["step"]) for row in map(json.loads, log)]
    assert len(places) == len(set(places))


def test_a_method_takes_a_teacher(tmp_path: Path) -> None:
    overrides = [
        "data.limit={train: 48, dev: 16, test: 16}",
        "objective.method=a2i",
        "teacher.objective.method=inter_rat",
        "objective.teacher_prediction=full_input",
    ]
    run = train_run(
        load_recipe(find_recipe("smoke/text"), overrides),
        tmp_path / "run",
        device="cpu",
        with_fuse_report=False,
    )
    log = (tmp_path / "run" / "student" / "log.jsonl").read_text().splitlines()
    joint = [row for row in map(json.loads, log) if row["phase"] == "joint"]
    assert {"kl_rationale", "kl_prediction", "attacker_loss", "doubt"} <= set(joint[-1])
    assert run.teacher() is not None
