"""The comparison that every claim needs: teacher, plain student, student without a teacher, and
REKD student, trained on the same splits over the same seeds."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rekd_edge.distill.checkpoint import write_json
from rekd_edge.distill.loop import ProgressListener
from rekd_edge.errors import UsageError
from rekd_edge.machine import hardware, package_versions
from rekd_edge.pipeline import train_run
from rekd_edge.problem import PRIMARY
from rekd_edge.recipe.schema import RationalistSpec, Recipe, ScaffoldSpec
from rekd_edge.run_folder import (
    ANSWERS_FOLDER,
    CLASS_WISE_ROLE,
    RUN_FILE,
    Run,
    Simulability,
    open_run,
)

SUMMARY_FILE = "summary.json"
ROWS = ("teacher", "plain_student", "extract_student", "rekd_student")
TITLES = {
    "teacher": "teacher rationalist",
    "plain_student": "plain student (all tokens)",
    "extract_student": "student without teacher",
    "rekd_student": "REKD student",
}
ANSWERS_TITLE = "student of the teacher's answers alone"


class TitledListener(ProgressListener, Protocol):
    """A progress listener that can be told what is trained next."""

    def retitle(self, title: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """Test accuracies (0..1; of another problem than one class its primary ``score``) by row of
    :data:`ROWS`, one for each seed."""

    seeds: tuple[int, ...]
    accuracies: dict[str, list[float]]
    examples: dict[str, int]
    agreement: list[dict[str, float]]
    simulability: list[Simulability]
    answers_alone: list[float]
    """Test accuracies of the students of the teacher's answers alone; empty: not asked for."""
    wall_s: float
    runs: tuple[Run, ...]

    @property
    def score(self) -> str:
        """What ``accuracies`` are."""
        return PRIMARY[self.runs[0].recipe.problem_type]

    def mean(self, row: str) -> float:
        return statistics.fmean(self.accuracies[row])

    def spread(self, row: str) -> float | None:
        """Sample standard deviation over seeds; None for a single seed."""
        values = self.accuracies[row]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def titles(self) -> dict[str, str]:
        """What the rows of :data:`ROWS` are called."""
        teacher = self.runs[0].recipe.teacher
        if teacher is not None and teacher.is_black_box:
            return TITLES | {"teacher": "teacher, a plain classifier"}
        return TITLES

    def simulability_means(self) -> list[tuple[float, str]]:
        """Means over seeds of what was measured, and how those students learned."""
        shares = {
            "with rationales": [one.with_rationales for one in self.simulability],
            "without rationales": [one.without_rationales for one in self.simulability],
        }
        return [
            (statistics.fmean(found), learned)
            for learned, every in shares.items()
            if (found := [share for share in every if share is not None])
        ]

    def gain(self) -> list[float]:
        """REKD student minus student without teacher, for each seed."""
        pairs = zip(
            self.accuracies["rekd_student"], self.accuracies["extract_student"], strict=True
        )
        return [rekd - extract for rekd, extract in pairs]

    def to_json(self) -> dict[str, Any]:
        recipe, score = self.runs[0].recipe, self.score
        return {
            "recipe": recipe.name,
            "data": self.runs[0].info.get("data", {}),
            "rationale_ratio": recipe.rationale_ratio,
            "seeds": list(self.seeds),
            "examples": self.examples,
            score: {row: self.mean(row) for row in ROWS},
            f"{score}_spread": {row: self.spread(row) for row in ROWS},
            f"{score}_per_seed": self.accuracies,
            "rekd_minus_extract_per_seed": self.gain(),
            "agreement_with_teacher": self.agreement,
            "simulability": [asdict(one) for one in self.simulability],
            f"answers_alone_{score}": self.answers_alone,
            "fuse": [run.report("fuse") for run in self.runs],
            "train_wall_s": round(self.wall_s, 1),
            "versions": package_versions(),
            "hardware": hardware(),
        }


