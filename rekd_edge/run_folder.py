"""A run folder: what training leaves, and how later stages open it.

RUN/recipe.resolved.yaml  run.json  labels.json  preprocessor/
    teacher_preprocessor/   where the teacher reads its input otherwise than the student
    teacher/best/model.safetensors   student/best/model.safetensors
    partner/best/model.safetensors   the second student of an ensemble
    teacher|student|partner/{last.safetensors, log.jsonl, tensorboard/}   reports/*.json
    teacher|student/judge/model.safetensors   the predictor after its random subsets, if it had any
    explainer/{heads.safetensors, log.jsonl}   the mixture of a black box's heads, if it is learned
    class_wise/best/model.safetensors   the head that scores tokens for each class, if it is wanted
    plain/  extract/  answers/   runs of their own, where `rekd-edge compare` trained them
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rekd_edge.data import TaskData, load_data
from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import Preprocessor, load_preprocessor
from rekd_edge.data.split import Split
from rekd_edge.distill.checkpoint import JUDGE_FILE, load_model
from rekd_edge.distill.explainer import HeadMixture, black_box, load_heads
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.fuse import (
    FusedClassWise,
    FusedRationalist,
    MaskedRationalist,
    PlainClassifier,
    fuse,
    fuse_class_wise,
    fuse_pair,
)
from rekd_edge.fuse.fused import masked_form, plain_form
from rekd_edge.models.build import (
    Built,
    build_classifier,
    build_judge,
    build_rationalist,
    same_tokens,
)
from rekd_edge.models.class_wise import ClassHead
from rekd_edge.models.rationalist import Classifier, Predictor, Rationalist
from rekd_edge.recipe import load_recipe
from rekd_edge.recipe.schema import ObjectiveSpec, RationalistSpec, Recipe

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from rekd_edge.types import Batch, ProblemType

RECIPE_FILE = "recipe.resolved.yaml"
RUN_FILE = "run.json"
LABELS_FILE = "labels.json"
PREPROCESSOR_FOLDER = "preprocessor"
TEACHER_PREPROCESSOR_FOLDER = "teacher_preprocessor"
CLASS_WISE_ROLE = "class_wise"
CLASS_WISE_WEIGHTS = Path(CLASS_WISE_ROLE) / "best" / "model.safetensors"
ANSWERS_FOLDER = "answers"
"""The student of the teacher's answers alone (`rekd-edge compare --simulability`)."""


SIMULABILITY: dict[ProblemType, str] = {
    "single_label_classification": "label_agreement",
    "multi_label_classification": "label_agreement",
    "regression": "value_r2",
}
"""What simulability is, among the figures of ``agreement_with_teacher``."""


@dataclass(frozen=True, slots=True)
class Simulability:
    """Shares (0..1) of the test examples in which a student answers as its teacher (all labels
    equal; of a regression R^2 of its values against the teacher's), after training with the
    teacher's rationales and from its answers alone; None where there is no such student.
    """

    with_rationales: float | None
    without_rationales: float | None


