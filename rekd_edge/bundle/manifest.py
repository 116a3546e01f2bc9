"""What ``manifest.json`` and ``config.json`` of a bundle hold.

    BUNDLE/
      manifest.json              this schema: sha256 and size of every other file, gates, lineage
      config.json                BundleConfig: what the model is, inputs, outputs, calibration
      preprocessor_config.json   how a text or an image becomes model input
      tokenizer.json, tokenizer_config.json   (text)
      labels.json                names of the classes, labels or values in the order of the logits
      model.onnx                 (and model.onnx.data where a model is above 1 GB)
      why_not.onnx               (class-wise rationales: what answers for a class it is asked about)
      recipe.resolved.yaml       what was trained
      README.md                  the model card
      reports/*.json             what was measured
      engines/                   (targets with an engine: rekd_edge.engines.store)
      runtime/rekd_runtime.py    answers with numpy and onnxruntime alone

The runtime (``export/runtime/python/rekd_runtime.py``) reads the same two files without
pydantic; a test holds the two in step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from rekd_edge.calibrate.spec import Calibration
from rekd_edge.runners.settings import RuntimeSettings
from rekd_edge.types import (
    DType,
    IoSpec,
    Modality,
    ProblemType,
    RationaleUnit,
    RuntimeName,
    TensorSpec,
)

FORMAT = "rekd-edge-bundle"
SCHEMA_VERSION = 1
"""Of ``manifest.json``."""
CONFIG_SCHEMA_VERSION = 2
"""Of ``config.json``: 2 brought ``calibration``. A runtime that does not know it would answer where
it should abstain, so it must refuse the file."""
PROBLEM_SCHEMA_VERSION = 3
"""Of ``config.json`` of anything but a single-label classification: a runtime that does not know
``problem_type`` would make probabilities of classes out of it."""

MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "config.json"
LABELS_FILE = "labels.json"
MODEL_FILE = "model.onnx"
WHY_NOT_FILE = "why_not.onnx"
RECIPE_FILE = "recipe.resolved.yaml"
CARD_FILE = "README.md"
REPORTS_FOLDER = "reports"
RUNTIME_FILE = "runtime/rekd_runtime.py"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Base of everything written into a bundle: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileEntry(Record):
    """One file of the bundle."""

    path: str = Field(min_length=1)
    """Relative to the bundle, with forward slashes."""
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class GateRecord(Record):
    """One gate and what came out of it."""

    name: str
    metric: str
    goal: str
    """In words, for example ``max-degradation 0.01``."""
    value: float | None
    """What was measured, in the unit of the metric; null where it could not be measured."""
    passed: bool
    detail: str = ""


class Lineage(Record):
    """Where the model comes from."""

    recipe_name: str
    description: str = ""
    seed: int | None = None
    task: str = "distill"
    data: dict[str, str] = {}
    """Source, name, version, sha256 and counts of the data set (``TaskData.source``)."""
    weights: dict[str, str] = {}
    """Role (``student selector``, ``student predictor``, ``teacher`` ...) to the source used."""
    checkpoint_sha256: str | None = None
    """Of the student's safetensors file."""


class BundleManifest(Record):
    """``manifest.json``. It lists every other file; it cannot list itself."""

    format: Literal["rekd-edge-bundle"] = FORMAT
    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    created: str
    """UTC, ISO 8601 (``SOURCE_DATE_EPOCH`` is honoured)."""
    modality: Modality
    target: str
    """The export target, for example ``onnx``."""
    versions: dict[str, str]
    """rekd-edge, Python and the packages that made the model."""
    lineage: Lineage
    accuracy: dict[str, float] = {}
    """Share of right answers on the test split, by model: ``student_onnx``, ``student``,
    ``teacher``, ``plain`` ... Of other problem types their primary score: micro F1, R²."""
    accuracy_per_class: dict[str, float] = {}
    """Of the exported file, by label name. Of other problem types F1 or R²."""
    gates: tuple[GateRecord, ...] = ()
    files: tuple[FileEntry, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)


class AxisRecord(Record):
    name: str
    size: int | None


class TensorRecord(Record):
    name: str
    dtype: DType
    axes: tuple[AxisRecord, ...]


class WhyNotRecord(Record):
    """``why_not.onnx``: a rationalist with one input more, the class that it is asked about
    (docs/why-not.md). Its outputs are those of ``model.onnx``, of the rationale for that class."""

    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]

    @classmethod
    def of(cls, io_spec: IoSpec) -> WhyNotRecord:
        return cls(
            inputs=tuple(_tensor_record(tensor) for tensor in io_spec.inputs),
            outputs=tuple(_tensor_record(tensor) for tensor in io_spec.outputs),
        )


