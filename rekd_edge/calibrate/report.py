"""What a calibration is worth: measured on the split it was fitted on, and on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rekd_edge.calibrate.answers import Answers
from rekd_edge.calibrate.fit import Fitted
from rekd_edge.calibrate.probabilities import (
    ReliabilityBin,
    confidence_of,
    decisions,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from rekd_edge.calibrate.selective import BoundedThreshold, Curve, Refusals, risk_coverage
from rekd_edge.calibrate.spec import Calibration

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Probabilities:
    """Of one split at one temperature. ``nll`` in nats. Of several labels, over all of them."""

    temperature: float
    ece: float
    nll: float
    reliability: tuple[ReliabilityBin, ...]

    @staticmethod
    def of(answers: Answers, temperature: float) -> Probabilities:
        logits, labels, problem = answers.logits, answers.labels, answers.problem
        stated, came_true = decisions(logits, labels, problem, temperature)
        return Probabilities(
            temperature=temperature,
            ece=expected_calibration_error(stated, came_true),
            nll=negative_log_likelihood(logits, labels, temperature, problem),
            reliability=reliability(stated, came_true),
        )


@dataclass(frozen=True, slots=True)
class Side:
    """One split. ``accuracy`` is the share of right answers, of several labels those with all
    right; ``risk`` the share of wrong ones among the ``coverage`` answered (None if none is),
    ``refused`` counts examples by reason, one may be under both. ``rationale_risk`` is the share of
    rationales among those answered that the torch model did not choose (None where it was not
    asked)."""

    examples: int
    accuracy: float
    uncalibrated: Probabilities
    calibrated: Probabilities
    coverage: float
    risk: float | None
    rationale_risk: float | None
    refused: dict[str, int]
    by_confidence: Curve
    by_margin: Curve

    @staticmethod
    def of(answers: Answers, calibration: Calibration, reference: Answers | None = None) -> Side:
        confidence = confidence_of(answers.logits, answers.problem, calibration.temperature)
        refused = Refusals.of(confidence, answers.margin, calibration)
        answered = refused.answered
        wrong = ~answers.right
        changed = None if reference is None else answers.other_rationale(reference)
        some = bool(answered.any())
        return Side(
            examples=len(answers),
            accuracy=float(answers.right.mean()),
            uncalibrated=Probabilities.of(answers, 1.0),
            calibrated=Probabilities.of(answers, calibration.temperature),
            coverage=float(answered.mean()),
            risk=float(wrong[answered].mean()) if some else None,
            rationale_risk=(
                float(changed[answered].mean()) if changed is not None and some else None
            ),
            refused={
                "confidence": int(refused.confidence.sum()),
                "margin": int(refused.margin.sum()),
            },
            by_confidence=Curve.of(risk_coverage(confidence, wrong)),
            by_margin=Curve.of(risk_coverage(answers.margin, wrong)),
        )


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """``reports/calibration.json``. Nothing was chosen on ``test``."""

    calibration: Calibration
    promises: Mapping[str, BoundedThreshold]
    dev: Side
    test: Side

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "calibration": self.calibration.model_dump(mode="json"),
            "promises": {name: asdict(one) for name, one in self.promises.items()},
            "dev": asdict(self.dev),
            "test": asdict(self.test),
        }

    def render(self, console: Console) -> None:
        """Two or three lines."""
        test = self.test
        console.print(
            f"calibration: temperature {self.calibration.temperature:.3f} from "
            f"{self.dev.examples} dev examples; ECE on test {test.uncalibrated.ece:.3f} -> "
            f"{test.calibrated.ece:.3f}; area under risk-coverage {test.by_confidence.area:.3f} "
            f"(error rate {1 - test.accuracy:.3f})",
            markup=False,
        )
        if self.calibration.asked is None:
            return
        thresholds = (
            ("confidence", self.calibration.confidence_threshold),
            ("margin", self.calibration.margin_threshold),
        )
        shown = [f"{name} below {value:.4g}" for name, value in thresholds if value is not None]
        risk = "-" if test.risk is None else f"{test.risk:.3f}"
        console.print(
            f"abstention: {' or '.join(shown) or 'never'}; answers {test.coverage:.3f} of the test "
            f"split, {risk} of them wrong (dev: {self.dev.coverage:.3f})",
            markup=False,
        )


def report_of(
    fitted: Fitted,
    dev: Answers,
    test: Answers,
    *,
    dev_reference: Answers | None = None,
    test_reference: Answers | None = None,
) -> CalibrationReport:
    """References are the torch model's answers, where rationales are to be compared."""
    return CalibrationReport(
        calibration=fitted.calibration,
        promises=fitted.promises,
        dev=Side.of(dev, fitted.calibration, dev_reference),
        test=Side.of(test, fitted.calibration, test_reference),
    )
