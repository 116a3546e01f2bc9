"""The stages put together: from a recipe to a trained, evaluated, fused run folder."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rekd_edge.data import TaskData, load_data
from rekd_edge.data.loader import WorkerLoader, make_loader
from rekd_edge.data.on_device import DeviceImages, images_on_device
from rekd_edge.data.preprocess import Preprocessor
from rekd_edge.data.split import JoinedSplit, Split
from rekd_edge.data.transfer_set import load_transfer
from rekd_edge.distill.attribution import (
    AttributionSource,
    CachedAttributions,
    mask_gradient,
    occlusion,
)
from rekd_edge.distill.checkpoint import JUDGE_FILE, load_model, save_model, write_json
from rekd_edge.distill.class_wise import class_wise_phase
from rekd_edge.distill.compiled import wanted
from rekd_edge.distill.explainer import (
    HEADS_FILE,
    BlackBox,
    HeadMixture,
    black_box,
    load_heads,
    save_heads,
)
from rekd_edge.distill.loop import (
    BatchLoader,
    DevResult,
    FitReport,
    Phase,
    ProgressListener,
    Rates,
    fit,
    make_accelerator,
    move_batch,
    precision_in_use,
)
from rekd_edge.distill.monitor import SelectionMonitor
from rekd_edge.distill.objectives import (
    AttributionWarmup,
    ClassifyObjective,
    JointObjective,
    PredictorWarmup,
    RationaleWarmup,
    ValueRegression,
)
from rekd_edge.distill.scaffold import Practice, scaffold_phases, simulability
from rekd_edge.distill.targets import CachedTargets, TargetSource, rationale_and_answer
from rekd_edge.distill.teacher import Teacher
from rekd_edge.errors import UsageError
from rekd_edge.evaluate import (
    Predictions,
    SelectionMode,
    classification_loss,
    evaluate_classifier,
    evaluate_rationalist,
    rationale_extraction_loss,
)
from rekd_edge.evaluate.class_wise import ClassWiseReport, evaluate_class_wise
from rekd_edge.evaluate.pair import evaluate_pair
from rekd_edge.fuse import fuse, fuse_report
from rekd_edge.fuse.report import SAMPLED_DRAWS
from rekd_edge.machine import hardware, package_versions
from rekd_edge.methods import Method, Parts, PatchNoise, WordNoise, build_method
from rekd_edge.models.build import (
    Built,
    build_classifier,
    build_rationalist,
    build_selector,
    same_tokens,
)
from rekd_edge.models.candidates import ALL_CONTENT, Positions
from rekd_edge.models.class_wise import ClassHead
from rekd_edge.models.encoder import BertEncoder, patch_grid
from rekd_edge.models.intervention import set_label_shares
from rekd_edge.models.problem import take_unit
from rekd_edge.models.rationalist import Classifier, Rationalist
from rekd_edge.problem import PRIMARY
from rekd_edge.recipe import dump_recipe, load_recipe
from rekd_edge.recipe.schema import (
    ObjectiveSpec,
    RationalistSpec,
    Recipe,
    TeacherSpec,
    TrainSpec,
    TransferSpec,
)
from rekd_edge.run_folder import (
    CLASS_WISE_ROLE,
    LABELS_FILE,
    PREPROCESSOR_FOLDER,
    RECIPE_FILE,
    RUN_FILE,
    SIMULABILITY,
    TEACHER_PREPROCESSOR_FOLDER,
    Run,
    open_run,
)
from rekd_edge.types import Batch, ProblemType

EVALUATION_BATCH = 64
MONITORED_EXAMPLES = 512
"""Most development examples that the monitor looks at, evenly spread over the split."""
PARTNER_SEED = 1000
"""Added to the recipe's seed for the second student of an ensemble."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run would do (``--dry-run``): sizes of the splits, parameters, steps."""

    examples: dict[str, int]
    label_names: tuple[str, ...]
    parameters: dict[str, int]
    steps_per_epoch: int
    weights: dict[str, dict[str, str | None]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_run(recipe: Recipe) -> RunPlan:
    """Opens data and weights as training would, and trains nothing."""
    data = load_data(recipe)
    classes = len(data.label_names)
    parameters: dict[str, int] = {}
    weights: dict[str, dict[str, str | None]] = {}
    for role, spec in _roles(recipe):
        plain = isinstance(spec, TeacherSpec) and spec.is_black_box
        build = build_classifier if plain or recipe.task == "classify" else build_rationalist
        built = build(spec, recipe, classes)
        parameters[role] = sum(p.numel() for p in built.model.parameters())
        weights |= {f"{role}.{name}": source for name, source in built.weights.items()}
    examples = {split.name: len(split) for split in (data.train, data.dev, data.test)}
    trained = len(data.train)
    if recipe.task == "distill" and recipe.transfer is not None:
        examples["transfer"] = len(load_transfer(recipe, recipe.transfer, data).examples)
        trained += examples["transfer"]
    steps = -(-trained // recipe.student.train.batch_size)
    return RunPlan(examples, data.label_names, parameters, steps, weights)


def _roles(recipe: Recipe) -> list[tuple[str, RationalistSpec]]:
    roles: list[tuple[str, RationalistSpec]] = [("student", recipe.student)]
    if recipe.task != "classify" and recipe.ensemble is not None:
        roles.append(("partner", recipe.ensemble.partner))
    if recipe.task == "distill" and recipe.teacher is not None:
        if recipe.teacher.run is None:
            roles.insert(0, ("teacher", recipe.teacher))
    return roles


def train_run(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    listener: ProgressListener | None = None,
    with_fuse_report: bool = True,
) -> Run:
    """Trains what ``recipe.task`` asks for into ``output`` and evaluates it on the test split.

    The fuse report takes a dozen passes over that split; without it a run is compared, not shipped.

    Raises:
        UsageError: ``output`` holds another run, or a run and ``resume`` is off; unusable recipe.
        DataError, BackendError, IntegrityError: data or weights cannot be had.
    """
    started = time.monotonic()
    accelerator = make_accelerator(recipe.student.train, device)
    if accelerator.is_main_process:
        _claim(output, recipe, resume)
    accelerator.wait_for_everyone()
    with accelerator.main_process_first():  # one process fills the caches
        data = load_data(recipe)
    trainer = _Trainer(recipe, data, output, device, resume, listener)
    results = trainer.train(with_fuse_report)
    info = {
        "status": "finished",
        "task": recipe.task,
        "seed": recipe.seed,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": round(time.monotonic() - started, 1),
        "data": dict(data.source),
        "weights": trainer.weights,
        "precision": precision_in_use(recipe.student.train, accelerator),
        "versions": package_versions(),
        "hardware": hardware(),
    }
    if accelerator.is_main_process:
        write_json(output / "reports" / "distill.json", results)
        write_json(output / RUN_FILE, info)
    accelerator.wait_for_everyone()
    return open_run(output)


def _claim(output: Path, recipe: Recipe, resume: bool) -> None:
    """Makes ``output`` this recipe's run folder, or refuses."""
    resolved = dump_recipe(recipe)
    stated = output / RECIPE_FILE
    if stated.is_file():
        if not resume:
            raise UsageError(
                f"{output} already holds a run",
                hint="continue it with --resume, or choose another --output",
            )
        if load_recipe(stated) != recipe:
            raise UsageError(
                f"{output} was started with another recipe; it cannot be resumed with this one",
                hint=f"compare with {stated}, or choose another --output",
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is no run folder", hint="choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    temporary = stated.with_name(f".{stated.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(resolved, encoding="utf-8")
        os.replace(temporary, stated)
    finally:
        temporary.unlink(missing_ok=True)
    write_json(output / RUN_FILE, {"status": "training", "task": recipe.task, "seed": recipe.seed})


class _Trainer:
    def __init__(
        self,
        recipe: Recipe,
        data: TaskData,
        output: Path,
        device: str,
        resume: bool,
        listener: ProgressListener | None,
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.training = data.train
        """What is trained on next: for the student the transfer set comes in."""
        self.output = output
        self.device = device
        self.resume = resume
        self.listener = listener
        self.weights: dict[str, Any] = {}
        self.warnings: list[dict[str, Any]] = []
        self.preprocessor: Preprocessor | None = None
        self.teacher_objective: ObjectiveSpec | None = None
        self.teacher_preprocessor: Preprocessor | None = None
        """The teacher's, where it is another than the student's."""
        accelerator = make_accelerator(recipe.student.train, device)
        self.is_main = accelerator.is_main_process
        self.place: torch.device = accelerator.device

    def train(self, with_fuse_report: bool) -> dict[str, Any]:
        recipe, classes = self.recipe, len(self.data.label_names)
        if self.is_main:
            write_json(self.output / LABELS_FILE, list(self.data.label_names))
        results: dict[str, Any] = {"task": recipe.task, "seed": recipe.seed}
        results["warnings"] = self.warnings
        torch.manual_seed(recipe.seed)
        if recipe.task == "classify":
            built = build_classifier(recipe.student, recipe, classes)
            self._adopt("student", built.weights, built.preprocessor)
            assert isinstance(built.model, Classifier)
            results["student"] = self._fit_classifier(
                built.model, "student", recipe.student.train, recipe.objective
            )
            return results
        teacher = None
        if recipe.task == "distill":
            teacher = self._teacher(results)
            if recipe.transfer is not None:
                results["transfer"] = self._add_transfer(recipe.transfer, teacher)
            torch.manual_seed(recipe.seed)
        built = build_rationalist(recipe.student, recipe, classes)
        self._adopt("student", built.weights, built.preprocessor)
        student = built.model
        assert isinstance(student, Rationalist)
        beside = self._build_partner(student)
        if isinstance(teacher, BlackBox) and isinstance(teacher.selector, HeadMixture):
            practising = copy.deepcopy(student)
            self._tell_labels(practising)
            results["teacher"]["explainer"] = self._learn_mixture(teacher, practising)
            torch.manual_seed(recipe.seed)  # the same, learned just now or before
        results["student"] = self._fit_rationalist(
            student, "student", recipe.student, recipe.objective, teacher
        )
        if teacher is not None:
            assert self.teacher_objective is not None
            results["agreement_with_teacher"] = self._agreement(
                Teacher(
                    teacher,
                    student,
                    self.teacher_objective.form.masking,
                    full_input=recipe.objective.form.teacher_prediction == "full_input",
                )
            )
            results["simulability"] = simulability_of(results["agreement_with_teacher"], recipe)
        if beside is not None:
            results |= self._fit_partner(beside, student, teacher)
        if with_fuse_report:
            self._report_fuse(student)
        if recipe.class_wise_rationales:
            results["class_wise"] = self._fit_class_wise(student)
        student.cpu()
        return results

    def _build_partner(self, student: Rationalist) -> Built | None:
        """The second student of an ensemble, before anything is trained that it could not join."""
        ensemble = self.recipe.ensemble
        if ensemble is None:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed + PARTNER_SEED)
            built = build_rationalist(ensemble.partner, self.recipe, len(self.data.label_names))
        assert self.preprocessor is not None
        if not same_tokens(self.preprocessor, built.preprocessor):
            raise UsageError(
                "the two students of the ensemble read their input as other tokens",
                hint="take backbones of one tokenizer for student and ensemble.partner",
            )
        assert isinstance(built.model, Rationalist)
        mine, theirs = (patch_grid(m.predictor.encoder) for m in (student, built.model))
        if mine != theirs:
            raise UsageError(
                f"the student sees {mine} patches and its partner {theirs}: neither could read the "
                "other's rationale",
                hint="take backbones of one patch size for student and ensemble.partner",
            )
        self.weights["partner"] = dict(built.weights)
        return built

    def _fit_class_wise(self, student: Rationalist) -> dict[str, Any]:
        """Trains the class head beside the finished student, which does not change."""
        train, names = self.recipe.student.train, self.data.label_names
        torch.manual_seed(self.recipe.seed)
        head = ClassHead.beside(student)
        student.to(self._device(train)).eval()

        def measure(head: nn.Module, split: Split) -> ClassWiseReport:
            assert isinstance(head, ClassHead)
            return evaluate_class_wise(
                student, head, self._loader(split), names, seed=self.recipe.seed
            )

        def dev(candidate: nn.Module) -> DevResult:
            found = measure(candidate, self.data.dev)
            return DevResult(found.reach, found.loss)

        phase = class_wise_phase(student, head, len(self._epochs(train)(0)))
        report = self._fit(head, [phase], train, CLASS_WISE_ROLE, dev)
        found = measure(head, self.data.test)
        if not found.above_chance:
            self.warnings.append(
                {"role": CLASS_WISE_ROLE, **found.warning(phase.name, report.steps)}
            )
        assert report.best is not None
        return {
            "steps": report.steps,
            "train_wall_s": round(report.wall_s, 1),
            "dev": {"reach": report.best.accuracy, "loss": report.best.loss},
            "test": found.to_json(),
        }

    def _fit_partner(
        self, built: Built, student: Rationalist, teacher: Rationalist | None
    ) -> dict[str, Any]:
        """Trains the partner as the student was, and evaluates the two together."""
        ensemble = self.recipe.ensemble
        assert ensemble is not None
        partner = built.model
        assert isinstance(partner, Rationalist)
        other = copy.copy(self)
        other.recipe = self.recipe.model_copy(
            update={"student": ensemble.partner, "seed": self.recipe.seed + PARTNER_SEED}
        )
        objective = self.recipe.objective
        trained = other._fit_rationalist(partner, "partner", ensemble.partner, objective, teacher)
        splits = {"dev": self.data.dev, "test": self.data.test}
        pair = {
            name: evaluate_pair(student, partner, self._loader(split)).to_json()
            for name, split in splits.items()
        }
        return {"partner": trained, "pair": pair}

    def _report_fuse(self, student: Rationalist) -> None:
        assert self.preprocessor is not None
        student.predictor.fold_unit()
        deployed = self.preprocessor.deployed()
        fused = fuse(
            student,
            label_names=self.data.label_names,
            max_length=self.recipe.data.max_length if self.recipe.modality == "text" else None,
            pixel_scale=self.preprocessor.pixel_scale,
        )
        report = fuse_report(
            student,
            fused,
            lambda: self._loader(self.data.test),
            deployed_loader=lambda: make_loader(
                self.data.test, deployed, batch_size=EVALUATION_BATCH, shuffle=False
            ),
        )
        if self.is_main:
            write_json(self.output / "reports" / "fuse.json", report.to_json())

    def _teacher(self, results: dict[str, Any]) -> Rationalist:
        spec = self.recipe.teacher
        assert spec is not None
        if spec.is_black_box:
            return self._black_box(spec, results)
        if spec.run is not None:
            run = self._other_run(spec.run, "teacher")
            self.preprocessor = run.teacher_preprocessor
            results["teacher"] = {"run": spec.run}
            teacher = run.teacher_or_student()
            if teacher.answers_from_whole_input:
                raise UsageError(
                    f"the teacher of {spec.run} is a plain classifier, not a rationalist",
                    hint="say how it is explained, for instance teacher.rationale: mask_gradient",
                )
            self.teacher_objective = run.teacher_objective()
            teacher.to(make_accelerator(self.recipe.student.train, self.device).device)
            results["teacher"] |= self._evaluate(teacher, self.teacher_objective)
            return teacher
        self.teacher_objective = spec.objective
        built = build_rationalist(spec, self.recipe, len(self.data.label_names))
        self._adopt("teacher", built.weights, built.preprocessor)
        teacher = built.model
        assert isinstance(teacher, Rationalist)
        results["teacher"] = self._fit_rationalist(teacher, "teacher", spec, spec.objective, None)
        return teacher

    def _other_run(self, path: str, part: str) -> Run:
        """The run at ``path``, of which this one takes the ``part``, over the same problem."""
        run = open_run(Path(path))
        if run.label_names != self.data.label_names:
            raise UsageError(
                f"the {part} of {path} knows the labels {', '.join(run.label_names)}; "
                f"this recipe's data have {', '.join(self.data.label_names)}",
                hint=f"train a {part} on this recipe's data",
            )
        if run.recipe.problem_type != self.recipe.problem_type:
            raise UsageError(
                f"the {part} of {path} answers a {run.recipe.problem_type} problem; this recipe's "
                f"is {self.recipe.problem_type}",
                hint="name a run of the recipe's problem_type",
            )
        if run.recipe.modality != self.recipe.modality:
            raise UsageError(
                f"the {part} of {path} reads {run.recipe.modality}; this recipe's data "
                f"are {self.recipe.modality}",
                hint="name a run of the recipe's modality",
            )
        return run

    def _black_box(self, spec: TeacherSpec, results: dict[str, Any]) -> BlackBox:
        """A plain classifier, trained or loaded, and what explains it."""
        assert spec.rationale != "rationalist"
        self.teacher_objective = ObjectiveSpec()
        if spec.run is not None:
            run = self._other_run(spec.run, "teacher")
            self.preprocessor = run.teacher_preprocessor
            classifier = run.black_box()
            teacher = black_box(classifier, spec.rationale, self.recipe.rationale_ratio)
            classifier.to(self._device(self.recipe.student.train))
            predictions = evaluate_classifier(classifier, self._loader(self.data.test))
            results["teacher"] = {"run": spec.run, **_test(predictions, self.data.label_names)}
        else:
            built = build_classifier(spec, self.recipe, len(self.data.label_names))
            assert isinstance(built.model, Classifier)
            # An explainer that this network cannot have is refused before it is trained.
            teacher = black_box(built.model, spec.rationale, self.recipe.rationale_ratio)
            self._adopt("teacher", built.weights, built.preprocessor)
            results["teacher"] = self._fit_classifier(
                built.model, "teacher", spec.train, spec.objective
            )
        results["teacher"]["rationale"] = spec.rationale
        return teacher

    def _learn_mixture(self, teacher: BlackBox, practising: Rationalist) -> dict[str, Any]:
        """Learns the head weights of ``teacher`` with a student that is thrown away; the report."""
        explainer = teacher.selector
        assert isinstance(explainer, HeadMixture)
        assert self.recipe.teacher is not None
        spec, train = self.recipe.teacher.scaffold, self.recipe.student.train
        accelerator, folder = (
            make_accelerator(train, self.device),
            (self.output / HEADS_FILE).parent,
        )
        if not (self.output / HEADS_FILE).is_file():
            met = Teacher(teacher.to(accelerator.device), practising)
            practice = Practice(practising, explainer.weights.requires_grad_(True))
            batches = max(1, len(self._epochs(train)(0)) // accelerator.num_processes)
            phases = scaffold_phases(practice, met, self.recipe, batches_per_epoch=batches)
            report = self._fit(
                practice,
                phases,
                train,
                folder.name,
                lambda model: simulability(
                    model.student, met, self._loader(self.data.dev, self.teacher_preprocessor)
                ),
            )
            accelerator.wait_for_everyone()
            if self.is_main:
                found = {
                    "head_weights": [round(w, 6) for w in explainer.weights().tolist()],
                    "simulability": report.history,
                    "scaffold": spec.model_dump(),
                }
                write_json(self.output / "reports" / "explainer.json", found)
                save_heads(self.output, explainer)  # last: it says that the others are there
            accelerator.wait_for_everyone()
        if self.is_main:
            for file in (folder / "last.safetensors", folder / "best" / "model.safetensors"):
                file.unlink(missing_ok=True)
        load_heads(self.output, explainer)
        return open_run(self.output).report("explainer") or {}

    @torch.no_grad()
    def _add_transfer(self, spec: TransferSpec, teacher: Rationalist) -> dict[str, Any]:
        """Adds the transfer set to the training split, labelled by the teacher's answers from the
        whole input; what it is made of, for the report."""
        found = load_transfer(self.recipe, spec, self.data)
        device = self._device(self.recipe.student.train)
        teacher.to(device).eval()
        problem = teacher.predictor.problem
        answers = np.zeros((len(found.examples), *self.data.train.labels.shape[1:]), np.float32)
        for raw in self._loader(found.examples):
            view = teacher.predictor.encoder.view(move_batch(raw, device).inputs)
            logits = teacher.classify_whole(view)
            answers[raw.index.numpy()] = problem.decision(logits).cpu().numpy()
        answers = answers.astype(self.data.train.labels.dtype)
        labels = np.concatenate([self.data.train.labels, answers])
        self.training = JoinedSplit("train", [self.data.train, found.examples], labels)
        return {
            "source": spec.source,
            "examples": len(answers),
            "left_out_known": found.known,
            "left_out_repeated": found.repeated,
            "answers": _answer_summary(answers, self.recipe.problem_type, self.data.label_names),
        }

    def _adopt(self, role: str, weights: Mapping[str, Any], preprocessor: Preprocessor) -> None:
        theirs = self.preprocessor
        if theirs is not None and not same_tokens(theirs, preprocessor):
            self.teacher_preprocessor = theirs
            if self.is_main:
                theirs.save(self.output / TEACHER_PREPROCESSOR_FOLDER)
        self.preprocessor = preprocessor
        self.weights[role] = dict(weights)
        if self.is_main:
            preprocessor.save(self.output / PREPROCESSOR_FOLDER)

    def _loader(self, split: Split, teacher: Preprocessor | None = None) -> BatchLoader:
        assert self.preprocessor is not None
        held = self._on_device(split, teacher)
        if held is not None:
            return held.batches(batch_size=EVALUATION_BATCH, shuffle=False)
        return make_loader(
            split, self.preprocessor, batch_size=EVALUATION_BATCH, shuffle=False, teacher=teacher
        )

    def _on_device(self, split: Split, teacher: Preprocessor | None) -> DeviceImages | None:
        assert self.preprocessor is not None
        where = self.recipe.data.augment.where
        return images_on_device(where, split, self.preprocessor, self.place, teacher)

    def _epochs(self, train: TrainSpec) -> Callable[[int], BatchLoader]:
        """The training batches of each epoch."""
        assert self.preprocessor is not None
        split, preprocessor = self.training, self.preprocessor
        options: dict[str, Any] = {
            "batch_size": train.batch_size,
            "seed": self.recipe.seed,
            "augment": self.recipe.data.augment if self._augmented else None,
        }
        held = self._on_device(split, self.teacher_preprocessor)
        if held is not None:
            return lambda epoch: held.batches(shuffle=True, epoch=epoch, **options)
        options |= {"teacher": self.teacher_preprocessor, "bucket": train.bucket_by_length}
        workers = self._workers()
        if workers:
            return WorkerLoader(split, preprocessor, workers=workers, **options).epoch
        return lambda epoch: make_loader(split, preprocessor, shuffle=True, epoch=epoch, **options)

    def _workers(self) -> int:
        stated = self.recipe.data.workers
        if stated is not None:
            return stated
        slow = self.recipe.modality == "image" and self.place.type == "cuda"
        return min(8, hardware()["cores"] or 1) if slow else 0

    @property
    def _augmented(self) -> bool:
        augment = self.recipe.data.augment
        return self.recipe.modality == "image" and (augment.flip or augment.crop_padding > 0)

    def _fit_classifier(
        self, model: Classifier, role: str, train: TrainSpec, objective: ObjectiveSpec
    ) -> dict[str, Any]:
        self._tell_labels(model)
        # As many steps as a rationalist's predictor gets, warm-up included.
        epochs = train.classifier_epochs or train.epochs + train.warmup.predictor_epochs

        def dev(candidate: nn.Module) -> DevResult:
            assert isinstance(candidate, Classifier)
            result = evaluate_classifier(candidate, self._loader(self.data.dev))
            criterion = None
            if objective.form.dev_selection == "re_loss":
                criterion = classification_loss(result, batch_size=train.batch_size)
            return _dev_result(result, criterion)

        phase = Phase(
            "classify",
            ClassifyObjective(model),
            epochs,
            {model.predictor: Rates.first_of(train)},
            select=True,
            varying_tokens=self.recipe.modality == "text",
        )
        report = self._fit(model, [phase], train, role, dev)
        predictions = evaluate_classifier(model, self._loader(self.data.test))
        return {**_summary(report), **_test(predictions, self.data.label_names)}

    def _fit_rationalist(
        self,
        model: Rationalist,
        role: str,
        spec: RationalistSpec,
        objective: ObjectiveSpec,
        teacher: Rationalist | None,
    ) -> dict[str, Any]:
        mode = evaluation_mode(objective)
        self._tell_labels(model)

        def dev(candidate: nn.Module) -> DevResult:
            assert isinstance(candidate, Rationalist)
            # The loop seeds each evaluation by its step: other draws each time, the same again.
            result = self._under(candidate, objective, self.data.dev, torch.initial_seed())
            criterion = None
            if objective.form.dev_selection == "re_loss":
                criterion = rationale_extraction_loss(
                    result,
                    batch_size=spec.train.batch_size,
                    rationale_ratio=self.recipe.rationale_ratio,
                    lambda_select=objective.lambda_select,
                )
            return _dev_result(result, criterion)

        met = None
        if teacher is not None:
            assert self.teacher_objective is not None
            met = Teacher(
                teacher.to(self._device(spec.train)),
                model,
                self.teacher_objective.form.masking,
                full_input=objective.form.teacher_prediction == "full_input",
            )
        if spec.train.warmup.predictor_run is not None:
            self._take_predictor(model, role, spec.train.warmup.predictor_run)
        phases = self._phases(model, spec, objective, met)
        monitor = self._monitor(spec.train, role, mode) if spec.train.monitor else None
        frozen = () if met is None else (met.model,)
        report = self._fit(model, phases, spec.train, role, dev, monitor, frozen)
        self.warnings += [{"role": role, **asdict(warning)} for warning in report.warnings]
        return {**_summary(report), **self._evaluate(model, objective), "dev_mode": mode}

    def _take_predictor(self, model: Rationalist, role: str, path: str) -> None:
        """Gives the model the predictor of another run as its warm-up left it, and keeps it as this
        run's judge."""
        run = self._other_run(path, "predictor")
        assert self.preprocessor is not None
        if not same_tokens(self.preprocessor, run.preprocessor):
            raise UsageError(
                f"the predictor of {path} reads its input as other tokens",
                hint="name a run with the backbone of this recipe's predictor",
            )
        file = run.path / "student" / JUDGE_FILE
        if not file.is_file():
            raise UsageError(
                f"{path} keeps no predictor of a warm-up",
                hint="name a run whose student.train.warmup.predictor_epochs is above 0",
            )
        load_model(file, model.predictor)
        if self.is_main:
            save_model(self.output / role / JUDGE_FILE, model.predictor)

    def _tell_labels(self, model: nn.Module) -> None:
        """Gives the model what it keeps of the training labels: shares, or unit."""
        if self.recipe.problem_type == "single_label_classification":
            counts = np.bincount(self.training.labels, minlength=len(self.data.label_names))
            set_label_shares(model, counts.tolist())
        elif self.recipe.problem_type == "regression":
            take_unit(model, self.data.train.labels)

    def _monitor(self, train: TrainSpec, role: str, mode: SelectionMode) -> SelectionMonitor:
        dev = self.data.dev
        if len(dev) > MONITORED_EXAMPLES:
            spread = np.linspace(0, len(dev) - 1, MONITORED_EXAMPLES)
            dev = dev.take(spread.round().astype(np.int64))
        return SelectionMonitor(
            lambda: self._loader(dev),
            self.output / role,
            sampled="bernoulli" in mode,
            zeroed=mode.endswith("zeroed"),
            judged=train.warmup.predictor_epochs > 0,
        )

    def _evaluate(self, model: Rationalist, objective: ObjectiveSpec) -> dict[str, Any]:
        """On the test split, as exported, and under the objective's own evaluation."""
        predictions = evaluate_rationalist(model, self._loader(self.data.test))
        mode = evaluation_mode(objective)
        own = [predictions]
        if mode != "top_k_gathered":
            draws = SAMPLED_DRAWS if objective.form.evaluation == "sampled" else 1
            seeds = range(self.recipe.seed * draws, (self.recipe.seed + 1) * draws)
            own = [self._under(model, objective, self.data.test, seed) for seed in seeds]
        accuracies = [result.accuracy for result in own]
        score = PRIMARY[self.recipe.problem_type]
        return {
            **_test(predictions, self.data.label_names),
            "test_own": {
                "mode": mode,
                score: statistics.fmean(accuracies),
                f"{score}_spread": statistics.stdev(accuracies) if len(own) > 1 else 0.0,
                "loss": statistics.fmean(result.loss for result in own),
                "kept_share": statistics.fmean(result.kept_share for result in own),
                "draws": len(own),
            },
        }

    def _under(
        self, model: Rationalist, objective: ObjectiveSpec, split: Split, seed: int
    ) -> Predictions:
        """``model`` on ``split`` as its objective evaluates."""
        return evaluate_rationalist(
            model,
            self._loader(split),
            evaluation_mode(objective),
            positions=self._positions(objective),
            seed=seed,
        )

    def _refuse_foreign_positions(self, objective: ObjectiveSpec) -> None:
        foreign = self.teacher_preprocessor is not None
        if foreign and objective.form.uses_teacher_draws:
            if self.recipe.modality == "text" and self._positions(objective) != ALL_CONTENT:
                raise UsageError(
                    "special tokens and padding of another tokenizer cannot be compared",
                    hint="set objective.select_special and objective.count_padding to false",
                )

    def _positions(self, objective: ObjectiveSpec) -> Positions:
        form, data = objective.form, self.recipe.data
        padded = self.recipe.modality == "text" and form.count_padding
        return Positions(form.select_special, data.max_length if padded else None)

    def _phases(
        self,
        model: Rationalist,
        spec: RationalistSpec,
        objective: ObjectiveSpec,
        teacher: Teacher | None,
    ) -> list[Phase]:
        train = spec.train
        warmup, phases = train.warmup, []
        targets = None
        if teacher is not None:
            self._refuse_foreign_positions(objective)
            if warmup.selector.startswith("teacher") or objective.form.uses_teacher_targets:
                targets = self._targets(teacher, train)
        # A published-style teacher never saw random subsets, so it cannot judge them.
        excludes = objective.form.masking == "exclude"
        judge = teacher if excludes and self._teacher_knows_subsets else None
        if warmup.predictor_epochs > 0 and warmup.predictor_run is None:
            phases.append(
                Phase(
                    "predictor warm-up",
                    PredictorWarmup(model, objective, judge),
                    warmup.predictor_epochs,
                    {model.predictor: Rates.first_of(train)},
                    judge=model.predictor,
                    varying_tokens=True,
                )
            )
        if warmup.selector != "none" and warmup.selector_epochs > 0:
            phases.append(self._selector_phase(model, train, objective, teacher, targets))
        trained: dict[nn.Module, Rates] = {model.predictor: Rates.of(train)}
        rate = train.selector_learning_rate
        own = Rates.of(train) if rate is None else Rates(rate, rate)
        if rate != 0:
            trained = {model.selector: own} | trained
        varying = self.recipe.modality == "text" or objective.ratio_schedule is not None
        if objective.method == "rekd":
            joint = JointObjective(
                model,
                objective,
                teacher,
                targets,
                self._positions(objective),
                gather=wanted(train.gather, self.place),
            )
            phases.append(
                Phase("joint", joint, train.epochs, trained, select=True, varying_tokens=varying)
            )
            return phases
        method = self._method(model, spec, objective, targets)
        if method.trained_auxiliary is not None:
            trained[method.trained_auxiliary] = own
        phases.append(
            Phase(
                "joint",
                method,
                train.epochs,
                trained,
                select=True,
                auxiliary=method.auxiliary,
                turns=method.turns,
            )
        )
        return phases

    def _method(
        self,
        model: Rationalist,
        spec: RationalistSpec,
        objective: ObjectiveSpec,
        targets: TargetSource | None,
    ) -> Method:
        encoder = model.predictor.encoder

        def noise() -> nn.Module:
            if not isinstance(encoder, BertEncoder):
                return PatchNoise()
            views = (encoder.view(batch.inputs) for batch in self._loader(self.training))
            return WordNoise(views, int(encoder.backbone.config.vocab_size))

        parts = Parts(
            selector=lambda: build_selector(spec, self.recipe, encoder),
            noise=noise,
            classes=len(self.data.label_names),
        )
        return build_method(
            model, objective, targets, parts, gather=wanted(spec.train.gather, self.place)
        )

    def _selector_phase(
        self,
        model: Rationalist,
        train: TrainSpec,
        objective: ObjectiveSpec,
        teacher: Teacher | None,
        targets: TargetSource | None,
    ) -> Phase:
        warmup, source = train.warmup, train.warmup.selector
        if source.startswith("teacher") and targets is None:
            # A student trained without a teacher learns from its own predictor instead.
            source = "mask_gradient"
        learned: nn.Module
        if source == "teacher":
            assert targets is not None
            learned = RationaleWarmup(model, targets, objective.rationale_temperature)
        elif source == "value_regression":
            learned = ValueRegression(model, model, warmup.explain)
        else:
            both = targets if source == "teacher_and_own" else None
            judge = teacher if source in {"teacher_gradient", "teacher_attribution"} else None
            learned = AttributionWarmup(model, self._attributions(model, judge, train), both)
        title = f"selector warm-up ({source.replace('_', ' ')})"
        rate = warmup.selector_learning_rate
        rates = Rates.of(train) if rate is None else Rates(rate, rate)
        return Phase(
            title,
            learned,
            warmup.selector_epochs,
            {model.selector: rates},
            varying_tokens=self.recipe.modality == "text",
        )

    def _attributions(
        self, model: Rationalist, judge: Teacher | None, train: TrainSpec
    ) -> AttributionSource:
        """What the tokens of a training batch mean to ``model``'s predictor, or to ``judge``."""
        by_label = train.warmup.explain == "label"
        attribute = occlusion if train.warmup.selector == "occlusion" else mask_gradient

        def compute(batch: Batch) -> Tensor:
            explained = batch.labels if by_label else None
            with make_accelerator(train, self.device).autocast():
                if judge is not None:
                    if train.warmup.selector == "teacher_attribution":
                        return judge.attribute(batch, explained).float()
                    return judge.mask_gradient(batch, explained).float()
                view = model.predictor.encoder.view(batch.inputs)
                return attribute(model.predictor, view, explained).float()

        if self._augmented or train.warmup.selector_epochs <= 1:
            return compute
        device = self._device(train)

        def batches() -> Iterator[Batch]:
            loader = self._loader(self.training, self.teacher_preprocessor)
            return (move_batch(batch, device) for batch in loader)

        return CachedAttributions(compute, batches)

    @property
    def _teacher_knows_subsets(self) -> bool:
        spec = self.recipe.teacher
        if spec is None:
            return False
        return spec.is_black_box or spec.train.warmup.predictor_epochs > 0

    def _device(self, train: TrainSpec) -> torch.device:
        return make_accelerator(train, self.device).device

    def _targets(self, teacher: Teacher, train: TrainSpec) -> TargetSource:
        if self._augmented:
            return teacher.targets
        device = self._device(train)
        teacher.student.to(device)
        loader = self._loader(self.training, self.teacher_preprocessor)
        return CachedTargets(teacher.targets, (move_batch(batch, device) for batch in loader))

    def _fit(
        self,
        model: nn.Module,
        phases: list[Phase],
        train: TrainSpec,
        role: str,
        evaluate: Any,
        monitor: SelectionMonitor | None = None,
        frozen: Sequence[nn.Module] = (),
    ) -> FitReport:
        folder = self.output / role
        report = fit(
            model,
            phases,
            train=train,
            epoch_loader=self._epochs(train),
            evaluate=evaluate,
            folder=folder,
            seed=self.recipe.seed,
            device=self.device,
            resume=self.resume,
            listener=self.listener,
            monitor=monitor,
            frozen=frozen,
        )
        load_model(folder / "best" / "model.safetensors", model)
        model.eval()
        return report

    @torch.no_grad()
    def _agreement(self, teacher: Teacher) -> dict[str, float]:
        """Labels and rationales that student and teacher share on the test split; the teacher's
        rationale is carried to the student's tokens."""
        device = next(teacher.student.parameters()).device
        teacher.model.to(device)
        same_mask, jaccard, count = 0, 0.0, 0
        answers: list[Tensor] = []
        mine: list[Tensor] = []
        for raw in self._loader(self.data.test, self.teacher_preprocessor):
            batch = move_batch(raw, device)
            theirs = teacher.targets(batch)
            _, keep, logits = rationale_and_answer(teacher.student, batch.inputs)
            answers.append(theirs.logits.cpu())
            mine.append(logits.cpu())
            same_mask += int((theirs.keep == keep).all(dim=1).sum())
            both = (theirs.keep & keep).sum(dim=1)
            either = (theirs.keep | keep).sum(dim=1).clamp_min(1)
            jaccard += float((both / either).sum())
            count += len(batch.labels)
        problem = copy.deepcopy(teacher.student.predictor.problem).cpu()
        return {
            **problem.agreement(torch.cat(answers), torch.cat(mine)),
            "rationale_exact": same_mask / count,
            "rationale_jaccard": jaccard / count,
        }


def simulability_of(agreement: Mapping[str, float], recipe: Recipe) -> dict[str, Any]:
    """How far the student answers as its teacher, and whether it learned anything but answers."""
    warmup = recipe.student.train.warmup
    warmed_up = warmup.selector.startswith("teacher") and warmup.selector_epochs > 0
    return {
        "agreement": agreement[SIMULABILITY[recipe.problem_type]],
        "with_rationales": warmed_up or recipe.objective.lambda_rationale > 0,
    }


def evaluation_mode(objective: ObjectiveSpec) -> SelectionMode:
    """How the development split is scored: as deployed, or with sampled masks, zeroed embeddings or
    both, as the official code does."""
    form = objective.form
    zeroed: SelectionMode
    excluded: SelectionMode
    if form.evaluation == "top_k":
        zeroed, excluded = "top_k_zeroed", "top_k_gathered"
    elif form.selection == "bernoulli":
        zeroed, excluded = "sampled_bernoulli_zeroed", "sampled_bernoulli"
    else:
        zeroed, excluded = "sampled_top_k_zeroed", "sampled_top_k"
    return zeroed if form.masking == "zero" else excluded


def _dev_result(found: Predictions, criterion: float | None) -> DevResult:
    scores = found.scores
    single = found.problem.kind == "single_label_classification"
    return DevResult(found.accuracy, found.loss, criterion, None if single else scores)


def _answer_summary(
    answers: np.ndarray, problem: ProblemType, names: Sequence[str]
) -> dict[str, Any]:
    """How often each label was answered, or mean and deviation of each number."""
    if problem == "regression":
        return {
            name: {"mean": float(column.mean()), "deviation": float(column.std())}
            for name, column in zip(names, answers.T, strict=True)
        }
    several = answers.ndim == 2
    counts = answers.sum(axis=0) if several else np.bincount(answers, minlength=len(names))
    return dict(zip(names, map(int, counts), strict=True))


def _summary(report: FitReport) -> dict[str, Any]:
    best = report.best
    return {
        "dev": None if best is None else best.values() | {"criterion": best.criterion},
        "history": report.history,
        "steps": report.steps,
        "train_wall_s": round(report.wall_s, 1),
    }


def _test(predictions: Predictions, label_names: tuple[str, ...]) -> dict[str, Any]:
    single = predictions.problem.kind == "single_label_classification"
    each = dict(zip(label_names, predictions.per_label(), strict=True))
    return {
        "test": {
            **predictions.scores,
            "loss": predictions.loss,
            "examples": len(predictions.labels),
            "per_class" if single else "per_label": each,
        }
    }


def set_deterministic(enabled: bool) -> None:
    """Makes torch refuse operators that are not reproducible (slower on CUDA)."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
