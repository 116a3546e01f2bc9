"""A page's content by hand, with texts that try to be more than text."""

from __future__ import annotations

import functools
import io
from dataclasses import replace

import numpy as np

from rekd_edge.calibrate.probabilities import ReliabilityBin
from rekd_edge.report.content import (
    Agreement,
    Answer,
    Bench,
    Box,
    Checks,
    Confidence,
    Example,
    ExampleGroup,
    Front,
    FrontPoint,
    GateLine,
    Lineage,
    ModelResult,
    Picture,
    ReportContent,
    Span,
    Stage,
    StoredCalibration,
    Timing,
    Training,
    TrainingPhase,
)
from rekd_edge.report.kinds import Said, kind_for
from rekd_edge.report.statistics import Answers
from rekd_edge.types import ProblemType

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> \"' onload='alert(3) "
    "</style></svg> {{ 7*7 }} {% raw %} javascript:alert(4) \x00\x1b[31m \u202edesrever"
)
LABELS = ("<b>bad</b>", 'good" onclick="alert(5)')
STUDENT, FILE = "student <i>", "bundle & (int8)"


@functools.cache
def png() -> bytes:
    """A real picture of 32 x 32 pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def answers_of(problem: ProblemType) -> dict[str, Answers]:
    """Of the student, and of a file that says something else of the second of two examples."""
    truth: np.ndarray = np.asarray([0, 1])
    found = [[[1.1, 0.0], [1.1, 0.0]], [[1.1, 0.0], [0.0, 2.0]]]
    if problem == "multi_label_classification":
        truth = np.asarray([[1.0, 0.0], [1.0, 1.0]], dtype=np.float32)
        found = [[[2.0, 1.0], [1.0, -1.0]], [[2.0, 1.0], [-1.0, -1.0]]]
    elif problem == "regression":
        truth = np.asarray([[1.5, 2000.0], [2.5, 8000.0]], dtype=np.float32)
        found = [[[1.25, 2500.0], [2.5, 7000.0]], [[1.25, 2500.0], [2.0, 7000.0]]]
    kept = (np.asarray([0, 1]), np.asarray([0, 2]))
    margin, candidates = np.asarray([0.25, 0.5]), np.asarray([9, 9])
    return {
        name: Answers(np.asarray(logits), truth, margin, kept, candidates, None, problem)
        for name, logits in zip((STUDENT, FILE), found, strict=True)
    }


def answer(
    model: str,
    evidence: tuple[Span, ...] | tuple[Box, ...],
    other: str | None,
    said: Said | None = None,
) -> Answer:
    """Withheld if it is a file's, unless it is a value."""
    refused = other is not None and (said is None or not said.values)
    said = said or Said(LABELS[0], 0.75, other is None)
    return Answer(
        model=model,
        label=said.label,
        probability=said.probability,
        right=said.right,
        labels=said.labels,
        values=said.values,
        margin=0.25,
        kept=len(evidence),
        candidates=9,
        evidence=evidence,
        reference=other,
        withheld=("confidence", "margin") if refused else (),
    )


