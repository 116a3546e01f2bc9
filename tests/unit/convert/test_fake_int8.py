"""The arithmetic of an int8 file in torch: against the file itself, and against numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rekd_edge.convert import convert_to_onnx, load_target, quantize
from rekd_edge.convert.fake_int8 import fake_int8
from rekd_edge.convert.types import Int8, Part
from rekd_edge.data.preprocess import TextPreprocessor
from rekd_edge.fuse import FusedRationalist
from rekd_edge.runners import OnnxRunner
from rekd_edge.types import input_names

SENTENCES = (
    "A dull and lifeless film that wastes a wonderful cast.",
    "It is warm, funny and beautifully acted from first to last.",
    "The plot makes no sense, and nobody seems to mind.",
    "One of the year's best surprises.",
    "An honest, moving story about people who rarely get one.",
    "Two hours of noise with a moral glued to the end.",
    "Clever enough to be interesting, but too pleased with itself.",
    "The children will laugh; their parents will look at their watches.",
)
BOTH: tuple[Part, ...] = ("selector", "predictor")


def tensors(model: FusedRationalist, inputs: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(inputs[name]) for name in input_names(model.modality))


@pytest.fixture(scope="module")
def exported(
    bundled_text_model: FusedRationalist, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    model, path = bundled_text_model, tmp_path_factory.mktemp("fp32") / "model.onnx"
    convert_to_onnx(model, model.io_spec(), path, target=load_target("onnx"), metadata={})
    return path


@pytest.mark.parametrize(
    ("precision", "parts"),
    [("int8-dynamic", BOTH), ("int8-dynamic", ("predictor",)), ("int8-static", BOTH)],
)
def test_it_answers_like_the_file_and_not_like_fp32(
    precision: Int8,
    parts: tuple[Part, ...],
    bundled_text_model: FusedRationalist,
    bundled_text_preprocessor: TextPreprocessor,
    exported: Path,
    tmp_path: Path,
) -> None:
    model, path = bundled_text_model, tmp_path / "low.onnx"
    examples = [bundled_text_preprocessor.encode([text]) for text in SENTENCES]
    quantize(exported, path, precision=precision, parts=parts, calibration=examples)
    inputs = bundled_text_preprocessor.encode(list(SENTENCES))
    with OnnxRunner(path, threads=1) as runner:
        file = runner.run(inputs)
    given = tensors(model, inputs)
    with torch.no_grad():
        exact = model(*given)
        with fake_int8(model, precision, parts, [tensors(model, one) for one in examples]):
            fake = model(*given)
        again = model(*given)
    assert all(torch.equal(before, after) for before, after in zip(exact, again, strict=True))
    same = (fake[1].numpy() == file.rationale_mask).all(axis=1)
    assert same.mean() >= 0.75
    real = fake[2].numpy() > -1e30

    def error(answer: tuple[Tensor, ...]) -> tuple[float, float]:
        equal = same & (answer[1].numpy() == file.rationale_mask).all(axis=1)
        assert equal.any()
        logits = np.abs(answer[0].numpy() - file.logits)[equal].mean()
        scores = np.abs(answer[2].numpy() - file.selection_score)[real].mean()
        return float(logits), float(scores)

    (mine, my_scores), (theirs, their_scores) = error(fake), error(exact)
    assert mine < 0.25 * theirs
    if "selector" in parts:
        assert my_scores < 0.25 * their_scores
    else:
        assert torch.equal(fake[2], exact[2])


def test_images_answer_like_the_file(bundled_image_model: FusedRationalist, tmp_path: Path) -> None:
    model = bundled_image_model
    convert_to_onnx(
        model, model.io_spec(), tmp_path / "m.onnx", target=load_target("onnx"), metadata={}
    )
    quantize(tmp_path / "m.onnx", tmp_path / "low.onnx", precision="int8-dynamic")
    pixels = np.random.default_rng(0).standard_normal((4, 3, 64, 64), dtype=np.float32)
    with OnnxRunner(tmp_path / "low.onnx", threads=1) as runner:
        file = runner.run({"pixel_values": pixels})
    with torch.no_grad():
        exact = model(torch.from_numpy(pixels))
        with fake_int8(model, "int8-dynamic", BOTH):
            fake = model(torch.from_numpy(pixels))
    mine, theirs = (np.abs(one[2].numpy() - file.selection_score).mean() for one in (fake, exact))
    assert mine < 0.25 * theirs


class Product(nn.Module):
    """A linear layer and a product with a buffer, under the name of a part."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.predictor = nn.Linear(5, 4)
        self.register_buffer("matrix", torch.randn(4, 3, generator=generator))

    def forward(self, values: Tensor) -> Tensor:
        return self.predictor(values)


def in_int8(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """uint8 values times int8 weights ``[output, input]``, in numpy."""
    low, high = min(values.min(), 0), max(values.max(), 0)
    step = (high - low) / 255
    zero = np.clip(np.round(-low / step), 0, 255)
    values = (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    return values @ (np.clip(np.round(weight / scale), -127, 127) * scale).T


def test_a_product_is_that_of_numpy_and_its_gradient_passes_the_rounding() -> None:
    model = Product()
    values = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    values[:, 3] *= 50
    with fake_int8(model, "int8-dynamic", ("predictor",)):
        answer = model(values)
    layer = model.predictor
    expected = in_int8(values.numpy(), layer.weight.detach().numpy()) + layer.bias.detach().numpy()
    assert np.allclose(answer.detach().numpy(), expected, atol=1e-4)
    assert not np.allclose(answer.detach().numpy(), model(values).detach().numpy(), atol=1e-3)
    answer.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().min() > 0


def resampled_by(matrix: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _, __, output: output @ matrix


class Resampled(Product):
    def __init__(self) -> None:
        super().__init__()
        matrix = self.get_buffer("matrix")
        self.predictor.register_forward_hook(resampled_by(matrix))


def test_a_product_with_a_buffer_is_one_with_weights() -> None:
    model = Resampled()
    values = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), fake_int8(model, "int8-dynamic", ("predictor",)):
        answer = model(values)
    layer = model.predictor
    inner = in_int8(values.numpy(), layer.weight.detach().numpy()) + layer.bias.detach().numpy()
    expected = in_int8(inner.astype(np.float32), model.get_buffer("matrix").numpy().T)
    assert np.allclose(answer.numpy(), expected, atol=0.05)
    with torch.no_grad():
        assert not np.allclose(answer.numpy(), model(values).numpy(), atol=1e-3)


def test_a_tensor_of_zeros_stays_zero() -> None:
    model = Product()
    with torch.no_grad(), fake_int8(model, "int8-dynamic", ("predictor",)):
        answer = model(torch.zeros(2, 3, 5))
    assert torch.equal(answer, model.predictor.bias.detach().expand_as(answer))


def test_an_error_inside_leaves_nothing_behind() -> None:
    model = Product()
    values = torch.randn(2, 3, 5)
    before = model(values)
    with pytest.raises(RuntimeError), fake_int8(model, "int8-dynamic", ("predictor",)):
        model(torch.randn(2, 3, 6))
    assert torch.equal(model(values), before)
