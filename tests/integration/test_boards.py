"""Running a program on a board, against a real OpenSSH server on 127.0.0.1."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rekd_edge.boards import session
from rekd_edge.boards.address import BoardAddress
from rekd_edge.boards.openssh import SshBoard
from rekd_edge.boards.session import BoardFacts, BoardJob, run_on_board
from rekd_edge.errors import (
    BackendError,
    IntegrityError,
    RekdEdgeError,
    RemoteDeviceError,
    UsageError,
)
from tests.signals import not_ignored
from tests.sshd import Server, at_work, open_server, open_small_disk, wait_until, write_key

ECHO = b"""
import json, sys
from pathlib import Path
print("measuring", file=sys.stderr, flush=True)
found = {p.as_posix(): p.stat().st_size for p in sorted(Path().rglob("*")) if p.is_file()}
Path("report.json").write_text(json.dumps([sys.argv[1:], found]))
"""
STUBBORN = b"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal, time\\n"
                  "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(300)"])
print("running", file=sys.stderr, flush=True)
time.sleep(300)
"""
PATIENT = b"""
import sys, time
print("running", file=sys.stderr, flush=True)
time.sleep(300)
"""


def job(program: bytes, *words: str, imports: tuple[str, ...] = ()) -> BoardJob:
    return BoardJob({"program.py": program}, ("program.py", *words), "report.json", imports)


