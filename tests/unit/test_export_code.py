"""A latency table keeps a file only as long as the code that made it is the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rekd_edge import latency_suite
from rekd_edge.latency_suite import EXPORTING, export_code


@pytest.mark.parametrize("part", EXPORTING)
def test_a_change_in_what_makes_a_file_is_seen(part: str, tmp_path: Path) -> None:
    source = Path(latency_suite.__file__).parent
    for folder in ("same", "changed"):
        for name in (*EXPORTING, "cli"):
            shutil.copytree(source / name, tmp_path / folder / name)
    assert export_code(tmp_path / "same") == export_code()
    (tmp_path / "changed" / "cli" / "app.py").write_text("")
    first = next((tmp_path / "changed" / part).glob("[a-z]*.py"))
    first.write_text(first.read_text() + "\n# other\n")
    assert export_code(tmp_path / "changed") != export_code()
