"""What torch-tensorrt is given, as far as it shows without a GPU: axes, and pixels as floats."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch.export import Dim

from rekd_edge.fuse import FusedRationalist
from rekd_edge.packages.backend import Host
from rekd_edge.packages.build import export_program, free_axes, made_of
from rekd_edge.packages.spec import PackageInput, PackageSpec
from rekd_edge.types import PixelScale

SHA = "0" * 64
SCALE = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def inputs_of(model: FusedRationalist) -> tuple[PackageInput, ...]:
    return made_of(
        PackageSpec(backend="aoti"),
        Host(torch.__version__, None, None),
        model.io_spec(),
        onnx_sha256=SHA,
        weights_sha256=SHA,
        profiles={},
        max_length=model.max_length,
    ).inputs


def test_a_compiled_text_model_is_exported_again_with_its_axes_free(
    tiny_text: FusedRationalist,
) -> None:
    """The two inputs share both axes, and the number of slots is computed from one of them."""
    inputs = tiny_text.example_inputs(batch=2)
    compiled = export_program(tiny_text, inputs, floats_first=True).run_decompositions().module()
    axes = free_axes(compiled, inputs_of(tiny_text))
    assert list(axes.values()) == [{0: Dim.DYNAMIC, 1: Dim.DYNAMIC}] * 2
    again = torch.export.export(compiled, inputs, dynamic_shapes=axes).module()
    for batch, tokens in ((1, 5), (3, 48)):
        other = tiny_text.example_inputs(batch, tokens)
        for mine, theirs in zip(again(*other), tiny_text(*other), strict=True):
            assert torch.equal(mine, theirs) or torch.allclose(mine, theirs, atol=1e-5)
    bounded = {name: {0: Dim(f"{name}_0", max=64), 1: Dim(f"{name}_1", max=48)} for name in axes}
    with pytest.raises(Exception, match=r"inputs_1|Expected op|[Cc]onstraint"):
        torch.export.export(compiled, inputs, dynamic_shapes=bounded)
    with pytest.raises(ValueError, match="shorter"):
        free_axes(compiled, inputs_of(tiny_text)[:1])


def test_fixed_axes_stay_fixed(tiny_image: FusedRationalist) -> None:
    compiled = export_program(tiny_image, tiny_image.example_inputs(batch=2)).module()
    assert list(free_axes(compiled, inputs_of(tiny_image)).values()) == [{0: Dim.DYNAMIC}]


def test_pixels_are_floats_before_anything_else_and_answer_the_same(
    tiny_image: FusedRationalist,
) -> None:
    """TensorRT reads bytes only to cast them; the model itself moves and gathers them first."""
    model = copy.deepcopy(tiny_image)
    model.read_pixels(SCALE)
    inputs = model.example_inputs(batch=2)
    assert inputs[0].dtype == torch.uint8

    def byte_readers(program: Any) -> list[str]:
        """What computes with bytes; sizes and assertions about types do not."""
        return [
            str(node.target)
            for node in program.graph.nodes
            if node.op == "call_function"
            and any(
                isinstance(one.meta.get("val"), torch.Tensor)
                and one.meta["val"].dtype == torch.uint8
                for one in node.all_input_nodes
            )
            and not re.search("sym_size|assert_tensor_metadata", str(node.target))
        ]

    plain = export_program(model, inputs).run_decompositions()
    first = export_program(model, inputs, floats_first=True).run_decompositions()
    assert len(byte_readers(plain)) > 1
    assert byte_readers(first) == ["aten._to_copy.default"]
    other = model.example_inputs(batch=3)
    for mine, theirs in zip(first.module()(*other), model(*other), strict=True):
        assert torch.equal(mine, theirs)
