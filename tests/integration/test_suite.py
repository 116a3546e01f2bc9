"""A suite from its file to its table, and training with the published objective."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rekd_edge.distill.loop import Silent
from rekd_edge.errors import UsageError
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import load_recipe
from rekd_edge.recipe.suite_file import load_suite, row_recipes
from rekd_edge.run_folder import open_run
from rekd_edge.suite import run_suite

ROOT = Path(__file__).parents[2]


class InterruptAfter(Silent):
    """Raises KeyboardInterrupt after a number of steps, as Ctrl-C would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, terms: dict[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


SUITE = """schema_version: 1
name: trial
recipe: smoke/text
overrides:
  - "data.limit={train: 32, dev: 16, test: 16}"
  - "teacher.train.warmup={predictor_epochs: 0, selector: none}"
  - "student.train.warmup={predictor_epochs: 0, selector: none}"
seeds: [0]
columns:
  - {title: own, value: distill.student.test_own.accuracy}
  - {title: exported, value: distill.student.test.accuracy}
  - {title: zeroed, value: fuse.modes.top_k_zeroed.accuracy}
rows:
  - name: paper
    title: as published
    overrides: [objective.name=paper, teacher.objective.name=paper]
  - name: noiseless
    overrides:
      - objective.name=paper
      - teacher.objective.name=paper
      - objective.rationale_kd=noiseless
  - name: plain
    overrides: [task=classify, rationale_ratio=0.5]
"""


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return path


def test_a_suite_trains_each_row_once_and_shares_the_teacher(
    suite_file: Path, tmp_path: Path
) -> None:
    suite = load_suite(suite_file)
    recipes = row_recipes(suite, tmp_path)
    output = tmp_path / "out"
    result = run_suite(suite, recipes, output, device="cpu")
    assert result.passed
    folders = sorted(path.name.split("-")[0] for path in output.iterdir() if path.is_dir())
    assert folders == ["noiseless", "paper", "plain", "teacher"]
    assert not list(output.rglob("last.safetensors"))

    written = json.loads((output / "suite.json").read_text())
    paper, noiseless, plain = written["rows"]
    assert written["rationale_ratio"] == recipes["paper"].rationale_ratio != 0.5  # the first row's
    assert set(paper["values"]) == {"own", "exported", "zeroed"}
    report = json.loads((output / "paper" / "seed-0" / "reports" / "distill.json").read_text())
    own = report["student"]["test_own"]
    assert own["mode"] == "sampled_bernoulli_zeroed"
    assert own["draws"] == 3
    assert paper["values"]["own"]["per_seed"] == {"0": own["accuracy"]}
    assert paper["differences"]["own"] is None
    expected = noiseless["values"]["own"]["mean"] - own["accuracy"]
    assert noiseless["differences"]["own"]["mean"] == pytest.approx(expected)
    assert plain["values"]["own"] is None
    assert plain["values"]["exported"] is not None
    table = (output / "suite.md").read_text()
    assert "| as published |" in table
    assert f"{own['accuracy']:.3f}" in table

    before = {path: path.stat().st_mtime_ns for path in output.rglob("run.json")}
    run_suite(suite, recipes, output, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("run.json")} == before


def test_a_shared_teacher_is_the_one_that_the_recipe_would_train(tmp_path: Path) -> None:
    changes = ["data.limit={train: 32, dev: 16, test: 16}"]
    changes += ["objective.name=paper", "teacher.objective.name=paper"]
    direct = train_run(load_recipe("smoke/text", changes), tmp_path / "direct", device="cpu")
    path = tmp_path / "suite.yaml"
    head, _, _ = SUITE.partition("overrides:")
    path.write_text(
        f"{head}seeds: [0]\nrows: [{{name: only}}]\n"
        "columns: [{title: own, value: distill.student.test_own.accuracy}]\n"
    )
    suite = load_suite(path)
    run_suite(suite, row_recipes(suite, tmp_path, changes), tmp_path / "out", device="cpu")
    expected = load_file(direct.path / "student" / "best" / "model.safetensors")
    found = load_file(tmp_path / "out" / "only" / "seed-0" / "student" / "best/model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_column_that_no_run_reports_is_an_error(suite_file: Path, tmp_path: Path) -> None:
    suite_file.write_text(suite_file.read_text().replace("test_own.accuracy", "test_own.acuracy"))
    suite = load_suite(suite_file)
    recipes = row_recipes(suite, tmp_path)
    with pytest.raises(UsageError, match=r"no run reports distill\.student\.test_own\.acuracy"):
        run_suite(suite, {"paper": recipes["paper"]}, tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / "suite.json").is_file()


JUDGED = """schema_version: 1
name: judged
recipe: smoke/text
overrides:
  - "data.limit={train: 32, dev: 16, test: 16}"
seeds: [0]
judge: convolution
judged_examples: 8
simulated: plain
columns:
  - {title: accuracy, value: distill.student.test.accuracy}
  - {title: simulability, value: simulability.agreement}
  - {title: shared, value: quality.stability.all_runs.jaccard}
  - {title: sufficiency, value: quality.faithfulness.scores.sufficiency}
  - {title: lexicon, value: quality.gold.0.scores.token_micro.f1}
  - {title: share, value: flops.selector_share}
rows:
  - name: convolution
    overrides: [student.selector.kind=convolution, student.selector.width=16]
  - name: published
    overrides:
      - objective.name=paper
      - teacher.objective.name=paper
      - "student.train.warmup={predictor_epochs: 0, selector: none}"
  - name: plain
    overrides: [task=classify]
"""


def deployed_answers(folder: Path) -> Tensor:
    run = open_run(folder)
    found = []
    for batch in run.loader("test"):
        inputs = tuple(batch.inputs.values())
        model = run.plain() if run.recipe.task == "classify" else run.fused()
        assert model is not None
        found.append(model(*inputs)[0].argmax(dim=1))
    return torch.cat(found)


def test_rationales_of_all_rows_are_judged_by_one_judge(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(JUDGED)
    suite = load_suite(path)
    output = tmp_path / "out"
    result = run_suite(suite, row_recipes(suite, tmp_path), output, device="cpu").to_json()
    convolution, published, plain = (row["values"] for row in result["rows"])
    for values in (convolution, published):
        assert all(summary is not None for summary in values.values())
    assert [title for title, summary in plain.items() if summary] == ["accuracy"]
    reports = [
        json.loads((output / row / "seed-0" / "reports" / "judged.json").read_text())
        for row in ("convolution", "published")
    ]
    assert [report["examples"] for report in reports] == [8, 8]
    assert reports[0]["faithfulness"]["judge"] == reports[1]["faithfulness"]["judge"]
    # Both are compared with the teacher of the first row, though the second has one of its own.
    teachers = [report["stability"]["runs"][0]["run"] for report in reports]
    assert teachers[0] == teachers[1]
    assert convolution["share"]["mean"] != published["share"]["mean"]
    plain_answers, own_answers = (
        deployed_answers(output / row / "seed-0") for row in ("plain", "convolution")
    )
    assert convolution["simulability"]["mean"] == (plain_answers == own_answers).double().mean()
    assert not list(output.rglob("fuse.json"))


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rekd_edge", "suite", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_the_command_runs_some_rows_and_fails_with_those_that_diverge(
    suite_file: Path, tmp_path: Path
) -> None:
    text = suite_file.read_text() + "  - name: wild\n    overrides: [task=classify, "
    text += "student.train.learning_rate=1e30, student.train.gradient_clip=null, "
    suite_file.write_text(text + "student.train.epochs=20]\n    against: plain\n")
    output = str(tmp_path / "out")
    words = [str(suite_file), "--output", output, "--device", "cpu", "--rows", "plain,wild"]
    refused = command(*words)
    assert refused.returncode == 2  # `plain` is compared with the first row
    assert "--rows leaves out" in refused.stderr
    classify = "overrides: [task=classify, rationale_ratio=0.5]"
    compared = suite_file.read_text().replace(classify, f"{classify}\n    against: plain")
    suite_file.write_text(compared)
    result = command(*words)
    assert result.returncode == 3, result.stderr
    assert "diverged in wild" in result.stderr
    assert "Traceback" not in result.stderr
    rows = {
        row["name"]: row for row in json.loads((tmp_path / "out/suite.json").read_text())["rows"]
    }
    assert "loss became" in rows["wild"]["failures"]["0"]
    assert rows["plain"]["values"]["exported"]["mean"] >= 0
    assert not rows["plain"]["failures"]


def test_the_command_refuses_rows_without_their_judge(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(JUDGED)
    words = [str(path), "--output", str(tmp_path / "out"), "--dry-run", "--rows"]
    without = command(*words, "plain,convolution")  # published is left out: nothing needs it
    assert without.returncode == 0, without.stderr
    for rows, missing in (("plain,published", "convolution"), ("convolution,published", "plain")):
        text = JUDGED.replace("- name: published", "- name: published\n    against: published")
        path.write_text(text.replace("- name: plain", "- name: plain\n    against: plain"))
        refused = command(*words, rows)
        assert refused.returncode == 2, refused.stderr
        assert f"is '{missing}', which --rows leaves out" in refused.stderr.replace("\n", " ")


def test_a_shared_warmup_needs_the_row_that_makes_it(suite_file: Path, tmp_path: Path) -> None:
    text = suite_file.read_text().replace(
        "- name: noiseless", "- name: noiseless\n    against: noiseless"
    )
    suite_file.write_text(text)
    words = [str(suite_file), "--output", str(tmp_path / "out"), "--dry-run", "--rows", "noiseless"]
    assert command(*words).returncode == 0
    suite_file.write_text(text.replace("seeds:", "shared_warmup: true\nseeds:"))
    refused = command(*words)
    assert refused.returncode == 2
    assert "is that of 'paper', which --rows leaves out" in refused.stderr.replace("\n", " ")


def test_the_commands_dry_run_trains_nothing(suite_file: Path, tmp_path: Path) -> None:
    result = command(str(suite_file), "--output", str(tmp_path / "out"), "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "noiseless: objective.name=paper" in result.stdout
    assert not (tmp_path / "out").exists()


def test_the_published_objective_trains_keeps_the_least_loss_and_resumes(tmp_path: Path) -> None:
    changes = ["data.limit={train: 32, dev: 16, test: 16}", "student.train.epochs=4"]
    changes += ["teacher.train.warmup={predictor_epochs: 0, selector: none}"]
    changes += ["student.train.warmup={predictor_epochs: 0, selector: none}"]
    changes += ["objective={name: paper, lambda_select: 0.01}", "teacher.objective.name=paper"]
    changes += ["student.selector.head_width=16", "student.selector.head_dropout=0.5"]
    recipe = load_recipe("smoke/text", changes)
    run = train_run(recipe, tmp_path / "run", device="cpu")
    report = run.report("distill")
    assert report is not None
    student = report["student"]
    criteria = [entry["criterion"] for entry in student["history"]]
    assert len(criteria) == 4
    assert student["dev"]["criterion"] == min(criteria)
    assert all(value == round(value, 3) for value in criteria)
    assert student["dev_mode"] == student["test_own"]["mode"] == "sampled_bernoulli_zeroed"
    lines = (run.path / "student" / "log.jsonl").read_text().splitlines()
    joint = [json.loads(line) for line in lines if '"joint"' in line]
    assert {"ce", "budget", "kl_rationale", "kl_prediction", "selected_share"} <= set(joint[-1])

    with pytest.raises(KeyboardInterrupt):
        train_run(recipe, tmp_path / "again", device="cpu", listener=InterruptAfter(6))
    again = train_run(recipe, tmp_path / "again", device="cpu", resume=True)
    resumed = again.report("distill")
    assert resumed is not None
    assert resumed["student"]["history"] == student["history"]
    assert resumed["student"]["test_own"] == student["test_own"]
    expected = load_file(run.path / "student" / "best" / "model.safetensors")
    found = load_file(again.path / "student" / "best" / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_published_plain_classifier_is_chosen_by_its_loss(tmp_path: Path) -> None:
    changes = ["data.limit={train: 32, dev: 16, test: 16}", "task=classify"]
    changes += ["objective.name=paper", "student.train.classifier_epochs=3"]
    report = train_run(load_recipe("smoke/text", changes), tmp_path / "run", device="cpu").report(
        "distill"
    )
    assert report is not None
    history = report["student"]["history"]
    assert len(history) == 3
    # One batch of 16 texts: the mean over batches is the mean.
    assert [entry["criterion"] for entry in history] == pytest.approx(
        [entry["loss"] for entry in history], rel=1e-5
    )
    assert report["student"]["dev"]["criterion"] == min(entry["criterion"] for entry in history)
