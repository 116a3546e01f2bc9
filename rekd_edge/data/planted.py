"""Documents with planted evidence: a clear sentence among undecided ones.

Sentences of film reviews carry the mean of about twenty human ratings in -4..4 (Hutto & Gilbert,
ICWSM 2014). A document joins one sentence rated |v| >= 2, the evidence, whose sign is the label,
with sentences rated |v| < .3, the distractors, in random order.
"""

from __future__ import annotations

import numpy as np

from rekd_edge.data.source import SourceData, unique_indices
from rekd_edge.data.split import ArraySplit, stratified_split
from rekd_edge.data.text_sets import POLARITY, rated_snippets
from rekd_edge.errors import DataError
from rekd_edge.recipe.schema import SplitSpec

EVIDENCE_RATING = 2.0
DISTRACTOR_RATING = 0.3
DISTRACTORS = 3
"""Distractors in each document."""


def planted_evidence(split: SplitSpec) -> SourceData:
    """A document for each evidence sentence, with the evidence as gold: 4,238 documents of four
    sentences, about 75 words, for 287 distractors.

    Sentences are cut into splits before they are joined, so none is in two splits; a distractor
    is used in many documents of its split. Everything depends on ``split`` alone.

    Raises:
        DataError: the shares leave a part with too few distractors.
    """
    texts, ratings = rated_snippets()
    kind = np.where(np.abs(ratings) < DISTRACTOR_RATING, 2, (ratings > 0).astype(np.int64))
    usable = np.flatnonzero((kind == 2) | (np.abs(ratings) >= EVIDENCE_RATING))
    usable = usable[unique_indices([texts[index] for index in usable], kind[usable])]
    shares = {"test": split.test, "dev": split.dev * (1 - split.test)}
    parts = stratified_split(kind[usable], shares, rest="train", seed=split.seed)
    splits = {
        name: _documents(name, texts, kind, usable[part], seed=(split.seed, number))
        for number, (name, part) in enumerate(sorted(parts.items()))
    }
    return SourceData(
        splits["train"],
        POLARITY,
        test=splits["test"],
        dev=splits["dev"],
        facts={"distractors": str(int((kind[usable] == 2).sum()))},
    )


def _documents(
    name: str, texts: list[str], kind: np.ndarray, members: np.ndarray, *, seed: tuple[int, int]
) -> ArraySplit:
    evidence = members[kind[members] != 2]
    distractors = members[kind[members] == 2]
    if len(evidence) and len(distractors) < DISTRACTORS:
        raise DataError(
            f"planted-evidence: the {name} split has {len(distractors)} distractors, "
            f"a document needs {DISTRACTORS}",
            hint=f"raise data.split.{name}",
        )
    rng = np.random.default_rng(seed)
    documents: list[str] = []
    gold: list[tuple[tuple[int, int], ...]] = []
    for index in evidence:
        chosen = [texts[i].strip() for i in rng.choice(distractors, DISTRACTORS, replace=False)]
        place = int(rng.integers(0, DISTRACTORS + 1))
        sentence = texts[index].strip()
        start = sum(len(before) + 1 for before in chosen[:place])
        documents.append(" ".join([*chosen[:place], sentence, *chosen[place:]]))
        gold.append(((start, start + len(sentence)),))
    return ArraySplit(name, kind[evidence], documents, gold)
