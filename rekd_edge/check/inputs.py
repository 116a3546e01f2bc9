"""Batches that try an artefact at several sizes, made of real examples.

Dynamic axes get lost silently (pytorch#165748), so a file that was exported from one shape is
run at others: several batch sizes, mixed lengths, and the edges: one selectable token,
the longest input, and both in one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rekd_edge.types import TEXT_INPUTS

Inputs = Mapping[str, np.ndarray]

BATCH_SIZES = (1, 2, 5, 16)


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Model inputs as numpy arrays with their labels, as in :mod:`rekd_edge.problem`.

    ``other_inputs`` holds, by name, what a baseline reads that has a preprocessor of its own."""

    inputs: Inputs
    labels: np.ndarray
    other_inputs: Mapping[str, Inputs] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextEdges:
    """What is needed to build the shortest and the longest text input."""

    cls_id: int
    sep_id: int
    pad_id: int
    max_length: int
    """Longest input in tokens, special tokens included."""


@dataclass(frozen=True, slots=True)
class NamedBatch:
    name: str
    inputs: Inputs


def in_parts(batch: LabelledBatch, size: int | None) -> Iterator[LabelledBatch]:
    """The same examples in batches of at most ``size``; None leaves them together."""
    count = len(batch.labels)
    for start in range(0, count, size or count):
        rows = slice(start, None if size is None else start + size)
        yield LabelledBatch(
            {name: value[rows] for name, value in batch.inputs.items()},
            batch.labels[rows],
            {
                other: {name: value[rows] for name, value in inputs.items()}
                for other, inputs in batch.other_inputs.items()
            },
        )


def examples_of(batches: Iterable[LabelledBatch], count: int) -> list[dict[str, np.ndarray]]:
    """Up to ``count`` single examples, ``[1, ...]`` each and unpadded, spread over the batches."""
    held = list(batches)
    total = sum(len(batch.labels) for batch in held)
    wanted = set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
    chosen: list[dict[str, np.ndarray]] = []
    start = 0
    for batch in held:
        for row in range(len(batch.labels)):
            if start + row in wanted:
                chosen.append(single(batch.inputs, row))
        start += len(batch.labels)
    return chosen


def single(inputs: Inputs, row: int) -> dict[str, np.ndarray]:
    """One example of a batch, ``[1, ...]`` each, without padding."""
    if "attention_mask" not in inputs:
        return {name: value[row : row + 1] for name, value in inputs.items()}
    length = int(inputs["attention_mask"][row].sum())
    return {
        name: value[row : row + 1, :length] if name in TEXT_INPUTS else value[row : row + 1]
        for name, value in inputs.items()
    }


def stack(examples: Sequence[Inputs], pad_id: int) -> dict[str, np.ndarray]:
    """One batch of single examples; texts are padded at the end to the longest."""
    if "attention_mask" not in examples[0]:
        return {name: np.concatenate([e[name] for e in examples]) for name in examples[0]}
    longest = max(example["input_ids"].shape[1] for example in examples)

    def padded(name: str, value: int) -> np.ndarray:
        return np.concatenate(
            [
                np.pad(e[name], ((0, 0), (0, longest - e[name].shape[1])), constant_values=value)
                for e in examples
            ]
        )

    others = {name: np.concatenate([e[name] for e in examples]) for name in _others(examples[0])}
    return {
        "input_ids": padded("input_ids", pad_id),
        "attention_mask": padded("attention_mask", 0),
        **others,
    }


def _others(example: Inputs) -> dict[str, np.ndarray]:
    """What is no text."""
    return {name: value for name, value in example.items() if name not in TEXT_INPUTS}


def queries(
    examples: Sequence[Inputs], size: int, pad_id: int, *, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """``examples`` in random order as batches of ``size``, so that texts of any length meet; what
    is left over at the end is left out. There is at least one batch: examples are repeated."""
    order = np.random.default_rng(seed).permutation(len(examples))
    order = np.resize(order, max(size, len(order) // size * size))
    return [
        stack([examples[i] for i in order[start : start + size]], pad_id)
        for start in range(0, len(order), size)
    ]


def parity_batches(
    examples: Sequence[Inputs],
    *,
    edges: TextEdges | None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seed: int = 0,
) -> Iterator[NamedBatch]:
    """Batches of every size, and for text those at the edges. ``edges`` is None for images."""
    rng = np.random.default_rng(seed)
    pad_id = 0 if edges is None else edges.pad_id
    for size in batch_sizes:
        picked = rng.choice(len(examples), size=size, replace=size > len(examples))
        yield NamedBatch(f"batch of {size}", stack([examples[i] for i in picked], pad_id))
    if edges is None:
        return
    pick = [examples[i] for i in rng.choice(len(examples), size=min(8, len(examples)))]
    shortest = [one_token(example, edges) for example in pick]
    longest = full_length(examples, edges)
    yield NamedBatch("one selectable token", shortest[0])
    yield NamedBatch("one selectable token each", stack(shortest, pad_id))
    yield NamedBatch("max_length", longest)
    yield NamedBatch("one token beside max_length", stack([shortest[0], longest, pick[0]], pad_id))


def one_token(example: Inputs, edges: TextEdges) -> dict[str, np.ndarray]:
    """The first word piece of a real text between its special tokens."""
    ids = np.asarray([[edges.cls_id, int(example["input_ids"][0, 1]), edges.sep_id]])
    ids = ids.astype(np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **_others(example)}


def full_length(examples: Sequence[Inputs], edges: TextEdges) -> dict[str, np.ndarray]:
    """Real texts one after another, up to ``max_length``."""
    special = {edges.cls_id, edges.sep_id, edges.pad_id}
    content = [int(t) for e in examples for t in e["input_ids"][0] if int(t) not in special]
    room = edges.max_length - 2
    repeated = (content * (room // max(len(content), 1) + 1))[:room]
    ids = np.asarray([[edges.cls_id, *repeated, edges.sep_id]], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **_others(examples[0])}
