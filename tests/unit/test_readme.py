"""The README prints what is recorded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def readme_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_the_recorded_accuracies() -> None:
    module = readme_module()
    recorded = ROOT / "benchmarks" / "results" / "accuracy.json"
    result = json.loads(recorded.read_text(encoding="utf-8"))
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module.with_table(page, result) == page, "run `make docs`"
    changed = json.loads(json.dumps(result))
    changed["tables"][0]["rows"][0]["values"]["test accuracy"]["mean"] += 0.01
    assert module.with_table(page, changed) != page
