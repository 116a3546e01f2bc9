"""One connection to a board: files there, one program run, its report back, nothing left.

One ssh process is the whole transport. Everything goes through its standard streams to
:mod:`rekd_edge.boards.agent`, so that the end of this process, however it comes, is the end of the
agent's input, which is what makes the agent kill the program and remove its folder.
"""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import shlex
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rekd_edge.boards.openssh import SshBoard, explained, last_line, printable
from rekd_edge.errors import (
    BackendError,
    IntegrityError,
    RekdEdgeError,
    RemoteDeviceError,
    UsageError,
)

OLDEST_PYTHON = (3, 10)
"""Of the board: what the runtime of bundles needs."""
MOST_REPORT = 64 << 20
"""Bytes; ten minutes of queries of a tenth of a millisecond fit."""
SPACE_BESIDE_FILES = MOST_REPORT + (8 << 20)
"""Bytes for the report and what else the program writes while it runs."""
MOST_LINE = 1 << 16
MOST_NOISE = 1 << 20
"""Bytes that a login shell may print before the agent speaks."""
SIGN_OF_LIFE_S, SILENCE_S = 5.0, 60.0
"""How often this side says something, and after how long without it the board gives up."""
START_S = 120.0
"""To log in, and to start Python there."""
READY_S = 300.0
"""To import the packages, from a slow card too."""
STALL_S = 300.0
"""For which the board may take nothing of what is sent."""
FAREWELL_S = 20.0
PACKAGE_NAMES = {"PIL": "pillow"}
"""Of modules whose package has another name."""
_CHUNK = 1 << 18

_BOOTSTRAP = 'exec(open(0,"rb",0,closefd=False).readline())'
_TOO_OLD = "rekd-edge: Python"


@dataclass(frozen=True, slots=True)
class BoardJob:
    """``files`` go into the work folder under relative names; ``command`` is run there by the
    board's Python and writes ``report``. ``imports`` are the packages that it needs."""

    files: Mapping[str, Path | bytes]
    command: tuple[str, ...]
    report: str
    imports: tuple[str, ...]
    quiet_s: float = 900.0
    """For how long the program may say nothing."""
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        sizes = (
            len(content) if isinstance(content, bytes) else content.stat().st_size
            for content in self.files.values()
        )
        object.__setattr__(self, "sizes", tuple(sizes))

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes)


