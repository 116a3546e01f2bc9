"""The quality of a run's rationales: faithfulness, agreement with gold, probe and stability."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from rekd_edge.data.catalogue import gold_name
from rekd_edge.data.lexicon import SENTIMENT_SETS, lexicon_spans
from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import ImagePreprocessor, TextPreprocessor
from rekd_edge.data.split import Split, stratified_limit
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.errors import UsageError
from rekd_edge.evaluate.class_wise import (
    ClassWiseReport,
    evaluate_class_wise,
    label_rationales,
)
from rekd_edge.evaluate.gold import (
    GoldAgreement,
    compare_with_gold,
    image_gold,
    split_spans,
    text_gold,
)
from rekd_edge.evaluate.pair import PairReport, evaluate_pair
from rekd_edge.evaluate.probe import ProbeResult, probe_masks
from rekd_edge.evaluate.quality import AOPC_SHARES, Faithfulness, judge_rationales
from rekd_edge.evaluate.rationales import Rationales, collect_rationales
from rekd_edge.evaluate.stability import Overlap, mean_overlap, overlap
from rekd_edge.models.build import same_tokens
from rekd_edge.models.encoder import patch_grid
from rekd_edge.models.rationalist import Predictor, Rationalist
from rekd_edge.problem import PRIMARY
from rekd_edge.run_folder import Run, Simulability
from rekd_edge.types import ProblemType

SplitName = Literal["train", "dev", "test"]
EVALUATION_BATCH = 64
PROBE_TRAIN_EXAMPLES = 10_000
"""At most so many training masks are read for the probe, drawn by class."""
NOISE_DRAWS = 3


@dataclass(frozen=True, slots=True)
class Judged:
    """``judge`` says which predictor judged; ``scores`` is None where there was none."""

    judge: str | None
    scores: Faithfulness | None


@dataclass(frozen=True, slots=True)
class AgainstRun:
    """Overlap with another run's rationales; ``differs_in`` are the recipe keys that differ."""

    run: str
    seed: int
    differs_in: tuple[str, ...]
    overlap: Overlap


@dataclass(frozen=True, slots=True)
class Stability:
    """``selector_noise``: mean over pairs of draws of this selector's own noise (one set of
    weights, :data:`NOISE_DRAWS` seeds of the draw); ``runs``: this run beside each other one;
    ``all_runs``: mean over all pairs, this run included."""

    selector_noise: Overlap
    runs: tuple[AgainstRun, ...]
    all_runs: Overlap | None


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Everything that ``rekd-edge evaluate`` says about a student on one split."""

    run: str
    recipe: str
    seed: int
    split: str
    examples: int
    rationale_ratio: float
    kept_share: float
    accuracy: float
    faithfulness: Judged
    gold: tuple[GoldAgreement, ...]
    probe: ProbeResult
    stability: Stability
    simulability: Simulability | None = None
    """Of the test split, whatever ``split`` is."""
    pair: PairReport | None = None
    """The student beside its partner, where the run has one; everything else is the student's."""
    class_wise: ClassWiseReport | None = None
    """Of class-wise rationales, where the run has them."""
    class_wise_gold: tuple[GoldAgreement, ...] = ()
    """As ``gold``, of the rationale for each example's own label, which is told to the head."""
    notes: tuple[str, ...] = ()
    wall_s: float = 0.0
    problem_type: ProblemType = "single_label_classification"
    scores: dict[str, float] = field(default_factory=dict)
    """Every score of the student, the primary one (``accuracy``) first."""
    schema_version: int = field(default=1)

    @property
    def score(self) -> str:
        """What accuracies in this report are; in its JSON they have this name."""
        return PRIMARY[self.problem_type]

    def to_json(self) -> dict[str, Any]:
        content = self._named()
        content["pair"] = None if self.pair is None else self.pair.to_json()
        content["class_wise"] = None if self.class_wise is None else self.class_wise.to_json()
        if self.faithfulness.scores is not None:
            content["faithfulness"]["scores"]["by_share"] = [
                {"share": share, "comprehensiveness": c, "sufficiency": s}
                for share, (c, s) in self.faithfulness.scores.by_share.items()
            ]
        return content

    def _named(self) -> dict[str, Any]:
        content: dict[str, Any] = asdict(self)
        if self.problem_type == "single_label_classification":
            del content["problem_type"], content["scores"]
            return content
        del content["accuracy"]

        def renamed(figures: dict[str, Any]) -> dict[str, Any]:
            return {key.replace("accuracy", self.score): value for key, value in figures.items()}

        content["probe"] = renamed(content["probe"])
        judged = content["faithfulness"]
        judged["scores"] = None if judged["scores"] is None else renamed(judged["scores"])
        return content


