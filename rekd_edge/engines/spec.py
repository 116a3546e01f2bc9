"""What a target asks of an engine, and the recipe that an engine is built from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rekd_edge.engines.backend import BACKENDS
from rekd_edge.errors import UsageError
from rekd_edge.types import EngineBackend, IoSpec, TensorSpec

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SizeRange(Spec):
    """Sizes of one axis: the engine serves `min` to `max` and is fastest at `opt`."""

    min: int = Field(ge=1)
    opt: int = Field(ge=1)
    max: int | None = Field(default=None, ge=1)
    """Null: as many as the model reads (tokens alone)."""

    @model_validator(mode="after")
    def _ordered(self) -> SizeRange:
        if not self.min <= self.opt <= (self.opt if self.max is None else self.max):
            raise ValueError("must be min <= opt <= max")
        return self


class EngineOptions(Spec):
    """What the builder is told besides the graph and its shapes."""

    backend: EngineBackend
    """`tensorrt-rtx`, or `tensorrt` (10 or 11)."""
    compute_capabilities: tuple[Annotated[int, Field(ge=50, le=200)], ...] = ()
    """GPUs to build for, ahead of time: 86 is SM 8.6, one engine each (`tensorrt-rtx`). Empty with
    `tensorrt`, which builds for the GPU that it runs on."""
    tf32: bool = False
    """Let fp32 products round their inputs to a mantissa of 10 bits. TensorRT's default is yes."""
    version_compatible: bool = False
    """Let later versions of TensorRT load the engine (needs TensorRT's lean runtime)."""
    refit: bool = False
    """Let the weights be replaced later; costs speed."""
    optimization_level: int = Field(default=3, ge=0, le=5)
    """How long the builder searches, as TensorRT counts."""
    workspace_mib: int | None = Field(default=None, ge=1)
    """Most scratch memory of one layer in MiB; null: all there is."""
    timing_cache: bool = True
    """Keep measured timings for the next build in the user's cache (`tensorrt`; TensorRT-RTX
    measures nothing while it builds)."""

    @model_validator(mode="after")
    def _backend_fits(self) -> EngineOptions:
        if BACKENDS[self.backend].builds_ahead != bool(self.compute_capabilities):
            raise ValueError(
                "tensorrt-rtx needs compute_capabilities to build for, e.g. [86, 120]"
                if not self.compute_capabilities
                else "tensorrt builds for the GPU present; leave compute_capabilities out"
            )
        if len(set(self.compute_capabilities)) != len(self.compute_capabilities):
            raise ValueError("a compute capability is named twice")
        return self


class ServedSizes(Spec):
    """Sizes of a model's dynamic axes, for what is built once for all of them."""

    batch: SizeRange
    tokens: SizeRange | None = None
    """Of texts, `[CLS]` and `[SEP]` counted; images have one size."""

    @model_validator(mode="after")
    def _batch_ends(self) -> ServedSizes:
        if self.batch.max is None:
            raise ValueError("batch needs a max")
        return self


class EngineSpec(EngineOptions, ServedSizes):
    """`engine` of a target: from the checked ONNX file, an engine for each GPU named."""


class Profile(Spec):
    """Shapes of one input that an engine serves."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class BuildRecipe(EngineOptions):
    """All that decides what an engine computes; `engines/recipe.json` of a bundle."""

    schema_version: Literal[1] = 1
    precision: str
    """Of the graph, as in the target. Networks are strongly typed: it is in the ONNX file, and no
    flag adds to it or takes from it."""
    onnx_sha256: Sha256
    profiles: dict[str, Profile]
    """By input."""


def build_recipe(
    spec: EngineSpec, io_spec: IoSpec, *, precision: str, onnx_sha256: str, max_length: int | None
) -> BuildRecipe:
    """``spec`` with the sizes of one model filled in.

    Raises :class:`UsageError` where the target's sizes are none that the model has.
    """
    options = {name: getattr(spec, name) for name in EngineOptions.model_fields}
    return BuildRecipe(
        **options,
        precision=precision,
        onnx_sha256=onnx_sha256,
        profiles=profiles_of(spec, io_spec, max_length),
    )


def profiles_of(sizes: ServedSizes, io_spec: IoSpec, max_length: int | None) -> dict[str, Profile]:
    """The shapes to serve of each input.

    Raises :class:`UsageError` where the target's sizes are none that the model has.
    """
    tokens = sizes.tokens
    if tokens is not None and max_length is not None:
        most = max_length if tokens.max is None else tokens.max
        if not tokens.min <= most <= max_length:
            raise UsageError(
                f"the target's engine is for {tokens.min} to {most} tokens, and the model reads at "
                f"most {max_length}",
                hint="change tokens in the target file (max: null is what the model reads)",
            )
        tokens = SizeRange(min=tokens.min, opt=min(tokens.opt, most), max=most)
    ranges = {"batch": sizes.batch, "token": tokens}
    return {tensor.name: _profile(tensor, ranges) for tensor in io_spec.inputs}


def _profile(tensor: TensorSpec, ranges: Mapping[str, SizeRange | None]) -> Profile:
    def shape(which: str) -> tuple[int, ...]:
        sizes = []
        for axis in tensor.axes:
            found = ranges.get(axis.name)
            size = axis.size if axis.size is not None else getattr(found, which, None)
            if size is None:
                raise UsageError(
                    f"the target's engine says no size for the axis {axis.name} of {tensor.name}",
                    hint="add tokens with min, opt and max to the target file",
                )
            sizes.append(size)
        return tuple(sizes)

    return Profile(min=shape("min"), opt=shape("opt"), max=shape("max"))