def make_content(
    modality: str = "text",
    examples: int = 2,
    problem: ProblemType = "single_label_classification",
) -> ReportContent:
    """Everything that a page can show; ``modality`` is text or image."""
    kind, answers = kind_for(problem), answers_of(problem)

    def said(name: str, index: int) -> Said | None:
        if problem == "single_label_classification":
            return None
        return kind.said(answers[name], index % 2, LABELS)

    def example(index: int) -> Example:
        if modality == "text":
            shown = (
                answer(STUDENT, (Span(0, 8), Span(10, 12)), None, said(STUDENT, index)),
                answer(FILE, (Span(0, 8), Span(20, 24)), STUDENT, said(FILE, index)),
            )
        else:
            corner = Box(0, 0, 0.25, 0.25)
            shown = (
                answer(STUDENT, (corner, Box(0.5, 0.5, 0.25, 0.25)), None, said(STUDENT, index)),
                answer(FILE, (corner, Box(0.75, 0.75, 0.25, 0.25)), STUDENT, said(FILE, index)),
            )
        return Example(
            index=index,
            label=kind.truth(answers[STUDENT], index % 2, LABELS),
            reasons=(HOSTILE,),
            text=f"{HOSTILE} number {index}" if modality == "text" else None,
            picture=None if modality == "text" else Picture("image/png", png(), 32),
            answers=shown,
        )

    counts = np.asarray([[40, 10], [5, 45]])
    results = tuple(
        ModelResult(
            name=name,
            source=HOSTILE,
            accuracy=0.85,
            examples=100,
            per_class={LABELS[0]: 0.8, LABELS[1]: 0.9},
            support=dict.fromkeys(LABELS, 50),
            counts=counts,
            agreement=None if name == STUDENT else Agreement(STUDENT, 0.99, 0.9, 0.95),
        )
        for name in (STUDENT, FILE)
    )
    quantiles = (1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 2.5)
    timing = Timing(FILE, quantiles, 1.5, (0.3, 0.28, 0.32), 0.5, None, 20.5, 200)
    point = FrontPoint(FILE, 0.85, 1.3, True, True)
    confidences: tuple[Confidence, ...] = (
        Confidence(
            FILE,
            ((0.1, 0.0), (0.5, 0.1), (1.0, 0.15)),
            (ReliabilityBin(0.4, 0.5, 0, None, None), ReliabilityBin(0.5, 0.6, 10, 0.55, 0.5)),
            0.05,
        ),
    )
    if problem != "single_label_classification":
        mine, file = answers[STUDENT], answers[FILE]
        results = (
            kind.result(STUDENT, HOSTILE, mine, LABELS),
            replace(
                kind.result(FILE, HOSTILE, file, LABELS),
                agreement=kind.agreement(file, mine, STUDENT, LABELS, same_tokens=True),
            ),
        )
        found = kind.confidence(file, FILE)
        confidences = () if found is None else (found,)
    return ReportContent(
        title=HOSTILE,
        description=HOSTILE,
        modality="text" if modality == "text" else "image",
        label_names=LABELS,
        rationale_ratio=0.2,
        created="2026-11-21 20:00 UTC",
        version="0.1.0",
        primary=FILE,
        lineages=(
            Lineage(
                HOSTILE,
                (Stage("recipe", HOSTILE, ((HOSTILE, HOSTILE), ("empty", ""))),),
                (Stage("file", HOSTILE, (("sha256", "0" * 64),), HOSTILE),),
            ),
        ),
        data=((HOSTILE, HOSTILE),),
        trainings=(
            Training(
                HOSTILE,
                (TrainingPhase(HOSTILE, (10, 20, 30), (0.5, 0.4, 0.3)),),
                ((HOSTILE, (0, 30), (0.5, 0.7)),),
                (HOSTILE,),
            ),
        ),
        results=results,
        confidences=confidences,
        calibrations=(
            (
                FILE,
                StoredCalibration(
                    temperature=1.375,
                    fitted_on=1234,
                    confidence_threshold=0.625,
                    margin_threshold=0.03125,
                    asked={"risk": 0.07, "rationale_risk": 0.03, "confidence": 0.85},
                    promised={"risk": 0.0689, "rationale_risk": 0.0276},
                    examples=987,
                    ece_before=0.111,
                    ece_after=0.022,
                    coverage=0.834,
                    risk=0.0456,
                    rationale_risk=0.0123,
                    refused={"confidence": 151, "margin": 17},
                ),
            ),
            (HOSTILE, None),
        ),
        benches=(Bench(HOSTILE, HOSTILE, False, HOSTILE, HOSTILE, (timing, timing), (HOSTILE,)),),
        fronts=(Front(HOSTILE, HOSTILE, (point, FrontPoint(HOSTILE, 0.8, 2.0, False, False))),),
        checks=(
            Checks(HOSTILE, (GateLine(HOSTILE, HOSTILE, HOSTILE, HOSTILE, "failed"),), HOSTILE),
        ),
        groups=(
            ExampleGroup("wrong", HOSTILE, HOSTILE, tuple(example(i) for i in range(examples))),
        ),
        notes=(HOSTILE,),
        problem=problem,
    )
