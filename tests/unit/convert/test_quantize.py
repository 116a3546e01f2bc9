"""Lower precision: what changes, what is left alone, and that the graph is what was asked for."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest

from rekd_edge.check import LabelledBatch
from rekd_edge.check.exclusion import structural_exclusion
from rekd_edge.check.inputs import examples_of
from rekd_edge.convert import (
    OnnxArtefact,
    PrecisionError,
    convert_to_onnx,
    load_target,
    matrix_products,
    quantize,
    variants_of,
)
from rekd_edge.convert.quantize import node_parts
from rekd_edge.convert.targets import targets_dir
from rekd_edge.convert.types import Lower, Part
from rekd_edge.errors import UsageError
from rekd_edge.fuse import FusedRationalist, fuse
from rekd_edge.models.encoder import Encoder
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.models.selectors import SharedSelector
from rekd_edge.runners import OnnxRunner
from rekd_edge.selection import LOWEST_SCORE

CLS, SEP = 101, 102
BOTH: tuple[Part, ...] = ("selector", "predictor")


@pytest.fixture
def calibration(text_batches: list[LabelledBatch]) -> list[dict[str, np.ndarray]]:
    return examples_of(text_batches, 8)


@pytest.mark.parametrize(
    ("precision", "parts"),
    [
        ("int8-dynamic", BOTH),
        ("int8-dynamic", ("predictor",)),
        ("int8-dynamic", ("selector",)),
        ("int8-static", BOTH),
        ("int8-static", ("predictor",)),
        ("fp16", BOTH),
        ("fp16", ("predictor",)),
        ("fp16", ("selector",)),
    ],
)
def test_only_the_chosen_parts_change_and_all_of_their_products_do(
    precision: Lower,
    parts: tuple[Part, ...],
    tiny_text_onnx: OnnxArtefact,
    text_batches: list[LabelledBatch],
    calibration: list[dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    path = tmp_path / "low.onnx"
    before = matrix_products(onnx.load(str(tiny_text_onnx.path)))
    found = quantize(
        tiny_text_onnx.path, path, precision=precision, parts=parts, calibration=calibration
    )
    assert set(before["selector"]) == set(before["predictor"]) == {"fp32"}
    for part in BOTH:
        kind = precision.partition("-")[0] if part in parts else "fp32"
        assert found[part] == {kind: before[part]["fp32"]}
    model = onnx.load(str(path))
    stated = {item.key: item.value for item in model.metadata_props}
    assert stated["rekd_edge.precision"] == precision
    assert stated["rekd_edge.quantized"] == ",".join(parts)
    assert stated["rekd_edge.recipe"] == "tiny"
    assert structural_exclusion(model).passed
    assert [file.name for file in tmp_path.iterdir()] == ["low.onnx"]

    with OnnxRunner(tiny_text_onnx.path, threads=1) as exact, OnnxRunner(path, threads=1) as low:
        for batch in text_batches:
            expected, got = exact.run(batch.inputs), low.run(batch.inputs)
            if "selector" not in parts:
                assert np.array_equal(got.rationale_mask, expected.rationale_mask)
                assert np.array_equal(got.selection_score, expected.selection_score)
            same = (got.rationale_mask == expected.rationale_mask).all(axis=1)
            scale = np.abs(expected.logits).max()
            assert same.any()
            tolerance = 0.01 if precision == "fp16" else 0.25
            assert np.abs(got.logits - expected.logits)[same].max() < tolerance * scale


def test_dynamic_int8_is_smaller(tiny_text_onnx: OnnxArtefact, tmp_path: Path) -> None:
    quantize(tiny_text_onnx.path, tmp_path / "dynamic.onnx", precision="int8-dynamic")
    assert (tmp_path / "dynamic.onnx").stat().st_size < 0.6 * tiny_text_onnx.size_bytes


@pytest.mark.parametrize("precision", ["int8-dynamic", "fp16"])
def test_images_can_be_quantized(
    precision: Lower,
    tiny_image_onnx: OnnxArtefact,
    image_batches: list[LabelledBatch],
    tmp_path: Path,
) -> None:
    found = quantize(tiny_image_onnx.path, tmp_path / "low.onnx", precision=precision)
    assert all(set(counts) == {precision.partition("-")[0]} for counts in found.values())
    assert structural_exclusion(onnx.load(str(tmp_path / "low.onnx"))).passed
    with OnnxRunner(tmp_path / "low.onnx", threads=1) as low:
        assert np.isfinite(low.run(image_batches[0].inputs).logits).all()
    assert set(node_parts(onnx.load(str(tiny_image_onnx.path)))) == {"selector", "predictor"}


def test_fp16_weights_are_the_rounded_ones_and_scores_are_never_rounded(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch], tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    quantize(tiny_text_onnx.path, path, precision="fp16")
    assert path.stat().st_size < 0.65 * tiny_text_onnx.size_bytes
    exact, half = onnx.load(str(tiny_text_onnx.path)), onnx.load(str(path))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in half.graph.initializer}
    compared = 0
    for tensor in exact.graph.initializer:
        before = onnx.numpy_helper.to_array(tensor)
        if before.dtype == np.float32 and before.ndim > 1:
            after = weights[tensor.name]
            assert after.dtype == np.float16
            assert np.array_equal(after, before.astype(np.float16))
            compared += 1
    assert compared > 5
    assert {value.type.tensor_type.elem_type for value in half.graph.output} == {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.BOOL,
    }
    with OnnxRunner(path, threads=1) as runner:
        for batch in text_batches:
            answer = runner.run(batch.inputs)
            never = answer.selection_score == LOWEST_SCORE
            assert np.array_equal(never, ~selectable(batch))
            assert np.isfinite(answer.selection_score).all()


def selectable(batch: LabelledBatch) -> np.ndarray:
    ids, valid = batch.inputs["input_ids"], batch.inputs["attention_mask"] > 0
    return valid & ~np.isin(ids, (CLS, SEP))


def test_weights_that_both_parts_share_are_rounded_for_one_of_them_only(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch], tmp_path: Path
) -> None:
    model = onnx.load(str(tiny_text_onnx.path))
    shared = "predictor.encoder.backbone.embeddings.word_embeddings.weight"
    assert any(shared in node.input for node in model.graph.node)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == shared.replace("predictor", "selector"):
                node.input[position] = shared
    onnx.save(model, str(tmp_path / "tied.onnx"))
    path = tmp_path / "half.onnx"
    quantize(tmp_path / "tied.onnx", path, precision="fp16", parts=("predictor",))
    kinds = {t.name: t.data_type for t in onnx.load(str(path)).graph.initializer}
    assert kinds[shared] == onnx.TensorProto.FLOAT
    assert kinds[f"{shared}_fp16"] == onnx.TensorProto.FLOAT16
    with (
        OnnxRunner(tmp_path / "tied.onnx", threads=1) as exact,
        OnnxRunner(path, threads=1) as half,
    ):
        for batch in text_batches:
            expected, got = exact.run(batch.inputs), half.run(batch.inputs)
            assert np.array_equal(got.selection_score, expected.selection_score)


def test_blocks_that_both_parts_share_become_int8_in_both(
    tiny_text: FusedRationalist, text_batches: list[LabelledBatch], tmp_path: Path
) -> None:
    predictor = copy.deepcopy(tiny_text.predictor)
    assert isinstance(predictor.encoder, Encoder)
    selector = SharedSelector(predictor.encoder, depth=1)
    model = fuse(
        Rationalist(selector, predictor, 0.3), label_names=tiny_text.label_names, max_length=48
    )
    full = tmp_path / "full.onnx"
    convert_to_onnx(model, model.io_spec(), full, target=load_target("onnx"), metadata={})
    assert not any(
        node.op_type == "Transpose" and node.input[0].endswith("weight")
        for node in onnx.load(str(full)).graph.node
    )
    choices: tuple[tuple[Part, ...], ...] = (BOTH, ("predictor",))
    for parts in choices:
        path = tmp_path / f"{len(parts)}.onnx"
        found = quantize(full, path, precision="int8-dynamic", parts=parts)
        assert set(found["predictor"]) == {"int8"}
        assert set(found["selector"]) == {"int8" if "selector" in parts else "fp32"}
        with OnnxRunner(full, threads=1) as exact, OnnxRunner(path, threads=1) as low:
            for batch in text_batches:
                expected, got = exact.run(batch.inputs), low.run(batch.inputs)
                if "selector" not in parts:
                    assert np.array_equal(got.selection_score, expected.selection_score)
                assert np.isfinite(got.logits).all()


def test_nothing_is_calibrated_on_nothing(tiny_text_onnx: OnnxArtefact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs calibration data"):
        quantize(tiny_text_onnx.path, tmp_path / "low.onnx", precision="int8-static")
    with pytest.raises(UsageError, match="no part"):
        quantize(tiny_text_onnx.path, tmp_path / "low.onnx", precision="int8-dynamic", parts=())
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_already_int8_is_refused(
    tiny_text_onnx: OnnxArtefact, tmp_path: Path
) -> None:
    quantize(tiny_text_onnx.path, tmp_path / "low.onnx", precision="int8-dynamic")
    with pytest.raises(PrecisionError):
        quantize(tmp_path / "low.onnx", tmp_path / "lower.onnx", precision="int8-dynamic")
    assert not (tmp_path / "lower.onnx").exists()


def test_the_shipped_variants_of_a_target_differ_in_precision_alone() -> None:
    names = [target.name for target in variants_of("onnx")]
    assert names[0] == "onnx"
    int8 = {f"onnx-int8{kind}" for kind in ("", "-predictor", "-static")}
    assert set(names) == {"onnx", "onnx-fp16", "onnx-fp16-predictor", *int8}
    assert variants_of("onnx-int8-static") == (load_target("onnx-int8-static"),)
    by_file = variants_of(str(targets_dir() / "onnx.yaml"))
    assert by_file == variants_of("onnx")