@dataclass(frozen=True)
class Run:
    """A finished (or running) training run on disk."""

    path: Path
    recipe: Recipe
    label_names: tuple[str, ...]
    info: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def preprocessor(self) -> Preprocessor:
        return load_preprocessor(self.path / PREPROCESSOR_FOLDER)

    @cached_property
    def teacher_preprocessor(self) -> Preprocessor:
        """What makes the input of :meth:`teacher_or_student`."""
        folder = self.path / TEACHER_PREPROCESSOR_FOLDER
        return load_preprocessor(folder) if folder.is_dir() else self.preprocessor

    @cached_property
    def _data(self) -> TaskData:
        return load_data(self.recipe)

    def data(self) -> TaskData:
        """The recipe's data, read on first use."""
        return self._data

    def loader(
        self, split: Literal["train", "dev", "test"], batch_size: int = 64
    ) -> DataLoader[Batch]:
        """The examples of a split in their order, as the student reads them."""
        examples: Split = getattr(self.data(), split)
        return make_loader(examples, self.preprocessor, batch_size=batch_size, shuffle=False)

    @property
    def max_length(self) -> int | None:
        return self.recipe.data.max_length if self.recipe.modality == "text" else None

    def student(self) -> Rationalist:
        """The trained student rationalist.

        Raises:
            UsageError: the run trained a plain classifier.
        """
        if self.recipe.task == "classify":
            raise UsageError(
                f"{self.path} holds a plain classifier, not a rationalist",
                hint="train with task: distill or task: extract; a plain classifier can teach with "
                "teacher.rationale: mask_gradient",
            )
        return self._rationalist(self.recipe.student, "student")

    def teacher(self) -> Rationalist | None:
        """The teacher rationalist, or the black box that took its place; None for a run without
        one."""
        if self.recipe.task != "distill" or self.recipe.teacher is None:
            return None
        rationale = self.recipe.teacher.rationale
        if rationale != "rationalist":
            teacher = black_box(self.black_box(), rationale, self.recipe.rationale_ratio)
            if isinstance(teacher.selector, HeadMixture):
                load_heads(self.path, teacher.selector)
            return teacher.eval()
        if self.recipe.teacher.run is not None:
            return open_run(Path(self.recipe.teacher.run)).teacher_or_student()
        return self._rationalist(self.recipe.teacher, "teacher")

    def black_box(self) -> Classifier:
        """The plain classifier that this run trained, as a student or as a teacher.

        Raises:
            UsageError: the run's teacher (or its student, without one) is a rationalist.
        """
        if self.recipe.task == "classify":
            return self.classifier()
        spec = self.recipe.teacher if self.recipe.task == "distill" else None
        if spec is None or not spec.is_black_box:
            raise UsageError(
                f"{self.path} holds a rationalist, not a plain classifier",
                hint="name a run of task: classify, or set teacher.rationale: rationalist",
            )
        if spec.run is not None:
            return open_run(Path(spec.run)).black_box()
        return self._classifier(spec, "teacher")

    def teacher_or_student(self) -> Rationalist:
        """What another recipe gets that names this run as its teacher: this run's teacher, or
        the student of a run of task `extract`."""
        return self.teacher() or self.student()

    def teacher_objective(self) -> ObjectiveSpec:
        """The objective with which :meth:`teacher_or_student` was trained."""
        if self.recipe.task != "distill" or self.recipe.teacher is None:
            return self.recipe.objective
        if self.recipe.teacher.run is not None:
            return open_run(Path(self.recipe.teacher.run)).teacher_objective()
        return self.recipe.teacher.objective

    def judge(self, role: Literal["teacher", "student"]) -> Predictor | None:
        """The predictor of ``role`` as it was after its warm-up on random subsets.

        None where there was no such warm-up, or where it reads other tokens than this run does.

        Raises:
            IntegrityError: its file is broken, or of another architecture.
        """
        spec: RationalistSpec | None = self.recipe.student
        if role == "teacher":
            spec = self.recipe.teacher if self.recipe.task == "distill" else None
            if spec is not None and self.recipe.teacher is not None and self.recipe.teacher.run:
                other = open_run(Path(self.recipe.teacher.run))
                judge = other.judge("teacher") or other.judge("student")
                return judge if same_tokens(self.preprocessor, other.preprocessor) else None
        file = self.path / role / JUDGE_FILE
        if spec is None or not file.is_file():
            return None
        built = build_judge(spec, self.recipe, len(self.label_names))
        if not same_tokens(built.preprocessor, self.preprocessor):
            return None
        assert isinstance(built.model, Classifier)
        load_model(file, built.model.predictor)
        built.model.predictor.fold_unit()
        return built.model.predictor.eval()

    def partner(self) -> Rationalist | None:
        """The second student of an ensemble, or None for a run without one."""
        if self.recipe.task == "classify" or self.recipe.ensemble is None:
            return None
        return self._rationalist(self.recipe.ensemble.partner, "partner")

    def fused(self) -> FusedRationalist:
        """What is exported: the student, or the pair that it makes with its partner."""
        partner = self.partner()
        student = self.fused_alone(self.student())
        return student if partner is None else fuse_pair(student, self.fused_alone(partner))

    def fused_alone(self, model: Rationalist) -> FusedRationalist:
        """A rationalist of this run by itself, as it is exported."""
        return fuse(
            model,
            label_names=self.label_names,
            max_length=self.max_length,
            pixel_scale=self.preprocessor.pixel_scale,
        )

    def class_head(self, student: Rationalist) -> ClassHead | None:
        """What scores the tokens of ``student``, this run's, for each class; None for a run that
        trained no class-wise rationales.

        Raises:
            IntegrityError: its file is broken, or of another architecture.
        """
        if not self.recipe.class_wise_rationales:
            return None
        head = ClassHead.beside(student)
        load_model(self.path / CLASS_WISE_WEIGHTS, head)
        return head.eval()

    def fused_class_wise(self) -> FusedClassWise | None:
        """What answers "why not?" as it is exported; None as for :meth:`class_head`."""
        if not self.recipe.class_wise_rationales:
            return None
        student = self.student()
        head = self.class_head(student)
        assert head is not None
        return fuse_class_wise(
            student,
            head,
            label_names=self.label_names,
            max_length=self.max_length,
            pixel_scale=self.preprocessor.pixel_scale,
        )

    def masked(self) -> MaskedRationalist:
        """The student in the published two-pass form, for comparison."""
        return masked_form(self.fused())

    def classifier(self) -> Classifier:
        """The plain classifier of a run of task `classify`."""
        return self._classifier(self.recipe.student, "student")

    def plain(self) -> PlainClassifier | None:
        """The plain classifier trained beside this run (`RUN/plain`), or None."""
        folder = self.path / "plain"
        if self.recipe.task != "classify" and not (folder / RUN_FILE).is_file():
            return None
        run = self if self.recipe.task == "classify" else open_run(folder)
        return plain_form(
            run.classifier(),
            label_names=run.label_names,
            max_length=run.max_length,
            pixel_scale=run.preprocessor.pixel_scale,
        )

    def report(self, name: str) -> dict[str, Any] | None:
        """A JSON report of this run by name, e.g. ``fuse``; None where there is none."""
        file = self.path / "reports" / f"{name}.json"
        return _read_json(file) if file.is_file() else None

    def simulability(self) -> Simulability | None:
        """What this run and the run in :data:`ANSWERS_FOLDER` reported; None without a teacher."""
        found = self.report("distill") or {}
        if "agreement_with_teacher" not in found:
            return None
        own = float(found["agreement_with_teacher"][SIMULABILITY[self.recipe.problem_type]])
        if not found.get("simulability", {}).get("with_rationales", True):
            return Simulability(None, own)
        beside = self.path / ANSWERS_FOLDER
        if not (beside / RUN_FILE).is_file():
            return Simulability(own, None)
        other = open_run(beside).simulability()
        return Simulability(own, None if other is None else other.without_rationales)

    def _rationalist(self, spec: RationalistSpec, role: str) -> Rationalist:
        built: Built = build_rationalist(spec, self.recipe, len(self.label_names))
        assert isinstance(built.model, Rationalist)
        load_model(self._weights(role), built.model)
        built.model.predictor.fold_unit()
        return built.model.eval()

    def _classifier(self, spec: RationalistSpec, role: str) -> Classifier:
        built = build_classifier(spec, self.recipe, len(self.label_names))
        assert isinstance(built.model, Classifier)
        load_model(self._weights(role), built.model)
        built.model.predictor.fold_unit()
        return built.model

    def _weights(self, role: str) -> Path:
        return self.path / role / "best" / "model.safetensors"


def open_run(path: Path) -> Run:
    """Opens a run folder.

    Raises:
        UsageError: there is no run at ``path``.
        IntegrityError: a file of the run is broken.
    """
    if not (path / RUN_FILE).is_file() or not (path / RECIPE_FILE).is_file():
        raise UsageError(
            f"{path} is no run folder",
            hint="make one with: rekd-edge distill RECIPE --output RUN",
        )
    labels = tuple(_read_json(path / LABELS_FILE))
    return Run(path, load_recipe(path / RECIPE_FILE), labels, _read_json(path / RUN_FILE))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} cannot be read as JSON: {error}", hint="run again with --resume"
        ) from error
