"""Engines built ahead for another machine, and the end of a builder that is not for memory."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rekd_edge.engines.backend import Device, load_backend
from rekd_edge.engines.build import build_engines
from rekd_edge.engines.spec import BuildRecipe, Profile
from rekd_edge.errors import BackendError

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="TensorRT-RTX has packages for Linux on x86-64 alone",
)
GPU = Device("the GPU of the machine that builds", 86, "575.57.08")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One product, ``[batch, 16] x [16, 8]``."""
    weights = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return path


def recipe_of(file: Path) -> BuildRecipe:
    return BuildRecipe(
        backend="tensorrt-rtx",
        compute_capabilities=(86,),
        precision="fp32",
        onnx_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        profiles={"x": Profile(min=(1, 16), opt=(8, 16), max=(64, 16))},
    )


def test_an_engine_built_ahead_is_not_bound_to_the_driver_of_its_builder(
    file: Path, tmp_path: Path
) -> None:
    recipe, tensorrt = recipe_of(file), load_backend("tensorrt-rtx")
    (made,) = build_engines(file, tmp_path / "engines", recipe, tensorrt, device=GPU)
    assert made.record.driver is None
    other = Device("the GPU that it is for", 86, "580.65.06")
    assert made.record.differences(recipe, tensorrt.version, other) == ()


def test_a_builder_that_ends_by_itself_did_not_run_out_of_memory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt = load_backend("tensorrt-rtx")
    library = tmp_path / "library"
    library.mkdir()
    (library / "tensorrt_rtx.py").write_text("import sys\nsys.exit('the library ends here')\n")
    monkeypatch.setenv("PYTHONPATH", str(library))
    with pytest.raises(BackendError, match=r"with code 1 .* SM 86: the library ends") as found:
        build_engines(file, tmp_path / "engines", recipe_of(file), tensorrt)
    assert found.value.hint is None
