"""Fine-tuning of a peer, with the project's own loop."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.peer import Peer
from rekd_edge import losses
from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import Preprocessor
from rekd_edge.data.split import Split
from rekd_edge.distill.checkpoint import load_model
from rekd_edge.distill.loop import (
    DevResult,
    FitReport,
    Phase,
    ProgressListener,
    Rates,
    fit,
    make_accelerator,
    move_batch,
)
from rekd_edge.distill.objectives import LossTerms, Progress
from rekd_edge.models.rationalist import Classifier, Rationalist
from rekd_edge.recipe.latency_file import FineTuneSpec
from rekd_edge.recipe.schema import AugmentSpec, TrainSpec
from rekd_edge.types import Batch

PENALTY_WEIGHT = 2.0
"""Of DynamicViT's penalty on kept shares (Rao et al. 2021)."""
EVALUATION_BATCH = 64


class PeerObjective(nn.Module):
    """L = alpha * CE + (1 - alpha) * T^2 * KL(teacher || peer) + 2 * penalty. ``teacher`` answers
    from the whole input; it is neither trained nor saved."""

    def __init__(self, peer: Peer, teacher: Classifier | Rationalist, spec: FineTuneSpec) -> None:
        super().__init__()
        self.peer = peer
        self.spec = spec
        self._teacher = (teacher,)

    def forward(self, batch: Batch, progress: Progress) -> LossTerms:
        spec = self.spec
        logits, penalty = self.peer.training_answer(batch.inputs)
        with torch.no_grad():
            theirs = whole_answer(self._teacher[0], batch)
        terms: LossTerms = {
            "ce": F.cross_entropy(logits, batch.labels),
            "kl": losses.prediction_kl(theirs, logits, temperature=spec.temperature),
        }
        loss = spec.alpha * terms["ce"] + (1 - spec.alpha) * spec.temperature**2 * terms["kl"]
        if penalty is not None:
            terms["penalty"] = penalty
            loss = loss + PENALTY_WEIGHT * penalty
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def whole_answer(teacher: Classifier | Rationalist, batch: Batch) -> Tensor:
    """Logits ``[batch, class]`` from the whole input; of a rationalist those of its predictor,
    which was trained on content without `[SEP]`."""
    inputs: Mapping[str, Tensor] = batch.inputs if batch.teacher is None else batch.teacher.inputs
    if isinstance(teacher, Classifier):
        return teacher(inputs)
    view = teacher.predictor.encoder.view(inputs)
    return teacher.classify_masked(view, view.selectable)


def fine_tune(
    peer: Peer,
    split: Split,
    dev: Split,
    *,
    preprocessor: Preprocessor,
    teacher: Classifier | Rationalist,
    spec: FineTuneSpec,
    train: TrainSpec,
    folder: Path,
    seed: int = 0,
    teacher_preprocessor: Preprocessor | None = None,
    augment: AugmentSpec | None = None,
    device: str = "auto",
    listener: ProgressListener | None = None,
) -> FitReport:
    """Trains ``peer`` in place on ``split``, resumably in ``folder``, and leaves the weights of the
    epoch with the best accuracy on ``dev``. What the plain classifier froze stays frozen.

    ``train`` is that of the plain classifier; ``teacher_preprocessor`` where the teacher reads
    its input otherwise.
    """
    own = Rates.first_of(train)
    if spec.learning_rate is not None:
        own = Rates(spec.learning_rate, own.head * spec.learning_rate / own.body)
    trained: dict[nn.Module, Rates] = {peer.predictor: own}
    fresh = spec.fresh_learning_rate
    trained |= {part: Rates(fresh, fresh) for part in peer.fresh_parts()}
    accelerator = make_accelerator(train, device)
    judge = copy.deepcopy(teacher).to(accelerator.device).eval().requires_grad_(False)
    objective = PeerObjective(peer, judge, spec)
    report = fit(
        peer,
        [Phase("fine-tuning", objective, spec.epochs, trained, select=True)],
        train=train,
        epoch_loader=lambda epoch: make_loader(
            split,
            preprocessor,
            batch_size=train.batch_size,
            shuffle=True,
            seed=seed,
            epoch=epoch,
            bucket=train.bucket_by_length,
            augment=augment,
            teacher=teacher_preprocessor,
        ),
        evaluate=lambda model: _dev_result(
            model, make_loader(dev, preprocessor, batch_size=EVALUATION_BATCH, shuffle=False)
        ),
        folder=folder,
        seed=seed,
        device=device,
        resume=True,
        listener=listener,
    )
    load_model(folder / "best" / "model.safetensors", peer)
    peer.cpu().eval().requires_grad_(False)
    return report


@torch.no_grad()
def _dev_result(model: nn.Module, batches: Iterable[Batch]) -> DevResult:
    assert isinstance(model, Peer)
    device = next(model.parameters()).device
    logits, labels = [], []
    for raw in batches:
        batch = move_batch(raw, device)
        logits.append(model.answer(batch.inputs).float())
        labels.append(batch.labels)
    answers, right = torch.cat(logits), torch.cat(labels)
    accuracy = float((answers.argmax(dim=1) == right).double().mean())
    return DevResult(accuracy, float(F.cross_entropy(answers, right)))
