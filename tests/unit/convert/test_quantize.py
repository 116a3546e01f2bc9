"""Lower precision: what changes, what is left alone, and that the graph is what was asked for."""

from __future__ import annotations

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
    load_target,
    matrix_products,
    quantize,
    variants_of,
)
from rekd_edge.convert.quantize import node_parts
from rekd_edge.convert.types import Int8, Part
from rekd_edge.errors import UsageError
from rekd_edge.runners import OnnxRunner

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
    ],
)
def test_only_the_chosen_parts_change_and_all_of_their_products_do(
    precision: Int8,
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
        assert found[part] == {("int8" if part in parts else "fp32"): before[part]["fp32"]}
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
            assert np.abs(got.logits - expected.logits)[same].max() < 0.25 * scale


def test_dynamic_int8_is_smaller(tiny_text_onnx: OnnxArtefact, tmp_path: Path) -> None:
    quantize(tiny_text_onnx.path, tmp_path / "dynamic.onnx", precision="int8-dynamic")
    assert (tmp_path / "dynamic.onnx").stat().st_size < 0.6 * tiny_text_onnx.size_bytes


def test_images_and_plain_classifiers_can_be_quantized(
    tiny_image_onnx: OnnxArtefact, image_batches: list[LabelledBatch], tmp_path: Path
) -> None:
    found = quantize(tiny_image_onnx.path, tmp_path / "low.onnx", precision="int8-dynamic")
    assert all(set(counts) == {"int8"} for counts in found.values())
    with OnnxRunner(tmp_path / "low.onnx", threads=1) as low:
        assert np.isfinite(low.run(image_batches[0].inputs).logits).all()
    assert set(node_parts(onnx.load(str(tiny_image_onnx.path)))) == {"selector", "predictor"}


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
    assert set(names) == {"onnx", *(f"onnx-int8{kind}" for kind in ("", "-predictor", "-static"))}
    assert variants_of("onnx-int8-static") == (load_target("onnx-int8-static"),)
