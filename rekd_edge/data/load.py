"""From the ``data`` section of a recipe to three disjoint splits."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from rekd_edge.data.catalogue import BUNDLED_SETS, OWN_DATA
from rekd_edge.data.noise import RANDOM, random_examples
from rekd_edge.data.source import SourceData, normal_form
from rekd_edge.data.split import Split, require_examples, stratified_limit, stratified_split
from rekd_edge.errors import DataError, RecipeError
from rekd_edge.recipe.schema import DataSpec, Recipe
from rekd_edge.types import Modality, ProblemType


@dataclass(frozen=True, slots=True)
class TaskData:
    """The data of one recipe: disjoint splits, and where they come from."""

    train: Split
    dev: Split
    test: Split
    label_names: tuple[str, ...]
    source: dict[str, str]
    """Name, version, licence, sha256 and counts, for the run's records."""


def load_data(recipe: Recipe) -> TaskData:
    """Read, cut and cap the data of ``recipe``.

    A source without a test split gives ``data.split.test`` of its examples; of the remainder
    ``data.split.dev`` is held out for model selection (unless the source brings its own).
    Everything depends on the source's bytes and ``data.split.seed`` alone.

    Raises:
        RecipeError: an unknown source, or one of the other modality.
        DataError: an example, a column or a class that cannot be used; it is named.
        BackendError, IntegrityError: the source cannot be had; see :mod:`rekd_edge.data.fetch`.
    """
    return load_source(recipe.data, recipe.modality, recipe.problem_type)


def load_source(
    spec: DataSpec, modality: Modality, problem: ProblemType = "single_label_classification"
) -> TaskData:
    """:func:`load_data` for a ``data`` section alone."""
    source = read_source(spec, modality, problem)
    place = f"data source {spec.source!r}"
    parts = _cut(source, spec, place, problem)
    limits = {"train": spec.limit.train, "dev": spec.limit.dev, "test": spec.limit.test}
    for name, limit in limits.items():
        if limit is not None and len(parts[name]):
            split = parts[name]
            parts[name] = split.take(
                stratified_limit(split.labels, limit, seed=spec.split.seed), name
            )
    if problem == "regression":
        _require_spread(parts["train"], source.label_names, place)
    facts = {
        "name": spec.source,
        **source.facts,
        "split_seed": str(spec.split.seed),
        **{name: str(len(split)) for name, split in parts.items()},
    }
    if modality == "text":
        facts["texts_shared_between_splits"] = str(_shared_texts(parts))
    return TaskData(
        train=parts["train"],
        dev=parts["dev"],
        test=parts["test"],
        label_names=source.label_names,
        source=facts,
    )


def read_source(
    spec: DataSpec, modality: Modality, problem: ProblemType | None = None
) -> SourceData:
    """All examples of the recipe's source, before cutting. Without a ``problem`` labels play no
    part: a bundled set has its own, and own data are read as single labels. Raises as
    :func:`load_data`."""
    bundled = BUNDLED_SETS.get(spec.source)
    if bundled is not None:
        if bundled.modality != modality:
            raise RecipeError(
                f"data.source {spec.source!r} holds {bundled.modality} data and the recipe's "
                f"modality is {modality!r}"
            )
        if problem not in {None, bundled.problem}:
            raise RecipeError(
                f"data.source {spec.source!r} is for problem_type {bundled.problem!r}; the "
                f"recipe's is {problem!r}",
                hint=f"set problem_type: {bundled.problem}, or name another source",
            )
        if spec.labels is not None:
            raise RecipeError(
                f"data.labels is for own data; {spec.source!r} brings its own class names"
            )
        source = bundled.read(spec.split)
        archive = bundled.archive
        facts = {
            "package": archive.package,
            "version": archive.version,
            "sha256": archive.sha256,
            "licence": archive.licence,
            **{f"{other.package}_sha256": other.sha256 for other in bundled.beside},
            **source.facts,
        }
        return SourceData(source.train, source.label_names, source.test, source.dev, facts)
    if spec.source == "huggingface":
        from rekd_edge.data.hub_sets import read_huggingface

        return read_huggingface(spec, modality, problem or "single_label_classification")
    if spec.source in OWN_DATA:
        from rekd_edge.data.own_data import read_own_data

        return read_own_data(spec, modality, problem or "single_label_classification")
    if spec.source == RANDOM:
        if problem not in {None, "single_label_classification"}:
            raise RecipeError(
                f"data.source {RANDOM!r} is for problem_type 'single_label_classification'; the "
                f"recipe's is {problem!r}",
                hint="set problem_type: single_label_classification, or name another source",
            )
        return random_examples(modality)
    known = [*BUNDLED_SETS, *OWN_DATA, RANDOM]
    close = difflib.get_close_matches(spec.source, known, n=1)
    raise RecipeError(
        f"data.source: unknown source {spec.source!r}"
        + (f" (did you mean {close[0]!r}?)" if close else ""),
        hint=f"one of {', '.join(known)}",
    )


def _cut(source: SourceData, spec: DataSpec, place: str, problem: ProblemType) -> dict[str, Split]:
    shares: dict[str, float] = {}
    if source.test is None:
        shares["test"] = spec.split.test
    if source.dev is None:
        # A share of what remains for training once the test split is cut off.
        shares["dev"] = spec.split.dev * (1 - shares.get("test", 0.0))
    names = ["train", *(name for name, share in shares.items() if share > 0)]
    if problem != "regression":
        require_examples(
            source.train.labels,
            source.label_names,
            len(names),
            place=place,
            reason=f"one each for {', '.join(names)}",
        )
    indices = stratified_split(source.train.labels, shares, rest="train", seed=spec.split.seed)
    parts = {name: source.train.take(part, name) for name, part in indices.items()}
    if source.test is not None:
        parts["test"] = source.test
    if source.dev is not None:
        parts["dev"] = source.dev
    for name in ("dev", "test"):
        if not len(parts[name]):
            raise DataError(
                f"{place}: the {name} split is empty", hint=f"set data.split.{name} above 0"
            )
    return parts


def _require_spread(train: Split, targets: tuple[str, ...], place: str) -> None:
    """Refuses targets that are one number throughout the training split, which say nothing."""
    constant = [
        f"{name!r} is always {float(values[0]):g}"
        for name, values in zip(targets, train.labels.T, strict=True)
        if values.min() == values.max()
    ]
    if constant:
        raise DataError(
            f"{place}: nothing can be learned of a number that is the same in all "
            f"{len(train)} training examples: {'; '.join(constant)}",
            hint="name another data.label_column, or raise data.limit.train",
        )


def _shared_texts(parts: dict[str, Split]) -> int:
    """Number of distinct texts that are in more than one split."""
    seen: set[str] = set()
    shared: set[str] = set()
    for split in parts.values():
        forms = {normal_form(str(split.raw(index))) for index in range(len(split))}
        shared |= seen & forms
        seen |= forms
    return len(shared)


def class_counts(split: Split, label_names: tuple[str, ...]) -> dict[str, int]:
    """Examples of each class in ``split``, or with each label, by name."""
    labels = split.labels
    several = labels.ndim == 2
    counts = labels.sum(axis=0) if several else np.bincount(labels, minlength=len(label_names))
    return {name: int(count) for name, count in zip(label_names, counts, strict=True)}


def target_ranges(split: Split, label_names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and range of each number in ``split``, by name."""
    return {
        name: {
            "mean": float(values.mean()),
            "deviation": float(values.std()),
            "min": float(values.min()),
            "max": float(values.max()),
        }
        for name, values in zip(label_names, split.labels.T, strict=True)
    }
