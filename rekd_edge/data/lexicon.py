"""The lexicon proxy: words that ten people rated as positive or negative, wherever they stand.

It is no annotation of these texts: a word of the lexicon can be beside the point, and evidence can
be in words that are not in it. It is called a proxy wherever it is shown.
"""

from __future__ import annotations

import re
from functools import lru_cache

from rekd_edge.data.archives import VADER_SENTIMENT
from rekd_edge.data.fetch import fetch, read_member

SMALLEST_VALENCE = 1.0
SENTIMENT_SETS = (
    "movie-review-snippets",
    "movie-review-ratings",
    "rotten-tomatoes",
    "long-reviews",
    "planted-evidence",
    "planted-evidence-plots",
)
"""Bundled sets whose labels the lexicon speaks about."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


@lru_cache(maxsize=1)
def valences() -> dict[str, float]:
    """Mean rating in -4..4 of each word of the VADER lexicon (Hutto & Gilbert, ICWSM 2014).

    Raises:
        BackendError, IntegrityError: the archive cannot be had; see :mod:`rekd_edge.data.fetch`.
    """
    member = "vaderSentiment-2.5/vaderSentiment/vader_lexicon.txt"
    content = read_member(fetch(VADER_SENTIMENT), member).decode("utf-8")
    rows = [line.split("\t") for line in content.splitlines() if line.strip()]
    return {row[0].lower(): float(row[1]) for row in rows}


def lexicon_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Character spans of the words of ``text`` whose valence is at least 1 in absolute value."""
    known = valences()
    return tuple(
        match.span()
        for match in _WORD.finditer(text)
        if abs(known.get(match.group().lower(), 0.0)) >= SMALLEST_VALENCE
    )
