"""The entry point as a user meets it: a process, its output and its exit code."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rekd_edge import __version__
from rekd_edge import errors as errors_module
from rekd_edge.cli import app as app_module
from rekd_edge.errors import (
    BackendError,
    DataError,
    GateError,
    IntegrityError,
    RecipeError,
    RekdEdgeError,
    RemoteDeviceError,
    UsageError,
)

START = "from rekd_edge.cli.app import main; main()"


def rekd_edge(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START, *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100"},
    )


def test_help_is_fast_and_lists_every_command() -> None:
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = rekd_edge("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor, not of the clock: other tests run beside this one.
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0
        listed = [
            line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line
        ]
        assert listed == [name.removesuffix("_command") for name in app_module.COMMAND_MODULES]
    assert min(seconds) < 0.3


def test_version() -> None:
    done = rekd_edge("--version")
    assert (done.returncode, done.stdout) == (0, f"rekd-edge {__version__}\n")


@pytest.mark.parametrize("words", [("nonsense",), ("recipe", "show"), ("recipe", "check", "--x")])
def test_usage_errors_exit_2_without_a_traceback(words: tuple[str, ...]) -> None:
    done = rekd_edge(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (UsageError("no", hint="try this"), 2, "error: no\n  hint: try this\n"),
        (RecipeError("no"), 2, "error: no\n"),
        (DataError("no"), 2, "error: no\n"),
        (GateError("no"), 3, "error: no\n"),
        (BackendError("no"), 4, "error: no\n"),
        (RemoteDeviceError("no"), 5, "error: no\n"),
        (IntegrityError("no"), 6, "error: no\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ZeroDivisionError("boom\nmore"), 1, "unexpected: ZeroDivisionError: boom (a bug"),
        (PermissionError(errno.EACCES, "denied"), 1, "unexpected: PermissionError"),
        (
            OSError(errno.ENOSPC, "No space left", "f.bin"),
            2,
            "the disk is full while writing f.bin",
        ),
    ],
)
def test_failures_become_one_message_and_a_documented_exit_code(
    error: BaseException,
    exit_code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(app_module, "app", fail)
    monkeypatch.delenv(app_module.TRACEBACK_VARIABLE, raising=False)
    with pytest.raises(SystemExit) as stopped:
        app_module.main()
    assert stopped.value.code == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_traceback_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(app_module, "app", fail)
    monkeypatch.setenv(app_module.TRACEBACK_VARIABLE, "1")
    with pytest.raises(SystemExit):
        app_module.main()
    assert "Traceback" in capsys.readouterr().err


def test_every_exit_code_is_documented() -> None:
    assert errors_module.__doc__ is not None

    def descend(kind: type[RekdEdgeError]) -> list[type[RekdEdgeError]]:
        return [kind, *(deep for sub in kind.__subclasses__() for deep in descend(sub))]

    for kind in descend(RekdEdgeError):
        assert f"| {kind.exit_code} |" in errors_module.__doc__


def test_an_interrupt_exits_130() -> None:
    code = "import os, signal, rekd_edge.cli.app as a\n"
    code += "a.app.command('wait')(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    code += "import sys; sys.argv = ['rekd-edge', 'wait']; a.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_recipe_check_reports_all_and_exits_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("extends: smoke/text\nsed: 1\nname: 3\n")
    done = rekd_edge("recipe", "check", "smoke/text", "bad.yaml", "missing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "smoke/text: ok" in done.stdout
    assert "bad.yaml:2: sed: unknown key (did you mean 'seed'?)" in done.stdout
    assert "bad.yaml:3: name: must be text, not 3" in done.stdout
    assert "there is no recipe 'missing.yaml'" in done.stdout


def test_recipe_check_json(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("extends: smoke/text\nsed: 1\n")
    done = rekd_edge("recipe", "check", "bad.yaml", "smoke/image", "--json", "-", cwd=tmp_path)
    assert done.returncode == 2
    result = json.loads(done.stdout)
    assert result["passed"] is False
    assert [recipe["passed"] for recipe in result["recipes"]] == [False, True]
    assert result["recipes"][0]["problems"] == [
        {
            "file": "bad.yaml",
            "line": 2,
            "key": "sed",
            "message": "unknown key (did you mean 'seed'?)",
        }
    ]


def test_recipe_show_prints_yaml_that_loads_again(tmp_path: Path) -> None:
    done = rekd_edge("recipe", "show", "smoke/text", "--set", "seed=7")
    assert done.returncode == 0
    (tmp_path / "again.yaml").write_text(done.stdout)
    again = rekd_edge("recipe", "show", "again.yaml", "--json", "-", cwd=tmp_path)
    assert json.loads(again.stdout)["seed"] == 7


def test_recipe_show_of_a_bad_recipe_fails_on_stderr(tmp_path: Path) -> None:
    done = rekd_edge("recipe", "show", "smoke/text", "--set", "sed=7")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: the recipe is invalid:")


def test_recipe_init_copies_a_template_that_is_valid(tmp_path: Path) -> None:
    done = rekd_edge("recipe", "init", "my.yaml", "--from", "vision/cifar10-cpu", cwd=tmp_path)
    assert done.returncode == 0
    assert rekd_edge("recipe", "check", "my.yaml", cwd=tmp_path).returncode == 0
    before = (tmp_path / "my.yaml").read_bytes()
    again = rekd_edge("recipe", "init", "my.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert (tmp_path / "my.yaml").read_bytes() == before
    assert rekd_edge("recipe", "init", "my.yaml", "--force", cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]
    lost = rekd_edge("recipe", "init", "no/such/my.yaml", cwd=tmp_path)
    assert lost.returncode == 2
    assert "is not a folder" in lost.stderr


def test_recipe_schema_and_list_are_json() -> None:
    schema = json.loads(rekd_edge("recipe", "schema").stdout)
    assert "RecipeOverlay" in schema["$defs"]
    names = [
        row["name"]
        for row in json.loads(rekd_edge("recipe", "list", "--json", "-").stdout)["recipes"]
    ]
    assert "text/movie-review-snippets" in names
