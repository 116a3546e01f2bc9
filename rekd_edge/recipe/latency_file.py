"""A latency suite: files of several models, timed together, with the accuracy of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rekd_edge.errors import RecipeError
from rekd_edge.recipe.schema import Probability, Ratio, Spec
from rekd_edge.recipe.suite_file import ROW_NAME, VariantsSpec, read_suite_file

TRAINED_PEERS = ("dynamicvit", "shallow")
"""Peers that the weights of a plain classifier are not enough for."""
STAGED_PEERS = ("evit", "dynamicvit")
RESULT_FOLDER = "latency"
"""Below a suite's output: its files, what is known of them, and the timings."""

DeviceRuntime = Literal["torch", "torch-compiled", "aoti", "onnxruntime", "tensorrt"]
PeerKind = Literal["evit", "tome", "dynamicvit", "power", "truncate", "shallow"]


class FineTuneSpec(Spec):
    """Training of a peer from the plain classifier's weights: L = alpha * CE + (1 - alpha) * T^2 *
    KL(teacher || peer), with the plain run's other settings."""

    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    """Null takes the one that the plain classifier was trained with."""
    fresh_learning_rate: float = Field(default=1e-3, gt=0)
    """Of modules that the plain classifier does not have (the scorers of `dynamicvit`)."""
    alpha: Probability = 0.5
    temperature: float = Field(default=2.0, gt=0)
    teacher: str | None = None
    """A row of task `distill`, whose teacher answers from the whole input; null: the plain
    classifier itself teaches."""


class PeerSpec(Spec):
    """Another way to make the same plain classifier cheaper (`benchmarks/peers`)."""

    kind: PeerKind
    """Images: `evit`, `tome`, `dynamicvit`. Texts: `power`, `truncate`. Both: `shallow`, the first
    blocks alone."""
    share: Ratio | None = None
    """Wanted share of the plain classifier's operations; the nearest strength is taken."""
    strength: float | None = Field(default=None, gt=0)
    """Instead of `share`: `tome`: pairs merged in each block; `shallow`: blocks; `power`: share of
    word vectors that each block leaves of those before it; the others: share kept at a stage."""
    blocks: tuple[int, ...] | None = None
    """`evit` and `dynamicvit`: the blocks that reduce, counted from 0; null: those that follow a
    quarter, a half and three quarters of all."""
    fine_tune: FineTuneSpec | None = None
    """Null: the plain classifier's weights as they are."""

    @model_validator(mode="after")
    def _consistent(self) -> PeerSpec:
        if (self.share is None) == (self.strength is None):
            raise ValueError("state either `share` or `strength`")
        if self.kind in TRAINED_PEERS and self.fine_tune is None:
            raise ValueError(f"{self.kind} needs `fine_tune`: untrained it has no accuracy")
        if self.blocks is not None and self.kind not in STAGED_PEERS:
            raise ValueError(f"{self.kind} reduces in no chosen `blocks`")
        if self.blocks is not None and (
            not self.blocks or min(self.blocks) < 0 or len(set(self.blocks)) < len(self.blocks)
        ):
            raise ValueError("blocks must be distinct and not negative")
        if self.strength is not None:
            whole = self.kind in {"tome", "shallow"}
            if whole and self.strength != int(self.strength):
                raise ValueError(f"the strength of {self.kind} is a whole number")
            if not whole and self.strength > 1:
                raise ValueError(f"the strength of {self.kind} is a share")
        return self


class CandidateSpec(Spec):
    """One model of the table; each of its targets makes one file."""

    name: str = Field(pattern=ROW_NAME)
    title: str = ""
    """What the table calls it; empty: the name."""
    run: str
    """The row that was trained for it."""
    form: Literal["plain", "gathered", "masked", "peer"]
    """`plain`: a classifier on all tokens (row of task `classify`). `gathered`: the student as it
    is exported. `masked`: both passes on all tokens, dropped embeddings zeroed, as published.
    `peer`: a plain classifier made cheaper in another way."""
    peer: PeerSpec | None = None
    targets: tuple[str, ...] = Field(default=("onnx",), min_length=1)
    """Names or files of export targets."""

    @model_validator(mode="after")
    def _consistent(self) -> CandidateSpec:
        if (self.form == "peer") != (self.peer is not None):
            raise ValueError(
                f"candidate {self.name!r}: `peer` belongs to form: peer and to no other"
            )
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"candidate {self.name!r}: a target twice")
        return self


