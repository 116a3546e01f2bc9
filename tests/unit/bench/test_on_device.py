"""Timing on a device, as far as it is the same on a CPU."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from rekd_edge.bench import BenchSettings
from rekd_edge.bench.on_device import (
    EVENT_PASSES,
    SCOPES,
    WARM_UPS,
    describe_device,
    parse_gpu_state,
    time_residents,
)
from rekd_edge.bench.residents import OnnxResident, Resident, TorchResident, exact_fp32
from rekd_edge.check import LabelledBatch
from rekd_edge.convert import OnnxArtefact
from rekd_edge.device_suite import halve
from rekd_edge.fuse import FusedRationalist
from rekd_edge.fuse.folds import unfold_attention
from rekd_edge.fuse.fused import DeployModel, PlainClassifier, masked_form
from rekd_edge.runners import OnnxRunner
from rekd_edge.types import IMAGE_INPUTS, OUTPUTS, TEXT_INPUTS

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


def test_what_is_bound_anew_has_a_graph_of_its_own(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    """onnxruntime replays the graph of an id with the addresses that were bound when it was
    captured."""
    asked: list[str] = []

    class Noting:
        """A session that notes under which ids its bindings are run."""

        def __init__(self, session: Any) -> None:
            self.session = session

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            asked.append(options.get_run_config_entry("gpu_graph_id"))
            self.session.run_with_iobinding(binding, options)

    with OnnxRunner(tiny_text_onnx.path, threads=1) as runner:
        facts = {name: getattr(runner, name) for name in ("input_names", "output_names")}
        noting = SimpleNamespace(session=Noting(runner.session), **facts)
        resident = OnnxResident(cast(OnnxRunner, noting), device="cpu")
        for number in (0, 0, 2, 0):
            resident.place(text_batches[number].inputs)
            resident.launch()
    shapes = [text_batches[number].inputs["input_ids"].shape for number in (0, 2)]
    assert shapes[0] != shapes[1]
    assert asked == ["1", "1", "2", "3"]  # 0 is onnxruntime's own


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


def test_warming_up_ends_with_its_share_of_the_time() -> None:
    settings = BenchSettings(min_duration_s=0.0, min_count=3, warmup_count=50, max_duration_s=0.0)
    one = Recording()
    time_residents({"one": one}, [{}], settings, "excluded")
    assert one.done.count("launch") == WARM_UPS + 1 + 3


class Event:
    """As CUDA's, but for what it measures."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def record(self) -> None:
        self.done.append("event")

    def elapsed_time(self, end: Event) -> float:
        assert end is not self
        return 0.25


class WithEvents(Recording):
    made = 0

    def events(self) -> tuple[Any, Any]:
        self.made += 1
        return Event(self.done), Event(self.done)


def test_events_are_recorded_in_passes_of_their_own() -> None:
    settings = BenchSettings(min_duration_s=0.0, min_count=30, warmup_count=1)
    for transfers in SCOPES:
        one = WithEvents()
        found = time_residents({"one": one, "two": Recording()}, [{}], settings, transfers)
        assert found["two"].gpu_ns.size == 0
        launches = [what for what in one.done if what in {"launch", "event"}]
        first = launches.index("event") if "event" in launches else len(launches)
        assert first == 1 + 30 + 10  # the host's clock sees none
        if transfers == "included":
            assert "event" not in launches
            continue
        assert one.made == 1
        assert launches[first:] == ["event", "launch", "event"] * EVENT_PASSES
        said = found["one"].to_json(4)
        assert said["gpu_50_percentile_ns"] == 250_000
        assert said["gpu_span"].startswith("from the first launch to the last")


class Breaking(Recording):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def launch(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of memory")
        super().launch()


@pytest.mark.parametrize("after", [0, 1, 4])
def test_one_that_breaks_costs_itself_alone(after: int) -> None:
    lost: dict[str, str] = {}
    found = time_residents(
        {"one": Recording(), "broken": Breaking(after), "two": Recording()},
        [{}],
        SETTINGS,
        "excluded",
        on_failure=lambda name, error: lost.update({name: str(error)}),
    )
    assert {name: timing.samples_ns.size for name, timing in found.items()} == {"one": 6, "two": 6}
    assert lost == {"broken": "out of memory"}
    both = {"one": Breaking(2), "two": Breaking(3)}
    assert not time_residents(both, [{}], SETTINGS, "excluded", on_failure=lambda *_: None)
    with pytest.raises(RuntimeError, match="out of memory"):
        time_residents({"one": Breaking(after)}, [{}], SETTINGS, "excluded")


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


@pytest.mark.parametrize("half", [False, True])
def test_attention_of_torch_answers_as_that_of_the_exported_model(
    tiny_text: FusedRationalist,
    tiny_image: FusedRationalist,
    tiny_plain: PlainClassifier,
    text_batches: list[LabelledBatch],
    image_batches: list[LabelledBatch],
    half: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = {name: value.copy() for name, value in text_batches[0].inputs.items()}
    texts["attention_mask"][-1] = np.arange(texts["input_ids"].shape[1]) < 2  # nothing to keep
    images = image_batches[0].inputs
    models: list[tuple[DeployModel, Any]] = [(tiny_plain, texts)]
    for fused, inputs in ((tiny_text, texts), (tiny_image, images)):
        models += [(fused, inputs), (masked_form(fused), inputs)]
    called: list[int] = []
    own = torch.nn.functional.scaled_dot_product_attention

    def counted(*given: Any, **options: Any) -> torch.Tensor:
        called.append(1)
        return own(*given, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    for model, inputs in models:
        other = copy.deepcopy(model)
        unfold_attention(other)
        if half:
            halve(other)
        names = TEXT_INPUTS if "input_ids" in inputs else IMAGE_INPUTS
        answers = []
        for one in (model, other):
            called.clear()
            resident = TorchResident(one, names, OUTPUTS, device="cpu", half=half and one is other)
            resident.place(inputs)
            resident.launch()
            answers.append(resident.fetch())
            assert bool(called) == (one is other)
        want, found = answers
        assert np.isfinite(found["logits"]).all()
        assert found["logits"] == pytest.approx(want["logits"], abs=5e-2 if half else 1e-5)
        if "rationale_mask" in want and not half:
            assert np.array_equal(found["rationale_mask"], want["rationale_mask"])


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
    assert found["graph"].gpu_span == "one launch of a CUDA graph"
    assert found["plain"].gpu_span != found["graph"].gpu_span
