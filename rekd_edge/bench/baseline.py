"""Rules that hold a benchmark to an earlier one: ``p90_latency_ms>+5%``, ``accuracy<-0.5``.

    RULE       = METRIC COMPARISON NUMBER
    COMPARISON = "<" | "<=" | ">" | ">="
    NUMBER     = ("+" | "-") DIGITS ["%"]     a difference from the baseline
               | DIGITS                       the value itself; no baseline is needed

A rule says what must *not* be the case. Differences have the metric's unit (accuracy: points), or
with ``%`` are relative to the baseline's value. What cannot be compared (another machine for
times, other data for accuracies) is refused before anything is measured; what was not measured
fails its rule.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from rekd_edge.errors import UsageError

FILE = "gathered"
"""The bundle's own file among the candidates of a report."""

Needs = Literal["machine", "data", "nothing"]


@dataclass(frozen=True, slots=True)
class Metric:
    """``needs`` is what must be the same for two values to be compared."""

    unit: str
    needs: Needs
    description: str


METRICS: dict[str, Metric] = {
    **{
        f"p{name.replace('.', '_')}_latency_ms": Metric(
            "ms", "machine", f"{name}th percentile of the latency of one query"
        )
        for name in ("50", "90", "95", "97", "99", "99.9")
    },
    "mean_latency_ms": Metric("ms", "machine", "mean latency of one query"),
    "early_stopping_latency_ms": Metric(
        "ms", "machine", "load test: what the target percentile is at most, 99 % confidence"
    ),
    "samples_per_second": Metric("/s", "machine", "load test, offline: throughput"),
    "energy_per_query_j": Metric("J", "machine", "load test: energy of the machine for a query"),
    "ratio_to_plain": Metric("", "machine", "median latency over the plain classifier's"),
    "first_answer_s": Metric("s", "machine", "fresh process to first answer, median"),
    "peak_rss_mb": Metric("MB", "machine", "largest resident memory of a fresh process"),
    "size_mb": Metric("MB", "nothing", "size of the model file"),
    "score": Metric(
        "points", "data", "accuracy, micro F1 or R², by problem type, on the test split, in percent"
    ),
    "accuracy": Metric("points", "data", "right answers on the test split, in percent"),
    "coverage": Metric("points", "data", "load test, accuracy: answers not withheld, in percent"),
    "worst_class_accuracy": Metric("points", "data", "the same of the worst class"),
    "label_agreement": Metric("points", "data", "labels equal to the torch model's, in percent"),
    "rationale_exact": Metric(
        "points", "data", "rationales equal to the torch model's, in percent"
    ),
    "rationale_jaccard": Metric("points", "data", "mean overlap of the two rationales, in percent"),
}
"""Everything that a rule can ask for."""

_SHARES = (
    "score",
    "accuracy",
    "worst_class_accuracy",
    "label_agreement",
    "rationale_exact",
    "rationale_jaccard",
)
_SAME_MACHINE = ("cpu", "board", "architecture", "system", "cores_available", "cpu_quota")
_SAME_MEASUREMENT = (
    "report",
    "scenario",
    "mode",
    "scope",
    "driver",
    "threads",
    "batch",
    "samples_per_query",
    "idle_gap_ms",
    "runtime",
    "provider",
    "inputs",
    "inputs_sha256",
    "input_count",
)
"""The default benchmark and the load test have each what the other has not."""
LOAD_TEST = "load-test"
"""``report`` of a document of ``rekd_bench.py``."""
_OTHER_DATA_ALLOWED = {"train", "dev", "transfer", "licence", "texts_shared_between_splits"}
"""What a data set may differ in while its test split stays the same."""
_RULE = re.compile(
    r"^\s*(?P<metric>[a-z0-9_]+)\s*(?P<comparison><=|>=|<|>)\s*"
    r"(?P<sign>[+-])?\s*(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?P<percent>%)?\s*$"
)
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


class BundleRecord(BaseModel):
    """What a benchmark's JSON says about the bundle that it measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    target: str
    precision: str
    data: dict[str, str] = {}
    """The data set whose test split ``quality`` is about, as in the manifest."""
    quality: dict[str, float] = {}
    """Shares 0..1 from the bundle's check report."""

    @classmethod
    def of(
        cls,
        *,
        name: str,
        target: str,
        precision: str,
        data: Mapping[str, str],
        check: Mapping[str, Any] | None,
    ) -> BundleRecord:
        """``check`` is the bundle's ``reports/check.json``, if it has one."""
        metrics = (check or {}).get("metrics", {})
        shares = {key: float(metrics[key]) for key in _SHARES if metrics.get(key) is not None}
        return cls(name=name, target=target, precision=precision, data=dict(data), quality=shares)


