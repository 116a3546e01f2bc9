"""``rekd_bench.py`` as a module, beside the runtime that it imports by name."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from rekd_edge.bench.load import program_path
from rekd_edge.bundle.runtime import load_runtime

QUICKLY = {"min_duration_s": 0.0, "warmup_count": 1, "cold_starts": 0, "threads": 1}
"""As short as it gets, without being marked so."""


@lru_cache(maxsize=1)
def load_program() -> Any:
    sys.modules.setdefault("rekd_runtime", load_runtime())
    spec = importlib.util.spec_from_file_location("rekd_bench", program_path())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rekd_bench"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def request(scenario: str, **others: Any) -> Any:
    document = {"schema_version": 1, "scenario": scenario, **QUICKLY, **others}
    return load_program().Request.of(document)


def write_texts(folder: Path, texts: list[str], labels: list[int] | None = None) -> Path:
    entries = [
        {"text": text} | ({} if labels is None else {"label": labels[number]})
        for number, text in enumerate(texts)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry) for entry in entries]
    (folder / "examples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder
