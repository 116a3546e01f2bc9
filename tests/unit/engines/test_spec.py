"""Targets with engines, the recipes made of them, and the packages that build."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from rekd_edge.convert import load_target
from rekd_edge.convert.targets import targets_dir
from rekd_edge.engines.backend import BACKENDS, TensorRt, load_backend
from rekd_edge.engines.lint import INSTEAD
from rekd_edge.engines.spec import BuildRecipe, EngineSpec, SizeRange, build_recipe
from rekd_edge.errors import BackendError, RecipeError, UsageError
from rekd_edge.types import AxisSpec, EngineBackend, IoSpec, TensorSpec

needs_wheels = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="TensorRT-RTX has packages for Linux on x86-64 alone",
)
BATCH = AxisSpec("batch", None)
TEXT = IoSpec((TensorSpec("ids", "int64", (BATCH, AxisSpec("token", None))),), ())
SIDE = AxisSpec("side", 32)
IMAGE = IoSpec((TensorSpec("pixels", "uint8", (BATCH, AxisSpec("channel", 3), SIDE, SIDE)),), ())


def spec(name: str = "trt-rtx") -> EngineSpec:
    engine = load_target(name).engine
    assert engine is not None
    return engine


def recipe(
    io_spec: IoSpec, max_length: int | None, engine: EngineSpec | None = None
) -> BuildRecipe:
    return build_recipe(
        spec() if engine is None else engine,
        io_spec,
        precision="fp32",
        onnx_sha256="0" * 64,
        max_length=max_length,
    )


def test_shipped_targets_leave_precision_to_the_graph() -> None:
    names = {path.stem for path in targets_dir().glob("*.yaml")}
    with_engine = {name for name in names if load_target(name).engine is not None}
    assert with_engine == {f"{b}{p}" for b in ("trt", "trt-rtx") for p in ("", "-fp16", "-int8")}
    for name in with_engine:
        engine = spec(name)
        assert (engine.backend == "tensorrt-rtx") == name.startswith("trt-rtx")
        assert {engine.tf32, engine.refit, engine.version_compatible} == {False}


def test_sizes_are_those_of_the_model() -> None:
    text = recipe(TEXT, 128).profiles["ids"]
    assert (text.min, text.opt, text.max) == ((1, 3), (8, 64), (64, 128))
    short = recipe(TEXT, 32).profiles["ids"]
    assert (short.opt, short.max) == ((8, 32), (64, 32))
    image = recipe(IMAGE, None).profiles["pixels"]
    assert (image.min, image.max) == ((1, 3, 32, 32), (64, 3, 32, 32))
    longer = spec().model_copy(update={"tokens": SizeRange(min=3, opt=64, max=512)})
    with pytest.raises(UsageError, match="3 to 512 tokens, and the model reads at most 128"):
        recipe(TEXT, 128, longer)
    with pytest.raises(UsageError, match="no size for the axis token of ids"):
        recipe(TEXT, 128, spec().model_copy(update={"tokens": None}))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("compute_capabilities: [86, 89, 120]", "", "needs compute_capabilities"),
        ("tensorrt-rtx", "tensorrt", "leave compute_capabilities out"),
        ("[86, 89, 120]", "[86, 86]", "named twice"),
        ("max: 64}", "max: 4}", "min <= opt <= max"),
        ("max: 64}", "max: null}", "batch needs a max"),
        ("precision: fp32", "precision: int8-dynamic", "int8-static"),
        ("dynamic_batch: true", "dynamic_batch: false", "dynamic_batch"),
        ("  batch:", "  fp16: true\n  batch:", "unknown key"),
    ],
)
def test_a_target_that_contradicts_itself_is_refused(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    content = (targets_dir() / "trt-rtx.yaml").read_text()
    assert old in content
    path = tmp_path / "mine.yaml"
    path.write_text(content.replace(old, new))
    with pytest.raises(RecipeError, match=problem):
        load_target(str(path))


def test_the_key_reference_is_complete() -> None:
    page = (targets_dir().parents[1] / "docs" / "tensorrt.md").read_text()
    missing = [name for name in EngineSpec.model_fields if f"`{name}`" not in page]
    assert not missing


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_backend_says_how_to_get_it(
    name: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, BACKENDS[name].module, None)
    with pytest.raises(BackendError, match=f"{name} is not installed") as found:
        load_backend(name)
    assert "pip install 'rekd-edge[" in (found.value.hint or "")


def test_a_backend_that_does_not_import_is_told_from_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("import tensorrt_of_nowhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendError, match="does not import: No module named 'tensorrt_of_nowhere"):
        load_backend("tensorrt")
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.6.1'")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendError, match=r"tensorrt 8\.6\.1 is not supported, 10 or 11 is"):
        load_backend("tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)


@needs_wheels
def test_operators_said_to_be_missing_are_missing() -> None:
    module = load_backend("tensorrt-rtx").module
    log = module.Logger(module.Logger.ERROR)
    builder = module.Builder(log)
    network = builder.create_network(0)
    parser = module.OnnxParser(network, log)
    assert [name for name in INSTEAD if parser.supports_operator(name)] == []
    assert parser.supports_operator("TopK")
    assert parser.supports_operator("CumSum")


@needs_wheels
def test_tensorrt_rtx_names_the_gpus_that_it_builds_for() -> None:
    found = load_backend("tensorrt-rtx")
    assert {86, 89, 120} <= set(found.compute_capabilities)
    found.require(86)
    with pytest.raises(BackendError, match="builds no engine for SM 90 "):
        found.require(90)
    TensorRt(BACKENDS["tensorrt"], None, "10.13", ()).require(90)  # for the GPU present