class _Event(BaseModel):
    """What a board says; its text never names a file of this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BoardFacts(_Event):
    """What the agent found before anything was copied."""

    event: Literal["ready"] = "ready"
    architecture: str = Field(max_length=100)
    bits: int
    system: str = Field(max_length=100)
    python: str = Field(max_length=100)
    cores: int | None
    model: str | None = Field(max_length=200)
    """What the firmware calls the board; null where it has no device tree."""
    packages: dict[str, str] = Field(max_length=20)


class _Copied(_Event):
    event: Literal["copied"]


class _Line(_Event):
    event: Literal["line"]
    text: str = Field(max_length=1000)


class _Done(_Event):
    event: Literal["done"]
    exit_code: int
    report_bytes: int = Field(ge=0, le=MOST_REPORT)
    removed: bool


class _Refused(_Event):
    event: Literal["refused"]
    why: Literal["space", "folder", "packages", "report", "error"]
    folder: str = ""
    free: int = 0
    size: int = 0
    error: str = ""
    exit_code: int = 0
    missing: dict[str, str] = {}
    python: str = ""


_EVENTS: TypeAdapter[BoardFacts | _Copied | _Line | _Done | _Refused] = TypeAdapter(
    BoardFacts | _Copied | _Line | _Done | _Refused
)


def run_on_board(
    board: SshBoard,
    job: BoardJob,
    *,
    progress: Callable[[str], None] = lambda _: None,
    inspect: Callable[[BoardFacts], None] = lambda _: None,
) -> tuple[BoardFacts, bytes]:
    """Runs ``job`` there and returns what the board is and the report's bytes, which are the
    board's word: validate them. ``inspect`` may raise to stop before anything is copied.

    Raises:
        RemoteDeviceError: the connection, the host's key, space, or the program there failed.
        BackendError: no ssh here; no Python, or a package missing, there.
        UsageError, IntegrityError: the program there refused its input or the bundle.
    """
    progress(f"connecting to {board.address}")
    with _Connection(board) as connection:
        try:
            return _run(connection, job, progress, inspect)
        except KeyboardInterrupt:
            progress(f"interrupted: ending the program on {board.address}")
            raise


def _run(
    connection: _Connection,
    job: BoardJob,
    progress: Callable[[str], None],
    inspect: Callable[[BoardFacts], None],
) -> tuple[BoardFacts, bytes]:
    connection.greet(job)
    facts = connection.expect(BoardFacts, READY_S)
    inspect(facts)
    connection.send(b"go\n")
    _copy(connection, job, progress)
    connection.expect(_Copied, READY_S)
    progress("starting")
    said: deque[str] = deque(maxlen=20)
    while isinstance(event := connection.event(job.quiet_s), _Line):
        said.append(printable(event.text))
        progress(said[-1])
    if not isinstance(event, _Done):
        raise connection.broken("it spoke out of turn")
    report = connection.payload(event.report_bytes)
    if event.exit_code != 0:
        raise _failure(connection.board, event.exit_code, list(said))
    if not event.removed:
        progress("note: the board could not remove all of its work folder")
    return facts, report


def _copy(connection: _Connection, job: BoardJob, progress: Callable[[str], None]) -> None:
    total, sent = job.total_bytes, 0
    for (name, content), size in zip(job.files.items(), job.sizes, strict=True):
        left = size
        for chunk in _chunks(content):
            if len(chunk) > left:
                raise IntegrityError(f"{name} has grown while it was copied")
            connection.send(chunk)
            left -= len(chunk)
            sent += len(chunk)
            progress(f"copying, {sent / 1e6:.1f} of {total / 1e6:.1f} MB")
        if left:
            raise IntegrityError(f"{name} has become shorter while it was copied")


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        if content:
            yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


_NO_SPACE = ("No space left on device", "quota exceeded")
_KINDS: dict[int, type[RekdEdgeError]] = {2: UsageError, 4: BackendError, 6: IntegrityError}


def _failure(board: SshBoard, exit_code: int, lines: list[str]) -> RekdEdgeError:
    """What the program there ended with. Its messages and exit codes are like those here."""
    message, hint = lines[-1] if lines else f"exit code {exit_code}", None
    for line, following in pairwise([*lines, ""]):
        if line.startswith(("error: ", "unexpected: ")):
            message = line.removeprefix("error: ")
            hint = following.removeprefix("hint: ") if following.startswith("hint: ") else None
    if any(text in message for text in _NO_SPACE):
        return RemoteDeviceError(
            f"there is no space on {board.address}: {message}",
            hint="make room there, or name a larger place with --remote-folder",
        )
    if exit_code in _KINDS:
        return _KINDS[exit_code](f"on {board.address}: {message}", hint=hint)
    if exit_code == -9:
        return RemoteDeviceError(
            f"{board.address} killed the program", hint="most often it ran out of memory there"
        )
    if exit_code < 0 or exit_code == 130:
        return RemoteDeviceError(f"the program was stopped on {board.address}")
    return RemoteDeviceError(f"the program failed on {board.address}: {message}", hint=hint)


def untrue(board: SshBoard, how: str) -> RemoteDeviceError:
    """The board said what the program there would not have said."""
    return RemoteDeviceError(
        f"{board.address} does not answer as the program that was sent there would: "
        f"{printable(how)[:300]}",
        hint="nothing that it sent was used",
    )


class _Connection:
    """The ssh process and the two threads that read what it says."""

    def __init__(self, board: SshBoard) -> None:
        self.board = board
        self._nonce = secrets.token_hex(16)
        self._events: queue.Queue[Any] = queue.Queue(maxsize=256)
        self._complaint = bytearray()
        self._closing = threading.Event()
        self._last_sign = time.monotonic()
        self._greeted = False
        self._farewell_s = FAREWELL_S

    def __enter__(self) -> _Connection:
        command = self.board.command(shlex.join([_python(self.board), "-I", "-c", _BOOTSTRAP]))
        # In a session of its own: Ctrl-C comes to this process, which ends the connection in order.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=os.name == "posix",
        )
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._input, *outputs = (cast(IO[bytes], stream) for stream in streams)
        self._threads = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in zip((self._hear, self._overhear), outputs, strict=True)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the board's input, which ends everything there, and waits until it has."""
        try:
            self._closing.set()
            with self._not_for_ever(self._farewell_s):  # what is still to be written goes first
                _close(self._input)
            try:
                self._process.wait(timeout=self._farewell_s)
            except subprocess.TimeoutExpired:
                self._process.terminate()
                self._process.wait(timeout=self._farewell_s)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            for thread in self._threads:
                thread.join(timeout=FAREWELL_S)
            for stream in (self._process.stdout, self._process.stderr):
                if stream is not None:
                    _close(stream)

    # --- what the threads do

    def _hear(self, stream: IO[bytes]) -> None:
        try:
            for event in self._read_events(stream):
                self._put(event)
            self._put(None)
        except (ValidationError, _NonsenseError) as error:
            self._put(error)
        except (OSError, ValueError):  # closed
            self._put(None)

    def _read_events(self, stream: IO[bytes]) -> Iterator[Any]:
        greeting, noise = f"rekd-edge {self._nonce}\n".encode(), 0
        while (line := stream.readline(MOST_LINE)) != greeting:
            noise += len(line)
            if not line:
                return
            if noise > MOST_NOISE:
                raise _NonsenseError("it prints without end when somebody logs in")
        yield greeting
        while line := stream.readline(MOST_LINE):
            if not line.endswith(b"\n"):
                raise _NonsenseError("a line without end")
            event = _EVENTS.validate_json(line)
            yield event
            if isinstance(event, _Done):
                yield stream.read(event.report_bytes)

    def _put(self, event: Any) -> None:
        while not self._closing.is_set():
            try:
                self._events.put(event, timeout=0.5)
                return
            except queue.Full:
                continue

    def _overhear(self, stream: IO[bytes]) -> None:
        """ssh's own complaints, and what the board's shell says; the last of it is kept."""
        try:
            while chunk := stream.read1(MOST_LINE):  # type: ignore[attr-defined]
                self._complaint += chunk
                del self._complaint[:-MOST_LINE]
        except (OSError, ValueError):
            return

    # --- what the main thread does

    def greet(self, job: BoardJob) -> None:
        source = Path(__file__).with_name("agent.py").read_text(encoding="utf-8")
        oldest = ", ".join(map(str, OLDEST_PYTHON))
        program = (
            f"import sys; sys.version_info[:2] >= ({oldest}) or "
            f"sys.exit('{_TOO_OLD} %d.%d' % sys.version_info[:2]); "
            f"exec(compile({source!a}, 'rekd-edge', 'exec'))\n"
        )
        request = {
            "nonce": self._nonce,
            "parent": self.board.folder,
            "needed_bytes": job.total_bytes + SPACE_BESIDE_FILES,
            "imports": job.imports,
            "files": list(zip(job.files, job.sizes, strict=True)),
            "command": job.command,
            "report": job.report,
            "report_limit": MOST_REPORT,
            "silence_s": SILENCE_S,
        }
        self.send(program.encode() + json.dumps(request).encode() + b"\n")
        if not isinstance(self.event(START_S), bytes):
            raise self.broken("it did not begin as expected")
        self._greeted = True

    def expect(self, kind: type[_Kind], within_s: float) -> _Kind:
        event = self.event(within_s)
        if not isinstance(event, kind):
            raise self.broken("it spoke out of turn")
        return event

    def event(self, within_s: float) -> Any:
        """The next one that is no refusal; says that somebody is here for as long as it waits."""
        until = time.monotonic() + within_s
        while True:
            if time.monotonic() >= self._last_sign + SIGN_OF_LIFE_S:
                self._give_sign()
            wait = min(self._last_sign + SIGN_OF_LIFE_S, until) - time.monotonic()
            try:
                return self._judged(self._events.get(timeout=max(0.0, wait)))
            except queue.Empty:
                if time.monotonic() >= until:
                    raise RemoteDeviceError(
                        f"{self.board.address} has not answered for {within_s:g} s",
                        hint="it may be busy or short of memory; what was started there ends",
                    ) from None

    def _give_sign(self) -> None:
        """Nobody may be there to hear it, and what was said last still be on its way."""
        self._last_sign = time.monotonic()
        with suppress(OSError), self._not_for_ever():
            self._input.write(b"\n")
            self._input.flush()

    @contextmanager
    def _not_for_ever(self, seconds: float | None = None) -> Iterator[None]:
        """The connection ends where the board takes nothing of what is sent."""
        stalled = threading.Timer(STALL_S if seconds is None else seconds, self._process.kill)
        stalled.start()
        try:
            yield
        finally:
            stalled.cancel()

    def payload(self, count: int) -> bytes:
        found = self.event(READY_S)
        if not isinstance(found, bytes) or len(found) != count:
            raise self.broken("its report is not whole")
        return found

    def send(self, content: bytes) -> None:
        """Raises what the board said before it stopped listening, where it has."""
        try:
            with self._not_for_ever():
                self._input.write(content)
                self._input.flush()
        except OSError:
            # Whatever it said, it ends with the end of the connection.
            while True:
                try:
                    self._judged(self._events.get(timeout=FAREWELL_S))
                except queue.Empty:
                    raise self._lost() from None
        self._last_sign = time.monotonic()

    def _judged(self, event: Any) -> Any:
        if isinstance(event, _Refused):
            raise _refusal(self.board, event)
        if event is None:
            raise self._lost()
        if isinstance(event, Exception):
            raise self.broken(str(event).splitlines()[0]) from event
        return event

    def broken(self, how: str) -> RemoteDeviceError:
        self._farewell_s = 1.0
        return untrue(self.board, how)

    def _lost(self) -> RekdEdgeError:
        """Why the connection has ended before its time."""
        try:
            exit_code = self._process.wait(timeout=FAREWELL_S)
        except subprocess.TimeoutExpired:
            exit_code = None
        self._threads[1].join(timeout=FAREWELL_S)
        complaint = self._complaint.decode(errors="replace")
        where = self.board.address
        if self._greeted:
            return RemoteDeviceError(
                f"the connection to {where} was lost",
                hint="the board ends the program and removes its files by itself, at the latest "
                f"after {SILENCE_S:g} s; then try again",
            )
        if too_old := re.search(rf"^{_TOO_OLD} (\d+\.\d+)\s*$", complaint, re.MULTILINE):
            version = too_old[1]
            oldest = ".".join(map(str, OLDEST_PYTHON))
            return BackendError(
                f"{where} has Python {version}, and {oldest} is the oldest that will do",
                hint="install a newer one there and name it with --remote-python",
            )
        if exit_code == 255:
            return explained(self.board, complaint)
        return BackendError(
            f"{_python(self.board)!r} does not start on {where}: "
            f"{last_line(complaint) or f'exit code {exit_code}'}",
            hint="--remote-python names the Python to use there, as venv/bin/python (seen from "
            "the home folder)",
        )


