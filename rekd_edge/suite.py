"""Tables of variants: every row of a suite trained for every seed, and what came of it.

OUTPUT/ROW/seed-S are the runs, OUTPUT/teacher-HASH/seed-S the teachers that rows share,
OUTPUT/suite.json and suite.md the result so far, written after each run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from rekd_edge.compare import (
    TitledListener,
    finished_run,
    forget_checkpoints,
    with_shared_teacher,
)
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.distill.loop import DivergedError
from rekd_edge.errors import UsageError
from rekd_edge.evaluate.accuracy import evaluate_classifier, evaluate_rationalist
from rekd_edge.evaluate_pipeline import evaluate_run
from rekd_edge.fuse.report import count_flops, mean_tokens
from rekd_edge.machine import hardware, package_versions
from rekd_edge.recipe.schema import Recipe
from rekd_edge.recipe.suite_file import REPORTS, RowSpec, SuiteSpec, figure
from rekd_edge.run_folder import Run, open_run

RESULT_FILE = "suite.json"
TABLE_FILE = "suite.md"
JUDGED = "judged"
"""Report of a run's rationales under the suite's judge; `quality` may be under another one."""


@dataclass(slots=True)
class SuiteResult:
    """``values[row][column]`` by seed; a run that diverged is in ``failures[row]`` by seed."""

    suite: SuiteSpec
    seeds: tuple[int, ...]
    values: dict[str, dict[str, dict[int, float]]]
    failures: dict[str, dict[int, str]]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every run finished."""
        return not any(self.failures.values())

    def differences(self, row: RowSpec, title: str) -> dict[int, float]:
        """A column minus that of the row it is compared with, by seed."""
        base = row.against or self.suite.rows[0].name
        if row.name == base:
            return {}
        own, theirs = self.values[row.name][title], self.values[base][title]
        return {seed: own[seed] - theirs[seed] for seed in own if seed in theirs}

    def to_json(self) -> dict[str, Any]:
        rows, titles = [], [column.title for column in self.suite.columns]
        for row in self.suite.rows:
            rows.append(
                {
                    "name": row.name,
                    "title": row.title or row.name,
                    "overrides": list(row.overrides),
                    "against": row.against or self.suite.rows[0].name,
                    "values": {title: _summary(self.values[row.name][title]) for title in titles},
                    "differences": {
                        title: _summary(self.differences(row, title)) for title in titles
                    },
                    "failures": {str(seed): why for seed, why in self.failures[row.name].items()},
                }
            )
        return {
            "suite": self.suite.name,
            "description": self.suite.description,
            "recipe": self.suite.recipe,
            "overrides": list(self.suite.overrides),
            "seeds": list(self.seeds),
            "columns": [column.model_dump() for column in self.suite.columns],
            "rows": rows,
            **self.facts,
            "versions": package_versions(),
            "hardware": hardware(),
        }


def run_suite(
    suite: SuiteSpec,
    recipes: Mapping[str, Recipe],
    output: Path,
    *,
    seeds: Sequence[int] | None = None,
    device: str = "auto",
    listener: TitledListener | None = None,
) -> SuiteResult:
    """Trains every row for every seed and writes the table after each run.

    A finished run is not trained again, an interrupted one is resumed. Rows whose teachers are one
    and the same share it. Checkpoints to resume from are removed once a run is finished.

    Raises:
        UsageError: a column that no run reports; a folder that holds another recipe's run.
    """
    chosen = tuple(suite.seeds if seeds is None else seeds)
    rows = [row for row in suite.rows if row.name in recipes]
    rows.sort(key=lambda row: row.name != suite.simulated)
    columns = [column.title for column in suite.columns]
    result = SuiteResult(
        suite,
        chosen,
        {row.name: {title: {} for title in columns} for row in suite.rows},
        {row.name: {} for row in suite.rows},
    )
    output.mkdir(parents=True, exist_ok=True)
    fusing = any(column.value.startswith("fuse.") for column in suite.columns)
    for seed in chosen:
        for row in rows:
            if listener is not None:
                listener.retitle(f"seed {seed}, {row.name}")
            recipe = recipes[row.name].model_copy(update={"seed": seed})
            if suite.shared_warmup and row.name != suite.rows[0].name:
                first = suite.rows[0].name
                recipe = with_predictor_of(recipe, recipes[first], output / first / f"seed-{seed}")
            try:
                run = row_run(recipe, row.name, output, device, listener, with_fuse_report=fusing)
                _report_on(run, suite, output, device)
            except DivergedError as error:
                result.failures[row.name][seed] = error.message
            else:
                _record(result, row, seed, run)
            write_json(output / RESULT_FILE, result.to_json())
            _write(output / TABLE_FILE, suite_table(result.to_json()))
    selecting = [name for name, recipe in recipes.items() if recipe.task != "classify"]
    _refuse_empty_columns(result, selecting)
    return result


