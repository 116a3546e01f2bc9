"""The choices in which the published objective and the default differ, one key each.

``objective.name`` names a preset; a key that a recipe states itself overrides the preset's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

ObjectiveName = Literal["deploy", "paper"]
Selection = Literal["bernoulli", "exactly_k", "hard_kuma", "reinforce"]
Masking = Literal["zero", "exclude"]
RationaleKd = Literal["noised", "noiseless", "centred"]
TeacherPrediction = Literal["student_mask", "own_rationale", "full_input"]
KdSchedule = Literal["tau", "constant"]
TauUpdates = Literal["published", "capped"]
Evaluation = Literal["sampled", "top_k"]
DevSelection = Literal["re_loss", "accuracy"]


@dataclass(frozen=True, slots=True)
class ObjectiveForm:
    """What an objective does, without its weights; see the keys of ``ObjectiveSpec``."""

    selection: Selection
    masking: Masking
    select_special: bool
    count_padding: bool
    rationale_kd: RationaleKd
    teacher_prediction: TeacherPrediction
    kd_schedule: KdSchedule
    tau_updates: TauUpdates
    evaluation: Evaluation
    dev_selection: DevSelection

    @property
    def answers_from_targets(self) -> bool:
        """Whether the teacher's prediction is the same whatever was drawn."""
        own = self.teacher_prediction == "own_rationale" and self.selection == "exactly_k"
        return own or self.teacher_prediction == "full_input"

    @property
    def uses_teacher_targets(self) -> bool:
        """Whether the teacher's deterministic answers are needed."""
        return self.answers_from_targets or self.rationale_kd == "centred"

    @property
    def uses_teacher_draws(self) -> bool:
        """Whether the teacher's selection logits are drawn from in each step."""
        own = self.teacher_prediction == "own_rationale" and self.selection == "bernoulli"
        return own or self.rationale_kd != "centred"


PRESETS: dict[ObjectiveName, ObjectiveForm] = {
    "paper": ObjectiveForm(
        selection="bernoulli",
        masking="zero",
        select_special=True,
        count_padding=True,
        rationale_kd="noised",
        teacher_prediction="student_mask",
        kd_schedule="tau",
        tau_updates="published",
        evaluation="sampled",
        dev_selection="re_loss",
    ),
    "deploy": ObjectiveForm(
        selection="exactly_k",
        masking="exclude",
        select_special=False,
        count_padding=False,
        rationale_kd="centred",
        teacher_prediction="own_rationale",
        kd_schedule="constant",
        tau_updates="capped",
        evaluation="top_k",
        dev_selection="accuracy",
    ),
}


def form_problems(form: ObjectiveForm, *, lambda_select: float) -> Iterator[tuple[str, str]]:
    """Contradictions between the keys of one objective as (key, what)."""
    if form.selection == "exactly_k":
        if lambda_select > 0:
            yield (
                "lambda_select",
                "is a penalty on a count that exactly_k fixes: set it to 0, or use "
                "selection: bernoulli",
            )
        for key in ("select_special", "count_padding"):
            if getattr(form, key):
                yield (
                    key,
                    "needs selection: bernoulli, because exactly_k chooses k of the content tokens "
                    f"alone: set {key}: false",
                )
    if form.masking == "exclude" and form.select_special:
        yield (
            "select_special",
            "needs masking: zero, because attention without [CLS] could be left without any key: "
            "set select_special: false",
        )
