from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rekd_edge.cli.console import emit, to_json, write_json
from rekd_edge.errors import UsageError


def say_hello(console: Console) -> None:
    console.print("hello")


def test_dash_prints_only_json(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": 1}, json_path="-", render=say_hello)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": 1}
    assert err == ""


def test_path_gets_json_and_the_human_view_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emit({"a": 1}, json_path=str(tmp_path / "out.json"), render=say_hello)
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1}
    assert capsys.readouterr().out == "hello\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_without_json_only_the_human_view(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": 1}, json_path=None, render=say_hello)
    assert capsys.readouterr().out == "hello\n"


def test_values_become_strict_json() -> None:
    result = {
        "path": Path("a/b"),
        "nan": float("nan"),
        "inf": np.float32("inf"),
        "array": np.arange(3),
        "scalar": np.float32(0.5),
        "tuple": (1, None, True),
        3: "key",
    }
    assert json.loads(to_json(result)) == {
        "path": "a/b",
        "nan": None,
        "inf": None,
        "array": [0, 1, 2],
        "scalar": 0.5,
        "tuple": [1, None, True],
        "3": "key",
    }


def test_unknown_values_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        write_json(tmp_path / "out.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_bad_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        write_json(tmp_path / "missing" / "out.json", {})
    with pytest.raises(UsageError, match="it is a folder"):
        write_json(tmp_path, {})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    write_json(target, {"a": 1})
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from rekd_edge.cli.console import write_json\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "write_json(Path(sys.argv[1]), {'a': 'x' * 10000})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