_Kind = TypeVar("_Kind", bound=_Event)


class _NonsenseError(ValueError):
    """Not what an agent says."""


def _python(board: SshBoard) -> str:
    """A tilde would be quoted away, and a command starts in the home folder."""
    rest = board.python.removeprefix("~/")
    return f"./{rest}" if rest != board.python else rest


def _close(stream: IO[bytes]) -> None:
    with suppress(OSError):  # what was still to be written has nobody to read it
        stream.close()


def _refusal(board: SshBoard, event: _Refused) -> RekdEdgeError:
    where, folder = board.address, printable(event.folder)
    if event.why == "space":
        return RemoteDeviceError(
            f"there is no space on {where}: {event.free / 1e6:.1f} MB are free in {folder}",
            hint=f"the files and {SPACE_BESIDE_FILES / 1e6:.0f} MB beside them are needed; make "
            "room there, or name a larger place with --remote-folder",
        )
    if event.why == "folder":
        return RemoteDeviceError(
            f"no work folder can be made in {folder} on {where}: {printable(event.error)}",
            hint="name another place with --remote-folder",
        )
    if event.why == "report":
        return RemoteDeviceError(
            f"the report of {where} has {event.size} bytes, more than {MOST_REPORT}",
            hint="measure for a shorter time",
        )
    if event.why == "error":
        return RemoteDeviceError(f"{where} failed: {printable(event.error)}")
    if not event.missing:
        return BackendError(
            f"Python on {where} ended while it imported its packages (exit code "
            f"{event.exit_code}): {printable(event.error)}",
            hint="a package may be built for another processor: reinstall them there",
        )
    names = [PACKAGE_NAMES.get(name, name) for name in event.missing]
    why = "; ".join(printable(reason) for reason in event.missing.values() if reason)
    return BackendError(
        f"Python on {where} lacks {', '.join(map(printable, names))}"
        + (f" ({why})" if why else ""),
        hint=f"there: {printable(event.python)} -m pip install {' '.join(map(printable, names))} "
        "(64-bit systems only), or name another Python with --remote-python",
    )
