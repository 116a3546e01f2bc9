"""Values shared by several stages. Arrays are named by their axes, e.g. ``[batch, token]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

Modality = Literal["text", "image"]
DType = Literal["int64", "float32", "bool", "uint8"]
"""Types of a deployed model's inputs and outputs."""
RuntimeName = Literal["onnxruntime", "openvino"]
EngineBackend = Literal["tensorrt-rtx", "tensorrt"]
"""What builds and runs engines from an ONNX file."""
PackageBackend = Literal["aoti", "torch-trt"]
"""What compiles packages from a fused model, and runs them in torch."""
RationaleUnit = Literal["token", "word", "sentence", "region"]
"""What a rationale keeps or drops as a whole."""

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What a model answers, in the words of transformers: one class of several, any number of labels,
or numbers."""

TEXT_INPUTS = ("input_ids", "attention_mask")
"""Model inputs for text: int64 ``[batch, token]`` each."""
IMAGE_INPUTS = ("pixel_values",)
"""Model input for images: ``[batch, 3, height, width]``, float32 and normalised while training,
uint8 in deployed models (:class:`PixelScale`)."""
OUTPUTS = ("logits", "rationale_mask", "selection_score", "selection_margin")
"""Model outputs: float32 ``[batch, class]`` (of a regression the values themselves), bool
``[batch, token]``, float32 ``[batch, token]``, float32 ``[batch]``. Prefix tokens are part of the
token axis of text (``[CLS]`` is token 0) and never selected; for images the token axis is the patch
grid, row by row, without class or register tokens."""

CANDIDATE_INPUT = "candidate_class"
"""Input of a class-wise model besides (rekd_edge/fuse/class_wise.py): int64 ``[batch]``."""
PAIR_OUTPUTS = ("answer_mask", "case")
"""What a pair of students answers besides (rekd_edge/fuse/pair.py): bool ``[batch, token]``, int64
``[batch]``."""
CUT_NAMES = ("rationale_index", "rationale_valid")
"""Inner values at which the predictor can be cut off: int64 and bool, ``[batch, slot]``."""
EXCHANGE_NAMES = (
    "exchange_needed",
    "own_logits",
    "partner_logits",
    "own_logits_shown",
    "partner_logits_shown",
)
"""Inner values of a pair: a bool, True where two students of a batch disagree; then what each
answers, float ``[batch, class]``: from its own rationale, and from the other's."""
OWN_ANSWERS = ("own_logits", "partner_logits")
"""Of :data:`EXCHANGE_NAMES` what either student answers from its own rationale."""


def input_names(modality: Modality) -> tuple[str, ...]:
    return TEXT_INPUTS if modality == "text" else IMAGE_INPUTS


@dataclass(frozen=True, slots=True)
class PixelScale:
    """Normalisation of 8-bit pixels: ``(pixel / 255 - mean) / std`` for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TeacherSide:
    """The examples of a batch, augmented alike, as a teacher with another preprocessor reads them.

    For text ``spans`` int64 ``[batch, teacher token, 2]`` and ``student_spans`` int64
    ``[batch, token, 2]`` are the characters of each token (first, and one past the last), prefix
    tokens included; ``(0, 0)`` at special tokens and padding. None for images.
    """

    inputs: Mapping[str, torch.Tensor]
    spans: torch.Tensor | None = None
    student_spans: torch.Tensor | None = None

    def pin_memory(self) -> TeacherSide:
        """In memory that a CUDA device reads directly."""
        spans, own = self.spans, self.student_spans
        return TeacherSide(
            {name: value.pin_memory() for name, value in self.inputs.items()},
            None if spans is None else spans.pin_memory(),
            None if own is None else own.pin_memory(),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of model inputs.

    ``inputs`` maps the names of :func:`input_names` to tensors; ``labels`` is int64
    ``[batch]``, or float32 ``[batch, label]``: 0 and 1 of a multi-label classification, the values
    of a regression; ``index`` is the position of each example in its split, int64 ``[batch]``.
    ``teacher`` is None where the teacher reads ``inputs`` too.
    """

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    index: torch.Tensor
    teacher: TeacherSide | None = None

    def pin_memory(self) -> Batch:
        """In memory that a CUDA device reads directly; torch's ``DataLoader`` asks for it."""
        return Batch(
            {name: value.pin_memory() for name, value in self.inputs.items()},
            self.labels.pin_memory(),
            self.index,
            None if self.teacher is None else self.teacher.pin_memory(),
        )


@dataclass(frozen=True, slots=True)
class Outputs:
    """What every runner answers, as numpy arrays in the layout of :data:`OUTPUTS`; the last two are
    those of :data:`PAIR_OUTPUTS`, None where one student answers alone."""

    logits: np.ndarray
    rationale_mask: np.ndarray
    selection_score: np.ndarray
    selection_margin: np.ndarray
    answer_mask: np.ndarray | None = None
    case: np.ndarray | None = None


def alone(outputs: Outputs) -> Outputs:
    """Without what only a pair answers."""
    return replace(outputs, answer_mask=None, case=None)


@dataclass(frozen=True, slots=True)
class AxisSpec:
    """One axis of a model input or output: a fixed size, or a name for a dynamic one."""

    name: str
    size: int | None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    name: str
    dtype: DType
    axes: tuple[AxisSpec, ...]


@dataclass(frozen=True, slots=True)
class IoSpec:
    """Names, types and axes of a model's inputs and outputs, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
