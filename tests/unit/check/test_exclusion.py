"""The proof of exclusion holds for the real graph, and finds every kind of leak."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rekd_edge.check import LabelledBatch, numerical_exclusion, structural_exclusion
from rekd_edge.check.exclusion import replace_content
from rekd_edge.convert import GraphError, OnnxArtefact, predictor_graph

Edit = Callable[[onnx.ModelProto], None]


def _load(artefact: OnnxArtefact) -> onnx.ModelProto:
    return onnx.load(str(artefact.path))


def _rename_output(model: onnx.ModelProto, old: str, new: str) -> None:
    """The node that makes ``old`` makes ``new`` instead; readers are left as they are."""
    for node in model.graph.node:
        for position, name in enumerate(node.output):
            if name == old:
                node.output[position] = new


def add_to_logits(model: onnx.ModelProto, nodes: list[onnx.NodeProto], value: str) -> None:
    """Adds the result of extra nodes, a float that broadcasts, to the logits."""
    _rename_output(model, "logits", "logits_before")
    model.graph.node.extend(nodes)
    model.graph.node.append(helper.make_node("Add", ["logits_before", value], ["logits"]))


def leak_last_token(model: onnx.ModelProto) -> None:
    """The logits see the id at the last position of the input, a trillionth of it."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "leak_at"))
    model.graph.initializer.append(
        numpy_helper.from_array(np.array(1e-3, dtype=np.float32), "leak_scale")
    )
    add_to_logits(
        model,
        [
            helper.make_node("Gather", ["input_ids", "leak_at"], ["leak_id"], axis=1),
            helper.make_node("Cast", ["leak_id"], ["leak_float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["leak_float", "leak_scale"], ["leak"]),
        ],
        "leak",
    )


def leak_mean_score(model: onnx.ModelProto) -> None:
    """The logits see the mean of the selector's scores, which depends on every token."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "score_axis"))
    add_to_logits(
        model,
        [
            helper.make_node("Sigmoid", ["selection_score"], ["score_sigmoid"]),
            helper.make_node("ReduceMean", ["score_sigmoid", "score_axis"], ["leak"]),
        ],
        "leak",
    )


def leak_count(model: onnx.ModelProto) -> None:
    """The logits see how many tokens are padding: the mask's own content."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "count_axis"))
    add_to_logits(
        model,
        [
            helper.make_node("Cast", ["attention_mask"], ["mask_float"], to=1),
            helper.make_node("ReduceSum", ["mask_float", "count_axis"], ["leak"]),
        ],
        "leak",
    )


def leak_through_a_shape(model: onnx.ModelProto) -> None:
    """The logits see the *shape* of a value whose size depends on the content."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "second"))
    add_to_logits(
        model,
        [
            helper.make_node("NonZero", ["input_ids"], ["found"]),
            helper.make_node("Shape", ["found"], ["found_shape"]),
            helper.make_node("Gather", ["found_shape", "second"], ["found_count"], axis=0),
            helper.make_node("Cast", ["found_count"], ["leak"], to=1),
        ],
        "leak",
    )


def read_the_neighbour(model: onnx.ModelProto) -> None:
    """The predictor reads the token after each selected one."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(1), "one"))
    for node in model.graph.node:
        if node.op_type == "GatherElements" and node.input[1] == "rationale_index":
            node.input[1] = "next_index"
    model.graph.node.append(helper.make_node("Add", ["rationale_index", "one"], ["next_index"]))
    _sort(model)


def _sort(model: onnx.ModelProto) -> None:
    """Nodes in an order in which everything is made before it is read."""
    pending, made = list(model.graph.node), {i.name for i in model.graph.initializer}
    made |= {value.name for value in model.graph.input}
    ordered = []
    while pending:
        ready = [node for node in pending if all(not n or n in made for n in node.input)]
        assert ready, "the graph has a cycle"
        ordered += ready
        made |= {name for node in ready for name in node.output}
        pending = [node for node in pending if node not in ready]
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def test_text_passes_both_proofs(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    model = _load(tiny_text_onnx)
    structural = structural_exclusion(model)
    assert structural.passed
    assert structural.gated_reads == ("input_ids",)
    numerical = numerical_exclusion(model, [b.inputs for b in text_batches], threads=1)
    assert numerical.passed
    assert numerical.max_change == 0.0
    assert numerical.changed_examples == numerical.mask_mismatches == 0
    assert numerical.control_changed == 1.0
    assert numerical.replaced_positions > 0


def test_images_pass_both_proofs(
    tiny_image_onnx: OnnxArtefact, image_batches: list[LabelledBatch]
) -> None:
    model = _load(tiny_image_onnx)
    assert structural_exclusion(model).gated_reads == ("pixel_values",)
    numerical = numerical_exclusion(model, [b.inputs for b in image_batches], threads=1)
    assert numerical.passed
    assert numerical.max_change == 0.0
    assert numerical.control_changed == 1.0


@pytest.mark.parametrize(
    ("leak", "through"),
    [
        (leak_last_token, "input_ids"),
        (leak_mean_score, "input_ids"),
        (leak_count, "attention_mask"),
        (leak_through_a_shape, "input_ids"),
    ],
)
def test_the_structure_shows_each_leak(
    tiny_text_onnx: OnnxArtefact, leak: Edit, through: str
) -> None:
    model = _load(tiny_text_onnx)
    leak(model)
    result = structural_exclusion(model)
    assert not result.passed
    assert any(path.endswith(through) for path in result.leaks)


@pytest.mark.parametrize("leak", [leak_last_token, leak_mean_score, leak_count])
def test_the_numbers_show_each_leak(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch], leak: Edit
) -> None:
    model = _load(tiny_text_onnx)
    leak(model)
    result = numerical_exclusion(model, [b.inputs for b in text_batches], threads=1)
    assert not result.passed
    assert result.changed_examples > 0
    assert result.max_change > 0


def test_reading_the_neighbour_is_seen_by_the_numbers(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    model = _load(tiny_text_onnx)
    read_the_neighbour(model)
    result = numerical_exclusion(model, [b.inputs for b in text_batches], threads=1)
    assert result.changed_examples > 0


def test_a_mask_that_is_not_what_was_read_is_counted(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    model = _load(tiny_text_onnx)
    _rename_output(model, "rationale_mask", "true_mask")
    model.graph.node.append(helper.make_node("Not", ["true_mask"], ["rationale_mask"]))
    result = numerical_exclusion(model, [b.inputs for b in text_batches], threads=1)
    assert result.mask_mismatches == result.examples
    assert not result.passed


def test_a_predictor_that_ignores_its_input_fails_the_control(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    model = _load(tiny_text_onnx)
    _rename_output(model, "logits", "logits_before")
    model.graph.node.append(helper.make_node("Sub", ["logits_before"] * 2, ["logits"]))
    result = numerical_exclusion(model, [b.inputs for b in text_batches], threads=1)
    assert result.changed_examples == 0
    assert result.control_changed == 0.0
    assert not result.passed


def test_a_graph_without_the_cut_values_is_refused(tiny_text_onnx: OnnxArtefact) -> None:
    model = _load(tiny_text_onnx)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == "rationale_valid":
                    names[position] = "something_else"
    with pytest.raises(GraphError, match="no value named rationale_valid"):
        structural_exclusion(model)
    with pytest.raises(GraphError):
        numerical_exclusion(model, [], threads=1)


def test_the_cut_graph_is_only_the_predictor(tiny_text_onnx: OnnxArtefact) -> None:
    model = _load(tiny_text_onnx)
    cut = predictor_graph(model)
    onnx.checker.check_model(cut, full_check=True)
    names = {tensor.name for tensor in cut.graph.initializer}
    assert any(name.startswith("predictor.") for name in names)
    assert not any(name.startswith("selector.") for name in names)
    assert [v.name for v in cut.graph.input][-2:] == ["rationale_index", "rationale_valid"]
    assert _load(tiny_text_onnx) == model, "cutting must not change the model"


def test_replacing_content_changes_exactly_the_asked_positions() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50, (4, 9))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    where = rng.random((4, 9)) < 0.5
    before = copy.deepcopy(inputs)
    other = replace_content(inputs, where, rng)
    np.testing.assert_array_equal(other["input_ids"] != ids, where)
    np.testing.assert_array_equal(other["attention_mask"] == 0, where)
    for name, value in before.items():
        np.testing.assert_array_equal(inputs[name], value)


def test_replacing_patches_changes_exactly_their_pixels() -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((2, 3, 8, 8), dtype=np.float32)
    where = np.zeros((2, 4), dtype=bool)
    where[0, 1] = True  # upper right patch of the first image
    other = replace_content({"pixel_values": pixels}, where, rng)["pixel_values"]
    assert other.dtype == np.float32
    assert (other[0, :, :4, 4:] != 0).all()
    assert np.count_nonzero(other) == 3 * 4 * 4
