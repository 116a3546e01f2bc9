"""Quantization-aware distillation: a fused student learns to answer in int8 as it did in fp32.

    L = KL(fp32 logits || int8 logits, given the fp32 rationale), or what the problem has for it
        + KL(softmax of fp32 scores || softmax of int8 scores, over selectable tokens)

The teacher is the student itself before quantization; labels play no part. It follows distillation
for quantized networks (Mishra and Marr 2018; Polino et al. 2018).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rekd_edge import losses
from rekd_edge.convert.fake_int8 import fake_int8
from rekd_edge.convert.targets import RecoverySpec
from rekd_edge.convert.types import Int8, Part
from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import Preprocessor
from rekd_edge.data.split import Split
from rekd_edge.distill.checkpoint import load_model
from rekd_edge.distill.loop import (
    BatchLoader,
    DevResult,
    Phase,
    ProgressListener,
    Rates,
    fit,
    make_accelerator,
    move_batch,
)
from rekd_edge.distill.objectives import LossTerms, Progress
from rekd_edge.fuse import FusedRationalist
from rekd_edge.models.selectors import SharedSelector
from rekd_edge.recipe.schema import TrainSpec
from rekd_edge.selection import LOWEST_SCORE
from rekd_edge.types import Batch, input_names

PHASE = "recovering int8"
OBSERVE_EVERY = 50
"""Steps after which `int8-static` takes the ranges of activations anew."""
EVALUATION_BATCH = 64


@dataclass(frozen=True, slots=True)
class Recovered:
    """The trained copy, on the CPU and frozen, and the loss on the development split before and
    after, in int8."""

    model: FusedRationalist
    steps: int
    dev_loss_before: float
    dev_loss_after: float


class RecoveryObjective(nn.Module):
    """The loss above. ``reference`` is neither trained nor saved; where no score of ``student``
    can change (``selects`` False) the second term is left out."""

    def __init__(
        self, student: FusedRationalist, reference: FusedRationalist, *, selects: bool
    ) -> None:
        super().__init__()
        self.student = student
        self.selects = selects
        self._reference = (reference,)

    def forward(self, batch: Batch, progress: Progress | None = None) -> LossTerms:
        self.student.eval()  # a file has no dropout, and the loop has just switched it on
        inputs = positional(self.student, batch.inputs)
        with torch.no_grad():
            logits, _, theirs, _, index, valid = self._reference[0](*inputs)
        terms: LossTerms = {
            "prediction_kl": self.student.predictor.problem.prediction_loss(
                logits, self.student.predict_from(*inputs, index, valid), temperature=1.0
            )
        }
        if self.selects:
            scores = self.student.selector(batch.inputs)
            mine = torch.where(scores.view.selectable, scores.score, LOWEST_SCORE)
            theirs = theirs[:, self.student.token_offset :]
            terms["selection_kl"] = losses.prediction_kl(theirs, mine, temperature=1.0)
        loss = torch.stack(list(terms.values())).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def positional(model: FusedRationalist, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(inputs[name] for name in input_names(model.modality))


def recover(
    reference: FusedRationalist,
    spec: RecoverySpec,
    *,
    precision: Int8,
    parts: Sequence[Part],
    train: TrainSpec,
    examples: Split,
    dev: Split,
    preprocessor: Preprocessor,
    folder: Path,
    seed: int,
    calibration: Sequence[Mapping[str, np.ndarray]] = (),
    device: str = "auto",
    listener: ProgressListener | None = None,
) -> Recovered:
    """Trains a copy of ``reference`` whose ``parts`` compute in ``precision`` on ``examples``.

    Tables of embeddings stay as they are; all other weights of the parts are trained, in fp32 and
    without decay, with batches, clipping and schedule of ``train``. ``preprocessor`` is that of
    deployed models; ``folder`` holds the loop's files; ``calibration`` are the examples from
    which `int8-static` takes its ranges.

    Raises:
        DivergedError: the loss is no number any more.
    """
    student = copy.deepcopy(reference)
    if "selector" not in parts and isinstance(student.selector, SharedSelector):
        student.selector.untie()
    for part in parts:
        for module in student.get_submodule(part).modules():
            if not isinstance(module, nn.Embedding):
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(True)
    changes = {"precision": "no", "weight_decay": 0.0, "checkpoint_every_steps": 10**9}
    train = train.model_copy(update=changes)
    device = str(make_accelerator(train, device).device.type)
    student.to(device)
    reference = copy.deepcopy(reference).to(device)
    objective = RecoveryObjective(student, reference, selects="selector" in parts)
    rates = Rates(spec.learning_rate, spec.learning_rate)
    held = [
        positional(student, {name: torch.from_numpy(value) for name, value in one.items()})
        for one in calibration
    ]

    def batches(epoch: int) -> BatchLoader:
        return make_loader(
            examples,
            preprocessor,
            batch_size=train.batch_size,
            shuffle=True,
            seed=seed,
            epoch=epoch,
            bucket=train.bucket_by_length,
        )

    with fake_int8(student, precision, parts, held) as observe:

        def evaluate(_: nn.Module) -> DevResult:
            observe()
            loader = make_loader(dev, preprocessor, batch_size=EVALUATION_BATCH, shuffle=False)
            return _dev_result(objective, loader)

        before = evaluate(student)
        report = fit(
            student,
            [
                Phase(
                    PHASE,
                    _Observing(objective, observe),
                    spec.epochs,
                    {student.get_submodule(part): rates for part in parts},
                    select=True,
                )
            ],
            train=train,
            epoch_loader=batches,
            evaluate=evaluate,
            folder=folder,
            seed=seed,
            device=device,
            listener=listener,
        )
    load_model(folder / "best" / "model.safetensors", student)
    student.cpu().eval().requires_grad_(False)
    assert report.best is not None
    return Recovered(student, report.steps, before.loss, report.best.loss)


class _Observing(nn.Module):
    """The objective, with ranges taken anew every :data:`OBSERVE_EVERY` steps."""

    def __init__(self, objective: RecoveryObjective, observe: Callable[[], None]) -> None:
        super().__init__()
        self.objective = objective
        self._observe = observe

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        if progress.step and progress.step % OBSERVE_EVERY == 0:
            self.objective.student.eval()
            self._observe()
        return self.objective(batch, progress)


@torch.no_grad()
def _dev_result(objective: RecoveryObjective, batches: Iterable[Batch]) -> DevResult:
    """Primary score against the labels, and the mean loss; the least loss is the best."""
    student = objective.student
    device = next(student.parameters()).device
    problem = copy.deepcopy(student.predictor.problem).cpu()
    answers: list[Tensor] = []
    labels: list[Tensor] = []
    total, count = 0.0, 0
    for raw in batches:
        batch = move_batch(raw, device)
        total += float(objective(batch)["loss"]) * len(batch.labels)
        logits = student(*positional(student, batch.inputs))[0]
        answers.append(logits.float().cpu())
        labels.append(batch.labels.cpu())
        count += len(batch.labels)
    loss = total / max(count, 1)
    score = problem.score(torch.cat(answers), torch.cat(labels)) if count else 0.0
    return DevResult(score, loss, criterion=loss)