def report_file(run: Run, split: SplitName) -> Path:
    """``RUN/reports/quality.json``, or ``quality-SPLIT.json`` for another split than test."""
    name = "quality.json" if split == "test" else f"quality-{split}.json"
    return run.path / "reports" / name


def evaluate_run(
    run: Run,
    *,
    against: Sequence[Run] = (),
    split: SplitName = "test",
    judge_run: Run | None = None,
    lexicon: bool | None = None,
    limit: int | None = None,
    device: str = "auto",
    save: bool = True,
) -> QualityReport:
    """Measures the rationales of the run's student and writes :func:`report_file` if ``save``.

    ``judge_run`` lends its judge where the run's own is not wanted. ``lexicon`` adds the lexicon
    proxy, by default for English sentiment sets. ``limit`` measures that many examples, drawn by
    class and the same each time.

    Raises:
        UsageError: an unfinished run or a plain classifier; runs over other data; a judge of other
            labels or tokens; an unknown device.
        DataError, BackendError, IntegrityError: data or weights cannot be had.
    """
    started = time.monotonic()
    where = _device(device)
    for one in (run, *against):
        _require_finished(one)
    student, partner = run.student().to(where), run.partner()
    seen = {run.path.resolve()}
    for other in against:
        if other.path.resolve() in seen:
            raise UsageError(f"--against {other.path}: this run is given twice")
        seen.add(other.path.resolve())
        _require_same_data(run, other)
    examples: Split = getattr(run.data(), split)
    notes: list[str] = []
    if limit is not None and limit < len(examples):
        notes.append(f"measured on {limit} of the {len(examples)} {split} examples, by class")
        examples = examples.take(stratified_limit(examples.labels, limit, seed=0))
    if split == "train" and len(examples) > PROBE_TRAIN_EXAMPLES:
        raise UsageError(
            f"the train split has {len(examples)} examples, more than {PROBE_TRAIN_EXAMPLES}",
            hint="evaluate the dev or test split, or set a limit",
        )
    rationales = collect_rationales(student, _loader(run, examples))
    faithfulness = _judge(run, judge_run, student, examples, rationales, where, notes)
    gold = _gold(run, examples, rationales, student, lexicon, notes)
    class_wise, class_gold = _class_wise(run, examples, student, lexicon)
    probe = _probe(run, student, split, rationales, notes)
    stability = _stability(run, against, student, examples, rationales, where)
    report = QualityReport(
        run=str(run.path),
        recipe=run.recipe.name,
        seed=run.recipe.seed,
        split=split,
        examples=len(rationales),
        rationale_ratio=run.recipe.rationale_ratio,
        kept_share=rationales.kept_share,
        accuracy=rationales.accuracy,
        faithfulness=faithfulness,
        gold=gold,
        probe=probe,
        stability=stability,
        simulability=run.simulability(),
        pair=None if partner is None else evaluate_pair(student, partner, _loader(run, examples)),
        class_wise=class_wise,
        class_wise_gold=class_gold,
        notes=tuple(notes),
        wall_s=round(time.monotonic() - started, 1),
        problem_type=run.recipe.problem_type,
        scores=rationales.scores,
    )
    if save:
        write_json(report_file(run, split), report.to_json())
    return report


