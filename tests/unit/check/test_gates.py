"""Gates: goals in Olive's words, files with line numbers, and silence never passes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from rekd_edge.check import Gate, GateSet, evaluate_gates, load_gates
from rekd_edge.check.gates import METRICS, gates_dir
from rekd_edge.errors import RecipeError, UsageError


def _outcome(
    gate: Gate, metrics: dict[str, float], references: dict[str, dict[str, float]] | None = None
) -> str:
    gates = GateSet(schema_version=1, name="one", gates=(gate,))
    return evaluate_gates(gates, metrics, references or {})[0].outcome


@pytest.mark.parametrize(
    ("metric", "value", "measured", "outcome"),
    [
        ("max_logit_error", 1e-3, 1e-3, "passed"),
        ("max_logit_error", 1e-3, 1.1e-3, "failed"),
        ("label_agreement", 0.99, 0.99, "passed"),
        ("label_agreement", 0.99, 0.98, "failed"),
        ("max_logit_error", 1e-3, math.nan, "failed"),
        ("label_agreement", 0.0, math.nan, "failed"),
        ("max_logit_error", 1e-3, math.inf, "failed"),
    ],
)
def test_thresholds_know_which_way_is_better(
    metric: str, value: float, measured: float, outcome: str
) -> None:
    assert _outcome(Gate(metric=metric, value=value), {metric: measured}) == outcome


@pytest.mark.parametrize(
    ("goal", "value", "measured", "outcome"),
    [
        ("max-degradation", 0.02, 0.78, "passed"),
        ("max-degradation", 0.02, 0.77, "failed"),
        ("percent-max-degradation", 10, 0.72, "passed"),
        ("percent-max-degradation", 10, 0.71, "failed"),
        ("min-improvement", 0.05, 0.85, "passed"),
        ("min-improvement", 0.05, 0.84, "failed"),
        ("percent-min-improvement", 5, 0.84, "passed"),
        ("percent-min-improvement", 5, 0.83, "failed"),
    ],
)
def test_goals_against_a_reference(goal: str, value: float, measured: float, outcome: str) -> None:
    gate = Gate.model_validate(
        {"metric": "accuracy", "goal": goal, "value": value, "reference": "torch"}
    )
    # Half a billionth of slack: 0.8 - 0.02 is not exactly 0.78 in binary.
    measured += 5e-10
    assert _outcome(gate, {"accuracy": measured}, {"torch": {"accuracy": 0.8}}) == outcome


def test_degradation_of_a_metric_where_lower_is_better_means_growing() -> None:
    gate = Gate(metric="latency_ms_p50", goal="max-degradation", value=1.0, reference="plain")
    references = {"plain": {"latency_ms_p50": 4.0}}
    assert _outcome(gate, {"latency_ms_p50": 5.0}, references) == "passed"
    assert _outcome(gate, {"latency_ms_p50": 5.1}, references) == "failed"


def test_a_metric_that_was_not_measured_fails_even_if_optional() -> None:
    gate = Gate(metric="accuracy", value=0.1, optional=True)
    assert _outcome(gate, {}) == "failed"


def test_a_missing_reference_fails_unless_the_gate_is_optional() -> None:
    strict = Gate(metric="accuracy", goal="max-degradation", value=0.1, reference="teacher")
    assert _outcome(strict, {"accuracy": 0.9}) == "failed"
    lenient = strict.model_copy(update={"optional": True})
    assert _outcome(lenient, {"accuracy": 0.9}) == "skipped"


def test_the_reason_names_the_numbers() -> None:
    gates = GateSet(
        schema_version=1, name="one", gates=(Gate(metric="label_agreement", value=0.99),)
    )
    reason = evaluate_gates(gates, {"label_agreement": 0.5}, {})[0].reason
    assert reason == "label_agreement is 0.5, must be >= 0.99"


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric": "acuracy", "value": 1},
        {"metric": "accuracy", "goal": "max-degradation", "value": 0.1},
        {"metric": "accuracy", "value": 0.1, "reference": "torch"},
        {"metric": "accuracy", "goal": "max-degradation", "value": -1, "reference": "torch"},
        {"metric": "accuracy", "value": math.nan},
        {"metric": "accuracy", "value": math.inf},
    ],
)
def test_gates_that_could_never_fail_or_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Gate.model_validate(wrong)


def test_every_shipped_gate_file_loads_and_holds_the_exclusion_gates() -> None:
    paths = list(gates_dir().glob("*.yaml"))
    assert {path.stem for path in paths} >= {"default", "strict"}
    for path in paths:
        gates = load_gates(path.stem)
        assert gates.name == path.stem
        asked = {gate.metric for gate in gates.gates}
        assert asked >= {"exclusion_leaks", "exclusion_changed", "rationale_exact", "score"}
        assert asked <= METRICS.keys()


def test_a_wrong_gate_file_says_where(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    file.write_text(
        "schema_version: 1\nname: g\ngates:\n  - metric: acuracy\n    value: 1\n"
        "  - {metric: accuracy, vallue: 1}\n"
    )
    with pytest.raises(RecipeError) as raised:
        load_gates(str(file))
    message = str(raised.value)
    assert f"{file}:4: gates[0].metric: unknown metric 'acuracy'" in message
    assert "did you mean 'value'?" in message


def test_an_unknown_gate_set_lists_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'strict'") as raised:
        load_gates("strickt")
    assert "default, low-precision, strict" in str(raised.value.hint)