class BundleConfig(Record):
    """``config.json``: what the model is. ``id2label``, ``label2id`` and ``model_type`` carry
    the names that transformers reads."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    schema_version: Literal[1, 2, 3] = CONFIG_SCHEMA_VERSION
    model_type: str
    """``bert`` or ``vit``."""
    modality: Modality
    problem_type: ProblemType = "single_label_classification"
    """What the logits mean, in the words of transformers; left out in the file where it is this."""
    label_names: tuple[str, ...] = Field(min_length=1)
    """Classes, labels, or (regression) what the numbers measure, in the order of the logits."""
    id2label: dict[str, str]
    label2id: dict[str, int]
    rationale_ratio: float = Field(gt=0, le=1)
    rationale_ratio_fraction: tuple[int, int]
    """Numerator and denominator: k = clamp(ceil(ratio * n_valid), 1, n_valid) in integers."""
    rationale_unit: RationaleUnit = "token"
    """What is kept whole. Of units other than tokens at most k tokens are kept, not always k; the
    key is left out where it is ``token``."""
    region_size: int | None = Field(default=None, ge=2)
    """Patches on each side of a region (``rationale_unit: region``); otherwise left out."""
    image_size: int | None = None
    """Side of the square model input in pixels (images)."""
    patch_size: int | None = None
    """Side of a patch in pixels of the model input (images)."""
    max_length: int | None = None
    """Tokens the model reads, prefix tokens included (text)."""
    special_ids: dict[str, int] = {}
    """Token ids of cls, sep and pad (text)."""
    opset: int
    ir_version: int
    precision: str = "fp32"
    runtime: RuntimeName = "onnxruntime"
    """What the file was checked in."""
    runtime_settings: RuntimeSettings | None = None
    """Settings of ONNX Runtime found by ``rekd-edge export --tune``; null for the defaults."""
    calibration: Calibration | None = None
    """Temperature and thresholds (docs/bundle.md); null: answers are softmax values (several
    labels: sigmoid values; a regression: values) as they come, and none is withheld."""
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    why_not: WhyNotRecord | None = None
    """Left out where the bundle has no ``why_not.onnx``. A runtime that does not know the key
    answers rightly all the same, so the schema is no newer for it."""

    @model_validator(mode="after")
    def _complete(self) -> BundleConfig:
        if (self.rationale_unit == "region") != (self.region_size is not None):
            raise ValueError("region_size is for rationale_unit 'region', which needs it")
        if self.rationale_unit in ("word", "sentence") and self.modality != "text":
            raise ValueError(f"an image has no {self.rationale_unit}s")
        if self.rationale_unit == "region" and self.modality != "image":
            raise ValueError("a text has no regions")
        if self.modality == "image" and (self.image_size is None or self.patch_size is None):
            raise ValueError("an image model needs image_size and patch_size")
        if self.modality == "text" and self.max_length is None:
            raise ValueError("a text model needs max_length")
        if self.schema_version == 1 and self.calibration is not None:
            raise ValueError("calibration needs schema_version 2")
        single = self.problem_type == "single_label_classification"
        if not single and self.schema_version < PROBLEM_SCHEMA_VERSION:
            raise ValueError(f"problem_type needs schema_version {PROBLEM_SCHEMA_VERSION}")
        if single and len(self.label_names) < 2:
            raise ValueError("a single-label classification needs two label_names")
        if self.problem_type == "regression" and self.calibration is not None:
            raise ValueError("a regression has no probabilities to calibrate")
        if len(set(self.label_names)) != len(self.label_names):
            raise ValueError("label_names must differ from one another")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Readers of schema 2 refuse keys that they do not know: those that say nothing are left
        out."""
        document: dict[str, Any] = serialise(self)
        unsaid = {
            "problem_type": self.problem_type == "single_label_classification",
            "rationale_unit": self.rationale_unit == "token",
            "region_size": self.region_size is None,
            "why_not": self.why_not is None,
        }
        return {key: value for key, value in document.items() if not unsaid.get(key, False)}

    @classmethod
    def create(
        cls,
        *,
        modality: Modality,
        problem_type: ProblemType = "single_label_classification",
        label_names: Sequence[str],
        rationale_ratio: float,
        rationale_ratio_fraction: tuple[int, int],
        rationale_unit: RationaleUnit = "token",
        region_size: int | None = None,
        io_spec: IoSpec,
        opset: int,
        ir_version: int,
        precision: str = "fp32",
        runtime: RuntimeName = "onnxruntime",
        runtime_settings: RuntimeSettings | None = None,
        calibration: Calibration | None = None,
        image_size: int | None = None,
        patch_size: int | None = None,
        max_length: int | None = None,
        special_ids: Mapping[str, int] | None = None,
        why_not: IoSpec | None = None,
    ) -> BundleConfig:
        """Fill in what follows from the rest (``schema_version``, ``id2label``, ``label2id``,
        ``model_type``)."""
        single = problem_type == "single_label_classification"
        return cls(
            schema_version=CONFIG_SCHEMA_VERSION if single else PROBLEM_SCHEMA_VERSION,
            model_type="bert" if modality == "text" else "vit",
            modality=modality,
            problem_type=problem_type,
            label_names=tuple(label_names),
            id2label={str(index): name for index, name in enumerate(label_names)},
            label2id={name: index for index, name in enumerate(label_names)},
            rationale_ratio=rationale_ratio,
            rationale_ratio_fraction=rationale_ratio_fraction,
            rationale_unit=rationale_unit,
            region_size=region_size,
            image_size=image_size,
            patch_size=patch_size,
            max_length=max_length,
            special_ids=dict(special_ids or {}),
            opset=opset,
            ir_version=ir_version,
            precision=precision,
            runtime=runtime,
            runtime_settings=runtime_settings,
            calibration=calibration,
            inputs=tuple(_tensor_record(tensor) for tensor in io_spec.inputs),
            outputs=tuple(_tensor_record(tensor) for tensor in io_spec.outputs),
            why_not=None if why_not is None else WhyNotRecord.of(why_not),
        )


def _tensor_record(tensor: TensorSpec) -> TensorRecord:
    axes = tuple(AxisRecord(name=axis.name, size=axis.size) for axis in tensor.axes)
    return TensorRecord(name=tensor.name, dtype=tensor.dtype, axes=axes)


def manifest_json_schema() -> dict[str, Any]:
    """JSON Schema of ``manifest.json``, for editors and other languages."""
    return BundleManifest.model_json_schema()
