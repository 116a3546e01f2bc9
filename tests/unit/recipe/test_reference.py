from __future__ import annotations

from pathlib import Path

import pytest

from rekd_edge.recipe.reference import recipe_reference

ROOT = Path(__file__).resolve().parents[3]


def test_the_committed_reference_is_current() -> None:
    committed = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert committed == recipe_reference(), "run `make docs` and commit docs/recipe.md"


@pytest.mark.parametrize(
    "line",
    [
        "| `source` | text | required |",
        "| `rationale_ratio` | number > 0, ≤ 1 | `0.2` |",
        "| `teacher` | [Teacher](#teacher) or null | `null` |",
        "| `flip` | true or false | `false` |",
        "| `weights` | list of text | required |",
        "| `precision` | `no`, `auto`, `tf32`, `bf16`, `fp16` | `no` |",
    ],
)
def test_rows(line: str) -> None:
    assert line in recipe_reference()
