"""Two students beside the pair that they make, in torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rekd_edge.models.interactive import CaseCount, count_cases, exchange, share_right
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.selection import gather_slots
from rekd_edge.types import Batch

PUBLISHED = "Published (Dai 2023): IMDB .81, .81 alone, .83 together; 20 Newsgroups .55, .54, .58"


@dataclass(frozen=True, slots=True)
class PairCase:
    """A case with the accuracy that either student has in it, and how often the first answered."""

    count: CaseCount
    student: float | None
    partner: float | None
    by_student: int

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return found.pop("count") | found


@dataclass(frozen=True, slots=True)
class PairReport:
    """Accuracies (0..1) of each student alone and of the pair; shares of examples in which their
    labels or whole rationales are the same, and mean overlap (Jaccard) of the rationales."""

    examples: int
    accuracy: float
    student: float
    partner: float
    averaged: float
    """Of the label that the mean of both students' probabilities gives, without any exchange."""
    label_agreement: float
    rationale_exact: float
    rationale_jaccard: float
    cases: tuple[PairCase, ...]

    @property
    def gain(self) -> float:
        """Over the better of the two students, in points of accuracy (0..100)."""
        return 100 * (self.accuracy - max(self.student, self.partner))

    def to_json(self) -> dict[str, Any]:
        cases = {case.count.name: case.to_json() for case in self.cases}
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "cases"}
        return {**plain, "gain_points": round(self.gain, 3), "cases": cases}


@torch.no_grad()
def evaluate_pair(
    student: Rationalist, partner: Rationalist, loader: Iterable[Batch]
) -> PairReport:
    """Both students in evaluation mode over ``loader``, as they would be deployed together."""
    student.eval()
    partner.eval()
    device = next(student.parameters()).device
    partner.to(device)
    parts: list[dict[str, Tensor]] = []
    for batch in loader:
        inputs = {name: value.to(device) for name, value in batch.inputs.items()}
        found = {name: value.cpu() for name, value in _both(student, partner, inputs).items()}
        parts.append({**found, "labels": batch.labels.cpu()})
    held = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    labels = held["labels"]
    right = {name: held[name] == labels for name in ("pair", "student", "partner")}
    case, by_first = held["case"], held["by_first"]
    cases = tuple(
        PairCase(
            count,
            share_right(right["student"][case == number]),
            share_right(right["partner"][case == number]),
            int(by_first[case == number].sum()),
        )
        for number, count in enumerate(count_cases(case, right["pair"]))
    )
    return PairReport(
        examples=len(labels),
        accuracy=float(right["pair"].mean()),
        student=float(right["student"].mean()),
        partner=float(right["partner"].mean()),
        averaged=float((held["averaged"] == labels).mean()),
        label_agreement=float((held["student"] == held["partner"]).mean()),
        rationale_exact=float(held["same_rationale"].mean()),
        rationale_jaccard=float(held["overlap"].mean()),
        cases=cases,
    )


def _both(
    student: Rationalist, partner: Rationalist, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Per example, ``[batch]`` each."""
    scores = [model.selector(inputs) for model in (student, partner)]
    views = [model.predictor.encoder.view(inputs) for model in (student, partner)]
    keeps = [model.keep(score) for model, score in zip((student, partner), scores, strict=True)]
    slots = [gather_slots(keep, student.slots(scores[0].view)) for keep in keeps]
    own, shown = (student.classify_gathered(views[0], *slot) for slot in slots)
    partner_shown, theirs = (partner.classify_gathered(views[1], *slot) for slot in slots)
    verdict = exchange(own, theirs, shown, partner_shown)
    both, either = (keeps[0] & keeps[1]).sum(dim=1), (keeps[0] | keeps[1]).sum(dim=1)
    return {
        "pair": verdict.logits.argmax(dim=1),
        "student": own.argmax(dim=1),
        "partner": theirs.argmax(dim=1),
        "averaged": (own.softmax(dim=1) + theirs.softmax(dim=1)).argmax(dim=1),
        "case": verdict.case,
        "by_first": verdict.by_first,
        "same_rationale": (keeps[0] == keeps[1]).all(dim=1),
        "overlap": both / either.clamp_min(1),
    }