@dataclass(frozen=True, slots=True)
class Rule:
    """One parsed ``--fail-on``. ``change`` None: ``value`` is the limit itself."""

    text: str
    metric: str
    comparison: str
    value: float
    change: Literal["absolute", "relative"] | None

    def limit(self, baseline: float | None) -> float:
        """The number that the measured value is compared with."""
        if self.change is None:
            return self.value
        assert baseline is not None
        if self.change == "relative":
            return baseline + abs(baseline) * self.value / 100
        return baseline + self.value


def parse_rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """Raises :class:`UsageError` that lists every rule that is none."""
    rules, problems = [], []
    for text in texts:
        found = _RULE.match(text)
        if found is None:
            problems.append(f"{text!r} is no rule")
            continue
        metric, sign, percent = found["metric"], found["sign"], found["percent"]
        if metric not in METRICS:
            problems.append(f"{text!r}: there is no metric {metric!r}")
        elif percent and not sign:
            problems.append(f"{text!r}: a percentage is a difference and needs a sign, as +5%")
        else:
            value = float(found["number"]) * (-1 if sign == "-" else 1)
            change = None if not sign else "relative" if percent else "absolute"
            rules.append(Rule(text.strip(), metric, found["comparison"], value, change))
    if problems:
        raise UsageError(
            "--fail-on: " + "; ".join(problems),
            hint='for instance --fail-on "p90_latency_ms>+5%" --fail-on "accuracy<-0.5"; metrics: '
            + ", ".join(METRICS),
        )
    return tuple(rules)


def values_of(document: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a benchmark's JSON; what it does not hold is left out."""
    found: dict[str, float] = {}
    is_load_test = document.get("report") == LOAD_TEST
    file = document if is_load_test else document["candidates"][FILE]
    # Offline, a latency counts from the start of the only query: it is no property of the model.
    if not (is_load_test and (document["scenario"] == "Offline" or document["quality"])):
        for name in ("50", "90", "95", "97", "99", "99.9"):
            key = f"p{name.replace('.', '_')}_latency_ms"
            found[key] = file[f"result_{name}_percentile_latency_ns"] / 1e6
        found["mean_latency_ms"] = file["result_mean_latency_ns"] / 1e6
    if is_load_test:
        found |= _load_test_values(document)
    elif file["ratio"] is not None and document["reference"] == "plain":
        found["ratio_to_plain"] = file["ratio"]["value"]
    cold = file["cold_start"]
    if cold is not None:
        found["first_answer_s"] = median(cold["time_to_first_answer_ns"]) / 1e9
        peaks = [peak for peak in cold["peak_rss_bytes"] if peak is not None]
        if peaks:
            found["peak_rss_mb"] = max(peaks) / 1e6
    found["size_mb"] = file["size_bytes"] / 1e6
    for name, share in document.get("bundle", {}).get("quality", {}).items():
        found[name] = share * 100
    if is_load_test and document["quality"]:
        quality = document["quality"]
        measured = {"score": quality["accuracy"], "coverage": quality["coverage"]}
        if "problem_type" not in quality:
            measured["accuracy"] = quality["accuracy"]
        found |= {key: share * 100 for key, share in measured.items() if share is not None}
    return {name: float(value) for name, value in found.items()}


def _load_test_values(document: Mapping[str, Any]) -> dict[str, float]:
    """What only a load test measures."""
    estimate = document.get("early_stopping_latency_ns")
    values = {
        "early_stopping_latency_ms": None if estimate is None else estimate / 1e6,
        "samples_per_second": document.get("result_samples_per_second"),
        "energy_per_query_j": document["state"]["energy"].get("energy_per_query_j"),
    }
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier ``rekd-edge bench BUNDLE --json FILE``."""

    path: Path
    document: Mapping[str, Any]
    bundle: BundleRecord | None
    values: Mapping[str, float]

    def require_comparable(
        self, rules: Sequence[Rule], *, machine: Mapping[str, object], data: Mapping[str, str]
    ) -> None:
        """Refuses what is known to be incomparable before anything is measured.

        Raises:
            UsageError: a rule's metric is not in the baseline; its times are of another machine or
                INVALID; its accuracies are of other data.
        """
        compared = [rule for rule in rules if rule.change is not None]
        missing = sorted({r.metric for r in compared if r.metric not in self.values})
        if missing:
            raise UsageError(
                f"the baseline {self.path} has no {', '.join(missing)}",
                hint="make it again with `rekd-edge bench BUNDLE --json FILE`; it has "
                + ", ".join(self.values),
            )
        needs = {METRICS[rule.metric].needs for rule in compared}
        if "machine" in needs:
            if self.document["result_validity"] != "VALID":
                raise UsageError(
                    f"the baseline {self.path} is INVALID: "
                    f"{self.document['result_invalid_reason']}",
                    hint="make it again without --quick",
                )
            stated = self.document["machine"]
            self._require_same("machine", stated, machine, _SAME_MACHINE)
        if "data" in needs:
            stated = {} if self.bundle is None else self.bundle.data
            keys = sorted((stated.keys() | data.keys()) - _OTHER_DATA_ALLOWED)
            self._require_same("data", stated, data, keys)

    def require_same_measurement(self, rules: Sequence[Rule], document: Mapping[str, Any]) -> None:
        """Raises :class:`UsageError` where times were taken in another way."""
        if any(r.change is not None and METRICS[r.metric].needs == "machine" for r in rules):
            self._require_same("measurement", self.document, document, _SAME_MEASUREMENT)

    def _require_same(
        self,
        what: str,
        stated: Mapping[str, Any],
        found: Mapping[str, Any],
        keys: Sequence[str],
    ) -> None:
        different = [
            f"{key} {stated.get(key)!r} there, {found.get(key)!r} here"
            for key in keys
            if stated.get(key) != found.get(key)
        ]
        if different:
            raise UsageError(
                f"the baseline {self.path} is of another {what}: {'; '.join(different)}",
                hint="make a baseline of its own here, or use a fixed limit, "
                'as --fail-on "p90_latency_ms>20"',
            )


def read_baseline(path: Path) -> Baseline:
    """Raises :class:`UsageError` where ``path`` is no JSON of ``rekd-edge bench BUNDLE``."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        stated = document.get("bundle")
        bundle = None if stated is None else BundleRecord.model_validate(stated)
        values = values_of(document)
        infinite = [name for name, value in values.items() if not math.isfinite(value)]
        if infinite:
            raise ValueError(f"{', '.join(infinite)}: no finite number")
        if not isinstance(document["machine"], dict) or "result_validity" not in document:
            raise TypeError("no machine, or no validity")
    except OSError as error:
        raise UsageError(f"--baseline {path}: {error.strerror or error}") from error
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"--baseline {path} is no result of a benchmark ({type(error).__name__}: {what})",
            hint="write one with: rekd-edge bench BUNDLE --json FILE",
        ) from error
    return Baseline(path, document, bundle, values)


