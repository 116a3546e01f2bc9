"""What can be asked of an answer's reliability, and what a bundle then says."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class AbstentionSpec(_Spec):
    """When an answer is to be withheld. `coverage` or `risk`, `rationale_risk`, or both kinds."""

    coverage: float | None = Field(default=None, gt=0, le=1)
    """Share of inputs to be answered: the surest ones."""
    risk: float | None = Field(default=None, gt=0, lt=1)
    """Share of wrong answers (several labels: those with any wrong) among those answered that must
    not be exceeded: as many as that allows are answered."""
    rationale_risk: float | None = Field(default=None, gt=0, lt=1)
    """Share of rationales other than the torch model's, among those answered, that must not be
    exceeded: near ties are refused."""
    confidence: float = Field(default=0.9, gt=0.5, lt=1)
    """How sure it must be that a risk is not exceeded on inputs like those of the development
    split."""

    @model_validator(mode="after")
    def _one_goal(self) -> AbstentionSpec:
        if self.coverage is not None and self.risk is not None:
            raise ValueError("coverage and risk contradict each other: ask for one of them")
        if self.coverage is None and self.risk is None and self.rationale_risk is None:
            raise ValueError("ask for coverage, risk or rationale_risk")
        return self


class Calibration(_Spec):
    """What ``config.json`` holds and runtimes apply::

    probabilities = softmax(logits / temperature)      # several labels: sigmoid
    confidence    = max(probabilities)                 # several labels: min(max(p, 1 - p))
    abstain       = confidence < confidence_threshold or selection_margin < margin_threshold
    """

    method: Literal["temperature"] = "temperature"
    temperature: float = Field(ge=0.01, le=100, strict=True)
    confidence_threshold: float | None = Field(default=None, ge=0, le=1, strict=True)
    """Lowest confidence that is answered: the calibrated probability of the label; null: any."""
    margin_threshold: float | None = Field(default=None, ge=0, allow_inf_nan=False, strict=True)
    """Lowest selection margin that is answered; null: any."""
    asked: AbstentionSpec | None = None
    """What the thresholds were set for; null where none was asked for, and none is set."""
    split: Literal["dev"] = "dev"
    """What it was fitted on: never the test split."""
    examples: int = Field(ge=1)
    """Examples in it."""

    @model_validator(mode="after")
    def _thresholds_were_asked_for(self) -> Calibration:
        thresholds = (self.confidence_threshold, self.margin_threshold)
        if self.asked is None and thresholds != (None, None):
            raise ValueError("thresholds without anything asked for")
        return self
