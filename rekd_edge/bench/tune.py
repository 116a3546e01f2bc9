"""Which runtime settings answer a finished file's queries faster than the default, on this machine.

A greedy search: one setting after the other, each value timed beside the best so far in interleaved
rounds over real inputs. A value is taken only if the whole 95 % interval of its ratio lies below 1
and its answers are those of the default. Of many noisy trials the luckiest would win too, so what
the search has put together is tried again in rounds of its own: without each of its settings (one
that is not needed for certain is given back), and at last against the default.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rekd_edge.bench.measure import Inputs, measure_in_turn
from rekd_edge.bench.report import BenchSettings
from rekd_edge.bench.timing import Ratio, describe_machine, ratio_of_medians
from rekd_edge.check.compare import Comparison, differences, summarise
from rekd_edge.check.gates import GateSet, evaluate_gates
from rekd_edge.errors import BackendError, UsageError
from rekd_edge.problem import Reading
from rekd_edge.runners import OnnxRunner, RuntimeSettings, available_cores
from rekd_edge.types import Outputs


@dataclass(frozen=True, slots=True)
class TunePlan:
    """Rounds, that is queries of each candidate. After ``first_rounds`` values drop out that are
    slower for certain; those left get ``rounds`` in all. ``confirm_rounds`` decide."""

    first_rounds: int = 15
    rounds: int = 60
    confirm_rounds: int = 200
    warmup: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """One value of one setting against the best settings so far. ``ratio`` of medians, below 1 is
    faster; ``why_not`` is empty where the value was taken."""

    setting: str
    value: object
    rounds: int
    ratio: Ratio | None
    why_not: str

    def to_json(self) -> dict[str, Any]:
        return {
            "setting": self.setting,
            "value": self.value,
            "rounds": self.rounds,
            "ratio": None if self.ratio is None else self.ratio.to_json(),
            "taken": not self.why_not,
            "why_not": self.why_not,
        }


@dataclass(frozen=True, slots=True)
class TuneReport:
    """``settings`` are ``start`` unless others won. ``confirmation`` is the ratio of what the
    search had found (``found``) to ``start`` in the final rounds; None where nothing was found."""

    settings: RuntimeSettings
    start: RuntimeSettings
    found: RuntimeSettings
    confirmation: Ratio | None
    trials: tuple[Trial, ...]
    why_not: str
    """Why ``found`` was not taken, where it was not."""
    cores: int
    examples: int
    plan: TunePlan
    machine: Mapping[str, object]
    date: str

    def to_json(self) -> dict[str, Any]:
        ratio = self.confirmation
        return {
            "schema_version": 1,
            "settings": self.settings.model_dump(),
            "changed": self.settings.differences(),
            "start": self.start.model_dump(),
            "found": self.found.model_dump(),
            "confirmation": None if ratio is None else ratio.to_json(),
            "why_not": self.why_not,
            "trials": [trial.to_json() for trial in self.trials],
            "scope": "one example a query, interleaved with the default; a value is taken if the "
            "95 % bootstrap interval of the ratio of medians lies below 1",
            "cores": self.cores,
            "examples": self.examples,
            "plan": asdict(self.plan),
            "machine": dict(self.machine),
            "date": self.date,
        }


def is_faster(ratio: Ratio) -> bool:
    """The rule: faster for certain, not on average."""
    return ratio.high < 1.0


def choices(
    settings: RuntimeSettings, cores: int, *, search_threads: bool = True
) -> dict[str, tuple[RuntimeSettings, ...]]:
    """Setting to the neighbours of ``settings`` in it. What only matters between threads is left
    out where there is one."""
    threads = cores if settings.threads is None else min(settings.threads, cores)
    values: dict[str, tuple[object, ...]] = {
        "graph_optimization": ("extended", "basic", "disabled"),
        "cpu_arena": (False,),
        "memory_pattern": (False,),
        "prepacking": (False,),
    }
    if search_threads:
        powers = {2**i for i in range(cores.bit_length()) if 2**i < cores}
        values = {"threads": tuple(sorted(powers - {threads}))} | values
    if threads > 1:
        values |= {
            "execution_mode": ("parallel",),
            "spinning": (False,),
            "dynamic_block_base": (4,),
        }
    return {
        name: tuple(settings.model_copy(update={name: value}) for value in found)
        for name, found in values.items()
        if found
    }


SETTINGS = (
    "threads",
    "graph_optimization",
    "cpu_arena",
    "memory_pattern",
    "prepacking",
    "execution_mode",
    "spinning",
    "dynamic_block_base",
)
"""In the order of the search: what moves the latency most comes first."""


def tune(
    file: Path,
    examples: Sequence[Inputs],
    *,
    gates: GateSet,
    threads: int | None = None,
    provider: str = "CPUExecutionProvider",
    plan: TunePlan | None = None,
    reading: Reading | None = None,
) -> TuneReport:
    """Searches settings for ``file``. ``examples`` are single real inputs (``[1, ...]`` each),
    ``reading`` is what its logits mean [single-label].

    ``threads`` are kept, where they are given; otherwise they are searched too, and stay open
    (all cores of the machine that runs the file) unless fewer win. Raises :class:`UsageError`
    without examples and :class:`BackendError` where the file does not run.
    """
    if not examples:
        raise UsageError("settings are searched with real inputs, and there are none")
    reading = reading or Reading()
    held = gates.applicable(reading.problem)
    search = _Search(file, examples, held, provider, plan or TunePlan(), reading)
    start = RuntimeSettings(threads=threads)
    found = start
    for name in SETTINGS:
        near = choices(found, available_cores(), search_threads=threads is None).get(name, ())
        found = search.better(name, found, near)
    found = search.without_needless(start, found)
    confirmation, why_not = None, "nothing was faster"
    if found != start:
        confirmation = search.time(start, (found,), search.plan.confirm_rounds)[found]
        why_not = "" if is_faster(confirmation) else "not faster in the final rounds"
    return TuneReport(
        settings=start if why_not else found,
        start=start,
        found=found,
        confirmation=confirmation,
        trials=tuple(search.trials),
        why_not=why_not,
        cores=available_cores(),
        examples=len(examples),
        plan=search.plan,
        machine=describe_machine(),
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def _changed(start: RuntimeSettings, found: RuntimeSettings) -> list[str]:
    return [name for name in SETTINGS if getattr(start, name) != getattr(found, name)]


class _Search:
    def __init__(
        self,
        file: Path,
        examples: Sequence[Inputs],
        gates: GateSet,
        provider: str,
        plan: TunePlan,
        reading: Reading,
    ) -> None:
        self.reading = reading
        self.file, self.gates, self.provider, self.plan = file, gates, provider, plan
        order = np.random.default_rng(plan.seed).permutation(len(examples))
        self.examples = [examples[i] for i in order]
        self.trials: list[Trial] = []
        self._default_answers: list[Outputs] | None = None
        self._asked = 0

    def better(
        self, name: str, best: RuntimeSettings, near: Sequence[RuntimeSettings]
    ) -> RuntimeSettings:
        """The fastest of ``near`` that is faster than ``best`` and answers alike, or ``best``."""
        ratios: dict[RuntimeSettings, Ratio] = {}
        left = tuple(near)
        for rounds in (self.plan.first_rounds, self.plan.rounds):
            if left:
                ratios |= self.time(best, left, rounds)
                left = tuple(one for one in left if ratios[one].low <= 1.0)
        taken = best
        for one in sorted(near, key=lambda settings: ratios[settings].value):
            ratio = ratios[one]
            if not is_faster(ratio):
                why_not = "not faster for certain"
            elif taken is not best:
                why_not = "another value is faster"
            else:
                why_not = self.other_answers(one)
            if not why_not:
                taken = one
            rounds = self.plan.rounds if one in left else self.plan.first_rounds
            self.trials.append(Trial(name, getattr(one, name), rounds, ratio, why_not))
        return taken

    def without_needless(self, start: RuntimeSettings, found: RuntimeSettings) -> RuntimeSettings:
        """``found`` without the settings that it is not faster with, for certain, in new rounds."""
        while len(changed := _changed(start, found)) > 1:
            without = {
                found.model_copy(update={name: getattr(start, name)}): name for name in changed
            }
            ratios = self.time(found, tuple(without), self.plan.confirm_rounds)
            least = min(without, key=lambda settings: ratios[settings].low)
            if ratios[least].low > 1.0:
                break
            name = without[least]
            self.trials.append(
                Trial(
                    name,
                    getattr(start, name),
                    self.plan.confirm_rounds,
                    ratios[least],
                    "",
                )
            )
            found = least
        return found

    def time(
        self, reference: RuntimeSettings, others: Sequence[RuntimeSettings], rounds: int
    ) -> dict[RuntimeSettings, Ratio]:
        """Ratios to ``reference`` over new rounds, all in one interleaved run."""
        everything = (reference, *others)
        with ExitStack() as stack:
            runners = {
                str(i): stack.enter_context(self.open(settings))
                for i, settings in enumerate(everything)
            }
            outputs = {name: tuple(runner.output_names) for name, runner in runners.items()}
            inputs = self._next_inputs(rounds)
            for query in inputs[: self.plan.warmup]:
                for name, runner in runners.items():
                    runner.run_named(query, outputs[name])
            samples = measure_in_turn(
                runners,
                outputs,
                dict.fromkeys(runners, inputs),
                BenchSettings(min_duration_s=0.0, min_count=rounds),
            )
        return {
            settings: ratio_of_medians(samples[str(i)], samples["0"], seed=self.plan.seed)
            for i, settings in enumerate(everything)
            if i > 0
        }

    def other_answers(self, settings: RuntimeSettings) -> str:
        """How the answers differ from those of the default settings; empty where they do not."""
        if self._default_answers is None:
            self._default_answers = self.answers(RuntimeSettings())
        try:
            mine = self.answers(settings)
        except BackendError as error:
            return error.message
        both = zip(self._default_answers, mine, strict=True)
        parts = [differences(a, b, self.reading) for a, b in both]
        return unlike(summarise(parts, near_tie_margin=self.gates.near_tie_margin), self.gates)

    def answers(self, settings: RuntimeSettings) -> list[Outputs]:
        with self.open(settings) as runner:
            return [runner.run(example) for example in self.examples]

    def open(self, settings: RuntimeSettings) -> OnnxRunner:
        return OnnxRunner(self.file, provider=self.provider, settings=settings)

    def _next_inputs(self, count: int) -> list[Inputs]:
        """Inputs go on where the last rounds have ended."""
        total = len(self.examples)
        inputs = [self.examples[(self._asked + i) % total] for i in range(max(count, 1))]
        self._asked += count
        return inputs


def unlike(comparison: Comparison, gates: GateSet) -> str:
    """Why two answers to the same examples are not alike: another rationale or label anywhere, or
    an error beyond what ``gates`` allow a file; empty where they are."""
    same_labels = comparison.label_agreement in (None, 1.0)  # values are held by their errors
    if comparison.rationale_exact < 1.0 or not same_labels:
        return "other rationales or labels than with the default settings"
    found = {
        name: float(value)
        for name, value in comparison.to_json().items()
        if name.startswith(("max_", "mean_"))
    }
    asked = tuple(gate for gate in gates.gates if gate.metric in found and gate.goal == "threshold")
    if not asked:
        return ""
    results = evaluate_gates(gates.model_copy(update={"gates": asked}), found, {})
    return "; ".join(result.reason for result in results if not result.passed)