@dataclass(frozen=True, slots=True)
class RuleResult:
    """What a rule found. ``change`` is measured minus baseline, ``change_percent`` of it."""

    rule: str
    metric: str
    unit: str
    baseline: float | None
    measured: float | None
    change: float | None
    change_percent: float | None
    limit: float | None
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All rules of one benchmark."""

    bundle: str
    setting: str
    """Machine, threads and validity in words."""
    date: str
    baseline: str | None
    results: tuple[RuleResult, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(result.reason for result in self.results if not result.passed)

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": 1, "passed": self.passed, **asdict(self)}


def judge(rules: Sequence[Rule], document: Mapping[str, Any], baseline: Baseline | None) -> Verdict:
    """Holds a benchmark's JSON to ``rules``. A value that is missing or not finite, or a time of an
    INVALID result, fails."""
    if baseline is not None:
        baseline.require_same_measurement(rules, document)
    values = values_of(document)
    earlier = {} if baseline is None else baseline.values
    invalid = "" if document["result_validity"] == "VALID" else document["result_invalid_reason"]
    machine = document["machine"]
    return Verdict(
        bundle=document["bundle"]["name"],
        setting=f"{machine['cpu']}, {document['threads']} thread(s), {document['runtime']} "
        f"{machine.get(document['runtime'], '')}, {document['result_validity']}",
        date=document["date"],
        baseline=None if baseline is None else baseline.path.name,
        results=tuple(
            _result(rule, values.get(rule.metric), earlier.get(rule.metric), invalid)
            for rule in rules
        ),
    )


def _result(rule: Rule, measured: float | None, before: float | None, invalid: str) -> RuleResult:
    metric = METRICS[rule.metric]
    unit = f" {metric.unit}" if metric.unit else ""
    limit = rule.limit(before)
    change = None if measured is None or before is None else measured - before
    percent = None if change is None or not before else change / abs(before) * 100
    passed = False
    if measured is None or not math.isfinite(measured):
        reason = f"{rule.metric} was not measured"
    elif invalid and metric.needs == "machine":
        reason = f"{rule.metric} is {measured:.6g}{unit}, but the result is INVALID: {invalid}"
    else:
        # Shares become points by a product, so the last digits say nothing.
        passed = not _COMPARISONS[rule.comparison](round(measured, 9), round(limit, 9))
        kept = "is within" if passed else "breaks"
        reason = f"{rule.metric} is {measured:.6g}{unit} and {kept} {rule.text}"
        if before is not None and change is not None:
            relative = "" if percent is None else f", {percent:+.1f}%"
            reason += f" (baseline {before:.6g}, change {change:+.4g}{relative}, limit {limit:.6g})"
    return RuleResult(
        rule=rule.text,
        metric=rule.metric,
        unit=metric.unit,
        baseline=before,
        measured=measured,
        change=change,
        change_percent=percent,
        limit=limit,
        passed=passed,
        reason=reason,
    )
