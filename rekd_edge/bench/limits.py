"""What this machine can do at best: fp32 matrix products in ONNX Runtime, and memory bandwidth.

A probe is measured like a model: ``run_named`` does one unit of work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rekd_edge.machine import free_memory_bytes

CACHE_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")
LEFT = "left"
"""Name of a product's input."""


def write_product(path: Path, rows: int, inner: int, columns: int) -> int:
    """An ONNX file that multiplies ``left`` ``[rows, inner]`` by a fixed weight ``[inner,
    columns]``, as a linear layer does; returns its operations, a multiply-add being two."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((inner, columns), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [LEFT, "weight"], ["product"])],
        "product",
        [helper.make_tensor_value_info(LEFT, TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return 2 * rows * inner * columns


def product_input(rows: int, inner: int) -> dict[str, np.ndarray]:
    return {LEFT: np.random.default_rng(1).standard_normal((rows, inner), dtype=np.float32)}


class BandwidthProbe:
    """One triad ``a = b + 3 c`` over buffers far larger than any cache, in fp32.

    numpy makes two passes of it: c is read and a written, then a and b are read and a written,
    so that five buffers are moved. (What a write allocates in the cache is not counted.)
    """

    def __init__(self, buffer_bytes: int) -> None:
        count = max(1, buffer_bytes // 4)
        self._b, self._c = (np.ones(count, dtype=np.float32) for _ in range(2))
        self._a = np.empty(count, dtype=np.float32)
        self.moved_bytes = 5 * 4 * count

    def run_named(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        np.multiply(self._c, np.float32(3), out=self._a)
        np.add(self._a, self._b, out=self._a)
        return {}


def largest_cache_bytes(folder: Path = CACHE_FOLDER) -> int | None:
    """Of the first core, as the system says; None where it does not."""
    sizes = []
    for path in folder.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        unit = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(text[-1:], 1)
        if text.rstrip("KMG").isdigit():
            sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes, default=None)


def bandwidth_buffer_bytes() -> int:
    """A buffer of twice the largest cache, at least 256 MB, but not above a twelfth of the memory
    that is free (there are three)."""
    wanted = max(256 * 10**6, 2 * (largest_cache_bytes() or 0))
    return min(wanted, free_memory_bytes() // 12)
