"""Operations and shares from profiles: worked out by hand, and against torch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rekd_edge.bench.limits import (
    LEFT,
    BandwidthProbe,
    bandwidth_buffer_bytes,
    largest_cache_bytes,
    product_input,
    write_product,
)
from rekd_edge.bench.operator_times import operator_times, profile
from rekd_edge.convert import OnnxArtefact
from rekd_edge.fuse import FusedRationalist
from rekd_edge.runners import OnnxRunner


def node(name: str, at: int, took: int, inputs: list[dict], output: dict) -> dict[str, Any]:
    shapes = {"input_type_shape": inputs, "output_type_shape": [output]}
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": at,
        "dur": took,
        "args": {"op_name": name, "node_index": str(at % 100), **shapes},
    }


def run(at: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": at, "dur": 99}


def query(at: int, slow: int = 0) -> list[dict[str, Any]]:
    weights, weight = {"float": [2, 4, 8, 8]}, {"float": [2, 6, 3]}
    return [
        # [3, 5] times a prepacked [5, 7]: 2 * 3 * 5 * 7 operations, 15 + 35 + 21 floats.
        node("MatMul", at, 20, [{"float": [3, 5]}], {"float": [3, 7]}),
        # Two activations: 2 * 4 products of [8, 16] and [16, 8].
        node(
            "FusedMatMul",
            at + 20,
            10,
            [{"float": [2, 4, 8, 16]}, {"float": [2, 4, 16, 8]}],
            weights,
        ),
        node("Softmax", at + 30, 6, [weights], weights),
        node("IsNaN", at + 36, 4, [weights], {"bool": [2, 4, 8, 8]}),
        # 6 channels to 2 with kernel 3, ten places.
        node("Conv", at + 40, 10, [{"float": [1, 6, 10]}, weight], {"float": [1, 2, 10]}),
        node("Add", at + 50, 40 + slow, [{"float": [3, 7]}, {"float": [7]}], {"float": [3, 7]}),
        node("Gelu", at + 90, 4, [{"float": [3, 7]}], {"float": [3, 7]}),
        node("Gelu", at + 94, 6, [{"float": [3, 7]}], {"float": [3, 7]}),
        run(at),
    ]


def test_operations_bytes_and_shares_by_hand() -> None:
    # One of three queries was interrupted: its node counts at the median.
    events = [*query(0), *query(100), *query(200, slow=9000), *query(300)]
    found = operator_times(events, warmup=1)
    attention = 2 * (2 * 4) * 8 * 8 * 16
    assert found.flops == 2 * 3 * 5 * 7 + attention + 2 * (2 * 10) * (6 * 3)
    floats = (15 + 35 + 21) + (2 * 1024 + 512) + (60 + 36 + 20)
    assert found.product_bytes == 4 * floats
    assert found.shares == {"weights": 0.3, "attention": 0.2, "other": 0.5}
    assert found.other_operators == {"Add": 0.4, "Gelu": 0.1}
    assert list(found.other_operators) == ["Add", "Gelu"]


def test_a_profile_of_nothing_but_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="1 queries, 1 of them warm-up"):
        operator_times(query(0), warmup=1)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_operations_are_those_that_torch_counts(kind: str, request: pytest.FixtureRequest) -> None:
    model: FusedRationalist = request.getfixturevalue(f"tiny_{kind}")
    file: OnnxArtefact = request.getfixturevalue(f"tiny_{kind}_onnx")
    tensors = model.example_inputs(2, 20)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(*tensors)
    names = [tensor.name for tensor in model.io_spec().inputs]
    inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    found = profile(file.path, inputs, queries=2)
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert min(found.shares.values()) > 0
    assert sum(found.other_operators.values()) == pytest.approx(found.shares["other"])


def test_a_product_is_a_linear_layer(tmp_path: Path) -> None:
    path = tmp_path / "product.onnx"
    assert write_product(path, 4, 8, 16) == 2 * 4 * 8 * 16
    inputs = product_input(4, 8)
    weight = np.random.default_rng(0).standard_normal((8, 16), dtype=np.float32)
    with OnnxRunner(path, threads=1) as runner:
        answer = runner.run_named(inputs, ("product",))["product"]
    np.testing.assert_allclose(answer, inputs[LEFT] @ weight, rtol=1e-5, atol=1e-5)


def test_the_triad_moves_what_it_says() -> None:
    probe = BandwidthProbe(4000)
    probe.run_named({}, ())
    assert (probe._a == 4.0).all()
    assert probe.moved_bytes == 5 * 4000


def test_the_buffer_exceeds_the_cache_or_takes_what_there_is(tmp_path: Path) -> None:
    for number, size in enumerate(("48K", "2048K", "3M")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert largest_cache_bytes(tmp_path) == 3 * 1024**2
    assert largest_cache_bytes(tmp_path / "nowhere") is None
    assert bandwidth_buffer_bytes() >= 10**7
