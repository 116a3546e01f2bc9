"""What a check found, for machines and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rekd_edge.check.compare import Comparison
from rekd_edge.check.exclusion import NumericalExclusion, StructuralExclusion
from rekd_edge.check.gates import METRICS, GateResult
from rekd_edge.models.interactive import CaseCount
from rekd_edge.problem import PRIMARY, PROBLEM_TITLES, SCORE_TITLES
from rekd_edge.types import ProblemType

if TYPE_CHECKING:
    from rich.console import Console


_PARTS: dict[ProblemType, str] = {
    "single_label_classification": "class",
    "multi_label_classification": "label",
    "regression": "target",
}
"""What answers are measured for besides."""


@dataclass(frozen=True, slots=True)
class ParityCase:
    """The file at one batch size and length. ``error`` is set where it did not run or answered
    other shapes."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    comparison: Comparison | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How good the answers to a split are (:mod:`rekd_edge.problem`): ``scores`` by name, the
    primary one first, and ``per_class`` with ``support`` by label. Of a single-label classification
    the share of right labels, and of each class's examples."""

    per_class: dict[str, float]
    support: dict[str, int]
    scores: dict[str, float]
    examples: int

    @property
    def overall(self) -> float:
        """The primary score."""
        return next(iter(self.scores.values()))

    @property
    def worst_class(self) -> float:
        return min((self.per_class[n] for n, c in self.support.items() if c), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "overall": self.overall,
            "per_class": dict(self.per_class),
            "support": dict(self.support),
            **({"scores": dict(self.scores)} if len(self.scores) > 1 else {}),
        }


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Everything a check measured, and whether every gate passed.

    ``comparison`` is over the whole test split; ``accuracy`` maps ``onnx``, ``torch`` and any
    baselines to their accuracy on it.
    """

    file_sha256: str
    size_bytes: int
    provider: str
    threads: int
    gate_set: str
    gates: tuple[GateResult, ...]
    metrics: Mapping[str, float]
    problem_type: ProblemType = "single_label_classification"
    not_applicable: tuple[str, ...] = ()
    """Metrics of gates that are for other problem types, and that nothing was held to."""
    cases: tuple[ParityCase, ...] = ()
    comparison: Comparison | None = None
    pair_cases: tuple[CaseCount, ...] = ()
    """Of a pair of students: how often each case decided, over the whole test split."""
    structural: StructuralExclusion | None = None
    numerical: NumericalExclusion | None = None
    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    runtime: str = "onnxruntime"
    runtime_settings: Mapping[str, object] = field(default_factory=dict)
    """Those that are not the default's (``RuntimeSettings``)."""
    placement: Mapping[str, Any] | None = None
    """Which provider of ONNX Runtime runs how many nodes and products; None on the CPU."""
    problems: tuple[str, ...] = ()
    """What stopped a part of the check from being measured."""
    class_wise: CheckReport | None = None
    """Of the file that answers for other classes, where there is one: the same gates, each test
    example asked for one class in turn, which then stands for its label."""

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        own = tuple(gate.reason for gate in self.gates if not gate.passed)
        beside = () if self.class_wise is None else self.class_wise.failures
        return own + tuple(f"class-wise rationales: {reason}" for reason in beside)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "passed": self.passed,
            "failures": list(self.failures),
            "problems": list(self.problems),
            "file_sha256": self.file_sha256,
            "size_bytes": self.size_bytes,
            "runtime": self.runtime,
            "provider": self.provider,
            "runtime_settings": dict(self.runtime_settings),
            **({} if self.placement is None else {"placement": dict(self.placement)}),
            "threads": self.threads,
            "gate_set": self.gate_set,
            "problem_type": self.problem_type,
            "not_applicable": list(self.not_applicable),
            "gates": [gate.to_json() for gate in self.gates],
            "metrics": dict(self.metrics),
            "accuracy": {name: value.to_json() for name, value in self.accuracy.items()},
            "pair_cases": [asdict(count) for count in self.pair_cases],
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "structural_exclusion": None if self.structural is None else self.structural.to_json(),
            "numerical_exclusion": None if self.numerical is None else self.numerical.to_json(),
            "cases": [case.to_json() for case in self.cases],
            **({} if self.class_wise is None else {"class_wise": self.class_wise.to_json()}),
        }

    def render(self, console: Console) -> None:
        """Gates, accuracy by class and the exclusion proof as tables."""
        from rich.table import Table

        table = Table(title=f"check: gates {self.gate_set!r}", title_justify="left")
        for column, justify in (
            ("gate", "left"),
            ("goal", "left"),
            ("bound", "right"),
            ("measured", "right"),
            ("", "left"),
        ):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        colours = {"passed": "green", "failed": "bold red", "skipped": "yellow"}
        for gate in self.gates:
            info = METRICS[gate.metric]
            goal = "at least" if info.higher_is_better else "at most"
            if gate.reference is not None:
                goal = f"{gate.goal} {gate.value:g} vs {gate.reference}"
            colour = colours[gate.outcome]
            table.add_row(
                gate.metric,
                goal,
                _number(gate.bound),
                _number(gate.measured),
                f"[{colour}]{gate.outcome}[/{colour}]",
            )
        console.print(table)
        if self.not_applicable:
            console.print(
                f"not applicable to a {PROBLEM_TITLES[self.problem_type]}: "
                f"{', '.join(dict.fromkeys(self.not_applicable))}",
                markup=False,
            )
        if self.accuracy:
            self._render_accuracy(console)
        if self.pair_cases:
            shares = ", ".join(
                f"{count.name.replace('_', ' ')} {count.share:.1%}"
                + ("" if count.accuracy is None else f" (right: {count.accuracy:.3f})")
                for count in self.pair_cases
            )
            console.print(f"the pair decided by: {shares}")
        if self.comparison is not None:
            seen = self.comparison
            console.print(
                f"{seen.examples} test examples against the torch model: the smallest tolerance "
                f"that passes is {seen.max_logit_error:.2g} for logits; {seen.near_ties} near "
                f"ties (margin <= {seen.near_tie_margin:g})"
            )
        if self.structural is not None and self.numerical is not None:
            reads = ", ".join(self.structural.gated_reads) or "nothing"
            console.print(
                f"exclusion: the predictor reads {reads} at rationale_index and "
                f"{len(self.structural.leaks)} other paths; replacing "
                f"{self.numerical.replaced_positions} unselected positions changed "
                f"{self.numerical.changed_examples} of {self.numerical.examples} answers "
                f"(control: selected ones change {self.numerical.control_changed:.0%})"
            )
        if self.class_wise is not None:
            self._render_class_wise(console, self.class_wise)
        for problem in self.problems:
            console.print(f"problem: {problem}", style="red", markup=False)
        for failure in self.failures:
            console.print(f"failed: {failure}", style="red", markup=False)

    def _render_class_wise(self, console: Console, found: CheckReport) -> None:
        held = sum(gate.passed for gate in found.gates)
        reach = found.accuracy.get("onnx")
        console.print(
            f"class-wise rationales: {held} of {len(found.gates)} gates hold"
            + (
                ""
                if reach is None
                else f"; they make the predictor say their class for "
                f"{reach.overall:.1%} of the test split"
            )
        )
        for problem in found.problems:
            console.print(f"problem: class-wise rationales: {problem}", style="red", markup=False)

    def _render_accuracy(self, console: Console) -> None:
        from rich.markup import escape
        from rich.table import Table

        names = list(self.accuracy)
        title = SCORE_TITLES[PRIMARY[self.problem_type]]
        table = Table(title=f"{title} on the test split", title_justify="left")
        table.add_column(_PARTS[self.problem_type])
        table.add_column("examples", justify="right")
        for name in names:
            table.add_column(name, justify="right")
        first = self.accuracy[names[0]]
        overall = (f"{self.accuracy[n].overall:.4f}" for n in names)
        table.add_row("all", str(first.examples), *overall)
        for label, support in first.support.items():
            cells = (f"{self.accuracy[name].per_class[label]:.4f}" for name in names)
            table.add_row(escape(label), str(support), *cells)
        console.print(table)
        for other in list(first.scores)[1:]:
            found = ", ".join(f"{name} {self.accuracy[name].scores[other]:.4g}" for name in names)
            console.print(f"{other.replace('_', ' ')}: {found}", markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
