"""Documents with planted evidence: a clear sentence among others that say nothing of the label.

Sentences of film reviews carry the mean of about twenty human ratings in -4..4 (Hutto & Gilbert,
ICWSM 2014). A document joins one sentence rated |v| >= 2, the evidence, whose sign is the label,
with distractors, in random order: sentences rated |v| < .3, or sentences of plot summaries.
"""

from __future__ import annotations

import re

import numpy as np

from rekd_edge.data.source import SourceData, unique_indices
from rekd_edge.data.split import ArraySplit, stratified_split
from rekd_edge.data.text_sets import POLARITY, plot_summaries, rated_snippets
from rekd_edge.errors import DataError
from rekd_edge.recipe.schema import SplitSpec

EVIDENCE_RATING = 2.0
DISTRACTOR_RATING = 0.3
DISTRACTORS = 3
"""Distractors in each document."""
PLOT_SENTENCE_WORDS = (8, 35)
"""Shortest and longest sentence of a plot summary that is a distractor, about as the evidence."""
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")


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
    pools: dict[str, tuple[_Sentences, list[str]]] = {}
    for name, part in _parts(kind[usable], split).items():
        members = usable[part]
        evidence = members[kind[members] != 2]
        pools[name] = (
            ([texts[index] for index in evidence], kind[evidence]),
            [texts[index] for index in members[kind[members] == 2]],
        )
    return _joined("planted-evidence", pools, split)


def planted_evidence_plots(split: SplitSpec) -> SourceData:
    """The same evidence among sentences of plot summaries: 4,238 documents of four sentences for
    4,791 distractors of 8 to 35 words.

    What happens in a film says little of how good it is, and there are enough distractors not to be
    learned by heart. Evidence sentences and whole summaries are cut into splits before anything is
    joined, so no sentence is in two splits, and no plot either.

    Raises:
        DataError: the shares leave a part with too few distractors.
    """
    texts, ratings = rated_snippets()
    clear = np.flatnonzero(np.abs(ratings) >= EVIDENCE_RATING)
    label = (ratings[clear] > 0).astype(np.int64)
    kept = unique_indices([texts[index] for index in clear], label)
    clear, label = clear[kept], label[kept]
    sentences, summary = _plot_sentences()
    evidence_parts = _parts(label, split)
    summary_parts = _parts(np.zeros(summary.max() + 1, dtype=np.int64), split)
    pools = {
        name: (
            ([texts[index] for index in clear[part]], label[part]),
            [sentences[i] for i in np.flatnonzero(np.isin(summary, summary_parts[name]))],
        )
        for name, part in evidence_parts.items()
    }
    return _joined("planted-evidence-plots", pools, split)


_Sentences = tuple[list[str], np.ndarray]
"""Sentences and their labels, int64 ``[sentence]``."""


def _plot_sentences() -> tuple[list[str], np.ndarray]:
    """Whole sentences of a suitable length, each once, and the number of each one's summary."""
    shortest, longest = PLOT_SENTENCE_WORDS
    found = [
        (sentence, number)
        for number, text in enumerate(plot_summaries())
        for sentence in _BETWEEN_SENTENCES.split(text.strip())
        if shortest <= len(sentence.split()) <= longest and sentence.endswith((".", "!", "?"))
    ]
    sentences, summary = [one for one, _ in found], np.asarray([number for _, number in found])
    kept = unique_indices(sentences, np.zeros(len(sentences)))
    return [" ".join(sentences[index].split()) for index in kept], summary[kept]


def _parts(labels: np.ndarray, split: SplitSpec) -> dict[str, np.ndarray]:
    """Indices of each split, by label."""
    shares = {"test": split.test, "dev": split.dev * (1 - split.test)}
    return stratified_split(labels, shares, rest="train", seed=split.seed)


def _joined(
    source: str, pools: dict[str, tuple[_Sentences, list[str]]], split: SplitSpec
) -> SourceData:
    """The documents of each split, from its evidence and its distractors."""
    splits = {
        name: _documents(source, name, evidence, distractors, seed=(split.seed, number))
        for number, (name, (evidence, distractors)) in enumerate(sorted(pools.items()))
    }
    return SourceData(
        splits["train"],
        POLARITY,
        test=splits["test"],
        dev=splits["dev"],
        facts={"distractors": str(sum(len(found) for _, found in pools.values()))},
    )


def _documents(
    source: str,
    name: str,
    evidence: _Sentences,
    distractors: list[str],
    *,
    seed: tuple[int, int],
) -> ArraySplit:
    sentences, labels = evidence
    if sentences and len(distractors) < DISTRACTORS:
        raise DataError(
            f"{source}: the {name} split has {len(distractors)} distractors, "
            f"a document needs {DISTRACTORS}",
            hint=f"raise data.split.{name}",
        )
    rng = np.random.default_rng(seed)
    documents: list[str] = []
    gold: list[tuple[tuple[int, int], ...]] = []
    for clear in sentences:
        drawn = rng.choice(len(distractors), DISTRACTORS, replace=False)
        chosen = [distractors[i].strip() for i in drawn]
        place = int(rng.integers(0, DISTRACTORS + 1))
        sentence = clear.strip()
        start = sum(len(before) + 1 for before in chosen[:place])
        documents.append(" ".join([*chosen[:place], sentence, *chosen[place:]]))
        gold.append(((start, start + len(sentence)),))
    return ArraySplit(name, labels, documents, gold)
