"""Schedules: pure functions from a step number to a number."""

from __future__ import annotations

import math

from rekd_edge.recipe.schema import ObjectiveSpec, RatioScheduleSpec, TemperatureSpec


def temperature_at(step: int, total_steps: int, spec: TemperatureSpec) -> float:
    """tau(step) = max(start * exp(-gamma * step), end), gamma = ln(start / end) / total_steps.

    With start 5 and end 0.1 this is the published schedule (arXiv 2601.22531: gamma =
    ln(50) / total steps, updated every 100 steps). ``update_every`` is capped at a tenth of a
    run, so that a short run anneals too (a deviation that runs of over 1,000 steps never see).
    """
    every = max(1, min(spec.update_every, total_steps // 10))
    held = (step // every) * every
    gamma = math.log(spec.start / spec.end) / max(1, total_steps)
    return max(spec.start * math.exp(-gamma * held), spec.end)


def published_temperature_at(step: int, total_steps: int, spec: TemperatureSpec) -> float:
    """The same schedule exactly as in the official code.

    ``step`` is counted from 0 here and from 1 there: tau first changes for the
    ``update_every``-th step, whose number enters the formula. There is no cap: a run of fewer
    steps keeps ``start``.
    """
    number = step + 1
    held = number - number % spec.update_every
    if held == 0:
        return spec.start
    gamma = math.log(spec.start / spec.end) / max(1, total_steps)
    return max(spec.start * math.exp(-gamma * held), spec.end)


def alpha_at(step: int, total_steps: int, spec: ObjectiveSpec) -> float:
    """alpha at ``step`` (0-based): linear from ``alpha`` at the first step to ``alpha_end`` at the
    last, or constant without ``alpha_end``."""
    if spec.alpha_end is None:
        return spec.alpha
    progress = min(1.0, step / max(1, total_steps - 1))
    return spec.alpha + (spec.alpha_end - spec.alpha) * progress


def ratio_at(
    step: int, total_steps: int, schedule: RatioScheduleSpec | None, rationale_ratio: float
) -> float:
    """Share of tokens kept at ``step`` (0-based): linear from ``start`` to ``rationale_ratio`` over
    the first ``until`` of the steps, then ``rationale_ratio``.

    Between its ends it is rounded to four decimals, so that budgets stay exact in int64.
    """
    if schedule is None or step >= schedule.until * total_steps:
        return rationale_ratio
    progress = step / (schedule.until * total_steps)
    return round(schedule.start + (rationale_ratio - schedule.start) * progress, 4)


def learning_rate_factor(step: int, total_steps: int, *, warmup_share: float, kind: str) -> float:
    """Multiplier of the learning rate at ``step`` (0-based): linear rise, then ``kind``.

    ``kind`` is ``constant``, ``linear`` (to 0) or ``cosine`` (to 0).
    """
    warmup_steps = math.ceil(total_steps * warmup_share)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    progress = min(1.0, progress)
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return 1.0 - progress
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown learning-rate schedule {kind!r}")
