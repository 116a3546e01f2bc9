"""A pair of students from recipe to bundle: trained together, exported as one file, reported."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rekd_edge import export_pipeline
from rekd_edge.bundle import open_bundle
from rekd_edge.bundle.runtime import load_runtime
from rekd_edge.cli.app import app
from rekd_edge.errors import BackendError, RekdEdgeError, UsageError
from rekd_edge.evaluate_pipeline import evaluate_run
from rekd_edge.export_pipeline import check_bundle, export_bundle
from rekd_edge.fuse import FusedPair
from rekd_edge.models.interactive import CASES
from rekd_edge.pipeline import plan_run, train_run
from rekd_edge.plain_models import write_plain_models
from rekd_edge.recipe import find_recipe, load_recipe
from rekd_edge.recipe.load import InvalidRecipeError
from rekd_edge.recipe.schema import Recipe
from rekd_edge.report.content import Span
from rekd_edge.report_pipeline import build_report
from rekd_edge.run_folder import Run, open_run
from rekd_edge.runners.placement import RECORD_KEY, own_nodes, placement_of, shape_nodes
from rekd_edge.runtime_options import CUDA_PROVIDER
from tests.bench_program import load_program, request, write_texts

PARTNER = """{method: interactive, partner: {
  selector: {weights: ['random:bert-tiny'], kind: convolution, width: 32},
  predictor: {weights: ['random:bert-tiny'], depth: 1},
  train: {epochs: 1, batch_size: 16, warmup: {predictor_epochs: 1}}}}"""


def recipe(*overrides: str) -> Recipe:
    alone = ("task=extract", "student.train.warmup.selector=none")
    flat = " ".join(PARTNER.split())
    return load_recipe(find_recipe("smoke/text"), [*alone, f"ensemble={flat}", *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(recipe(), tmp_path_factory.mktemp("runs") / "run", device="cpu")


@pytest.fixture(scope="module")
def bundle(run: Run) -> Path:
    result = export_bundle(run, output=run.path / "bundle", threads=1, twins=False)
    assert result.reasons == ()
    assert result.report is not None
    assert sum(count.examples for count in result.report.pair_cases) == 32
    return result.path


def test_both_students_are_trained_and_compared(run: Run) -> None:
    assert set(plan_run(run.recipe).parameters) == {"student", "partner"}
    student, partner = (
        load_file(run.path / role / "best" / "model.safetensors") for role in ("student", "partner")
    )
    head = "predictor.head.weight"
    assert student[head].shape == partner[head].shape
    assert not torch.equal(student[head], partner[head])
    found = run.report("distill") or {}
    assert run.info["weights"].keys() == {"student", "partner"}
    for split in ("dev", "test"):
        pair = found["pair"][split]
        assert list(pair["cases"]) == list(CASES)
        assert sum(case["examples"] for case in pair["cases"].values()) == pair["examples"] == 32
        right = sum(c["examples"] * (c["accuracy"] or 0) for c in pair["cases"].values())
        assert right / 32 == pytest.approx(pair["accuracy"])
        better = max(pair["student"], pair["partner"])
        assert pair["gain_points"] == pytest.approx(100 * (pair["accuracy"] - better), abs=1e-3)
    assert found["pair"]["test"]["student"] == found["student"]["test"]["accuracy"]
    assert found["pair"]["test"]["partner"] == found["partner"]["test"]["accuracy"]


def test_a_partner_changes_nothing_about_the_student(run: Run, tmp_path: Path) -> None:
    alone = train_run(recipe("ensemble=null"), tmp_path / "run", device="cpu")
    mine, theirs = (load_file(r.path / "student/best/model.safetensors") for r in (alone, run))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_bundle_answers_as_a_pair(run: Run, bundle: Path) -> None:
    assert isinstance(run.fused(), FusedPair)
    config = open_bundle(bundle).config
    assert [tensor.name for tensor in config.outputs][4:] == ["answer_mask", "case"]
    assert "two students" in (bundle / "README.md").read_text()
    report, place = check_bundle(bundle, threads=1)
    assert report.passed
    assert place == bundle
    texts = [str(run.data().test.raw(index)) for index in range(4)]
    done = subprocess.run(
        [sys.executable, bundle / "runtime" / "rekd_runtime.py", *texts, "--json", "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(done.stdout)["predictions"]
    assert {answer["case"] for answer in answers} <= set(CASES)
    for answer in answers:
        read, consulted, everything = (
            {token for span in answer[part] for token in span["tokens"]}
            for part in ("answer_rationale", "consulted", "rationale")
        )
        assert read
        assert not read & consulted
        assert read | consulted == everything


def test_the_load_test_asks_a_pair_in_batches(run: Run, bundle: Path, tmp_path: Path) -> None:
    program = load_program()
    texts = [str(run.data().test.raw(index)) for index in range(7)]
    folder = write_texts(tmp_path / "examples", texts, [0] * len(texts))
    asked = request("Offline", mode="AccuracyOnly", batch=3)
    quality = program.run(bundle, folder, asked)["quality"]
    model = program.runtime.Rationalist.load(bundle, threads=1)
    names = list(model.config.label_names)
    answers = model.predict(texts)
    assert len(answers) == len(quality["digests"]) == 7
    for answer, digest in zip(answers, quality["digests"], strict=True):
        kept = {token for span in answer.rationale for token in span.tokens}
        mask = [position in kept for position in range(answer.candidates + 2)]
        assert digest == program.answer_digest(names.index(answer.label), mask)


def test_either_student_is_written_as_plain_models(run: Run, tmp_path: Path) -> None:
    first = write_plain_models(run, tmp_path / "student")
    second = write_plain_models(run, tmp_path / "partner", "partner")
    assert "predictor" in {part.name for part in first.parts}
    assert {part.name for part in second.parts} == {"predictor"}
    assert "convolutions" in second.left_out["selector"]
    for role in ("student", "partner"):
        written = load_file(tmp_path / role / "predictor" / "model.safetensors")
        trained = load_file(run.path / role / "best" / "model.safetensors")
        assert torch.equal(written["classifier.weight"], trained["predictor.head.weight"])


def test_evaluate_and_the_report_show_the_cases(run: Run) -> None:
    found = evaluate_run(run, device="cpu", save=False, limit=16)
    assert found.pair is not None
    assert found.pair.examples == 16
    made = build_report([run.path], examples=2)
    page = made.page
    (pair,) = made.content.results
    stated = (run.report("distill") or {})["pair"]["test"]
    assert (pair.name, pair.accuracy) == ("pair", pytest.approx(stated["accuracy"]))
    assert "what either of them kept" in page
    assert "How two students decide" in page
    assert "partner convinces" in page
    assert "Dai 2023" in page


@pytest.fixture(scope="module")
def undecided(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """The run with other heads, so that its students come to their answers in every way, and a
    bundle of it."""
    path = Path(shutil.copytree(run.path, tmp_path_factory.mktemp("undecided") / "run"))
    shutil.rmtree(path / "bundle", ignore_errors=True)
    torch.manual_seed(0)
    for role in ("student", "partner"):
        file = path / role / "best" / "model.safetensors"
        weights = load_file(file)
        for name in (name for name in weights if name.endswith("head.weight")):
            torch.nn.init.normal_(weights[name])
        save_file(weights, file)
    changed = open_run(path)
    result = export_bundle(changed, output=path / "bundle", threads=1, twins=False)
    assert result.reasons == ()
    return changed, result.path


def test_each_answer_of_a_pair_says_who_gave_it_and_why(undecided: tuple[Run, Path]) -> None:
    """The trained pair's and the file's, beside what either student says alone."""
    run, bundle = undecided
    made = build_report([run.path, bundle], examples=32)
    pair = run.fused()
    assert isinstance(pair, FusedPair)
    students = {True: pair.alone(), False: pair.partner}
    device = load_runtime().Rationalist.load(bundle, threads=1)
    examples = [example for group in made.content.groups for example in group.examples]
    assert len(examples) == 32
    seen = set()
    for example in examples:
        assert example.text is not None
        (expected,) = device.predict([example.text])
        feeds = device.encode(example.text).arrays
        inputs = [torch.from_numpy(feeds[name]) for name in ("input_ids", "attention_mask")]
        alone = {first: student(*inputs)[0][0] for first, student in students.items()}
        surer = max(alone, key=lambda first: float(alone[first].softmax(dim=0).max()))
        for answer in example.answers:
            found = answer.decision
            assert found is not None
            assert found.case == expected.case
            assert found.by_student is not None
            assert (
                found.by_student
                is {
                    "agree": True,
                    "first_convinces": True,
                    "partner_convinces": False,
                    "confidence": surer,
                }[found.case]
            ), answer.model
            assert answer.label == run.label_names[int(alone[found.by_student].argmax())]
            spans = [part for part in found.other if isinstance(part, Span)]
            covered, consulted = (
                {place for span in some for place in range(span.start, span.end)}
                for some in (spans, expected.consulted)
            )
            assert covered == consulted
            seen.add((found.case, found.by_student))
    assert {case for case, _ in seen} == set(CASES), seen
    assert {("confidence", True), ("confidence", False)} <= seen
    assert made.page.count("<b>Case ") == 2 * 32
    assert "<b>Case agree</b>: both students give this answer; answered by the student" in made.page
    assert (
        "<b>Case partner convinces</b>: they disagreed, and only the rationale of the partner "
        "convinced the other; answered by the partner; kept by the student alone: “"
    ) in made.page


def test_a_file_that_cannot_be_asked_does_not_say_who_was_surer(
    undecided: tuple[Run, Path], tmp_path: Path
) -> None:
    """As one in which the students' own answers have other names."""
    run, bundle = undecided
    path = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    model = onnx.load(str(path / "model.onnx"))
    for node in model.graph.node:
        branches = (item.g for item in node.attribute if item.HasField("g"))
        for one in (node, *(inner for branch in branches for inner in branch.node)):
            for names in (one.input, one.output):
                names[:] = ["unnamed" if name == "own_logits" else name for name in names]
    content = model.SerializeToString()
    (path / "model.onnx").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    (entry,) = (file for file in manifest["files"] if file["path"] == "model.onnx")
    entry.update(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    (path / "manifest.json").write_text(json.dumps(manifest))
    made = build_report([run.path, path], examples=32).content
    answers = [a for group in made.groups for one in group.examples for a in one.answers]
    found = {
        (a.model, a.decision.case == "confidence", a.decision.by_student is None)
        for a in answers
        if a.decision is not None
    }
    file = "bundle (fp32)"
    assert found == {("pair", True, False), ("pair", False, False)} | {
        (file, True, True),
        (file, False, False),
    }


def test_what_a_pair_cannot_do_is_refused_in_words(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds an ensemble"):
        export_bundle(run, target="onnx-int8", output=tmp_path / "b", recover=True)
    with pytest.raises(InvalidRecipeError, match=r"ensemble\.partner\.selector\.kernel"):
        recipe("ensemble.partner.selector.kernel=4")
    with pytest.raises(InvalidRecipeError, match=r"ensemble\.partner\.selector\.kind: must be"):
        recipe("objective.method=fr", "student.selector.kind=shared")


@pytest.mark.parametrize(
    ("target", "kind", "why"),
    [
        *((name, BackendError, "in an If of the graph") for name in ("trt", "trt-int8", "ort-trt")),
        *((name, BackendError, "in an If of the graph") for name in ("trt-rtx", "trt-rtx-fp16")),
        *((name, UsageError, "two students kept what") for name in ("aoti", "torch-trt")),
        ("aoti-cuda", UsageError, "two students kept what"),
    ],
)
def test_a_target_that_takes_no_pair_says_so_before_anything_is_converted(
    target: str,
    kind: type[RekdEdgeError],
    why: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def converts(*_: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr(export_pipeline, "convert_run", converts)
    with pytest.raises(kind, match=why) as raised:
        export_bundle(run, target=target, output=tmp_path / "b")
    assert raised.value.exit_code == (4 if kind is BackendError else 2)
    assert "ensemble: null" in str(raised.value.hint)
    assert not (tmp_path / "b").exists()


def test_a_target_that_takes_no_pair_is_refused_before_training(tmp_path: Path) -> None:
    flat = " ".join(PARTNER.split())
    pair = ["smoke/text", "--set", f"ensemble={flat}", "--output", str(tmp_path / "out")]
    for command in (
        ["compare", *pair, "--export", "--target", "ort-trt"],
        ["sweep", *pair, "--grid", "rationale_ratio=0.2,0.3", "--target", "trt-rtx"],
    ):
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, BackendError), result.output
        assert "ensemble" in str(result.exception)
        assert not (tmp_path / "out").exists()


def test_an_exchange_on_a_gpu_is_accounted_for_node_by_node(bundle: Path) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    (branch,) = (node for node in model.graph.node if node.op_type == "If")
    then = next(item.g for item in branch.attribute if item.name == "then_branch")
    options = ort.SessionOptions()
    options.add_session_config_entry(RECORD_KEY, "1")
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    placed = placement_of(session, CUDA_PROVIDER)
    shapes, own = shape_nodes(model), own_nodes(model)
    inside = {node.name: node.op_type for node in then.node}
    assert inside.keys() & {node.name for node in placed.nodes}
    wrong = {node.name for node in placed.misplaced(shapes, own)}
    adds = {name for name, operator in inside.items() if operator == "Add" and name not in shapes}
    assert adds & {node.name for node in placed.nodes} <= wrong
    assert adds & wrong
