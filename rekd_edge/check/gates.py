"""Gates: what must hold before an artefact is published, from ``export/gates/*.yaml``.

Goals have the names that Olive uses. A gate whose number is missing, or is not a number, has
failed: silence never passes. A gate that says for which problem types it is (``problem_types``) is
left out for the others, and the report names it; one that does not, and asks for what the problem
type has not (the accuracy of a regression), is refused before anything is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rekd_edge.convert.spec_file import find_spec, read_spec
from rekd_edge.errors import UsageError
from rekd_edge.problem import PRIMARY, PROBLEM_TITLES
from rekd_edge.resources import export_dir
from rekd_edge.types import ProblemType

Goal = Literal[
    "threshold",
    "max-degradation",
    "percent-max-degradation",
    "min-improvement",
    "percent-min-improvement",
]
ReferenceName = Literal["torch", "teacher", "plain", "majority"]


@dataclass(frozen=True, slots=True)
class Metric:
    higher_is_better: bool
    unit: str
    description: str
    problem_types: tuple[ProblemType, ...] = tuple(PRIMARY)


_ONE: tuple[ProblemType, ...] = ("single_label_classification",)
_SEVERAL: tuple[ProblemType, ...] = ("multi_label_classification",)
_VALUES: tuple[ProblemType, ...] = ("regression",)

METRICS: dict[str, Metric] = {
    "io_valid": Metric(True, "", "1 if names, types and axes are those of the model"),
    "failed_shapes": Metric(False, "cases", "batch sizes and lengths at which the file failed"),
    "max_logit_error": Metric(
        False,
        "logit",
        "largest absolute logit error, equal rationales; regression: of a value, over the target's "
        "standard deviation",
    ),
    "max_scaled_logit_error": Metric(False, "", "the same over the example's logit scale (>= 1)"),
    "max_score_error": Metric(False, "score", "largest absolute error of a selection score"),
    "max_scaled_score_error": Metric(False, "", "the same over the example's score scale (>= 1)"),
    "max_margin_error": Metric(False, "score", "largest error of the margin, equal rationales"),
    "max_scaled_margin_error": Metric(False, "", "the same over the example's score scale (>= 1)"),
    "label_agreement": Metric(
        True, "share", "examples with the torch model's label, or all its labels", _ONE + _SEVERAL
    ),
    "mean_value_error": Metric(
        False, "", "mean error of a value over the target's standard deviation", _VALUES
    ),
    "rationale_exact": Metric(True, "share", "examples with exactly the torch model's rationale"),
    "rationale_jaccard": Metric(True, "share", "mean overlap of the two rationales"),
    "answer_agreement": Metric(True, "share", "pairs: same student answers, in the same case"),
    "unexplained_flips": Metric(False, "examples", "other rationale without a near tie"),
    "exclusion_leaks": Metric(False, "paths", "paths from unselected input to the logits"),
    "exclusion_max_change": Metric(False, "logit", "change when unselected input is replaced"),
    "exclusion_changed": Metric(False, "examples", "examples changed by unselected input"),
    "rationale_mismatches": Metric(False, "examples", "mask shown is not what was read"),
    "exclusion_control": Metric(True, "share", "examples changed by replacing selected input"),
    "exclusion_reproduction": Metric(False, "logit", "cut predictor against the whole file"),
    "score": Metric(True, "", "accuracy, micro F1 or R², by problem type, on the whole test split"),
    "accuracy": Metric(
        True, "share", "right answers on the whole test split, or all labels right", _ONE + _SEVERAL
    ),
    "worst_class_accuracy": Metric(True, "share", "accuracy of the worst class", _ONE),
    "f1_micro": Metric(True, "", "F1 over all labels of all examples", _SEVERAL),
    "f1_macro": Metric(True, "", "mean F1 of the labels", _SEVERAL),
    "r2": Metric(True, "", "R², mean over targets", _VALUES),
    "mean_absolute_error": Metric(False, "target", "mean absolute error", _VALUES),
    "root_mean_squared_error": Metric(False, "target", "root of the mean squared error", _VALUES),
    "size_bytes": Metric(False, "bytes", "size of the file"),
    "latency_ms_p50": Metric(False, "ms", "median latency of one query"),
    "latency_ms_p90": Metric(False, "ms", "90th percentile of the latency of one query"),
}
"""Everything a gate can ask for."""


class Gate(BaseModel):
    """One condition on one metric."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    metric: str
    goal: Goal = "threshold"
    """`threshold`: at least (or at most) `value`. The others compare with `reference`."""
    value: float = Field(allow_inf_nan=False)
    """A share is 0..1; in `percent-...` goals it is in percent of the reference's value."""
    reference: ReferenceName | None = None
    """`torch` (the fused model), `teacher`, `plain`, or `majority` (always the commonest class;
    several labels: the set that scores best; regression: the mean)."""
    optional: bool = False
    """Passes over a gate whose reference this run does not have (no teacher, say). A metric that
    is missing is never passed over."""
    problem_types: tuple[ProblemType, ...] | None = Field(default=None, min_length=1)
    """Problem types that it is for; a report names it as not applicable to the others. [all]"""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; known: {', '.join(sorted(METRICS))}")
        return metric

    @model_validator(mode="after")
    def _reference_fits(self) -> Gate:
        if (self.goal == "threshold") != (self.reference is None):
            raise ValueError(
                "goal 'threshold' takes no reference"
                if self.goal == "threshold"
                else f"goal {self.goal!r} needs a reference"
            )
        if self.goal != "threshold" and self.value < 0:
            raise ValueError(f"the value of goal {self.goal!r} must not be negative")
        asked: tuple[ProblemType, ...] = self.problem_types or ()
        without: list[ProblemType] = [one for one in asked if not _has(self.metric, one)]
        if without:
            raise ValueError(f"{self.metric} is no metric of a {PROBLEM_TITLES[without[0]]}")
        return self

    def is_for(self, problem: ProblemType) -> bool:
        return self.problem_types is None or problem in self.problem_types


