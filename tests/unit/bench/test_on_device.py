"""Timing on a device, as far as it is the same on a CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from rekd_edge.bench import BenchSettings
from rekd_edge.bench.on_device import SCOPES, describe_device, parse_gpu_state, time_residents
from rekd_edge.bench.residents import OnnxResident, Resident, TorchResident, exact_fp32
from rekd_edge.check import LabelledBatch
from rekd_edge.convert import OnnxArtefact
from rekd_edge.device_suite import halve
from rekd_edge.fuse import FusedRationalist
from rekd_edge.fuse.fused import masked_form
from rekd_edge.runners import OnnxRunner
from rekd_edge.types import OUTPUTS, TEXT_INPUTS

SETTINGS = BenchSettings(min_duration_s=0.0, min_count=6, turn_count=3, warmup_count=1)


def test_a_resident_answers_what_was_placed_last(
    tiny_text: FusedRationalist, tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    with OnnxRunner(tiny_text_onnx.path, threads=1) as runner:
        both: list[Resident] = [
            TorchResident(tiny_text, TEXT_INPUTS, OUTPUTS, device="cpu"),
            OnnxResident(runner, device="cpu"),
        ]
        for batch in (text_batches[0], text_batches[2], text_batches[0]):  # other shapes, too
            want = runner.run(batch.inputs)
            for resident in both:
                resident.place(batch.inputs)
                resident.launch()
                resident.synchronise()
                found = resident.fetch()
                assert found["logits"] == pytest.approx(want.logits, abs=1e-4)
                assert np.array_equal(found["rationale_mask"], want.rationale_mask)
        # New content in the same places, without opening anything again.
        other = {name: value[::-1].copy() for name, value in text_batches[0].inputs.items()}
        want = runner.run(other)
        for resident in both:
            resident.place(other)
            resident.launch()
            assert resident.fetch()["logits"] == pytest.approx(want.logits, abs=1e-4)


class Recording(Resident):
    """Notes what is done to it."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.done: list[str] = []

    def place(self, inputs: object) -> None:
        self.done.append("place")

    def launch(self) -> None:
        self.done.append("launch")

    def fetch(self) -> dict[str, np.ndarray]:
        self.done.append("fetch")
        return {}


def test_transfers_are_inside_or_outside_as_the_scope_says() -> None:
    counts = {}
    for transfers in SCOPES:
        one, two = Recording(), Recording()
        found = time_residents({"one": one, "two": two}, [{}], SETTINGS, transfers)
        assert {name: timing.samples_ns.size for name, timing in found.items()} == {
            "one": 6,
            "two": 6,
        }
        assert all(timing.gpu_ns.size == 0 for timing in found.values())
        assert found["one"].to_json(4)["gpu_50_percentile_ns"] is None
        assert one.done.count("launch") == two.done.count("launch") == 1 + 2 + 6
        counts[transfers] = one.done.count("fetch")
        assert one.done.count("place") == one.done.count("launch")
    assert counts == {"excluded": 0, "included": 9}


def test_what_nvidia_smi_says_is_kept_by_name() -> None:
    said = "NVIDIA Something, 580.159.03, P0, 1980, 3201, 1980, 123.4, 41, 7\n"
    found = parse_gpu_state(said)
    assert found is not None
    assert (found["name"], found["driver_version"]) == ("NVIDIA Something", "580.159.03")
    assert (found["clocks.sm"], found["power.draw"]) == (1980.0, 123.4)
    missing = parse_gpu_state("A, 1, [N/A], 1, 1, 1, [Not Supported], 1, 1")
    assert missing is not None
    assert missing["pstate"] is missing["power.draw"] is None
    assert parse_gpu_state("NVIDIA-SMI has failed") is None
    assert parse_gpu_state("") is None


def test_the_device_is_described_and_tf32_is_off_while_timing() -> None:
    assert describe_device("cpu")["device"] == "cpu"
    torch.set_float32_matmul_precision("high")
    try:
        with exact_fp32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("form", ["gathered", "masked"])
def test_products_in_fp16_leave_the_rationale_in_fp32(
    tiny_text: FusedRationalist, text_batches: list[LabelledBatch], form: str
) -> None:
    """As on a GPU: the score of a token that cannot be kept is beyond the range of fp16."""
    model = copy.deepcopy(tiny_text if form == "gathered" else masked_form(tiny_text))
    halve(model)
    assert any(parameter.dtype == torch.float16 for parameter in model.parameters())
    plain, half = (
        TorchResident(one, TEXT_INPUTS, OUTPUTS, device="cpu", half=one is model)
        for one in (tiny_text if form == "gathered" else masked_form(tiny_text), model)
    )
    for resident in (plain, half):
        resident.place(text_batches[0].inputs)
        resident.launch()
    want, found = plain.fetch(), half.fetch()
    assert found["selection_score"].dtype == np.float32
    assert found["selection_score"].min() == np.finfo(np.float32).min
    assert found["selection_score"] == pytest.approx(want["selection_score"], abs=5e-2)
    assert np.array_equal(found["rationale_mask"], want["rationale_mask"])
    assert found["logits"] == pytest.approx(want["logits"], abs=5e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_cuda_graph_answers_as_the_model_does(
    tiny_text: FusedRationalist, text_batches: list[LabelledBatch]
) -> None:
    model = copy.deepcopy(tiny_text).cuda()
    plain, graph = (
        TorchResident(model, TEXT_INPUTS, OUTPUTS, device="cuda", cuda_graph=graph)
        for graph in (False, True)
    )
    inputs = text_batches[0].inputs
    for resident in (plain, graph):
        resident.place(inputs)
        resident.launch()
        resident.synchronise()
    assert graph.fetch()["logits"] == pytest.approx(plain.fetch()["logits"], abs=1e-5)
    found = time_residents({"plain": plain, "graph": graph}, [inputs], SETTINGS, "excluded")
    assert all(timing.gpu_ns.size == 6 for timing in found.values())
