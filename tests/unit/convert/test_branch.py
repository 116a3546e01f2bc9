"""A pair's file: one graph whose exchange runs only where two students disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from rekd_edge.check import check_artefact, load_gates
from rekd_edge.check.exclusion import numerical_exclusion, structural_exclusion
from rekd_edge.convert import (
    GraphError,
    convert_to_onnx,
    load_target,
    quantize,
    with_own_answers,
)
from rekd_edge.convert.branch import BRANCH, defer_exchange, hoist_exchange
from rekd_edge.convert.types import Lower
from rekd_edge.engines.lint import lint
from rekd_edge.engines.spec import BuildRecipe, Profile
from rekd_edge.runners import OnnxRunner
from rekd_edge.types import OWN_ANSWERS

if TYPE_CHECKING:
    from rekd_edge.check import LabelledBatch, TextEdges
    from rekd_edge.convert import OnnxArtefact
    from rekd_edge.fuse import FusedPair, FusedRationalist

LABELS = ("negative", "neutral", "positive")


def branch_of(model: onnx.ModelProto) -> onnx.NodeProto:
    (found,) = (node for node in model.graph.node if node.op_type == "If")
    assert found.name == BRANCH
    return found


def inside(model: onnx.ModelProto) -> onnx.GraphProto:
    return next(item.g for item in branch_of(model).attribute if item.name == "then_branch")


def feeds_by_case(pair: FusedPair) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(200, 600, (200, 20))
    ids[:, 0], ids[:, -1] = 101, 102
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    with torch.inference_mode():
        case = pair(*(torch.from_numpy(value) for value in feeds.values()))[5].numpy()
    return feeds, case


def test_the_exchange_holds_both_predictors_and_no_weights(tiny_pair_onnx: OnnxArtefact) -> None:
    model = onnx.load(str(tiny_pair_onnx.path))
    branch = inside(model)
    assert not branch.initializer
    assert sum(node.op_type == "LayerNormalization" for node in branch.node) >= 4
    outside = {tensor.name for tensor in model.graph.initializer}
    products = [node for node in branch.node if node.op_type in ("MatMul", "Gemm")]
    weights = {name for node in products for name in node.input} & outside
    own = {name for node in model.graph.node for name in node.input}
    assert len(weights) == 10  # five in each predictor
    assert weights <= own  # the students' own answers use the same


def test_a_runtime_runs_the_exchange_only_where_it_is_needed(
    tiny_pair: FusedPair, tiny_pair_onnx: OnnxArtefact, tmp_path: Path
) -> None:
    feeds, case = feeds_by_case(tiny_pair)
    names = {node.name for node in inside(onnx.load(str(tiny_pair_onnx.path))).node}

    def nodes_run(rows: np.ndarray) -> set[str]:
        options = onnxruntime.SessionOptions()
        # Nodes keep the names of the file.
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(str(tiny_pair_onnx.path), options)
        session.run(None, {name: value[rows] for name, value in feeds.items()})
        events = json.loads(Path(session.end_profiling()).read_text())
        ran = (event["name"].removesuffix("_kernel_time") for event in events)
        return {name for name in ran if name in names}

    agreeing, disputed = np.flatnonzero(case == 0), np.flatnonzero(case > 0)
    assert nodes_run(agreeing) == set()
    assert len(nodes_run(disputed[:1])) > 20
    assert nodes_run(np.append(agreeing[:5], disputed[0])) == nodes_run(disputed)


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 199), min_size=2, max_size=8))
def test_an_answer_of_the_file_does_not_depend_on_its_neighbours(
    tiny_pair: FusedPair, tiny_pair_onnx: OnnxArtefact, rows: list[int]
) -> None:
    """Alone, an example runs the branch or not; in a batch, one that disagrees runs it for all."""
    feeds, case = feeds_by_case(tiny_pair)
    with OnnxRunner(tiny_pair_onnx.path, threads=1) as runner:
        together = runner.run({name: value[rows] for name, value in feeds.items()})
        for place, row in enumerate(rows):
            alone = runner.run({name: value[row : row + 1] for name, value in feeds.items()})
            np.testing.assert_allclose(together.logits[place], alone.logits[0], atol=1e-5)
            for name in ("rationale_mask", "answer_mask", "case"):
                mine, theirs = getattr(together, name)[place], getattr(alone, name)[0]
                np.testing.assert_array_equal(mine, theirs)
            assert alone.case is not None
            assert alone.case[0] == case[row]


def test_the_file_answers_as_the_model_and_holds_the_default_gates(
    tiny_pair: FusedPair,
    tiny_pair_onnx: OnnxArtefact,
    text_batches: list[LabelledBatch],
    text_edges: TextEdges,
) -> None:
    report = check_artefact(
        tiny_pair_onnx.path,
        model=tiny_pair,
        io_spec=tiny_pair.io_spec(),
        label_names=LABELS,
        batches=text_batches,
        gates=load_gates("default"),
        edges=text_edges,
    )
    assert report.failures == ()
    assert report.metrics["answer_agreement"] == 1.0
    assert report.structural is not None
    assert report.structural.gated_reads == ("input_ids",)
    assert sum(count.examples for count in report.pair_cases) == 19
    assert sum(count.share for count in report.pair_cases) == pytest.approx(1)
    right = sum(count.examples * (count.accuracy or 0) for count in report.pair_cases)
    assert right / 19 == pytest.approx(report.metrics["accuracy"])


def test_a_student_alone_does_not_pass_for_a_pair(
    tiny_pair: FusedPair,
    tiny_text_onnx: OnnxArtefact,
    text_batches: list[LabelledBatch],
) -> None:
    report = check_artefact(
        tiny_text_onnx.path,
        model=tiny_pair,
        io_spec=tiny_pair.io_spec(),
        label_names=LABELS,
        batches=text_batches,
        gates=load_gates("default"),
    )
    assert not report.passed
    assert any("as a student alone" in problem for problem in report.problems)


def test_a_file_that_shows_the_other_rationale_fails(
    tiny_pair: FusedPair,
    tiny_pair_onnx: OnnxArtefact,
    text_batches: list[LabelledBatch],
    tmp_path: Path,
) -> None:
    model = onnx.load(str(tiny_pair_onnx.path))
    for node in model.graph.node:
        for position, name in enumerate(node.output):
            if name == "answer_mask":
                node.output[position] = "true_answer"
    model.graph.node.append(
        helper.make_node("Xor", ["true_answer", "rationale_mask"], ["answer_mask"])
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    report = check_artefact(
        path,
        model=tiny_pair,
        io_spec=tiny_pair.io_spec(),
        label_names=LABELS,
        batches=text_batches,
        gates=load_gates("default"),
    )
    assert any(failure.startswith("rationale_exact") for failure in report.failures)


def test_a_read_inside_the_branch_is_a_leak(tiny_pair_onnx: OnnxArtefact) -> None:
    model = onnx.load(str(tiny_pair_onnx.path))
    branch = inside(model)
    name = branch.output[0].name
    last = next(node for node in branch.node if name in node.output)
    last.output[list(last.output).index(name)] = "before"
    leak = [
        helper.make_node("Cast", ["input_ids"], ["words"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["words"], ["largest"], keepdims=0),
        helper.make_node("Add", ["before", "largest"], [name]),
    ]
    branch.node.extend(leak)
    found = structural_exclusion(model)
    assert not found.passed
    assert all("input_ids" in path for path in found.leaks)


def test_a_hidden_name_cannot_hide_a_path(tiny_pair_onnx: OnnxArtefact) -> None:
    model = onnx.load(str(tiny_pair_onnx.path))
    taken = next(node for node in model.graph.node if node.op_type == "GatherElements").output[0]
    inside(model).node.append(helper.make_node("Identity", ["input_ids"], [taken]))
    with pytest.raises(GraphError, match="two values named"):
        structural_exclusion(model)


def test_taking_the_exchange_out_and_putting_it_back_changes_nothing(
    tiny_pair: FusedPair, tiny_pair_onnx: OnnxArtefact
) -> None:
    feeds, _ = feeds_by_case(tiny_pair)
    model = onnx.load(str(tiny_pair_onnx.path))
    deferred = len(inside(model).node)
    before = run(model.SerializeToString(), feeds)
    assert hoist_exchange(model)
    assert not hoist_exchange(model)
    assert all(node.op_type != "If" for node in model.graph.node)
    for mine, theirs in zip(run(model.SerializeToString(), feeds), before, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
    assert defer_exchange(model)
    assert len(inside(model).node) == deferred


def run(model: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(v) for v in onnxruntime.InferenceSession(model).run(None, feeds)]


def test_a_student_alone_has_nothing_to_defer(tiny_text_onnx: OnnxArtefact) -> None:
    model = onnx.load(str(tiny_text_onnx.path))
    assert not defer_exchange(model)
    assert not hoist_exchange(model)


@pytest.mark.parametrize("precision", ["int8-dynamic", "fp16"])
def test_lower_precision_reaches_into_the_branch(
    tiny_pair: FusedPair, tiny_pair_onnx: OnnxArtefact, tmp_path: Path, precision: Lower
) -> None:
    path = tmp_path / "model.onnx"
    found = quantize(tiny_pair_onnx.path, path, precision=precision)
    kind = precision.partition("-")[0]
    assert all(set(counts) == {kind} for counts in found.values())
    model = onnx.load(str(path))
    kinds = {node.op_type for node in inside(model).node}
    assert ("MatMulInteger" in kinds) == (precision == "int8-dynamic")
    before = onnx.load(str(tiny_pair_onnx.path))
    assert path.stat().st_size < tiny_pair_onnx.size_bytes
    assert len(inside(model).node) >= len(inside(before).node)
    assert structural_exclusion(model).passed
    feeds, case = feeds_by_case(tiny_pair)
    few = {name: value[:32] for name, value in feeds.items()}
    assert numerical_exclusion(model, [few]).passed
    with OnnxRunner(path) as runner:
        answer = runner.run(feeds)
    assert answer.case is not None
    assert (answer.case == case).mean() > 0.8


@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic", "fp16"])
def test_a_copy_also_says_what_either_student_answers(
    tiny_pair: FusedPair, tiny_pair_onnx: OnnxArtefact, tmp_path: Path, precision: str
) -> None:
    """One of the two is the answer of the pair, the surer one by confidence. In half precision a
    runtime may round them otherwise."""
    path = tiny_pair_onnx.path
    if precision != "fp32":
        path = tmp_path / "model.onnx"
        quantize(tiny_pair_onnx.path, path, precision=cast("Lower", precision))
    model = onnx.load(str(path))
    feeds, _ = feeds_by_case(tiny_pair)
    with OnnxRunner(with_own_answers(model).SerializeToString(), threads=1) as runner:
        found = runner.run_named(feeds, ("logits", "case", *OWN_ANSWERS))
    own, partners = (found[name].astype(np.float32) for name in OWN_ANSWERS)
    away = [np.abs(found["logits"] - one).max(axis=1) for one in (own, partners)]
    assert np.minimum(*away).max() <= (0.01 if precision == "fp16" else 0.0)
    by_first = away[0] <= away[1]
    for case, expected in ((0, {True}), (1, {True}), (2, {False}), (3, {True, False})):
        assert set(by_first[found["case"] == case].tolist()) == expected
    surer = torch.from_numpy(own).softmax(1).amax(1) >= torch.from_numpy(partners).softmax(1).amax(
        1
    )
    confident = found["case"] == 3
    assert (by_first == surer.numpy())[confident].mean() > 0.99
    assert [value.name for value in model.graph.output][-1] == "case"  # the model is as it was


def test_a_student_alone_has_no_two_answers(tiny_text_onnx: OnnxArtefact) -> None:
    with pytest.raises(GraphError, match="what either student answers"):
        with_own_answers(onnx.load(str(tiny_text_onnx.path)))


def test_the_lint_of_engines_refuses_a_branch(tiny_pair_onnx: OnnxArtefact) -> None:
    sizes = Profile(min=(1, 1), opt=(1, 20), max=(1, 48))
    recipe = BuildRecipe(
        backend="tensorrt-rtx",
        compute_capabilities=(86,),
        precision="fp32",
        onnx_sha256="0" * 64,
        profiles={"input_ids": sizes, "attention_mask": sizes},
    )
    findings = lint(onnx.load(str(tiny_pair_onnx.path)), recipe)
    assert any(finding.operator == "If" for finding in findings)


@pytest.mark.slow
def test_a_pair_of_image_students_is_exported(
    tiny_image: FusedRationalist, image_batches: list[LabelledBatch], tmp_path: Path
) -> None:
    from rekd_edge.fuse import fuse_pair

    pair = fuse_pair(tiny_image, tiny_image)
    path = tmp_path / "model.onnx"
    convert_to_onnx(pair, pair.io_spec(), path, target=load_target("onnx"), metadata={})
    report = check_artefact(
        path,
        model=pair,
        io_spec=pair.io_spec(),
        label_names=LABELS,
        batches=image_batches,
        gates=load_gates("default"),
    )
    assert report.failures == ()