class GateSet(BaseModel):
    """A file of gates. All must pass."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    near_tie_margin: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    """Selection margin, over the example's largest score (at least 1), up to which another
    rationale is a rounding matter."""
    gates: tuple[Gate, ...] = Field(min_length=1)

    def applicable(self, problem: ProblemType) -> GateSet:
        """Without the gates that say that they are not for ``problem``.

        Raises :class:`UsageError` where one that says nothing asks for what ``problem`` has not.
        """
        held = tuple(gate for gate in self.gates if gate.is_for(problem))
        wrong = sorted({gate.metric for gate in held if not _has(gate.metric, problem)})
        if wrong:
            own = [name for name, metric in METRICS.items() if 0 < len(metric.problem_types) < 3]
            raise UsageError(
                f"the gates {self.name!r} ask for {', '.join(wrong)}, and a "
                f"{PROBLEM_TITLES[problem]} has no such metric",
                hint=f"ask for score ({PRIMARY[problem]}), or for "
                f"{', '.join(name for name in own if _has(name, problem))}; a gate for other "
                "problem types says so: problem_types: "
                f"[{', '.join(METRICS[wrong[0]].problem_types)}]",
            )
        if not held:
            raise UsageError(f"no gate of {self.name!r} is for a {PROBLEM_TITLES[problem]}")
        return self.model_copy(update={"gates": held})

    def not_applicable(self, problem: ProblemType) -> tuple[str, ...]:
        """The metrics of the gates that say that they are not for ``problem``."""
        return tuple(gate.metric for gate in self.gates if not gate.is_for(problem))


def _has(metric: str, problem: ProblemType) -> bool:
    return problem in METRICS[metric].problem_types


def gates_dir() -> Path:
    return export_dir() / "gates"


def load_gates(name_or_path: str) -> GateSet:
    """Shipped gates by name, or a gate file by path.

    Raises :class:`UsageError` for an unknown name, :class:`RecipeError` for an invalid file.
    """
    return read_spec(find_spec(name_or_path, gates_dir(), "gate"), GateSet, "gate")


@dataclass(frozen=True, slots=True)
class GateResult:
    """What one gate saw. ``bound`` is the number that ``measured`` had to meet."""

    metric: str
    goal: str
    value: float
    reference: str | None
    measured: float | None
    reference_value: float | None
    bound: float | None
    outcome: Literal["passed", "failed", "skipped"]
    reason: str

    @property
    def passed(self) -> bool:
        return self.outcome != "failed"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_gates(
    gates: GateSet,
    metrics: Mapping[str, float],
    references: Mapping[str, Mapping[str, float]],
) -> tuple[GateResult, ...]:
    """Holds ``metrics`` (name to number) to every gate, whatever the problem type
    (:meth:`GateSet.applicable`); ``references`` maps a reference's name to its own metrics."""
    return tuple(_evaluate(gate, metrics, references) for gate in gates.gates)


def _evaluate(
    gate: Gate, metrics: Mapping[str, float], references: Mapping[str, Mapping[str, float]]
) -> GateResult:
    measured = metrics.get(gate.metric)
    base = None if gate.reference is None else references.get(gate.reference, {}).get(gate.metric)

    def result(outcome: Literal["passed", "failed", "skipped"], reason: str) -> GateResult:
        return GateResult(
            metric=gate.metric,
            goal=gate.goal,
            value=gate.value,
            reference=gate.reference,
            measured=measured,
            reference_value=base,
            bound=bound,
            outcome=outcome,
            reason=reason,
        )

    bound: float | None = None
    if measured is None:
        return result("failed", f"{gate.metric} was not measured")
    if gate.reference is not None and base is None:
        missing = f"there is no {gate.reference} to compare {gate.metric} with"
        return result("skipped" if gate.optional else "failed", missing)
    bound = _bound(gate, base)
    higher = METRICS[gate.metric].higher_is_better
    sign = ">=" if higher else "<="
    text = f"{gate.metric} is {measured:.6g}, must be {sign} {bound:.6g}"
    if base is not None:
        text += f" ({gate.goal} {gate.value:g} against {gate.reference} {base:.6g})"
    met = measured >= bound if higher else measured <= bound
    if math.isnan(measured) or math.isnan(bound) or not met:
        return result("failed", text)
    return result("passed", text)


def _bound(gate: Gate, base: float | None) -> float:
    if base is None:
        return gate.value
    amount = abs(base) * gate.value / 100 if gate.goal.startswith("percent-") else gate.value
    worse = "degradation" in gate.goal
    higher = METRICS[gate.metric].higher_is_better
    return base - amount if worse == higher else base + amount
