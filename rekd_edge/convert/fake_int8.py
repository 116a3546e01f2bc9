"""What an int8 file computes, in torch and with gradients.

Follows onnxruntime.quantization as :mod:`rekd_edge.convert.quantize` calls it:

    weights of products   q = round(w / s), s = max|w| / 127 for each output channel, -127..127
    int8-dynamic          input of a product: uint8, s = (max - min) / 255 over the tensor, with 0;
                          tables of embeddings: the same over the table
    int8-static           input of a product: int8, s = max|x| / 127 over calibration data; tables
                          stay in fp32

Convolutions, products of two activations, norms and softmax stay in fp32, as in the file; so does a
product whose weight the graph rearranges first (the patch projection of a ViT). Gradients pass
rounding straight through (Bengio et al. 2013), by torch's own fake-quantize functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rekd_edge.convert.types import Int8, Part

_PRODUCTS = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__})


class FakeInt8(TorchFunctionMode):
    """Inside this context products with weights, and tables, compute in int8.

    A product with a parameter or buffer of ``model`` on its right is one with weights. For
    `int8-static` the context first sees calibration data (:meth:`observing`); products are told
    apart by their order within a pass.
    """

    def __init__(self, precision: Int8, model: nn.Module) -> None:
        super().__init__()
        self.precision = precision
        self._model = model
        self._constants: set[int] = set()
        self._observing = False
        self._call = 0
        self._ranges: list[Tensor] = []

    def __enter__(self) -> Any:
        self._call = 0
        self._constants = {id(t) for t in (*self._model.parameters(), *self._model.buffers())}
        return super().__enter__()

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Forgets the ranges, and takes them from whatever is computed meanwhile, in fp32."""
        self._ranges, self._observing = [], True
        try:
            yield
        finally:
            self._observing = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and id(args[1]) in self._constants:
            return self._linear(*args, **kwargs)
        if func is F.embedding and self.precision == "int8-dynamic":
            return _asymmetric(func(*args, **kwargs), of=args[1])
        if func in _PRODUCTS and id(args[1]) in self._constants:
            return self._linear(args[0], args[1].transpose(-1, -2))
        return func(*args, **kwargs)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.precision == "int8-dynamic":
            return F.linear(_asymmetric(input), _channels(weight), bias)
        if self._observing:
            self._observe(input.detach().abs().amax())
            answer = F.linear(input, weight, bias)
        else:
            largest = self._ranges[self._call]
            answer = F.linear(_symmetric(input, largest), _channels(weight), bias)
        self._call += 1
        return answer

    def _observe(self, largest: Tensor) -> None:
        if self._call == len(self._ranges):
            self._ranges.append(largest)
        else:
            self._ranges[self._call] = torch.maximum(self._ranges[self._call], largest)


@contextmanager
def fake_int8(
    model: nn.Module,
    precision: Int8,
    parts: Sequence[Part],
    calibration: Sequence[tuple[Tensor, ...]] = (),
) -> Iterator[Callable[[], None]]:
    """Meanwhile the submodules ``parts`` of a fused ``model`` compute as in its file of this
    precision.

    `int8-static` takes its ranges from ``calibration``, inputs of the model, now and whenever
    the function is called that the context gives (weights in training change the ranges).
    """
    fakes: list[FakeInt8] = []
    entered: list[FakeInt8] = []
    hooks = []
    for part in parts:
        module = model.get_submodule(part)
        fake = FakeInt8(precision, model)

        def enter(*_: Any, fake: FakeInt8 = fake) -> None:
            fake.__enter__()
            entered.append(fake)

        def leave(*_: Any) -> None:
            entered.pop().__exit__(None, None, None)

        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, always_call=True))
        fakes.append(fake)

    def observe() -> None:
        if precision != "int8-static":
            return
        device = next(model.parameters()).device
        with torch.no_grad(), ExitStack() as stack:
            for fake in fakes:
                stack.enter_context(fake.observing())
            for inputs in calibration:
                model(*(value.to(device) for value in inputs))

    try:
        observe()
        yield observe
    finally:
        for hook in hooks:
            hook.remove()
        while entered:  # torch calls no hook after an interruption
            entered.pop().__exit__(None, None, None)


def _channels(weight: Tensor) -> Tensor:
    """Symmetric int8 with a scale for each output channel; ``[output, input]``."""
    scale = _never_zero(weight.detach().abs().amax(dim=1).float() / 127)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def _asymmetric(values: Tensor, of: Tensor | None = None) -> Tensor:
    """uint8 with one scale from the range of the tensor itself, or ``of`` another, with zero."""
    low, high = (values if of is None else of).detach().float().aminmax()
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _never_zero((high - low) / 255)
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)


def _symmetric(values: Tensor, largest: Tensor) -> Tensor:
    """int8 with the scale of an observed range."""
    scale = _never_zero(largest.float() / 127)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, -128, 127)


def _never_zero(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)