def _class_wise(
    run: Run, examples: Split, student: Rationalist, lexicon: bool | None
) -> tuple[ClassWiseReport | None, tuple[GoldAgreement, ...]]:
    """Of a run with class-wise rationales: how far they convince, and the agreement with gold of
    those for each example's own label."""
    head = run.class_head(student)
    if head is None:
        return None, ()
    head.to(next(student.parameters()).device)
    names, seed = run.label_names, run.recipe.seed
    found = evaluate_class_wise(student, head, _loader(run, examples), names, seed=seed)
    own = label_rationales(student, head, lambda: _loader(run, examples))
    gold = _gold(run, examples, own, student, lexicon, [])
    return found, tuple(replace(one, name=f"{one.name}, for the label") for one in gold)


def _device(name: str) -> torch.device:
    if name not in {"auto", "cpu", "cuda"}:
        raise UsageError(f"unknown device {name!r}", hint="use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available", hint="use --device cpu or auto")
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")


def _require_finished(run: Run) -> None:
    if run.info.get("status") != "finished":
        raise UsageError(
            f"the run {run.path} is not finished",
            hint="go on with: rekd-edge distill RECIPE --output RUN --resume",
        )


def _require_same_data(run: Run, other: Run) -> None:
    """Refuses a run whose rationales are not about the same tokens of the same examples."""
    if other.recipe.task == "classify":
        raise UsageError(f"--against {other.path}: it holds a plain classifier, no rationales")
    same_problem = run.recipe.problem_type == other.recipe.problem_type
    same_labels = same_problem and run.label_names == other.label_names
    if run.recipe.data != other.recipe.data or not same_labels:
        raise UsageError(
            f"--against {other.path}: it was trained on other data, or cut in another way",
            hint="compare runs whose recipes have the same `data` section",
        )
    if not same_tokens(run.preprocessor, other.preprocessor):
        raise UsageError(f"--against {other.path}: it reads its input as other tokens")


def _loader(run: Run, split: Split) -> Any:
    return make_loader(split, run.preprocessor, batch_size=EVALUATION_BATCH, shuffle=False)


def _grid(predictor: Predictor | Rationalist) -> tuple[int, int] | None:
    reader = (predictor.predictor if isinstance(predictor, Rationalist) else predictor).encoder
    return patch_grid(reader)


def _judge(
    run: Run,
    judge_run: Run | None,
    student: Rationalist,
    examples: Split,
    rationales: Rationales,
    device: torch.device,
    notes: list[str],
) -> Judged:
    """The teacher's judge where it reads the same tokens, otherwise the student's own."""
    lender = judge_run or run
    if judge_run is not None:
        if judge_run.label_names != run.label_names:
            raise UsageError(f"--judge {judge_run.path}: it knows other labels")
        if judge_run.recipe.problem_type != run.recipe.problem_type:
            raise UsageError(f"--judge {judge_run.path}: it answers another problem_type")
        if not same_tokens(judge_run.preprocessor, run.preprocessor):
            raise UsageError(f"--judge {judge_run.path}: it reads its input as other tokens")
    for role in ("teacher", "student"):
        judge = lender.judge(role)
        if judge is None or _grid(judge) != _grid(student):
            continue
        scores = judge_rationales(judge.to(device), _loader(run, examples), rationales)
        name = f"{role} judge" + (f" of {judge_run.path}" if judge_run else "")
        below = [share for share in AOPC_SHARES if share < lender.recipe.rationale_ratio]
        if below:
            notes.append(
                f"the judge was trained on random subsets of {lender.recipe.rationale_ratio:.0%} "
                f"and more; it extrapolates at {', '.join(f'{share:.0%}' for share in below)}"
            )
        return Judged(name, scores)
    if judge_run is not None:
        raise UsageError(
            f"--judge {judge_run.path}: it kept no predictor of random subsets over these tokens",
            hint="train it with train.warmup.predictor_epochs above 0",
        )
    notes.append(
        "no predictor was trained on random subsets, so faithfulness is not judged; lend one with "
        "--judge RUN, or train with train.warmup.predictor_epochs above 0"
    )
    return Judged(None, None)


