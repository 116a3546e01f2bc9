"""Which examples a bundle's load test asks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rekd_edge.bench.load import Example, Label, LoadReport, run_load_test, write_examples
from rekd_edge.boards.load_test import run_load_test_on_board
from rekd_edge.boards.openssh import SshBoard
from rekd_edge.boards.session import BoardFacts
from rekd_edge.bundle import open_bundle
from rekd_edge.data.images import IMAGE_SUFFIXES
from rekd_edge.errors import UsageError
from rekd_edge.export_pipeline import BENCH_EXAMPLES, find_run
from rekd_edge.run_folder import Run
from rekd_edge.types import ProblemType


@dataclass(frozen=True, slots=True)
class LoadExamples:
    """``labels``, where they are known: indices of the bundle's labels, 0 or 1 for each of several
    labels, or values."""

    examples: Sequence[Example]
    labels: Sequence[Label] | None
    source: str
    """In words."""


def load_examples(
    bundle: Path,
    *,
    run: Run | None = None,
    inputs_file: Path | None = None,
    limit: int | None = BENCH_EXAMPLES,
) -> LoadExamples:
    """The first ``limit`` examples of the run's test split (None: all), or everything in
    ``inputs_file``: one text a line, an image, or a folder of images. Raises :class:`UsageError`
    where there is neither."""
    opened = open_bundle(bundle)
    if inputs_file is not None:
        found = _given(inputs_file, opened.config.modality)
        return LoadExamples(found, None, f"{inputs_file.name}, given with --inputs")
    run = find_run(opened) if run is None else run
    data = run.data()
    test = data.test
    count = len(test) if limit is None else min(limit, len(test))
    return LoadExamples(
        [test.raw(index) for index in range(count)],
        _plain(test.labels[:count], run.recipe.problem_type),
        f"test split of {data.source.get('name', run.recipe.data.source)}",
    )


def _plain(labels: np.ndarray, problem: ProblemType) -> list[Label]:
    """Python's own numbers; 0 and 1 whole ones."""
    several = problem == "multi_label_classification"
    found: list[Label] = (labels.astype(np.int64) if several else labels).tolist()
    return found


def _given(path: Path, modality: str) -> list[Example]:
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.suffix == ".npz":
        raise UsageError(
            f"{path}: a load test starts from texts or images, not from arrays",
            hint="give one text a line, an image or a folder of images",
        )
    found: list[Example] = []
    if modality == "text":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, IsADirectoryError) as error:
            raise UsageError(f"{path} is not a UTF-8 text file") from error
        found += [line for line in lines if line.strip()]
    elif path.is_dir():
        found += sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    else:
        found.append(path)
    if not found:
        raise UsageError(f"{path} holds no {'text' if modality == 'text' else 'images'}")
    return found


def load_test(
    bundle: Path,
    request: Mapping[str, Any],
    examples: LoadExamples,
    *,
    logs: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
    board: SshBoard | None = None,
    inspect: Callable[[BoardFacts], None] = lambda facts: None,
) -> LoadReport:
    """On this machine, or on ``board``, which ``inspect`` sees before anything is copied."""
    opened = open_bundle(bundle)
    stored = opened.config.runtime_settings
    wanted = dict(request)
    if wanted.get("threads") is None and stored is None:
        wanted["threads"] = 1  # as `rekd-edge bench` without a scenario
    with tempfile.TemporaryDirectory(prefix="rekd-edge-examples-") as folder:
        write_examples(Path(folder), examples.examples, examples.labels)
        if board is None:
            report = run_load_test(bundle, Path(folder), wanted, logs=logs, progress=progress)
        else:
            report = run_load_test_on_board(
                board, bundle, Path(folder), wanted, progress=progress, inspect=inspect
            )
    return replace(report, document={**report.document, "inputs": examples.source})
