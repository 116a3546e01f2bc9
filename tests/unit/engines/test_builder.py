"""Where TensorRT answers with nothing: no runtime, no cache of timings."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from rekd_edge.engines.backend import load_backend
from rekd_edge.engines.builder import EngineBuilder, log_of, runtime_of
from rekd_edge.errors import BackendError

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="TensorRT-RTX has packages for Linux on x86-64 alone",
)


def test_a_runtime_that_cannot_be_made_is_one_error() -> None:
    tensorrt = load_backend("tensorrt-rtx")
    log = log_of(tensorrt.module)
    assert isinstance(runtime_of(tensorrt, log), tensorrt.module.Runtime)

    def without_driver(_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    broken = replace(tensorrt, module=SimpleNamespace(Runtime=without_driver))
    with pytest.raises(BackendError, match=r"has no runtime here: .* returned nullptr") as found:
        runtime_of(broken, log)
    assert found.value.exit_code == 4
    assert found.value.hint


@pytest.mark.parametrize("broken", [b"broken", b"of another GPU"])
def test_timings_that_are_broken_or_of_another_gpu_begin_anew(broken: bytes) -> None:
    class Config:
        """As TensorRT documents it: None for broken bytes, False for those of another GPU."""

        used: bytes | None = None

        def create_timing_cache(self, stored: bytes) -> bytes | None:
            return None if stored == b"broken" else stored

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            if not isinstance(cache, bytes):
                raise TypeError("incompatible function arguments")
            assert not ignore_mismatch
            if cache == b"of another GPU":
                return False
            self.used = cache
            return True

    config = Config()
    EngineBuilder._use_timings(config, broken)
    assert config.used == b""
    EngineBuilder._use_timings(config, b"mine")
    assert config.used == b"mine"