_AFTER_THE_WARMUP = {
    "epochs",
    "classifier_epochs",
    "selector_learning_rate",
    "gather",
    "monitor",
    "checkpoint_every_steps",
}
"""Keys of a training run that say nothing of the predictor's warm-up."""


def with_predictor_of(recipe: Recipe, first: Recipe, run: Path) -> Recipe:
    """``recipe`` with the warmed-up predictor of ``run``, made by ``first``, where it would warm up
    the same one on the same data; otherwise as it is."""
    warmup = recipe.student.train.warmup
    if recipe.task != "extract" or warmup.predictor_run is not None:
        return recipe
    mine, theirs = _predictor_warmup(recipe), _predictor_warmup(first)
    if warmup.predictor_epochs == 0 or mine != theirs:
        return recipe
    warmup = warmup.model_copy(update={"predictor_run": str(run.absolute())})
    train = recipe.student.train.model_copy(update={"warmup": warmup})
    student = recipe.student.model_copy(update={"train": train})
    return recipe.model_copy(update={"student": student})


def _predictor_warmup(recipe: Recipe) -> dict[str, Any]:
    """Everything but the seed that a predictor's warm-up without a teacher depends on."""
    train = recipe.student.train
    warmup = train.warmup
    stated = recipe.model_dump(
        include={
            "task",
            "modality",
            "problem_type",
            "rationale_ratio",
            "rationale_unit",
            "region_size",
            "data",
        }
    )
    return {
        **stated,
        "predictor": recipe.student.predictor,
        "epochs": (warmup.predictor_epochs, warmup.predictor_learning_rate),
        "train": train.model_dump(exclude={"warmup", *_AFTER_THE_WARMUP}),
        "adjusted_head": recipe.objective.method == "inter_rat",
    }


def row_run(
    recipe: Recipe,
    row: str,
    output: Path,
    device: str,
    listener: TitledListener | None,
    *,
    with_fuse_report: bool = False,
) -> Run:
    """The finished run OUTPUT/ROW/seed-S with the recipe's seed, trained if it is not there. A
    student gets a fuse report where one is asked for."""
    recipe = with_shared_teacher(recipe, output, device, listener)
    run = finished_run(
        recipe,
        output / row / f"seed-{recipe.seed}",
        device,
        listener,
        with_fuse_report=with_fuse_report and recipe.task != "classify",
    )
    forget_checkpoints(run)
    return run


def _report_on(run: Run, suite: SuiteSpec, output: Path, device: str) -> None:
    """Writes the reports that the suite's columns read and training does not write."""
    if run.recipe.task == "classify":
        return
    wanted = {column.value.partition(".")[0] for column in suite.columns}
    if "flops" in wanted and run.report("flops") is None:
        flops = count_flops(run.fused(), mean_tokens(run.loader("test")))
        write_json(run.path / "reports" / "flops.json", flops.to_json())
    if "simulability" in wanted and run.report("simulability") is None:
        classifier = open_run(output / str(suite.simulated) / f"seed-{run.recipe.seed}")
        write_json(
            run.path / "reports" / "simulability.json",
            {"agreement": _simulability(run, classifier), "classifier": suite.simulated},
        )
    if "quality" in wanted and run.report(JUDGED) is None:
        judge = open_run(output / str(suite.judge) / f"seed-{run.recipe.seed}")
        teacher = judge.recipe.teacher
        against = []
        if teacher is not None and teacher.run is not None and not teacher.is_black_box:
            against.append(open_run(Path(teacher.run)))
        found = evaluate_run(
            run,
            against=against,
            judge_run=judge,
            limit=suite.judged_examples,
            device=device,
            save=False,
        )
        write_json(run.path / "reports" / f"{JUDGED}.json", found.to_json())


