"""Recipes are checked on machines without torch, and help answers at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "timm", "torchvision", "datasets", "numpy", "onnx", "onnxruntime")


@pytest.mark.parametrize("module", ["rekd_edge", "rekd_edge.recipe", "rekd_edge.cli.app"])
def test_import_pulls_nothing_heavy(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert module in loaded
    assert not loaded & set(HEAVY)
