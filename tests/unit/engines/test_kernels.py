"""Kernels of TensorRT-RTX: how they are asked for, and which file of them is read.

No engine can be opened without a GPU. What stands for one has no name that TensorRT-RTX lacks.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rekd_edge.engines.backend import Device, load_backend
from rekd_edge.engines.kernels import keep_kernels, kernels_path, runtime_config

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="TensorRT-RTX has packages for Linux on x86-64 alone",
)
TRT = load_backend("tensorrt-rtx").module if sys.platform == "linux" else None
SHA = "0" * 64
GPU = Device("a GPU", 86, "575.57.08")


class Cache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels"):
            return False
        self.content = blob
        return True

    def serialize(self) -> memoryview:
        return memoryview(self.content)


class Config:
    dynamic_shapes_kernel_specialization_strategy = None

    def __init__(self, takes_cache: bool) -> None:
        self.takes_cache = takes_cache

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        return self.takes_cache


class Engine:
    def __init__(self, takes_cache: bool = True) -> None:
        self.takes_cache = takes_cache

    def create_runtime_config(self) -> Config:
        return Config(self.takes_cache)


def test_the_stand_ins_have_no_name_that_tensorrt_rtx_lacks() -> None:
    assert TRT is not None
    for mine, theirs in (
        (Cache, TRT.IRuntimeCache),
        (Config, TRT.IRuntimeConfig),
        (Engine, TRT.ICudaEngine),
    ):
        assert {name for name in vars(mine) if not name.startswith("__")} <= set(dir(theirs))
    said = str(TRT.ICudaEngine.create_execution_context.__doc__)
    assert "runtime_config: tensorrt_rtx_bindings.tensorrt_rtx.IRuntimeConfig" in said


def test_a_shape_waits_for_its_kernel_and_kernels_are_kept(tmp_path: Path) -> None:
    assert TRT is not None
    path = tmp_path / "rtx-kernels" / "one.cache"
    config, cache = runtime_config(TRT, Engine(), path)
    eager = TRT.DynamicShapesKernelSpecializationStrategy.EAGER
    assert config.dynamic_shapes_kernel_specialization_strategy == eager
    assert cache.content == b""
    keep_kernels(cache, path)
    assert not path.parent.exists()  # nothing to keep
    cache.content = b"kernels of one shape"
    keep_kernels(cache, path)
    assert [one.name for one in path.parent.iterdir()] == ["one.cache"]
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert runtime_config(TRT, Engine(), path)[1].content == b"kernels of one shape"
    path.write_bytes(b"broken")
    assert runtime_config(TRT, Engine(), path)[1].content == b""
    assert runtime_config(TRT, Engine(takes_cache=False), path)[1] is None


def test_kernels_that_others_may_write_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "rtx-kernels" / "one.cache"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"kernels of somebody")
    for one in (path, path.parent):
        before = one.stat().st_mode
        one.chmod(0o777)
        assert runtime_config(TRT, Engine(), path)[1].content == b""
        one.chmod(before)
    assert runtime_config(TRT, Engine(), path)[1].content == b"kernels of somebody"


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = Cache()
    cache.content = b"kernels"
    keep_kernels(cache, tmp_path / "file" / "one.cache")


def test_each_engine_gpu_model_and_driver_has_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path))
    others = [
        kernels_path(SHA, GPU),
        kernels_path(SHA, replace(GPU, name="another")),
        kernels_path(SHA, replace(GPU, driver=None)),
        kernels_path("f" * 64, GPU),
    ]
    assert len(set(others)) == len(others)
    assert all(tmp_path in one.parents for one in others)
    assert kernels_path(SHA, GPU) == others[0]
