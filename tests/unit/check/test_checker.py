"""A check passes the honest file and refuses every wrong one, for the right reason."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from rekd_edge.check import (
    CheckReport,
    Gate,
    GateSet,
    LabelledBatch,
    TextEdges,
    baseline_accuracy,
    check_artefact,
    load_gates,
)
from rekd_edge.check.inputs import examples_of, full_length, one_token, stack
from rekd_edge.convert import OnnxArtefact, convert_to_onnx, load_target
from rekd_edge.errors import BackendError, DataError, IntegrityError
from rekd_edge.fuse import FusedRationalist

CheckText = Callable[..., CheckReport]


@pytest.fixture
def check_text(
    tiny_text: FusedRationalist, text_batches: list[LabelledBatch], text_edges: TextEdges
) -> CheckText:
    def check(path: Path, **changed: object) -> CheckReport:
        settings = {
            "model": tiny_text,
            "io_spec": tiny_text.io_spec(),
            "label_names": tiny_text.label_names,
            "batches": text_batches,
            "gates": load_gates("default"),
            "edges": text_edges,
            "threads": 1,
        }
        return check_artefact(path, **{**settings, **changed})  # type: ignore[arg-type]

    return check


@pytest.fixture
def edited(tiny_text_onnx: OnnxArtefact, tmp_path: Path) -> Callable[..., Path]:
    """Writes a changed copy of the honest file."""

    def edit(change: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load(str(tiny_text_onnx.path))
        change(model)
        path = tmp_path / "edited.onnx"
        onnx.save(model, str(path))
        return path

    return edit


def _failed(report: CheckReport) -> set[str]:
    return {gate.metric for gate in report.gates if not gate.passed}


def test_the_honest_text_file_passes(tiny_text_onnx: OnnxArtefact, check_text: CheckText) -> None:
    report = check_text(tiny_text_onnx.path)
    assert report.passed, report.failures
    assert report.file_sha256 == tiny_text_onnx.sha256
    names = [case.name for case in report.cases]
    assert {"batch of 1", "batch of 16", "one selectable token", "max_length"} <= set(names)
    assert report.accuracy["onnx"] == report.accuracy["torch"]
    assert sum(report.accuracy["onnx"].support.values()) == 19
    rebuilt = report.to_json()
    assert rebuilt["passed"] is True
    assert rebuilt["metrics"]["exclusion_max_change"] == 0.0


def test_the_honest_image_file_passes(
    tiny_image: FusedRationalist,
    tiny_image_onnx: OnnxArtefact,
    image_batches: list[LabelledBatch],
) -> None:
    report = check_artefact(
        tiny_image_onnx.path,
        model=tiny_image,
        io_spec=tiny_image.io_spec(),
        label_names=tiny_image.label_names,
        batches=image_batches,
        gates=load_gates("default"),
        threads=1,
    )
    assert report.passed, report.failures


def _scale_weight(prefix: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name.startswith(prefix))
        values = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def test_a_corrupted_predictor_weight_fails_the_logits(
    edited: Callable[..., Path], check_text: CheckText
) -> None:
    report = check_text(edited(_scale_weight("predictor.head.weight", 1.01)))
    assert "max_logit_error" in _failed(report)
    assert "rationale_exact" not in _failed(report)


def test_a_corrupted_selector_weight_fails_the_rationale(
    edited: Callable[..., Path], check_text: CheckText
) -> None:
    report = check_text(edited(_scale_weight("selector.encoder", -1.0)))
    assert {"rationale_exact", "unexplained_flips"} <= _failed(report)


def test_a_weight_that_is_not_a_number_fails(
    edited: Callable[..., Path], check_text: CheckText
) -> None:
    report = check_text(edited(_scale_weight("predictor.head.weight", np.nan)))
    assert "max_logit_error" in _failed(report)
    assert report.accuracy["onnx"].overall == 0.0


def test_swapped_classes_fail_labels_and_logits(
    edited: Callable[..., Path], check_text: CheckText
) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["straight" if name == "logits" else name for name in node.output]
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
        model.graph.node.append(
            helper.make_node("Gather", ["straight", "order"], ["logits"], axis=1)
        )

    report = check_text(edited(change))
    assert {"max_logit_error", "label_agreement"} <= _failed(report)


def test_outputs_in_another_order_are_refused(
    edited: Callable[..., Path], check_text: CheckText
) -> None:
    def change(model: onnx.ModelProto) -> None:
        outputs = [copy.deepcopy(value) for value in model.graph.output]
        del model.graph.output[:]
        model.graph.output.extend(outputs[::-1])

    report = check_text(edited(change))
    assert _failed(report) == {"io_valid"}
    assert any("in this order" in problem for problem in report.problems)


def test_an_output_under_the_name_of_another_is_refused(
    edited: Callable[..., Path], check_text: CheckText
) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["score" if n == "selection_score" else n for n in node.output]
        model.graph.node.append(helper.make_node("Neg", ["score"], ["selection_score"]))

    assert "max_scaled_score_error" in _failed(check_text(edited(change)))


def test_a_baked_batch_size_fails_other_sizes(
    edited: Callable[..., Path], check_text: CheckText
) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["any" if name == "logits" else name for name in node.output]
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "baked"))
        model.graph.node.append(helper.make_node("Reshape", ["any", "baked"], ["logits"]))

    report = check_text(edited(change))
    assert "failed_shapes" in _failed(report)
    assert next(c for c in report.cases if c.name == "batch of 2").error is None
    assert "batch of 5" in " ".join(report.problems)
    # What could not be measured on the whole split has failed too.
    assert {"score", "label_agreement", "max_logit_error"} <= _failed(report)


def test_a_declared_fixed_batch_is_refused(
    edited: Callable[..., Path], check_text: CheckText
) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8

    report = check_text(edited(change))
    assert "io_valid" in _failed(report)
    assert any("baked in as 8" in problem for problem in report.problems)


class _LeakyRationalist(FusedRationalist):
    """Adds a trace of the last token to the logits: parity with torch is perfect."""

    def _predict(
        self, inputs: Mapping[str, torch.Tensor], index: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        leak = inputs["input_ids"][:, -1:].float() * 1e-6
        return super()._predict(inputs, index, valid) + leak


def test_a_leak_that_torch_shares_is_refused_by_exclusion_alone(
    tiny_text: FusedRationalist, tmp_path: Path, check_text: CheckText
) -> None:
    leaky = copy.deepcopy(tiny_text)
    leaky.__class__ = _LeakyRationalist
    path = tmp_path / "leaky.onnx"
    convert_to_onnx(leaky, leaky.io_spec(), path, target=load_target("onnx"), metadata={})
    report = check_text(path, model=leaky)
    assert {"exclusion_leaks", "exclusion_changed", "exclusion_max_change"} == _failed(report)
    assert any("unselected input can leak" in problem for problem in report.problems)


def test_baselines_are_references(tiny_text_onnx: OnnxArtefact, check_text: CheckText) -> None:
    ids = np.full((6, 8), 300)
    ids[:, 0], ids[:, -1] = 101, 102
    labels = np.array([0, 1, 2, 0, 1, 2])
    held = [LabelledBatch({"input_ids": ids, "attention_mask": np.ones_like(ids)}, labels)]
    gate = Gate(metric="accuracy", goal="min-improvement", value=0.001, reference="teacher")
    report = check_text(
        tiny_text_onnx.path,
        batches=held,
        gates=GateSet(schema_version=1, name="teacher", gates=(gate,)),
        baselines=baseline_accuracy(
            {"teacher": lambda _: np.eye(3, dtype=np.float32)[labels]},
            held,
            ("negative", "neutral", "positive"),
        ),
    )
    assert not report.passed
    assert report.accuracy["teacher"].overall == 1.0
    assert "against teacher 1" in report.failures[0]


def test_always_guessing_one_class_is_a_reference(
    tiny_text_onnx: OnnxArtefact, check_text: CheckText, text_batches: list[LabelledBatch]
) -> None:
    ones = [LabelledBatch(b.inputs, np.ones_like(b.labels)) for b in text_batches]
    gate = Gate(metric="accuracy", goal="min-improvement", value=0.01, reference="majority")
    gates = GateSet(schema_version=1, name="majority", gates=(gate,))
    report = check_text(tiny_text_onnx.path, batches=ones, gates=gates)
    assert report.gates[0].reference_value == 1.0
    assert not report.passed


def test_latency_is_measured_only_where_a_gate_asks(
    tiny_text_onnx: OnnxArtefact, check_text: CheckText
) -> None:
    gates = GateSet(
        schema_version=1, name="slow", gates=(Gate(metric="latency_ms_p50", value=1e-9),)
    )
    report = check_text(tiny_text_onnx.path, gates=gates)
    assert not report.passed
    assert report.metrics["latency_ms_p50"] > 0
    assert "latency_ms_p50" not in check_text(tiny_text_onnx.path).metrics


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_a_file_that_is_no_model_is_an_error(
    tmp_path: Path, check_text: CheckText, content: bytes
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises((IntegrityError, BackendError)):
        check_text(path)


def test_a_truncated_file_and_a_missing_one_are_integrity_errors(
    tiny_text_onnx: OnnxArtefact, tmp_path: Path, check_text: CheckText
) -> None:
    path = tmp_path / "short.onnx"
    path.write_bytes(tiny_text_onnx.path.read_bytes()[:-1000])
    with pytest.raises(IntegrityError, match="cut short"):
        check_text(path)
    with pytest.raises(IntegrityError, match="does not exist"):
        check_text(tmp_path / "none.onnx")


def test_an_empty_split_is_refused(tiny_text_onnx: OnnxArtefact, check_text: CheckText) -> None:
    with pytest.raises(DataError, match="empty"):
        check_text(tiny_text_onnx.path, batches=[])


def test_examples_are_single_unpadded_and_spread(
    text_batches: list[LabelledBatch],
) -> None:
    examples = examples_of(text_batches, 5)
    assert len(examples) == 5
    for example in examples:
        assert example["input_ids"].shape[0] == 1
        assert (example["attention_mask"] == 1).all()
    assert examples[-1]["input_ids"].shape[1] <= 30


def test_edge_inputs_are_built_from_real_tokens(
    text_batches: list[LabelledBatch], text_edges: TextEdges
) -> None:
    examples = examples_of(text_batches, 6)
    short = one_token(examples[0], text_edges)
    assert short["input_ids"].tolist() == [[101, int(examples[0]["input_ids"][0, 1]), 102]]
    full = full_length(examples, text_edges)
    assert full["input_ids"].shape == (1, 48)
    assert full["input_ids"][0, -1] == 102
    both = stack([short, full], text_edges.pad_id)
    assert both["attention_mask"].sum(axis=1).tolist() == [3, 48]
    assert (both["input_ids"][0, 3:] == 0).all()
