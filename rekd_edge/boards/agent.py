"""What runs on the board: takes files, runs one program under watch, hands back one report, and
leaves nothing behind.

Its source goes over the connection and is run by the board's own Python (``python3 -I``); standard
library and POSIX alone. It is never imported by ``rekd-edge``. Both sides speak in lines of JSON:

    here                                 board
    this source, one line
    {nonce, files, command, ...}     ->
                                     <-  rekd-edge NONCE      what a login shell prints is before
                                     <-  {"event": "ready", facts of the board}
    go                               ->
    the bytes of the files           ->
                                     <-  {"event": "copied"}
    empty lines, every few seconds   ->
                                     <-  {"event": "line", "text": ...}    what the program says
                                     <-  {"event": "done", "exit_code", "report_bytes", "removed"}
                                     <-  the bytes of the report

``{"event": "refused", "why": ...}`` ends it at any time. The end of its input, or silence there for
``silence_s``, means that nobody is interested any more: the program's process group is killed and
the work folder removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PREFIX = "rekd-edge-bench-"
CHUNK = 1 << 16
MOST_LINE = 400
"""Characters of a line of the program that are passed on."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STALE_S = 60.0
"""Work folders that are older, and that no process holds, are those of a board that lost power."""
PATIENCE_S = 3.0
"""Between asking a process group to end and killing it."""
NOT_ENOUGH_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PR_SET_PDEATHSIG = 1


class GoneError(Exception):
    """Nobody listens any more."""


class RefusedError(Exception):
    def __init__(self, why: str, **details: Any) -> None:
        super().__init__(why)
        self.event = {"event": "refused", "why": why, **details}


