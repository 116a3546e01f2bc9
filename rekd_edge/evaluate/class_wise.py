"""Class-wise rationales over a whole split: do they make the predictor say their class?

The control is a random rationale of the same size: where the best case for a class does no better
than chance, there is none, or the head has not found it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rekd_edge.evaluate.rationales import Rationales, collect_rationales
from rekd_edge.models.class_wise import ClassHead
from rekd_edge.models.rationalist import Rationalist, Scores
from rekd_edge.selection import keep_top_k
from rekd_edge.types import Batch


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Of one class c, over all ``examples``; ``not_answered`` of them have another answer.

    z_c is the rationale for c, z the one that the answer was read from. ``reach``: share of
    examples for which the predictor says c of z_c; ``reach_not_answered`` of those whose answer is
    another class, None without any; ``reach_random`` and ``reach_random_not_answered``: of as many
    tokens at random.
    ``probability``: mean p(c | z_c); ``probability_answer``: p(c | z); ``probability_random``.
    ``jaccard_answered``: mean overlap of z_c and z where c is the answer, ``jaccard_not_answered``
    where it is not.
    """

    label: str
    examples: int
    not_answered: int
    reach: float
    reach_not_answered: float | None
    reach_random: float
    reach_random_not_answered: float | None
    probability: float
    probability_answer: float
    probability_random: float
    jaccard_answered: float | None
    jaccard_not_answered: float | None


@dataclass(frozen=True, slots=True)
class ClassWiseReport:
    """``reach``, ``reach_random`` and ``loss`` (mean -log p(c | z_c)) are means over classes; those
    ``not_answered`` over all pairs of an example and a class that is not its answer."""

    classes: tuple[ClassFigures, ...]
    reach: float
    reach_not_answered: float | None
    reach_random: float
    reach_random_not_answered: float | None
    loss: float

    @property
    def above_chance(self) -> bool:
        """Whether the predictor is surer of every class from its own rationale than from random
        tokens."""
        return all(one.probability > one.probability_random for one in self.classes)

    def warning(self, phase: str, step: int) -> dict[str, Any]:
        """What is said of a run where :attr:`above_chance` is False, as other warnings of
        training."""
        weak = [one for one in self.classes if one.probability <= one.probability_random]
        names = ", ".join(repr(one.label) for one in weak)
        return {
            "kind": "class_wise_at_chance",
            "phase": phase,
            "step": step,
            "last_step": step,
            "message": f"the rationale for {names} convinces the predictor no more than random "
            "tokens do",
            "advice": "do not show it; train the predictor on random subsets first "
            "(student.train.warmup.predictor_epochs), or for longer",
            "evidence": {one.label: one.probability - one.probability_random for one in weak},
        }

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "classes": [asdict(one) for one in self.classes],
            "above_chance": self.above_chance,
        }


