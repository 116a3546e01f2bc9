"""The rule of the search on synthetic times, and the search itself on a real file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rekd_edge.bench import tune as tune_module
from rekd_edge.bench.timing import Ratio, ratio_of_medians
from rekd_edge.bench.tune import (
    SETTINGS,
    TunePlan,
    TuneReport,
    choices,
    is_faster,
    tune,
    unlike,
)
from rekd_edge.check import LabelledBatch, load_gates
from rekd_edge.check.compare import differences, summarise
from rekd_edge.check.inputs import examples_of
from rekd_edge.convert import OnnxArtefact
from rekd_edge.errors import UsageError
from rekd_edge.problem import Reading
from rekd_edge.runners import RuntimeSettings
from rekd_edge.types import Outputs

QUICK = TunePlan(first_rounds=3, rounds=6, confirm_rounds=10, warmup=1)


def times(rng: np.random.Generator, count: int, median_ns: float) -> np.ndarray:
    """Like real ones: a long tail to the right, and drift that hits both sides of a pair."""
    return median_ns * (1 + rng.gamma(1.0, 0.05, count))


def test_the_rule_takes_what_is_faster_for_certain_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    drift = 1 + 0.3 * np.sin(np.arange(200) / 20)
    slow, fast = times(rng, 200, 1e6) * drift, times(rng, 200, 0.9e6) * drift
    assert is_faster(ratio_of_medians(fast, slow))
    assert not is_faster(ratio_of_medians(slow, fast))
    assert not is_faster(ratio_of_medians(slow, slow))
    # A lower median alone is not enough: five noisy pairs prove nothing.
    reference = np.asarray([100.0, 200.0, 90.0, 210.0, 150.0])
    lucky = np.asarray([140.0, 120.0, 220.0, 95.0, 149.0])
    ratio = ratio_of_medians(lucky, reference)
    assert ratio.value < 1.0
    assert not is_faster(ratio)
    assert not is_faster(Ratio(0.9, 0.8, 1.0))
    assert not is_faster(Ratio(math.nan, math.nan, math.nan))


def test_equal_settings_are_rarely_taken_and_must_win_twice() -> None:
    rng = np.random.default_rng(1)

    def wins() -> bool:
        return is_faster(ratio_of_medians(times(rng, 60, 1e6), times(rng, 60, 1e6), resamples=200))

    alone = [wins() for _ in range(200)]
    twice = [wins() for won in alone if won]
    assert sum(alone) <= 16  # 2.5 % of 200 and some
    assert sum(twice) <= 2


def test_neighbours_differ_in_one_setting_and_fit_the_machine() -> None:
    start = RuntimeSettings()
    for cores in (1, 2, 6, 8):
        found = choices(start, cores)
        assert set(found) <= set(SETTINGS)
        for name, values in found.items():
            for value in values:
                assert set(value.differences()) == {name}
        counts = [one.threads for one in found.get("threads", ())]
        assert counts == [count for count in (1, 2, 4) if count < cores]
    assert "execution_mode" not in choices(start, 1)
    assert "spinning" not in choices(RuntimeSettings(threads=1), 8)
    assert "spinning" in choices(start, 8)
    assert "threads" not in choices(start, 8, search_threads=False)


def test_answers_must_be_alike_within_the_gates() -> None:
    gates = load_gates("default")
    scores = np.asarray([[3.0, 2.0, 1.0]], dtype=np.float32)
    keep = np.asarray([[True, False, False]])
    margin = np.asarray([1.0], dtype=np.float32)
    logits = np.asarray([[1.0, 0.0]], dtype=np.float32)
    base = Outputs(logits, keep, scores, margin)

    def why(other: Outputs) -> str:
        return unlike(summarise([differences(base, other)], near_tie_margin=1e-4), gates)

    assert why(base) == ""
    assert why(Outputs(logits + np.float32(1e-6), keep, scores, margin)) == ""
    assert "max_logit_error" in why(Outputs(logits + np.float32(1e-2), keep, scores, margin))
    assert "max_scaled_score_error" in why(Outputs(logits, keep, scores * 2, margin))
    assert "other rationales" in why(Outputs(logits, keep[:, ::-1], scores, margin))
    # Gates of lower precision bound no error, but the rationale must stay the same even there.
    low = load_gates("low-precision")
    flipped = summarise(
        [differences(base, Outputs(logits, keep[:, ::-1], scores, margin))], near_tie_margin=1e-4
    )
    assert unlike(flipped, low)


def test_settings_of_a_regression_are_held_by_the_errors_of_its_values() -> None:
    keep = np.array([[True, False]] * 2)
    score = np.array([[1.0, 0.0]] * 2, np.float32)
    values = np.array([[1000.0], [3000.0]], np.float32)
    reading = Reading.of("regression", values)
    gates = load_gates("default").applicable("regression")

    def why(other: np.ndarray) -> str:
        margin = np.ones(2, np.float32)
        own, found = (Outputs(v, keep, score, margin) for v in (values, other))
        apart = differences(own, found, reading)
        return unlike(summarise([apart], near_tie_margin=1e-4), gates)

    assert why(values + np.float32(0.05)) == ""  # 5e-5 of the deviation
    found = why(values + np.float32(10))
    assert "max_logit_error" in found
    assert "mean_value_error" in found


def test_the_search_on_a_real_file(
    tiny_text_onnx: OnnxArtefact, text_batches: list[LabelledBatch]
) -> None:
    examples = examples_of(text_batches, 12)
    report = tune(tiny_text_onnx.path, examples, gates=load_gates("default"), plan=QUICK, threads=1)
    tried = {(trial.setting, trial.value) for trial in report.trials}
    assert {("graph_optimization", "disabled"), ("cpu_arena", False)} <= tried
    assert "threads" not in {name for name, _ in tried}
    assert report.start == RuntimeSettings(threads=1)
    for trial in report.trials:
        assert trial.ratio is not None
        if trial.rounds == QUICK.confirm_rounds:  # given back: not faster with it for certain
            assert trial.ratio.low <= 1.0
        elif not trial.why_not:
            assert trial.ratio.high < 1.0
    if report.settings != report.start:
        assert report.confirmation is not None
        assert report.confirmation.high < 1.0
        assert report.settings == report.found
    else:
        assert report.why_not
    stored = report.to_json()
    assert RuntimeSettings.model_validate(stored["settings"]) == report.settings
    assert len(stored["trials"]) == len(report.trials)


def test_wins_that_are_not_confirmed_are_given_back(
    tiny_text_onnx: OnnxArtefact,
    text_batches: list[LabelledBatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every trial wins on paper; in the final rounds prepacking alone matters, and it must stay."""

    def lucky(
        self: tune_module._Search,
        reference: RuntimeSettings,
        others: tuple[RuntimeSettings, ...],
        rounds: int,
    ) -> dict[RuntimeSettings, Ratio]:
        if rounds != QUICK.confirm_rounds:
            return {one: Ratio(0.5, 0.4, 0.6) for one in others}

        def cost(settings: RuntimeSettings) -> float:
            return 1.0 if settings.prepacking else worth

        values = {one: cost(one) / cost(reference) for one in others}
        return {one: Ratio(value, value - 0.1, value + 0.1) for one, value in values.items()}

    def searched() -> TuneReport:
        return tune(
            tiny_text_onnx.path,
            examples_of(text_batches, 6),
            gates=load_gates("default"),
            plan=QUICK,
            threads=1,
        )

    monkeypatch.setattr(tune_module._Search, "time", lucky)
    worth = 0.5  # of the time without prepacking
    report = searched()
    assert report.settings.differences() == {"threads": 1, "prepacking": False}
    assert report.confirmation == Ratio(0.5, 0.4, 0.6)
    given_back = [trial for trial in report.trials if trial.rounds == QUICK.confirm_rounds]
    assert [trial.setting for trial in given_back] == [
        "graph_optimization",
        "cpu_arena",
        "memory_pattern",
    ]
    worth = 1.05
    report = searched()
    assert report.found != report.start
    assert report.settings == report.start
    assert report.why_not == "not faster in the final rounds"


def test_a_faster_setting_with_other_answers_is_refused(
    tiny_text_onnx: OnnxArtefact,
    text_batches: list[LabelledBatch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        tune_module._Search,
        "time",
        lambda self, reference, others, rounds: {one: Ratio(0.5, 0.4, 0.6) for one in others},
    )
    impossible = tmp_path / "gates.yaml"
    impossible.write_text(
        "schema_version: 1\nname: impossible\ngates:\n  - {metric: max_logit_error, value: -1}\n"
    )
    report = tune(
        tiny_text_onnx.path,
        examples_of(text_batches, 6),
        gates=load_gates(str(impossible)),
        plan=QUICK,
        threads=1,
    )
    assert report.settings == report.start
    assert report.why_not == "nothing was faster"
    assert all("max_logit_error" in trial.why_not for trial in report.trials)


def test_a_search_without_inputs_is_refused(tiny_text_onnx: OnnxArtefact) -> None:
    with pytest.raises(UsageError, match="real inputs"):
        tune(tiny_text_onnx.path, [], gates=load_gates("default"))