def _simulability(run: Run, classifier: Run) -> float:
    """Share (0..1) of the test examples in which the run's student answers as the classifier."""
    own = evaluate_rationalist(run.student(), run.loader("test")).logits.argmax(dim=1)
    theirs = _answers(classifier.path, str(classifier.info.get("finished")))
    return float((own == theirs).double().mean())


@lru_cache(maxsize=1)
def _answers(classifier: Path, finished: str) -> Tensor:
    """Classes ``[example]`` that a run's classifier gives the test examples; all rows of a seed are
    compared with one and the same. ``finished`` tells a run that was made anew."""
    run = open_run(classifier)
    return evaluate_classifier(run.classifier(), run.loader("test")).logits.argmax(dim=1)


def _record(result: SuiteResult, row: RowSpec, seed: int, run: Run) -> None:
    reports = {name: run.report(JUDGED if name == "quality" else name) for name in REPORTS}
    for column in result.suite.columns:
        value = _at(reports, column.value)
        if value is not None:
            result.values[row.name][column.title][seed] = value
    examples = _at(reports, "distill.student.test.examples")
    result.facts |= {"data": run.info.get("data", {}), "test_examples": examples}
    if row == result.suite.rows[0] or "rationale_ratio" not in result.facts:
        result.facts["rationale_ratio"] = run.recipe.rationale_ratio  # a row may have its own


def _at(reports: Mapping[str, Any], path: str) -> float | None:
    node: Any = reports
    for key in path.split("."):
        if isinstance(node, Mapping) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            return None
    return node if isinstance(node, int | float) and not isinstance(node, bool) else None


def _refuse_empty_columns(result: SuiteResult, rows: Sequence[str]) -> None:
    """A column must stand in some report; plain classifiers are not asked, they report little."""
    found = [result.values[row] for row in rows if any(result.values[row].values())]
    for column in result.suite.columns:
        if found and not any(values[column.title] for values in found):
            raise UsageError(
                f"column {column.title!r}: no run reports {column.value}",
                hint="look for the figure in a run's reports/*.json",
            )


def _summary(by_seed: Mapping[int, float]) -> dict[str, Any] | None:
    if not by_seed:
        return None
    values = list(by_seed.values())
    return {
        "mean": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "per_seed": {str(seed): value for seed, value in by_seed.items()},
    }


def suite_table(result: Mapping[str, Any]) -> str:
    """A suite's result (:meth:`SuiteResult.to_json`) as Markdown; every figure is read from it."""
    titles = [column["title"] for column in result["columns"]]
    lines = [
        f"| variant | {' | '.join(titles)} | {titles[0]}: difference |",
        f"|---|{'---|' * len(titles)}---|",
    ]
    for row in result["rows"]:
        cells = [_cell(row["values"][title]) for title in titles]
        difference, against = row["differences"][titles[0]], ""
        if difference is not None:
            against = f"{_cell(difference, signed=True)} to {row['against']}"
        if row["failures"]:
            against += f" ({len(row['failures'])} run(s) diverged)"
        lines.append(f"| {row['title']} | {' | '.join(cells)} | {against.strip()} |")
    facts = [
        f"Recipe `{result['recipe']}`"
        + "".join(f", `{override}`" for override in result["overrides"])
        + f"; seeds {result['seeds']} (mean ± sample standard deviation over seeds)"
    ]
    if "test_examples" in result:
        facts.append(f"{result['test_examples']} test examples, ratio {result['rationale_ratio']}")
    machine = result["hardware"]
    facts.append(
        f"{machine['processor']}, {machine['cores']} cores, torch {result['versions']['torch']}"
    )
    return "\n".join(lines) + "\n\n" + ".\n".join(facts) + ".\n"


def _cell(summary: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    return "" if summary is None else figure(summary, signed=signed)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