def script(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_files_go_there_and_a_report_comes_back(board: SshBoard, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(3_000_001))
    files = {"program.py": ECHO, "a b/c'd": b"1234", "large": tmp_path / "large", "empty": b""}
    said: list[str] = []
    facts, report = run_on_board(
        board,
        BoardJob(files, ("program.py", "x y", "$HOME", "'"), "report.json", ("json",)),
        progress=said.append,
    )
    sizes = {"a b/c'd": 4, "empty": 0, "large": 3000001, "program.py": len(ECHO)}
    assert json.loads(report) == [["x y", "$HOME", "'"], sizes]
    assert facts.architecture == os.uname().machine
    assert facts.bits == 64
    assert "measuring" in said
    assert "copying, 3.0 of 3.0 MB" in said


def test_two_at_once_do_not_meet(board: SshBoard) -> None:
    reports: dict[str, bytes] = {}

    def run(name: str) -> None:
        reports[name] = run_on_board(board, job(ECHO, name))[1]

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(f'[["{name}"]'.encode() in reports[name] for name in "ab")


def test_what_a_login_shell_prints_is_passed_over(tmp_path: Path, place: Path) -> None:
    with open_server(tmp_path / "server") as server:
        line = 'command="echo Welcome; echo; printf no-line-end; eval \\"$SSH_ORIGINAL_COMMAND\\""'
        keys = server.folder / "authorized_keys"
        keys.write_text(f"{line} {keys.read_text()}")
        board = SshBoard(
            BoardAddress.parse(server.address),
            server.known_hosts,
            server.identity,
            python=sys.executable,
            folder=str(place),
        )
        assert run_on_board(board, job(ECHO, "x"))[1].startswith(b'[["x"]')


class TestHostKeys:
    def test_an_unknown_one_is_not_accepted(self, board: SshBoard, tmp_path: Path) -> None:
        empty = tmp_path / "known"
        empty.touch()
        with pytest.raises(RemoteDeviceError, match="is not known") as caught:
            run_on_board(replace(board, known_hosts=empty), job(ECHO))
        assert "StrictHostKeyChecking=ask" in str(caught.value.hint)
        assert str(empty) in str(caught.value.hint)
        assert empty.read_text() == ""

    def test_the_command_in_the_message_accepts_it(self, board: SshBoard, tmp_path: Path) -> None:
        known = tmp_path / "known hosts"
        known.touch()
        elsewhere = replace(board, known_hosts=known)
        # `ask` reads the answer from a terminal, which script(1) would have to give.
        shown = elsewhere.acceptance().replace("=ask", "=accept-new")
        subprocess.run(["sh", "-c", shown], check=True, capture_output=True)
        assert run_on_board(elsewhere, job(ECHO, "x"))[1].startswith(b'[["x"]')

    def test_a_changed_one_is_told_apart(
        self, board: SshBoard, server: Server, tmp_path: Path
    ) -> None:
        other = tmp_path / "known"
        other.write_text(f"[127.0.0.1]:{server.port} {write_key(tmp_path / 'other')}")
        before = other.read_text()
        with pytest.raises(
            RemoteDeviceError, match=f"has changed .known: line 1 of {other}"
        ) as caught:
            run_on_board(replace(board, known_hosts=other), job(ECHO))
        assert "ssh-keygen -R" in str(caught.value.hint)
        assert caught.value.exit_code == 5
        assert other.read_text() == before

    def test_the_command_in_the_message_forgets_it(
        self, board: SshBoard, server: Server, tmp_path: Path
    ) -> None:
        other = tmp_path / "known"
        other.write_text(f"[127.0.0.1]:{server.port} {write_key(tmp_path / 'other')}")
        changed = replace(board, known_hosts=other)
        subprocess.run(["sh", "-c", changed.forgetting()], check=True, capture_output=True)
        with pytest.raises(RemoteDeviceError, match="is not known"):
            run_on_board(changed, job(ECHO))


class TestWhatIsNotThere:
    def test_a_key_that_the_board_does_not_know(self, board: SshBoard, tmp_path: Path) -> None:
        write_key(tmp_path / "mine")
        with pytest.raises(RemoteDeviceError, match="does not let this user in"):
            run_on_board(replace(board, identity=tmp_path / "mine"), job(ECHO))

    def test_a_key_that_others_can_read(
        self, board: SshBoard, server: Server, tmp_path: Path
    ) -> None:
        (tmp_path / "mine").write_bytes(server.identity.read_bytes())
        (tmp_path / "mine").chmod(0o644)
        with pytest.raises(RemoteDeviceError, match="does not use a private key"):
            run_on_board(replace(board, identity=tmp_path / "mine"), job(ECHO))

    def test_no_server(self, board: SshBoard) -> None:
        with pytest.raises(RemoteDeviceError, match=r"cannot be reached.*refused"):
            run_on_board(replace(board, address=BoardAddress.parse("ssh://127.0.0.1:9")), job(ECHO))

    def test_no_ssh_here(self, board: SshBoard, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(BackendError, match="no ssh on this machine"):
            run_on_board(board, job(ECHO))

    def test_no_python(self, board: SshBoard) -> None:
        with pytest.raises(BackendError, match=r"'\./none/python' does not start"):
            run_on_board(replace(board, python="~/none/python"), job(ECHO))

    def test_an_old_python(self, board: SshBoard, tmp_path: Path) -> None:
        old = script(
            tmp_path / "old",
            f"#!{sys.executable}\nimport sys\nsys.version_info = (3, 8, 10)\nexec(sys.argv[3])\n",
        )
        with pytest.raises(BackendError, match=r"has Python 3\.8, and 3\.10 is the oldest"):
            run_on_board(replace(board, python=old), job(ECHO))

    def test_packages(self, board: SshBoard, tmp_path: Path) -> None:
        venv = tmp_path / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        bare = replace(board, python=str(venv / "bin" / "python"))
        with pytest.raises(BackendError, match="lacks numpy, pillow") as caught:
            run_on_board(bare, job(ECHO, imports=("json", "numpy", "PIL")))
        assert f"{venv}/bin/python -m pip install numpy pillow" in str(caught.value.hint)

    def test_a_package_for_another_processor(self, board: SshBoard, tmp_path: Path) -> None:
        (tmp_path / "wrong_one.py").write_text(
            "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
        )
        python = script(
            tmp_path / "python",
            f"#!/bin/sh\nPYTHONPATH='{tmp_path}' exec {sys.executable} \"$@\"\n",
        )
        with pytest.raises(BackendError, match=r"ended while it imported.*-4"):
            run_on_board(replace(board, python=python), job(ECHO, imports=("wrong_one",)))

    def test_no_folder(self, board: SshBoard) -> None:
        with pytest.raises(RemoteDeviceError, match="no work folder can be made in /none"):
            run_on_board(replace(board, folder="/none"), job(ECHO))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with open_small_disk(tmp_path / "disk") as folder:
        yield folder


class TestSpace:
    def test_too_little_is_found_before_anything_is_copied(
        self, board: SshBoard, small_disk: Path
    ) -> None:
        copied: list[str] = []
        large = BoardJob({"p.py": ECHO, "large": bytes(20 << 20)}, ("p.py",), "r", ())
        with pytest.raises(RemoteDeviceError, match=r"no space.*9[34]\.\d MB are free") as caught:
            run_on_board(replace(board, folder=str(small_disk)), large, progress=copied.append)
        assert "--remote-folder" in str(caught.value.hint)
        assert not any("copying" in line for line in copied)
        assert not list(small_disk.iterdir())

    def test_it_can_run_out_on_the_way(self, board: SshBoard, small_disk: Path) -> None:
        large = BoardJob({"p.py": ECHO, "large": bytes(6 << 20)}, ("p.py",), "r", ())

        def fill(_: BoardFacts) -> None:
            (small_disk / "other").write_bytes(bytes(87 << 20))

        with pytest.raises(RemoteDeviceError, match="no space"):
            run_on_board(replace(board, folder=str(small_disk)), large, inspect=fill)
        assert [path.name for path in small_disk.iterdir()] == ["other"]

    def test_the_program_can_fill_it(self, board: SshBoard, small_disk: Path) -> None:
        greedy = b"open('large', 'wb').write(bytes(100 << 20))"
        with pytest.raises(RemoteDeviceError, match=r"no space on .*No space left on device"):
            run_on_board(replace(board, folder=str(small_disk)), job(greedy))
        assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("print('error: no good', file=sys.stderr); sys.exit(2)", UsageError, "127.*: no good"),
        (
            "print('error: x: Disk quota exceeded', file=sys.stderr); sys.exit(2)",
            RemoteDeviceError,
            "no space",
        ),
        ("print('error: no numpy', file=sys.stderr); sys.exit(4)", BackendError, "no numpy"),
        ("print('error: changed', file=sys.stderr); sys.exit(6)", IntegrityError, "changed"),
        ("sys.exit('\\x1b[2Jodd')", RemoteDeviceError, "failed on .*: \ufffd\\[2Jodd"),
        ("sys.exit(130)", RemoteDeviceError, "was stopped"),
        ("os.kill(os.getpid(), 9)", RemoteDeviceError, "killed the program"),
        ("os.kill(os.getpid(), 15)", RemoteDeviceError, "was stopped"),
    ],
)
def test_how_the_program_can_fail(
    board: SshBoard, code: str, kind: type[RekdEdgeError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run_on_board(board, job(f"import os, sys\n{code}\n".encode()))


def test_children_that_the_program_leaves_are_ended(board: SshBoard) -> None:
    leaves = STUBBORN.replace(b"time.sleep(300)\n", b"open('report.json', 'w').write('1')\n")
    assert leaves != STUBBORN
    started = time.monotonic()
    assert run_on_board(board, job(leaves))[1] == b"1"
    assert time.monotonic() - started < 30


class TestInterruptions:
    """The fixture ``place`` says that nobody and nothing is left."""

    def test_the_connection_drops(self, board: SshBoard, server: Server) -> None:
        def drop(line: str) -> None:
            if line == "running":
                server.drop_connections()

        with pytest.raises(RemoteDeviceError, match=r"connection to .* was lost"):
            run_on_board(board, job(STUBBORN), progress=drop)

    def test_the_connection_drops_while_files_are_copied(
        self, board: SshBoard, server: Server
    ) -> None:
        def drop(line: str) -> None:
            if line.startswith("copying"):
                server.drop_connections()

        large = BoardJob({"p.py": ECHO, "large": bytes(30 << 20)}, ("p.py",), "r", ())
        with pytest.raises(RemoteDeviceError, match=r"connection to .* was lost"):
            run_on_board(board, large, progress=drop)

    def test_ctrl_c(self, board: SshBoard) -> None:
        def interrupt(line: str) -> None:
            if line == "running":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_on_board(board, job(PATIENT), progress=interrupt)

    def test_nobody_gives_a_sign_of_life(
        self, board: SshBoard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session, "SILENCE_S", 2.0)
        monkeypatch.setattr(session, "SIGN_OF_LIFE_S", 1000.0)
        with pytest.raises(RemoteDeviceError, match="was lost"):
            run_on_board(board, job(PATIENT))

    def test_a_result_is_not_lost_to_a_sign_of_life_that_comes_too_late(
        self, board: SshBoard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session, "SIGN_OF_LIFE_S", 0.0005)
        for _ in range(3):
            assert run_on_board(board, job(ECHO, "x"))[1].startswith(b'[["x"]')

    def test_signs_of_life_keep_it_running(
        self, board: SshBoard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session, "SILENCE_S", 5.0)
        monkeypatch.setattr(session, "SIGN_OF_LIFE_S", 0.5)
        slow = b"import time\ntime.sleep(7)\nopen('report.json', 'w').write('1')\n"
        assert run_on_board(board, job(slow))[1] == b"1"

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
    def test_the_local_process_is_killed(
        self, board: SshBoard, place: Path, number: signal.Signals
    ) -> None:
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from rekd_edge.boards.address import BoardAddress\n"
            "from rekd_edge.boards.openssh import SshBoard\n"
            "from rekd_edge.boards.session import BoardJob, run_on_board\n"
            "address, known, key, python, folder = sys.argv[1:]\n"
            "place = BoardAddress.parse(address)\n"
            "board = SshBoard(place, Path(known), Path(key), python, folder)\n"
            f"job = BoardJob({{'p.py': {PATIENT!r}}}, ('p.py',), 'r', ())\n"
            "run_on_board(board, job, progress=lambda line: print(line, flush=True))\n"
        )
        words = [str(board.address), board.known_hosts, board.identity, board.python, place]
        with not_ignored():
            local = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, text=True
            )
        assert local.stdout is not None
        with local, local.stdout:
            try:
                assert any(line.strip() == "running" for line in local.stdout)
                assert at_work(place)
                local.send_signal(number)
                assert local.wait(timeout=60) == -number
            finally:
                local.kill()

    def test_the_watching_process_is_killed_on_the_board(
        self, board: SshBoard, place: Path
    ) -> None:
        def kill(line: str) -> None:
            if line == "running":
                (folder,) = place.iterdir()
                holder = [pid for pid in at_work(place) if _holds(pid, folder)]
                os.kill(holder[0], signal.SIGKILL)

        with pytest.raises(RemoteDeviceError, match="was lost"):
            run_on_board(board, job(PATIENT), progress=kill)
        assert wait_until(lambda: not at_work(place))
        (folder,) = place.iterdir()
        run_on_board(board, job(ECHO))
        assert folder.exists(), "it may be somebody's who has only just begun"
        os.utime(folder, (0, 0))
        run_on_board(board, job(ECHO))
        assert not folder.exists()

    def test_a_folder_in_use_is_not_taken_for_a_stale_one(
        self, board: SshBoard, place: Path
    ) -> None:
        def run_another(line: str) -> None:
            if line == "step":
                (folder,) = place.iterdir()
                os.utime(folder, (0, 0))
                assert run_on_board(board, job(ECHO, "b"))[1].startswith(b'[["b"]')

        slow = ECHO.replace(b"measuring", b"step").replace(
            b"found =", b"input = sys.stdin\nfound ="
        )
        slow = slow.replace(b"input = sys.stdin", b"import time; time.sleep(2)")
        report = run_on_board(board, job(slow, "a"), progress=run_another)[1]
        assert report.startswith(b'[["a"]')


