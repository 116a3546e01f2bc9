"""Compiled backbones stand in for the plain ones inside training steps, and only there.

Traced and differentiated as on a GPU, but run by PyTorch's own kernels: generating code for a
processor takes minutes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rekd_edge.distill import compiled
from rekd_edge.distill.compiled import (
    CompiledBackbones,
    compile_mode,
    use_channels_last,
    wanted,
    worth_compiling,
)
from rekd_edge.distill.loop import make_accelerator
from rekd_edge.distill.objectives import JointObjective, Progress
from rekd_edge.distill.teacher import Teacher
from rekd_edge.errors import UsageError
from rekd_edge.models.convolution import ConvEncoder, new_convolutional
from rekd_edge.models.encoder import VitEncoder
from rekd_edge.models.rationalist import BlockSelector, Predictor, Rationalist
from rekd_edge.recipe.schema import ObjectiveSpec, TrainSpec
from rekd_edge.types import Batch

CPU = torch.device("cpu")


def rationalist() -> Rationalist:
    import timm

    def encoder() -> VitEncoder:
        return VitEncoder(
            timm.create_model("test_vit", img_size=64, num_classes=0, depth=1, pretrained=False)
        )

    model = Rationalist(BlockSelector(encoder()), Predictor(encoder(), 3), 0.25)
    for head in (model.selector.head, model.predictor.head):
        torch.nn.init.normal_(head.weight)
    return model


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_step_has_the_same_loss_and_gradients() -> None:
    torch.manual_seed(0)
    student, frozen = rationalist(), rationalist()
    teacher = Teacher(frozen, student)
    spec = ObjectiveSpec(selection_noise=0)
    objective = JointObjective(student, spec, teacher, teacher.targets, gather=True)
    batch = Batch(
        {"pixel_values": torch.randn(4, 3, 64, 64)}, torch.tensor([0, 1, 2, 0]), torch.arange(4)
    )
    names = list(student.state_dict())
    backbones = CompiledBackbones(
        [student, frozen], mode="default", batch_size=4, backend="aot_eager"
    )

    def gradients() -> tuple[float, dict[str, torch.Tensor]]:
        student.zero_grad(set_to_none=True)
        loss = objective(batch, Progress(0, 10))["loss"]
        loss.backward()
        return float(loss.detach()), {
            n: p.grad for n, p in student.named_parameters() if p.grad is not None
        }

    plain, expected = gradients()
    calls = torch._dynamo.utils.counters["frames"]
    calls.clear()
    with backbones.active():
        assert list(student.state_dict()) == names
        found, got = gradients()
    assert calls["ok"] > 0
    assert found == pytest.approx(plain, abs=1e-5)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-5)
    calls.clear()
    gradients()
    assert not calls  # outside, and at another batch size, nothing is compiled
    small = Batch({"pixel_values": batch.inputs["pixel_values"][:2]}, batch.labels[:2], batch.index)
    with backbones.active():
        objective(small, Progress(0, 10))
    assert not calls
    assert "forward" not in student.predictor.encoder.__dict__


def test_auto_compiles_on_cuda_alone_and_a_missing_compiler_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert compile_mode(TrainSpec(), CPU) is None
    assert [wanted(choice, CPU) for choice in (True, False, "auto", "graphs")] == [
        *(True, False, False, True)
    ]
    assert wanted("auto", torch.device("cuda"))
    monkeypatch.setattr(compiled, "no_compiler", lambda device: "no g++")
    with pytest.warns(UserWarning, match=r"train\.compile.*no g\+\+.*goes on without"):
        assert compile_mode(TrainSpec(compile=True), CPU) is None
    monkeypatch.setattr(compiled, "no_compiler", lambda device: None)
    assert compile_mode(TrainSpec(compile=True), CPU) == "default"
    assert compile_mode(TrainSpec(compile="graphs"), CPU) == "default"
    assert compile_mode(TrainSpec(compile="graphs"), torch.device("cuda")) == "reduce-overhead"
    assert compile_mode(TrainSpec(), torch.device("cuda")) == "default"


def test_auto_compiles_what_is_long_enough_to_pay_for_it() -> None:
    assert not worth_compiling(TrainSpec(), 400)
    assert worth_compiling(TrainSpec(), 20_000)
    assert worth_compiling(TrainSpec(compile=True), 1)


def test_cuda_graphs_are_not_captured_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[tuple[bool, bool]] = []

    def compile_(method: Any, **_: object) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
            return method(*given, **named)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    student, frozen = rationalist(), rationalist()
    teacher = Teacher(frozen, student)
    batch = Batch(
        {"pixel_values": torch.randn(2, 3, 64, 64)}, torch.tensor([0, 1]), torch.arange(2)
    )
    expected = teacher.targets(batch)
    backbones = CompiledBackbones([frozen], mode="reduce-overhead", batch_size=2)
    assert backbones.graphs
    with backbones.active():
        found = teacher.targets(batch)
    assert modes
    assert set(modes) == {(False, False)}
    torch.testing.assert_close(found.logits, expected.logits)
    modes.clear()
    with CompiledBackbones([frozen], mode="default", batch_size=2).active():
        teacher.targets(batch)
    assert set(modes) == {(True, False)}


def test_the_reason_is_that_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("g++: command not found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    compiled.no_compiler.cache_clear()
    try:
        assert compiled.no_compiler(CPU) == "RuntimeError: g++: command not found"
    finally:
        compiled.no_compiler.cache_clear()


def test_tf32_needs_cuda_and_float32_is_float32() -> None:
    with pytest.raises(UsageError, match="tf32 needs a CUDA device"):
        make_accelerator(TrainSpec(precision="tf32"), "cpu")
    make_accelerator(TrainSpec(), "cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32


def test_convolutions_with_channels_last_answer_alike() -> None:
    torch.manual_seed(0)
    backbone = new_convolutional("test_resnet", "random:test_resnet", 32, None)
    predictor = Predictor(ConvEncoder(backbone, image_size=32, patch_size=8), 3).eval()
    view = predictor.encoder.view({"pixel_values": torch.randn(2, 3, 32, 32)})
    keep = torch.rand(2, 16) > 0.5
    names = list(predictor.state_dict())
    before = predictor(view.content, view.position, keep)
    use_channels_last([predictor])
    first = next(p for p in predictor.encoder.parameters() if p.dim() == 4)
    assert first.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(predictor(view.content, view.position, keep), before)
    assert list(predictor.state_dict()) == names