class Link:
    """Standard input and output, neither of which may block for longer than ``silence_s``."""

    def __init__(self) -> None:
        self.silence_s = 60.0
        self.heard = time.monotonic()
        self._buffer = bytearray()
        for handle in (0, 1):
            os.set_blocking(handle, False)

    def listen(self, *others: int, within_s: float | None = None) -> list[int]:
        """Takes in what is there, or waits; returns those of ``others`` that can be read."""
        left = self.heard + self.silence_s - time.monotonic()
        wait = left if within_s is None else min(left, within_s)
        ready, _, _ = select.select([0, *others], [], [], max(0.0, wait))
        if 0 not in ready and left <= 0:
            raise GoneError
        if 0 in ready:
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(0, CHUNK)
                if not chunk:
                    raise GoneError
                self._buffer += chunk
                self.heard = time.monotonic()
        return [handle for handle in ready if handle != 0]

    def line(self) -> str:
        while b"\n" not in self._buffer:
            self.listen()
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = bytearray(rest)
        return line.decode()

    def take(self, count: int) -> Iterator[bytes]:
        while count:
            if not self._buffer:
                self.listen()
            chunk = bytes(self._buffer[:count])
            del self._buffer[: len(chunk)]
            count -= len(chunk)
            yield chunk

    def forget(self) -> None:
        """What has come so far was a sign of life and nothing more."""
        self._buffer.clear()

    def say(self, event: dict[str, Any]) -> None:
        self.send(json.dumps(event).encode() + b"\n")

    def send(self, content: bytes) -> None:
        rest = memoryview(content)
        until = time.monotonic() + self.silence_s
        while rest:
            _, ready, _ = select.select([], [1], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise GoneError
            try:
                rest = rest[os.write(1, rest[:CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise GoneError from error
            until = time.monotonic() + self.silence_s


class Program:
    """One child in a process group of its own, which does not outlive this process."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self._stopped = False
        scratch = folder / "tmp"
        scratch.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=death_with_this_process(),
        )

    def lines(self, link: Link) -> Iterator[str]:
        """What it says on standard error, until it has ended."""
        assert self._process.stderr is not None
        handle = self._process.stderr.fileno()
        rest = b""
        while True:
            link.forget()
            # A grandchild can keep the pipe open after the program's end.
            if not link.listen(handle, within_s=5.0):
                if self._process.poll() is not None:
                    break
                continue
            chunk = os.read(handle, CHUNK)
            if not chunk:
                break
            *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in whole:
                yield line.decode(errors="replace").strip()
            rest = rest[-CHUNK:]
        if rest.strip():
            yield rest.decode(errors="replace").strip()

    def ended(self, link: Link) -> int:
        """Its exit code; minus the number of the signal that ended it."""
        while self._process.poll() is None:
            link.forget()
            link.listen(within_s=0.05)
        self.stop()
        return self._process.returncode

    def stop(self) -> None:
        """The whole group; returns when the program has ended."""
        if self._stopped:  # the group's number may be another's by now
            return
        self._stopped = True
        for number, patience_s in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, 60.0)):
            try:
                os.killpg(self._process.pid, number)
            except (ProcessLookupError, PermissionError):  # macOS: what is left is dead
                break
            try:
                self._process.wait(timeout=patience_s)
            except subprocess.TimeoutExpired:
                continue
        self._process.poll()


def death_with_this_process() -> Callable[[], None] | None:
    """What a child does to be sent SIGTERM should this process be killed; Linux knows how."""
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def facts() -> dict[str, Any]:
    """What kind of board this is; no name of it."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "architecture": platform.machine(),
        "bits": 64 if sys.maxsize > 1 << 32 else 32,
        "system": platform.system(),
        "python": platform.python_version(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "model": board_model(),
    }


def board_model() -> str | None:
    """What the firmware calls a board with a device tree, as "Raspberry Pi 5 Model B Rev 1.0"."""
    try:
        text = Path("/proc/device-tree/model").read_bytes()[:200]
    except OSError:
        return None
    return text.rstrip(b"\0").decode(errors="replace").strip() or None


def open_folder(parent: str | None) -> Path:
    """A private folder that is locked as long as this process lives."""
    try:
        place = parent and str(Path(parent).expanduser().absolute())
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    except (OSError, RuntimeError) as error:  # RuntimeError: a tilde without a home
        where = parent or tempfile.gettempdir()
        if getattr(error, "errno", None) in NOT_ENOUGH_SPACE:
            raise RefusedError("space", folder=where, free=0) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise RefusedError("folder", folder=where, error=reason) from error
    with contextlib.suppress(OSError):  # a file system without locks has nothing swept either
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
    return folder


def sweep(parent: Path) -> None:
    """Removes work folders of this user that were left by a loss of power."""
    for entry in os.scandir(parent):
        if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            state = entry.stat(follow_symlinks=False)
            if state.st_uid != os.getuid() or time.time() - state.st_mtime < STALE_S:
                continue
            handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(handle)


def require_packages(names: list[str], folder: Path, link: Link, nonce: str) -> dict[str, str]:
    """Imported by a process as the program's will be; a package can be there and broken."""
    code = (
        "import importlib, json, sys\n"
        "found, missing = {}, {}\n"
        "for name in sys.argv[2:]:\n"
        "    try:\n"
        "        module = importlib.import_module(name)\n"
        "        found[name] = str(getattr(module, '__version__', ''))\n"
        "    except Exception as error:\n"
        "        missing[name] = (str(error).strip().splitlines() or [''])[0][:200]\n"
        "sys.stderr.write('\\n' + sys.argv[1] + json.dumps([found, missing]) + '\\n')\n"
    )
    program = Program(["-c", code, nonce, *names], folder)
    answer, last = None, ""
    try:
        for line in program.lines(link):
            if line.startswith(nonce):
                answer = line[len(nonce) :]
            last = line or last
        code_of_end = program.ended(link)
    finally:
        program.stop()
    try:
        found, missing = json.loads(answer or "")
    except ValueError:
        # An illegal instruction, for instance, in a package that was built for another processor.
        raise RefusedError("packages", missing={}, error=last, exit_code=code_of_end) from None
    if missing:
        raise RefusedError("packages", missing=missing, python=sys.executable)
    return found


def take_files(files: list[list[Any]], folder: Path, link: Link) -> None:
    for name, size in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb", buffering=0) as file:
            for chunk in link.take(size):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) or 0 :]


def read_report(path: Path, most: int) -> bytes:
    """Empty where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            return b""
        if state.st_size > most:
            raise RefusedError("report", size=state.st_size)
        return file.read(most)


def serve(request: dict[str, Any], link: Link) -> None:
    folder = open_folder(request["parent"])
    program = None
    try:
        try:
            with contextlib.suppress(OSError):
                sweep(folder.parent)
            needed, free = request["needed_bytes"], shutil.disk_usage(folder).free
            if free < needed:
                raise RefusedError("space", folder=str(folder.parent), free=free)
            packages = require_packages(request["imports"], folder, link, request["nonce"])
            link.say({"event": "ready", "packages": packages, **facts()})
            while not (word := link.line()):
                pass
            if word != "go":
                raise GoneError
            take_files(request["files"], folder, link)
            link.say({"event": "copied"})
            program = Program(request["command"], folder)
            for line in program.lines(link):
                if line:
                    link.say({"event": "line", "text": line[:MOST_LINE]})
            exit_code = program.ended(link)
            report = read_report(folder / request["report"], request["report_limit"])
        except OSError as error:
            if error.errno not in NOT_ENOUGH_SPACE:
                raise
            free = shutil.disk_usage(folder).free
            raise RefusedError("space", folder=str(folder.parent), free=free) from error
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if program is not None:
            program.stop()
        shutil.rmtree(folder, ignore_errors=True)
    done = {"exit_code": exit_code, "report_bytes": len(report)}
    link.say({"event": "done", "removed": not folder.exists(), **done})
    link.send(report)


def end_orderly(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    os.umask(0o077)
    for number in SIGNALS:
        signal.signal(number, end_orderly)
    link = Link()
    try:
        request = json.loads(link.line())
        link.silence_s = request["silence_s"]
        link.send(b"\nrekd-edge " + request["nonce"].encode() + b"\n")
        try:
            serve(request, link)
        except GoneError:
            raise
        except RefusedError as refusal:
            link.say(refusal.event)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"[:MOST_LINE]
            link.say({"event": "refused", "why": "error", "error": what})
    except GoneError:
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
