"""torch.compile for the backbones, and weights in half precision, in training steps alone.

What is compiled is the method that runs a backbone's blocks; it stands in for the method only while
a step runs, so weights keep their names, and evaluation, with its other shapes and modes, compiles
nothing. Batches of another size than the recipe's (the last of an epoch) run as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from rekd_edge.models.convolution import ConvEncoder
from rekd_edge.models.encoder import Encoder
from rekd_edge.models.kept import RUN_KEPT, run_kept
from rekd_edge.recipe.schema import TrainSpec

MOST_VARIANTS = 64
"""Compiled forms of one method, over all backbones that share it."""
WORTH_COMPILING_STEPS = 5000
"""Steps from which on `train.compile: auto` compiles a phase: making its code takes about a minute,
and what a step saves is a few milliseconds (an estimate; not measured on a GPU yet)."""


def wanted(choice: bool | str, device: torch.device) -> bool:
    """A recipe's ``true``, ``false`` or ``auto``, which is CUDA alone."""
    return device.type == "cuda" if choice == "auto" else bool(choice)


def compile_mode(train: TrainSpec, device: torch.device) -> str | None:
    """torch.compile's mode for these steps; None: no compilation. Where it is wanted and not
    possible a warning says why."""
    if not wanted(train.compile, device):
        return None
    reason = no_compiler(device)
    if reason is not None:
        warnings.warn(
            f"train.compile: nothing can be compiled on this machine ({reason}); training goes on "
            "without, and slower. Set train.compile: false to say so in the recipe",
            stacklevel=2,
        )
        return None
    graphs = train.compile == "graphs" and device.type == "cuda"
    return "reduce-overhead" if graphs else "default"


@cache
def no_compiler(device: torch.device) -> str | None:
    """Why torch.compile does not work on ``device``, found out by trying; None where it does."""
    probe = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(_probe)(probe).backward()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    return None


def worth_compiling(train: TrainSpec, steps: int) -> bool:
    """Whether a phase of ``steps`` is compiled, where compilation is possible."""
    return train.compile != "auto" or steps >= WORTH_COMPILING_STEPS


def _probe(value: Tensor) -> Tensor:
    return (value.sin() * value).sum()


def use_channels_last(models: Iterable[nn.Module]) -> None:
    """Convolutional backbones of ``models`` compute with channels last from now on."""
    for model in models:
        for part in model.modules():
            if isinstance(part, ConvEncoder):
                part.backbone.to(memory_format=torch.channels_last)


class CompiledBackbones:
    """Compiled forms of the backbones in ``models``, for batches of ``batch_size`` examples.

    ``mode`` as :func:`compile_mode` gives it. ``varying``: the number of tokens changes from batch
    to batch, and one form serves them all. ``backend``: torch.compile's.
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        *,
        mode: str | None,
        batch_size: int,
        varying: bool = False,
        backend: str = "inductor",
    ) -> None:
        self.graphs = mode == "reduce-overhead" and not varying
        self._forms: list[tuple[nn.Module, str, _Form]] = []
        if mode is None:
            return
        compiled: Any = partial(
            torch.compile,
            dynamic=varying,
            backend=backend,
            mode="reduce-overhead" if self.graphs else None,
        )
        for part in {part: None for model in models for part in model.modules()}:
            methods: dict[str, Callable[..., Any]] = {}
            if isinstance(part, Encoder):
                methods = {"forward": part.forward, RUN_KEPT: partial(run_kept, part)}
            elif isinstance(part, ConvEncoder):
                methods = {"_features": part._features}
            for name, method in methods.items():
                form = _Form(method, compiled(method), batch_size, graphs=self.graphs)
                self._forms.append((part, name, form))

    @contextmanager
    def active(self, *, start: bool = True) -> Iterator[None]:
        """In force inside. ``start``: what earlier steps computed is no longer needed; False where
        gradients of theirs are still added to."""
        if not self._forms:
            yield
            return
        if self.graphs and start:
            torch.compiler.cudagraph_mark_step_begin()
        with ExitStack() as stack:
            limit = torch._dynamo.config.patch(recompile_limit=MOST_VARIANTS)  # type: ignore[attr-defined]
            stack.enter_context(limit)
            for part, name, form in self._forms:
                # Not a parameter, buffer or module: it is nobody's state, and hides the method.
                part.__dict__[name] = form
                stack.callback(part.__dict__.pop, name)
            yield


class _Form:
    """A method and its compiled form, which takes batches of one size."""

    def __init__(
        self,
        plain: Callable[..., Any],
        compiled: Callable[..., Any],
        batch_size: int,
        *,
        graphs: bool = False,
    ) -> None:
        self.plain = plain
        self.compiled = compiled
        self.batch_size = batch_size
        self.graphs = graphs

    def __call__(self, content: Tensor, *others: Any, **named: Any) -> Any:
        if len(content) != self.batch_size:
            return self.plain(content, *others, **named)
        if self.graphs and torch.is_inference_mode_enabled():
            # The teacher is the first to be captured. What a capture makes once and keeps, such as
            # the state of random numbers, must not be a tensor of inference mode, which nothing
            # with a gradient may change later (pytorch#135892).
            with torch.inference_mode(False), torch.no_grad():
                return self.compiled(content, *others, **named)
        return self.compiled(content, *others, **named)


class HalfWeights:
    """Weights of the linear layers in ``models``' transformers, rounded to ``dtype`` once.

    Autocast keeps what it has converted only of weights that are trained; those of a frozen model
    it converts anew in every pass. Inside the context they are what it would make of them, so
    answers under autocast are the same to the bit, and nothing else may ask the models. Both forms
    stay where they are in memory, as CUDA graphs need it. Heads, norms and embeddings are left
    alone.
    """

    def __init__(self, models: Iterable[nn.Module], dtype: torch.dtype | None) -> None:
        self._weights: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        if dtype is None:
            return
        encoders = [p for model in models for p in model.modules() if isinstance(p, Encoder)]
        layers = [p for part in encoders for p in part.modules() if isinstance(p, nn.Linear)]
        for weight in {p: None for layer in layers for p in layer.parameters(recurse=False)}:
            if not weight.requires_grad and weight.dtype == torch.float32:
                self._weights.append((weight, weight.data, weight.data.to(dtype)))

    def round(self) -> None:
        """As on entry, until the models are gone."""
        for parameter, _, rounded in self._weights:
            parameter.data = rounded

    def __enter__(self) -> None:
        self.round()

    def __exit__(self, *exc: object) -> None:
        for parameter, exact, _ in self._weights:
            parameter.data = exact
