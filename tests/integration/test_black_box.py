"""A plain classifier as a teacher: from YAML to a checked bundle, resumed, shared, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rekd_edge.compare import compare, with_shared_teacher
from rekd_edge.distill.loop import Silent
from rekd_edge.errors import UsageError
from rekd_edge.evaluate_pipeline import evaluate_run
from rekd_edge.export_pipeline import export_bundle
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import InvalidRecipeError, load_recipe
from rekd_edge.recipe.schema import Recipe
from rekd_edge.run_folder import Run, open_run

LITTLE = "data.limit={train: 32, dev: 16, test: 16}"
SCAFFOLD = "teacher.scaffold={steps: 3, warmup_steps: 2, inner_learning_rate: 0.1}"


class InterruptAfter(Silent):
    """Raises KeyboardInterrupt after a number of steps, as Ctrl-C would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, terms: dict[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def recipe(rationale: str, *changes: str, base: str = "smoke/text") -> Recipe:
    return load_recipe(
        base,
        [
            LITTLE,
            f"teacher.rationale={rationale}",
            "objective.teacher_prediction=full_input",
            "student.train.warmup.selector=teacher_attribution",
            *changes,
        ],
    )


@pytest.fixture(scope="module")
def scaffolded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("scaffold") / "run"
    return train_run(recipe("scaffold", SCAFFOLD, "teacher.selector=null"), path, device="cpu")


def test_a_scaffolded_student_becomes_a_checked_bundle(scaffolded: Run) -> None:
    report = scaffolded.report("distill")
    assert report is not None
    assert report["teacher"]["rationale"] == "scaffold"
    weights = report["teacher"]["explainer"]["head_weights"]
    assert sum(weights) == pytest.approx(1, abs=1e-4)
    assert weights != pytest.approx([0.25] * 4, abs=1e-3)  # two blocks of two heads, moved
    simulability = report["simulability"]
    assert simulability["agreement"] == report["agreement_with_teacher"]["label_agreement"]
    assert simulability["with_rationales"]
    assert not list(scaffolded.path.glob("explainer/**/model.safetensors"))
    teacher = scaffolded.teacher()
    assert teacher is not None
    assert teacher.answers_from_whole_input
    result = export_bundle(scaffolded, output=scaffolded.path / "bundle", threads=1)
    assert result.passed, result.reasons
    assert result.report is not None
    stated = result.report.to_json()["accuracy"]["teacher"]["overall"]
    assert stated == pytest.approx(report["teacher"]["test"]["accuracy"])
    quality = evaluate_run(scaffolded, device="cpu", save=False)
    assert quality.simulability is not None
    assert quality.simulability.with_rationales == simulability["agreement"]
    assert quality.simulability.without_rationales is None


# After the teacher's 4 steps: in the first phase that learns the mixture, in the second after a
# checkpoint, and in the student.
@pytest.mark.parametrize("steps", [5, 8, 12])
def test_a_resumed_mixture_is_that_of_an_uninterrupted_run(
    scaffolded: Run, tmp_path: Path, steps: int
) -> None:
    changed = scaffolded.recipe
    with pytest.raises(KeyboardInterrupt):
        train_run(changed, tmp_path / "run", device="cpu", listener=InterruptAfter(steps))
    train_run(changed, tmp_path / "run", device="cpu", resume=True)
    for file in ("explainer/heads.safetensors", "student/best/model.safetensors"):
        expected, found = load_file(scaffolded.path / file), load_file(tmp_path / "run" / file)
        assert all(torch.equal(expected[name], found[name]) for name in expected), file


@pytest.mark.parametrize(
    "rationale",
    [
        "mask_gradient",
        pytest.param("attention", marks=pytest.mark.slow),
        pytest.param("gradient_x_input", marks=pytest.mark.slow),
    ],
)
def test_other_explanations_teach_a_student_that_is_exported(
    rationale: str, tmp_path: Path
) -> None:
    changes = ["objective.lambda_rationale=1.0", "student.train.warmup.predictor_epochs=0"]
    run = train_run(recipe(rationale, *changes), tmp_path / "run", device="cpu")
    report = run.report("distill") or {}
    assert report["teacher"]["rationale"] == rationale
    assert 0 < report["agreement_with_teacher"]["rationale_jaccard"] <= 1
    assert export_bundle(run, output=tmp_path / "bundle", threads=1).passed


def test_a_convolutional_black_box_teaches_by_its_pixels(tmp_path: Path) -> None:
    """On another grid and resolution than the student's."""
    changes = (
        'teacher.predictor.weights=["random:mobilenetv3_small_050"]',
        "teacher.predictor.patch_size=16",
        "teacher.predictor.depth=2",
        "teacher.image_size=48",
        "teacher.selector=null",
        "data.limit={train: 20, dev: 10, test: 10}",
    )
    taught = recipe("gradient_x_input", *changes, base="smoke/image")
    run = train_run(taught, tmp_path / "run", device="cpu", with_fuse_report=False)
    assert run.black_box().predictor.encoder.grid == (3, 3)
    assert run.student().predictor.encoder.grid == (4, 4)
    assert run.teacher() is not None
    with pytest.raises(InvalidRecipeError, match="a convolutional teacher has none"):
        recipe("attention", *changes, base="smoke/image")
    # The same network from a run, where the recipe cannot know it.
    with pytest.raises(UsageError, match="reads attention") as refused:
        train_run(
            recipe("attention", f"teacher.run={run.path}", base="smoke/image"),
            tmp_path / "other",
            device="cpu",
        )
    assert refused.value.hint is not None
    assert "mask_gradient" in refused.value.hint


def test_rows_share_a_black_box_and_a_rationalist_is_none(tmp_path: Path) -> None:
    shared = [
        with_shared_teacher(recipe(name), tmp_path, "cpu", None)
        for name in ("attention", "mask_gradient")
    ]
    folders = {one.teacher.run for one in shared if one.teacher is not None}
    assert len(folders) == 1
    folder = folders.pop()
    assert folder is not None
    assert open_run(Path(folder)).recipe.task == "classify"
    run = train_run(shared[0], tmp_path / "run", device="cpu", with_fuse_report=False)
    again = train_run(recipe("attention"), tmp_path / "own", device="cpu", with_fuse_report=False)
    first, second = run.report("distill") or {}, again.report("distill") or {}
    assert first["teacher"]["test"] == second["teacher"]["test"]
    assert first["student"]["test"] == second["student"]["test"]
    for place in (folder, run.path):
        with pytest.raises(UsageError, match="plain classifier, not a rationalist") as refused:
            train_run(
                load_recipe("smoke/text", [LITTLE, f"teacher.run={place}"]),
                tmp_path / f"refused-{Path(place).name}",
                device="cpu",
            )
        assert refused.value.hint is not None
        assert "teacher.rationale" in refused.value.hint


def test_compare_shows_what_the_rationales_add(tmp_path: Path) -> None:
    compared = compare(
        recipe("mask_gradient"), tmp_path / "out", seeds=[0], device="cpu", simulability=True
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (found,) = summary["simulability"]
    distilled = open_run(tmp_path / "out" / "seed-0")
    alone = open_run(tmp_path / "out" / "seed-0" / "answers").report("distill") or {}
    assert not alone["simulability"]["with_rationales"]
    assert found["without_rationales"] == alone["simulability"]["agreement"]
    assert found["with_rationales"] == compared.agreement[0]["label_agreement"]
    assert summary["answers_alone_accuracy"] == [alone["student"]["test"]["accuracy"]]
    assert alone["teacher"]["test"] == (distilled.report("distill") or {})["teacher"]["test"]
    assert [learned for _, learned in compared.simulability_means()] == [
        "with rationales",
        "without rationales",
    ]
    assert distilled.simulability() == compared.simulability[0]