@dataclass(slots=True)
class _Sums:
    """Of one class; ``[example]`` each, batch by batch."""

    hit: list[Tensor] = field(default_factory=list)
    random_hit: list[Tensor] = field(default_factory=list)
    log_probability: list[Tensor] = field(default_factory=list)
    answer: list[Tensor] = field(default_factory=list)
    random: list[Tensor] = field(default_factory=list)
    jaccard: list[Tensor] = field(default_factory=list)
    answered: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def evaluate_class_wise(
    model: Rationalist,
    head: ClassHead,
    loader: Iterable[Batch],
    label_names: Sequence[str],
    *,
    seed: int = 0,
) -> ClassWiseReport:
    """Runs the predictor on the rationale for every class and on a random one; ``seed`` draws the
    latter. One pass of the selector, and one of the predictor for each class and two besides."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    sums = [_Sums() for _ in label_names]
    for batch in loader:
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        scores = model.selector(inputs)
        view = scores.view
        assert scores.hidden is not None
        by_class = head(scores.hidden)
        budget = model.budget(view)

        def answer(keep: Tensor, view: Any = view) -> Tensor:
            """Log-probabilities ``[batch, class]``."""
            logits = model.classify_slots(view, keep, model.slots(view))
            return F.log_softmax(logits.float(), dim=1)

        factual = model.keep(scores)
        said = answer(factual)
        noise = torch.rand(view.selectable.shape, generator=generator).to(device)
        chance = answer(keep_top_k(noise, view.selectable, budget))
        for index, found in enumerate(sums):
            keep = keep_top_k(by_class[:, :, index], view.selectable, budget)
            own = answer(keep)
            shared, either = (keep & factual).sum(dim=1), (keep | factual).sum(dim=1)
            found.hit.append((own.argmax(dim=1) == index).cpu())
            found.random_hit.append((chance.argmax(dim=1) == index).cpu())
            found.log_probability.append(own[:, index].cpu())
            found.answer.append(said[:, index].exp().cpu())
            found.random.append(chance[:, index].exp().cpu())
            found.jaccard.append((shared / either.clamp_min(1)).cpu())
            found.answered.append((said.argmax(dim=1) == index).cpu())
    model.train(was_training)
    classes = tuple(_figures(name, one) for name, one in zip(label_names, sums, strict=True))
    hit = torch.cat([value for one in sums for value in one.hit])
    random_hit = torch.cat([value for one in sums for value in one.random_hit])
    answered = torch.cat([value for one in sums for value in one.answered])
    log_probability = torch.cat([value for one in sums for value in one.log_probability])
    return ClassWiseReport(
        classes,
        reach=_mean(hit, None) or 0.0,
        reach_not_answered=_mean(hit, ~answered),
        reach_random=_mean(random_hit, None) or 0.0,
        reach_random_not_answered=_mean(random_hit, ~answered),
        loss=-float(log_probability.double().mean()),
    )


def _figures(label: str, sums: _Sums) -> ClassFigures:
    answered = torch.cat(sums.answered)
    hit, random_hit = torch.cat(sums.hit), torch.cat(sums.random_hit)
    jaccard = torch.cat(sums.jaccard)
    return ClassFigures(
        label=label,
        examples=len(hit),
        not_answered=int((~answered).sum()),
        reach=float(hit.double().mean()),
        reach_not_answered=_mean(hit, ~answered),
        reach_random=float(random_hit.double().mean()),
        reach_random_not_answered=_mean(random_hit, ~answered),
        probability=float(torch.cat(sums.log_probability).double().exp().mean()),
        probability_answer=float(torch.cat(sums.answer).double().mean()),
        probability_random=float(torch.cat(sums.random).double().mean()),
        jaccard_answered=_mean(jaccard, answered),
        jaccard_not_answered=_mean(jaccard, ~answered),
    )


def _mean(values: Tensor, where: Tensor | None) -> float | None:
    chosen = values if where is None else values[where]
    return float(chosen.double().mean()) if len(chosen) else None


class _AskedSelector(nn.Module):
    """The selector with the scores of one class."""

    def __init__(self, model: Rationalist, head: ClassHead, index: int) -> None:
        super().__init__()
        self.selector, self.head, self.index = model.selector, head, index

    def forward(self, inputs: Mapping[str, Tensor]) -> Scores:
        scores = self.selector(inputs)
        candidate = torch.full((len(scores.score),), self.index, device=scores.score.device)
        return self.head.scores(scores, candidate)


def label_rationales(
    model: Rationalist, head: ClassHead, loader: Callable[[], Iterable[Batch]]
) -> Rationales:
    """The rationales for each example's own label, in the order of the split: what gold rationales
    speak of."""
    asked = Rationalist(model.selector, model.predictor, model.rationale_ratio)
    by_class = []
    for index in range(head.out_features):
        selector: Any = _AskedSelector(model, head, index)
        asked.selector = selector
        by_class.append(collect_rationales(asked.eval(), loader(), predict=False))
    labels = by_class[0].labels

    def own(name: str) -> list[np.ndarray]:
        return [getattr(by_class[label], name)[row] for row, label in enumerate(labels.tolist())]

    return replace(by_class[0], keep=own("keep"), score=own("score"))
