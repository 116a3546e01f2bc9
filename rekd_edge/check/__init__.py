"""Holds an exported file to the torch model it was made from."""

from __future__ import annotations

from rekd_edge.check.checker import (
    AnswerReport,
    LogitFunction,
    baseline_accuracy,
    check_answers,
    check_artefact,
)
from rekd_edge.check.compare import Comparison, differences, summarise
from rekd_edge.check.exclusion import (
    NumericalExclusion,
    StructuralExclusion,
    numerical_exclusion,
    structural_exclusion,
)
from rekd_edge.check.gates import Gate, GateResult, GateSet, evaluate_gates, load_gates
from rekd_edge.check.inputs import LabelledBatch, TextEdges
from rekd_edge.check.report import Accuracy, CheckReport, ParityCase

__all__ = [
    "Accuracy",
    "AnswerReport",
    "CheckReport",
    "Comparison",
    "Gate",
    "GateResult",
    "GateSet",
    "LabelledBatch",
    "LogitFunction",
    "NumericalExclusion",
    "ParityCase",
    "StructuralExclusion",
    "TextEdges",
    "baseline_accuracy",
    "check_answers",
    "check_artefact",
    "differences",
    "evaluate_gates",
    "load_gates",
    "numerical_exclusion",
    "structural_exclusion",
    "summarise",
]