def _gold(
    run: Run,
    examples: Split,
    rationales: Rationales,
    student: Rationalist,
    lexicon: bool | None,
    notes: list[str],
) -> tuple[GoldAgreement, ...]:
    found: list[GoldAgreement] = []
    preprocessor, source = run.preprocessor, run.recipe.data.source
    if examples.gold is not None:
        name = gold_name(source) or "gold"
        if isinstance(preprocessor, TextPreprocessor):
            tokens, cut_off = text_gold(examples, preprocessor, split_spans(examples))
            found.append(compare_with_gold(name, rationales, tokens, cut_off))
        else:
            grid = _grid(student)
            assert grid is not None
            assert isinstance(preprocessor, ImagePreprocessor)
            masks = image_gold(examples, preprocessor, grid)
            found.append(compare_with_gold(name, rationales, masks))
            notes.append("a patch is gold where the object covers at least half of its area")
    wanted = source in SENTIMENT_SETS if lexicon is None else lexicon
    if wanted:
        if not isinstance(preprocessor, TextPreprocessor):
            raise UsageError("--lexicon is for texts; this run reads images")
        tokens, cut_off = text_gold(
            examples, preprocessor, lambda index: lexicon_spans(str(examples.raw(index)))
        )
        found.append(compare_with_gold("lexicon proxy", rationales, tokens, cut_off))
        notes.append("the lexicon proxy marks words of a sentiment lexicon; nobody annotated them")
    return tuple(found)


def _probe(
    run: Run, student: Rationalist, split: SplitName, rationales: Rationales, notes: list[str]
) -> ProbeResult:
    data = run.data()
    parts = {split: rationales}
    for name, own in (("train", data.train), ("dev", data.dev)):
        if name in parts:
            continue
        if name == "train" and len(own) > PROBE_TRAIN_EXAMPLES:
            own = own.take(stratified_limit(own.labels, PROBE_TRAIN_EXAMPLES, seed=0))
        parts[name] = collect_rationales(student, _loader(run, own), predict=False)
    if split != "test":
        notes.append(f"the probe was measured on the {split} split, which it has seen")
    return probe_masks(parts["train"], parts["dev"], rationales, run.recipe.modality)


def _stability(
    run: Run,
    against: Sequence[Run],
    student: Rationalist,
    examples: Split,
    rationales: Rationales,
    device: torch.device,
) -> Stability:
    draws = [
        collect_rationales(student, _loader(run, examples), predict=False, noise_seed=seed)
        for seed in range(NOISE_DRAWS)
    ]
    others: list[AgainstRun] = []
    every = [rationales]
    for other in against:
        model = other.student().to(device)
        if _grid(model) != _grid(student):
            raise UsageError(f"--against {other.path}: it cuts its images into other patches")
        theirs = collect_rationales(model, _loader(run, examples), predict=False)
        every.append(theirs)
        others.append(
            AgainstRun(
                run=str(other.path),
                seed=other.recipe.seed,
                differs_in=_different_keys(run, other),
                overlap=overlap(rationales, theirs),
            )
        )
    return Stability(mean_overlap(draws), tuple(others), mean_overlap(every) if others else None)


def _different_keys(run: Run, other: Run) -> tuple[str, ...]:
    """Dotted keys in which two recipes differ, names and descriptions apart."""
    first, second = _flat(run.recipe.model_dump()), _flat(other.recipe.model_dump())
    keys = {key for key in first | second if first.get(key) != second.get(key)}
    return tuple(sorted(keys - {"name", "description"}))


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
