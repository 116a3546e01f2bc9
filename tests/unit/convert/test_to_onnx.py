"""The exported file: names, axes, types, metadata, no trace of the machine, parity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from rekd_edge.check import LabelledBatch
from rekd_edge.convert import (
    ConversionError,
    IoAxisError,
    IoDTypeError,
    IoNameError,
    OnnxArtefact,
    TargetSpec,
    convert_to_onnx,
    load_target,
    validate_io,
    weights_sha256,
)
from rekd_edge.errors import UsageError
from rekd_edge.fuse import FusedRationalist, PlainClassifier
from rekd_edge.runners import OnnxRunner, TorchRunner
from rekd_edge.types import OUTPUTS, TEXT_INPUTS, AxisSpec, IoSpec, TensorSpec


def test_names_axes_and_versions(tiny_text_onnx: OnnxArtefact) -> None:
    model = onnx.load(str(tiny_text_onnx.path))
    assert model.ir_version == 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert [value.name for value in model.graph.input] == list(TEXT_INPUTS)
    assert [value.name for value in model.graph.output] == list(OUTPUTS)
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes["input_ids"] == ["batch", "token"]
    assert axes["logits"] == ["batch", 3]
    assert axes["rationale_mask"] == ["batch", "token"]
    assert axes["selection_margin"] == ["batch"]


def test_metadata_is_filled(tiny_text_onnx: OnnxArtefact) -> None:
    model = onnx.load(str(tiny_text_onnx.path))
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["rekd_edge.recipe"] == "tiny"
    assert metadata["rekd_edge.cut"] == "rationale_index,rationale_valid"
    assert metadata["rekd_edge.precision"] == "fp32"
    assert model.producer_name == "rekd-edge"


def test_the_file_holds_no_source_paths_and_no_stack_traces(tiny_text_onnx: OnnxArtefact) -> None:
    content = tiny_text_onnx.path.read_bytes()
    for trace in (b"stack_trace", b".py", str(Path.cwd()).encode(), b"site-packages"):
        assert trace not in content
    model = onnx.load(str(tiny_text_onnx.path))
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)


def test_the_weights_are_inside_the_file(tiny_text_onnx: OnnxArtefact) -> None:
    assert [path.name for path in tiny_text_onnx.path.parent.iterdir()] == ["model.onnx"]
    assert tiny_text_onnx.size_bytes == tiny_text_onnx.path.stat().st_size


def test_the_same_model_gives_the_same_bytes(
    tiny_text: FusedRationalist, tiny_text_onnx: OnnxArtefact, tmp_path: Path
) -> None:
    again = convert_to_onnx(
        tiny_text,
        tiny_text.io_spec(),
        tmp_path / "again.onnx",
        target=load_target("onnx"),
        metadata={"recipe": "tiny"},
    )
    assert again.sha256 == tiny_text_onnx.sha256


@pytest.mark.parametrize(("size", "tokens"), [(1, 3), (1, 48), (2, 16), (5, 7), (17, 9)])
def test_text_agrees_with_torch_at_other_sizes(
    tiny_text: FusedRationalist, tiny_text_onnx: OnnxArtefact, size: int, tokens: int
) -> None:
    ids, valid = (t.numpy() for t in tiny_text.example_inputs(size, tokens))
    inputs = {"input_ids": ids, "attention_mask": valid}
    with (
        OnnxRunner(tiny_text_onnx.path, threads=1) as runner,
        TorchRunner(tiny_text, TEXT_INPUTS, threads=1) as reference,
    ):
        have, want = runner.run(inputs), reference.run(inputs)
    np.testing.assert_array_equal(have.rationale_mask, want.rationale_mask)
    np.testing.assert_allclose(have.logits, want.logits, atol=1e-4)
    assert have.rationale_mask.shape == (size, tokens)


def test_images_agree_with_torch(
    tiny_image: FusedRationalist,
    tiny_image_onnx: OnnxArtefact,
    image_batches: list[LabelledBatch],
) -> None:
    inputs = image_batches[0].inputs
    with (
        OnnxRunner(tiny_image_onnx.path, threads=1) as runner,
        TorchRunner(tiny_image, ("pixel_values",), threads=1) as reference,
    ):
        have, want = runner.run(inputs), reference.run(inputs)
    np.testing.assert_array_equal(have.rationale_mask, want.rationale_mask)
    np.testing.assert_allclose(have.logits, want.logits, atol=1e-4)


def test_equal_scores_go_to_the_lower_index(tiny_text: FusedRationalist, tmp_path: Path) -> None:
    import copy

    tied = copy.deepcopy(tiny_text)
    nn.init.zeros_(tied.selector.head.weight)
    nn.init.zeros_(tied.selector.head.bias)
    path = tmp_path / "tied.onnx"
    convert_to_onnx(tied, tied.io_spec(), path, target=load_target("onnx"), metadata={})
    ids, valid = (t.numpy() for t in tied.example_inputs(2, 12))
    with OnnxRunner(path, threads=1) as runner:
        answer = runner.run({"input_ids": ids, "attention_mask": valid})
    # 10 selectable tokens, ratio 0.3: the first three after [CLS].
    assert answer.rationale_mask.sum(axis=1).tolist() == [3, 3]
    assert np.nonzero(answer.rationale_mask[0])[0].tolist() == [1, 2, 3]
    assert (answer.selection_margin == 0).all()


def test_a_plain_classifier_has_no_cut(tiny_plain: PlainClassifier, tmp_path: Path) -> None:
    artefact = convert_to_onnx(
        tiny_plain,
        tiny_plain.io_spec(),
        tmp_path / "plain.onnx",
        target=load_target("onnx"),
        metadata={},
    )
    assert "rekd_edge.cut" not in artefact.metadata


def test_a_fixed_batch_is_declared_where_the_target_asks_for_it(
    tiny_image: FusedRationalist, tmp_path: Path
) -> None:
    target = TargetSpec(
        schema_version=1,
        name="one",
        runtime="onnxruntime",
        opset=20,
        ir_version=10,
        dynamic_batch=False,
    )
    artefact = convert_to_onnx(
        tiny_image, tiny_image.io_spec(), tmp_path / "one.onnx", target=target, metadata={}
    )
    assert artefact.io_spec.inputs[0].axes[0] == AxisSpec("batch", 1)
    shape = onnx.load(str(artefact.path)).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 1


def test_a_model_in_training_mode_is_refused(tiny_text: FusedRationalist, tmp_path: Path) -> None:
    import copy

    training = copy.deepcopy(tiny_text).train()
    with pytest.raises(UsageError, match="training mode"):
        convert_to_onnx(
            training,
            training.io_spec(),
            tmp_path / "m.onnx",
            target=load_target("onnx"),
            metadata={},
        )
    assert list(tmp_path.iterdir()) == []


class _BakesItsBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def example_inputs(self, batch: int = 2, tokens: int = 16) -> tuple[Tensor, ...]:
        return (torch.ones(batch, 4),)

    def io_spec(self) -> IoSpec:
        batch, four = AxisSpec("batch", None), AxisSpec("four", 4)
        return IoSpec(
            (TensorSpec("values", "float32", (batch, four)),),
            (TensorSpec("logits", "float32", (batch, four)),),
        )

    def forward(self, values: Tensor) -> tuple[Tensor]:
        return (values.reshape(2, 4) * self.weight,)


def test_a_baked_batch_size_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    model = _BakesItsBatch().eval()
    with pytest.raises((ConversionError, IoAxisError)) as raised:
        convert_to_onnx(
            model, model.io_spec(), tmp_path / "m.onnx", target=load_target("onnx"), metadata={}
        )
    assert raised.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def _changed(spec: IoSpec, **fields: object) -> IoSpec:
    return IoSpec(**{"inputs": spec.inputs, "outputs": spec.outputs, **fields})  # type: ignore[arg-type]


def test_each_kind_of_mismatch_has_its_own_error(
    tiny_text: FusedRationalist, tiny_text_onnx: OnnxArtefact
) -> None:
    model = onnx.load(str(tiny_text_onnx.path))
    spec = tiny_text.io_spec()
    validate_io(model, spec)
    with pytest.raises(IoNameError, match="in this order"):
        validate_io(model, _changed(spec, outputs=spec.outputs[::-1]))
    ids, valid = spec.inputs
    with pytest.raises(IoDTypeError, match="'input_ids' is int64, expected float32"):
        validate_io(
            model, _changed(spec, inputs=(TensorSpec(ids.name, "float32", ids.axes), valid))
        )
    logits = spec.outputs[0]
    wider = TensorSpec("logits", "float32", (logits.axes[0], AxisSpec("class", 7)))
    with pytest.raises(IoAxisError, match="has size 3, expected 7"):
        validate_io(model, _changed(spec, outputs=(wider, *spec.outputs[1:])))
    flat = TensorSpec("logits", "float32", (logits.axes[0],))
    with pytest.raises(IoAxisError, match="has 2 axes, expected 1"):
        validate_io(model, _changed(spec, outputs=(flat, *spec.outputs[1:])))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(IoAxisError, match="baked in as 2"):
        validate_io(model, spec)


def test_the_weights_digest_sees_a_change_of_one_weight(tiny_text: FusedRationalist) -> None:
    import copy

    changed = copy.deepcopy(tiny_text)
    assert weights_sha256(changed) == weights_sha256(tiny_text)
    with torch.no_grad():
        changed.predictor.head.bias[0] += 1e-3
    assert weights_sha256(changed) != weights_sha256(tiny_text)
