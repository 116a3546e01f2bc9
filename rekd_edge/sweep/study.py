"""The trials of a sweep in Optuna's storage, shared by any number of processes.

The storage is Optuna's journal (`study.journal`): one appended line an operation, no database to
migrate or to lock, and readable while a sweep runs. Whatever reads and then writes it does so
under one file lock, so two processes never take the same point. A point is worked on under a lock
of its own, which the system frees when its process ends: a trial that is RUNNING in the storage
and whose lock is free was interrupted, and is taken up again where its run folder stands.

A grid is put into Optuna's queue as it is. Its `GridSampler` counts failed and interrupted points
as visited, and two processes can get the same one from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rekd_edge.errors import BackendError, UsageError
from rekd_edge.recipe import dump_recipe
from rekd_edge.sweep.locks import FileLock, exclusive
from rekd_edge.sweep.plan import SweepPlan
from rekd_edge.sweep.space import Choice, Overrides, digest_of

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise BackendError(
        "sweeps need the package optuna", hint="pip install 'rekd-edge[sweep]'"
    ) from error

JOURNAL_FILE = "study.journal"
RECIPE_FILE = "recipe.resolved.yaml"
LOCKS_FOLDER = "locks"
TRIALS_FOLDER = "trials"
STUDY = "sweep"
OBJECTIVES = ("dev_accuracy", "flops_share", "kept_share")
"""What the study optimises: figures of a trial that are the same on every machine."""
DIRECTIONS = ("maximize", "minimize", "minimize")
PLAN, POINT, FIGURES, REASON = "plan", "overrides", "figures", "failed"
"""Attributes of the study and of its trials."""


class Claim:
    """A trial that this process works on. A context manager: leaving it without
    :meth:`SweepStudy.finish` or :meth:`SweepStudy.fail` leaves the trial to be taken up again."""

    def __init__(self, number: int, overrides: Overrides, lock: FileLock) -> None:
        self.number = number
        self.overrides = overrides
        self.lock = lock

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.lock.release()


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """``figures`` of a trial that passed, or ``failed`` with the reason why it did not."""

    number: int
    overrides: Overrides
    figures: dict[str, Any] | None
    failed: str | None


class SweepStudy:
    """One process's view of the sweep in ``folder``; opening it makes it where there is none.

    Raises:
        UsageError: ``folder`` holds a sweep of another plan, or something else.
    """

    def __init__(self, folder: Path, plan: SweepPlan) -> None:
        journal = folder / JOURNAL_FILE
        if not journal.exists() and folder.exists():
            if not folder.is_dir() or any(one.name != LOCKS_FOLDER for one in folder.iterdir()):
                raise UsageError(
                    f"{folder} exists and holds no sweep", hint="choose another --output"
                )
        self.folder = folder
        self.plan = plan
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._alone():
            _drop_half_written(journal)
            self._storage = JournalStorage(JournalFileBackend(str(journal)))
            if any(study.study_name == STUDY for study in self._storage.get_all_studies()):
                self._study = optuna.load_study(study_name=STUDY, storage=self._storage)
            else:
                self._study = optuna.create_study(
                    study_name=STUDY, storage=self._storage, directions=list(DIRECTIONS)
                )
            self._agree()
            resolved = folder / RECIPE_FILE
            if not resolved.is_file():
                temporary = resolved.with_name(f".{resolved.name}.tmp")
                temporary.write_text(dump_recipe(plan.base), encoding="utf-8")
                os.replace(temporary, resolved)
            self.plan = plan.read_from(resolved)
            if plan.sampler == "grid":
                self._fill_queue()

    def claim(self) -> Claim | None:
        """The next trial for this process: one that was interrupted, or else a new one.

        None where all trials are finished or worked on elsewhere (:attr:`busy`).
        """
        with self._alone():
            for trial in self._in(TrialState.RUNNING):
                if POINT not in trial.user_attrs:  # its process ended before it had a point
                    self._study.tell(trial.number, state=TrialState.FAIL)
                    continue
                found = self._try(trial.number, tuple(trial.user_attrs[POINT]))
                if found is not None:
                    return found
            while self._has_more():
                number, point = self._ask()
                found = self._try(number, point)
                if found is not None:
                    return found  # else: the same point is worked on; this one waits its turn
        return None

    @property
    def busy(self) -> bool:
        """Whether there are trials that are not finished."""
        return bool(self._in(TrialState.RUNNING, TrialState.WAITING)) or self._has_more()

    def finish(self, claim: Claim, figures: dict[str, Any]) -> None:
        """Records what came of a trial; ``figures`` hold at least :data:`OBJECTIVES`."""
        self._tell(claim, FIGURES, figures, [float(figures[name]) for name in OBJECTIVES])

    def fail(self, claim: Claim, reason: str) -> None:
        """Records that a trial has no file that could be shipped, and why."""
        self._tell(claim, REASON, reason, None)

    def finished(self) -> list[FinishedTrial]:
        """The finished trials in order, of equal points the first."""
        found: dict[Overrides, FinishedTrial] = {}
        for trial in self._in(TrialState.COMPLETE, TrialState.FAIL):
            if POINT in trial.user_attrs:
                attributes, point = trial.user_attrs, tuple(trial.user_attrs[POINT])
                found.setdefault(
                    point,
                    FinishedTrial(
                        trial.number, point, attributes.get(FIGURES), attributes.get(REASON)
                    ),
                )
        return list(found.values())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with exclusive(self.folder / LOCKS_FOLDER / "study.lock"):
            yield

    def _in(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)

    def _agree(self) -> None:
        mine, theirs = self.plan.identity(), self._study.user_attrs.get(PLAN)
        if theirs is None:
            self._study.set_user_attr(PLAN, mine)
            return
        other = [name for name, value in mine.items() if theirs.get(name) != value]
        if other:
            raise UsageError(
                f"{self.folder} holds a sweep with another {' and '.join(other)}",
                hint="choose another --output, or give the command that it was started with "
                f"(its recipe is {self.folder / RECIPE_FILE})",
            )

    def _fill_queue(self) -> None:
        queued = {tuple(trial.user_attrs.get(POINT, ())) for trial in self._study.trials}
        for point in self.plan.space.points():
            if point not in queued:
                values = dict(override.split("=", 1) for override in point)
                self._study.enqueue_trial(values, user_attrs={POINT: list(point)})

    def _has_more(self) -> bool:
        if self.plan.sampler == "grid":
            return bool(self._in(TrialState.WAITING))
        started = [trial for trial in self._study.trials if POINT in trial.user_attrs]
        return len(started) < self.plan.trials

    def _ask(self) -> tuple[int, Overrides]:
        # A sampler of its own for each trial: what is drawn depends on the seed and the trials so
        # far, not on which process draws or how often it was started.
        self._study.sampler = self._sampler(len(self._study.trials))
        trial = self._study.ask(_distributions(self.plan))
        if POINT not in trial.user_attrs:
            trial.set_user_attr(POINT, list(self.plan.space.overrides(trial.params)))
        return trial.number, tuple(trial.user_attrs[POINT])

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = self.plan.base.seed * 100_003 + number
        if self.plan.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def _try(self, number: int, point: Overrides) -> Claim | None:
        lock = FileLock(self.folder / LOCKS_FOLDER / f"{digest_of(point)}.lock")
        return Claim(number, point, lock) if lock.acquire(wait=False) else None

    def _tell(self, claim: Claim, name: str, value: Any, values: list[float] | None) -> None:
        with self._alone():
            study = self._storage.get_study_id_from_name(STUDY)
            trial = self._storage.get_trial_id_from_study_id_trial_number(study, claim.number)
            self._storage.set_trial_user_attr(trial, name, value)
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            self._study.tell(claim.number, values, state=state)
            claim.lock.release()


def _distributions(plan: SweepPlan) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for axis in plan.space.axes:
        if isinstance(axis, Choice):
            found[axis.key] = CategoricalDistribution(axis.values)
        elif axis.whole:
            found[axis.key] = IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        else:
            found[axis.key] = FloatDistribution(axis.low, axis.high, log=axis.log)
    return found


def _drop_half_written(journal: Path) -> None:
    """Cuts off a last line without an end, which a full disk or a power cut can leave: nobody was
    told of it."""
    if not journal.is_file():
        return
    with journal.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