def compare(
    recipe: Recipe,
    output: Path,
    *,
    seeds: Sequence[int],
    device: str = "auto",
    listener: TitledListener | None = None,
    simulability: bool = False,
) -> Comparison:
    """Trains the four models of ``recipe`` for each seed and writes ``output/summary.json``.

    The distill run of a seed lies in ``output/seed-S``; the plain and the teacherless student in
    its folders ``plain`` and ``extract``. With ``simulability`` a fifth learns from the teacher's
    answers alone, in ``answers``: what the rationales add is the difference. A finished run is not
    trained again, an interrupted one is resumed.

    Raises:
        UsageError: the recipe has no teacher, or no seed is given.
    """
    if not seeds:
        raise UsageError("no seed is given", hint="for instance --seeds 0,1,2")
    if recipe.task != "distill":
        raise UsageError(
            f"compare needs a recipe with task: distill, not {recipe.task}",
            hint="add a teacher section",
        )
    started, score = time.monotonic(), PRIMARY[recipe.problem_type]
    accuracies: dict[str, list[float]] = {row: [] for row in ROWS}
    agreement: list[dict[str, float]] = []
    simulated: list[Simulability] = []
    answers_alone: list[float] = []
    runs: list[Run] = []
    for seed in seeds:
        folder = output / f"seed-{seed}"
        found: dict[str, Run] = {}
        # The distill run comes first: it owns the folder that the others lie in.
        for task, place in (
            ("distill", folder),
            ("extract", folder / "extract"),
            ("classify", folder / "plain"),
        ):
            variant = recipe.model_copy(update={"task": task, "seed": seed})
            if task != "distill":  # each of these answers alone
                variant = variant.model_copy(
                    update={"ensemble": None, "class_wise_rationales": False}
                )
            if listener is not None:
                listener.retitle(f"seed {seed}, {task}")
            found[task] = finished_run(variant, place, device, listener)
        distilled = found["distill"].report("distill") or {}
        accuracies["teacher"].append(_score(distilled, "teacher", score))
        accuracies["rekd_student"].append(_score(distilled, "student", score))
        for row, task in (("extract_student", "extract"), ("plain_student", "classify")):
            report = found[task].report("distill") or {}
            accuracies[row].append(_score(report, "student", score))
        agreement.append(distilled["agreement_with_teacher"])
        if simulability:
            variant = learning_answers_alone(found["distill"].recipe, folder)
            if listener is not None:
                listener.retitle(f"seed {seed}, answers alone")
            control = finished_run(
                variant, folder / ANSWERS_FOLDER, device, listener, with_fuse_report=False
            )
            answers_alone.append(_score(control.report("distill") or {}, "student", score))
        one = found["distill"].simulability()
        assert one is not None
        simulated.append(one)
        runs.append(found["distill"])
    test = (runs[0].report("distill") or {})["student"]["test"]
    comparison = Comparison(
        tuple(seeds),
        accuracies,
        {"test": test["examples"]},
        agreement,
        simulated,
        answers_alone,
        time.monotonic() - started,
        tuple(runs),
    )
    write_json(output / SUMMARY_FILE, comparison.to_json())
    return comparison


def finished_run(
    recipe: Recipe,
    folder: Path,
    device: str,
    listener: ProgressListener | None,
    *,
    with_fuse_report: bool | None = None,
) -> Run:
    """The run of ``recipe`` in ``folder``: as it is if it is finished, else trained or resumed.
    ``with_fuse_report`` is as :func:`train_run` has it; None asks for it in runs of a student."""
    if (folder / RUN_FILE).is_file():
        run = open_run(folder)
        if run.info.get("status") == "finished" and run.recipe == recipe:
            return run
    return train_run(
        recipe,
        folder,
        resume=True,
        device=device,
        listener=listener,
        with_fuse_report=recipe.task == "distill" if with_fuse_report is None else with_fuse_report,
    )


def learning_answers_alone(recipe: Recipe, run: Path) -> Recipe:
    """``recipe`` for a student of the teacher of ``run`` that learns nothing of its rationales: no
    KL_R, and a selector that starts from the student's own mask gradients."""
    assert recipe.teacher is not None
    changes: dict[str, Any] = {"run": str(run.absolute()), "image_size": None}
    if recipe.teacher.is_black_box:  # its explainer has no part; this one needs no learning
        changes |= {"rationale": "mask_gradient", "scaffold": ScaffoldSpec()}
    train = recipe.student.train
    warmup = train.warmup
    if warmup.selector.startswith("teacher"):
        warmup = warmup.model_copy(update={"selector": "mask_gradient"})
    train = train.model_copy(update={"warmup": warmup})
    return recipe.model_copy(
        update={
            "teacher": recipe.teacher.model_copy(update=changes),
            "student": recipe.student.model_copy(update={"train": train}),
            "objective": recipe.objective.model_copy(update={"lambda_rationale": 0.0}),
            "ensemble": None,
            "class_wise_rationales": False,
        }
    )


def with_shared_teacher(
    recipe: Recipe,
    output: Path,
    device: str,
    listener: ProgressListener | None,
    *,
    alone: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
) -> Recipe:
    """``recipe`` with its teacher taken from a run of its own, `output/teacher-HASH/seed-S`, which
    is trained once for all recipes with this teacher. ``alone`` is entered with the run's folder
    while it trains, for several processes that share ``output``."""
    teacher = recipe.teacher
    if recipe.task != "distill" or teacher is None or teacher.run is not None:
        return recipe
    fields = {key: getattr(teacher, key) for key in RationalistSpec.model_fields}
    data = recipe.data
    if teacher.image_size is not None:
        data = data.model_copy(update={"image_size": teacher.image_size})
    extracting = recipe.model_copy(
        update={
            "name": "teacher",
            "description": "",
            "task": "classify" if teacher.is_black_box else "extract",
            "data": data,
            "transfer": None,
            "teacher": None,
            "student": RationalistSpec(**fields),
            "objective": teacher.objective,
            "ensemble": None,
            "class_wise_rationales": False,
        }
    )
    digest = hashlib.sha256(
        extracting.model_copy(update={"seed": 0}).model_dump_json(exclude_defaults=True).encode()
    ).hexdigest()
    folder = (output / f"teacher-{digest[:8]}" / f"seed-{recipe.seed}").absolute()
    with alone(folder):
        forget_checkpoints(finished_run(extracting, folder, device, listener))
    loaded = teacher.model_copy(update={"run": str(folder), "image_size": None})
    return recipe.model_copy(update={"teacher": loaded})


def forget_checkpoints(run: Run) -> None:
    """Removes what a finished run would have been resumed from."""
    for role in ("teacher", "student", "partner", CLASS_WISE_ROLE):
        (run.path / role / "last.safetensors").unlink(missing_ok=True)


def _score(report: dict[str, Any], role: str, score: str) -> float:
    return float(report[role]["test"][score])