def _holds(pid: int, folder: Path) -> bool:
    links = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.path.realpath(link) == str(folder) for link in links)


HOSTILE = """#!{python}
import json, os, sys
os.read(0, 0)
stream = open(0, "rb", 0, closefd=False)
stream.readline()
request = json.loads(stream.readline())
def say(event):
    os.write(1, json.dumps(event).encode() + b"\\n")
ready = dict(event="ready", architecture="x", bits=64, system="s", python="3", cores=1,
             model=None, packages={{}})
def begin():
    os.write(1, b"rekd-edge " + request["nonce"].encode() + b"\\n")
    say(ready)
def copied():
    begin()
    while stream.readline() != b"go\\n":
        pass
    left = sum(size for _, size in request["files"])
    while left and (chunk := stream.read(left)):
        left -= len(chunk)
    say(dict(event="copied"))
{body}
"""


@pytest.mark.parametrize(
    "body",
    [
        "while True: os.write(1, b'x' * 65536)",
        "os.write(1, b'rekd-edge ' + b'0' * 32 + b'\\n'); sys.exit()",
        "os.write(1, b'rekd-edge ' + request['nonce'].encode() + b'\\n')\n"
        "while True: os.write(1, b'x' * 65536)",
        "os.write(2, b'rekd-edge: Python'); sys.exit(1)",
        "begin(); say(dict(event='refused', why='because'))",
        "begin(); say(dict(ready, path='/etc/passwd'))",
        "begin(); os.write(1, b'[' * 60000 + b'\\n')",
        "begin(); os.write(1, b'\\xff\\xfe\\n')",
        "begin(); begin()",
        "copied(); say(dict(event='done', exit_code=0, report_bytes=1 << 30, removed=True))",
        "copied(); say(dict(event='done', exit_code=0, report_bytes=-1, removed=True))",
        "copied(); say(dict(event='done', exit_code=0, report_bytes=9, removed=True, path='x'))",
        "copied(); say(dict(event='done', exit_code=0, report_bytes=9, removed=True))\n"
        "os.write(1, b'short')",
        "copied(); say(dict(event='line', text='x' * 2000))",
        "copied(); say(dict(event='line', text=['x']))",
    ],
)
def test_a_board_that_lies_does_no_harm(
    board: SshBoard, tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FAREWELL_S", 4.0)
    liar = script(tmp_path / "liar", HOSTILE.format(python=sys.executable, body=body))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(RekdEdgeError) as caught:
        run_on_board(replace(board, python=liar), job(ECHO))
    assert re.search("does not answer as the program|was lost|'.*liar' does not", str(caught.value))
    assert "SyntaxError" not in str(caught.value)
    assert set(tmp_path.rglob("*")) == before


def test_an_interruption_does_not_wait_for_a_board_that_takes_nothing(
    board: SshBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "FAREWELL_S", 4.0)
    body = "begin(); import time; time.sleep(60)"
    deaf = script(tmp_path / "deaf", HOSTILE.format(python=sys.executable, body=body))
    # Each smaller than the buffer of the stream, so that something is left in it.
    files = {f"{number}": bytes(4000) for number in range(2000)}
    many = BoardJob(files, ("p.py",), "r", ())
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 5.0)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_on_board(replace(board, python=deaf), many)
        assert 4.0 < time.monotonic() - started < 30.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_what_a_board_says_cannot_steer_the_terminal(
    board: SshBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FAREWELL_S", 6.0)
    body = (
        "copied(); say(dict(event='line', text='\\x1b]0;owned\\x07'))\n"
        "say(dict(event='done', exit_code=0, report_bytes=0, removed=True))"
    )
    liar = script(tmp_path / "liar", HOSTILE.format(python=sys.executable, body=body))
    said: list[str] = []
    assert run_on_board(replace(board, python=liar), job(ECHO), progress=said.append)[1] == b""
    assert said[-1] == "\ufffd]0;owned\ufffd"