class OnDeviceSpec(Spec):
    """Times the candidates on the device of `--device`, and not as files on CPU threads."""

    runtimes: tuple[DeviceRuntime, ...] = Field(default=("torch", "onnxruntime"), min_length=1)
    """`torch` (eager), `torch-compiled` (torch.compile), `aoti` (AOTInductor), `onnxruntime` (its
    CUDA provider on a GPU), `tensorrt` (10 or 11)."""
    cuda_graphs: bool = True
    """Also with CUDA graphs."""
    weights: Literal["untrained", "trained"] = "untrained"
    """`untrained`: the backbones' weights and fresh heads; `trained`: trains the rows first."""
    queries: int = Field(default=8, ge=1)
    """Different queries of each batch size, asked in turn."""


class LatencySpec(VariantsSpec):
    """Candidates by number of threads and batch size. Ratios are to the first candidate of form
    `plain` and its first target, which must be fp32."""

    seed: int = Field(default=0, ge=0)
    """Training seed of all rows."""
    threads: tuple[int, ...] = Field(default=(1, 2), min_length=1)
    batch: tuple[int, ...] = Field(default=(1, 8), min_length=1)
    candidates: tuple[CandidateSpec, ...] = Field(min_length=1)
    on_device: OnDeviceSpec | None = None

    @property
    def reference(self) -> CandidateSpec:
        return next(one for one in self.candidates if one.form == "plain")

    @model_validator(mode="after")
    def _consistent(self) -> LatencySpec:
        names = [candidate.name for candidate in self.candidates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"candidates with one name: {', '.join(twice)}")
        if all(candidate.form != "plain" for candidate in self.candidates):
            raise ValueError("no candidate of form plain, which ratios are to")
        if self.on_device is not None:
            if any(candidate.form == "peer" for candidate in self.candidates):
                raise ValueError("peers are timed as files, not `on_device`")
            runtimes = self.on_device.runtimes
            if len(set(runtimes)) < len(runtimes):
                raise ValueError("on_device: a runtime twice")
        rows = {row.name for row in self.rows}
        if RESULT_FOLDER in rows:
            raise ValueError(f"a row cannot be called {RESULT_FOLDER!r}: files lie there")
        for candidate in self.candidates:
            tune = None if candidate.peer is None else candidate.peer.fine_tune
            named = [candidate.run] if tune is None else [candidate.run, tune.teacher]
            for row in named:
                if row is not None and row not in rows:
                    raise ValueError(f"candidate {candidate.name!r} names {row!r}, no row")
        for what, counts in (("threads", self.threads), ("batch", self.batch)):
            if min(counts) < 1 or len(set(counts)) < len(counts):
                raise ValueError(f"{what} must be distinct and at least 1")
        return self


class PartSpec(Spec):
    """One suite of several."""

    folder: str = Field(pattern=ROW_NAME)
    """Its folder below the output; the runs that are there already are used."""
    suite: str
    """A latency suite, relative to this file."""


class PartsSpec(Spec):
    """Several latency suites under one name."""

    schema_version: Literal[1]
    name: str = Field(pattern=ROW_NAME)
    description: str = ""
    parts: tuple[PartSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> PartsSpec:
        folders = [part.folder for part in self.parts]
        twice = sorted({folder for folder in folders if folders.count(folder) > 1})
        if twice:
            raise ValueError(f"parts in one folder: {', '.join(twice)}")
        return self


def load_latency(path: Path) -> dict[str, tuple[LatencySpec, Path]]:
    """The suites of a file with their own files, by folder below the output; a file that is itself
    a suite has the folder `.`.

    Raises:
        RecipeError: a file cannot be read; it lists every problem with its line.
    """
    try:
        has_parts = re.search(rb"^parts:", path.read_bytes(), re.MULTILINE) is not None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from error
    if not has_parts:
        return {".": (read_suite_file(path, LatencySpec), path)}
    found = {}
    for part in read_suite_file(path, PartsSpec).parts:
        file = path.parent / part.suite
        found[part.folder] = (read_suite_file(file, LatencySpec), file)
    return found
