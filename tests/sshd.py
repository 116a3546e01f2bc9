"""A real OpenSSH server on 127.0.0.1 for tests, as the current user, with keys of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import NoReturn

import pytest

START_S = 30
REQUIRE = "REKD_REQUIRE_SSHD"
CONFIG = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AcceptEnv none
LogLevel VERBOSE
"""


def find_sshd() -> str:
    """The server's path; skips the test, with the reason, unless ``REKD_REQUIRE_SSHD`` is set."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None or shutil.which("ssh") is None:
        absent("no OpenSSH server and client here (`make test-tools` installs them)")
    return found


def absent(reason: str) -> NoReturn:
    """Skips the test; fails it where CI says that the server must be here."""
    if os.environ.get(REQUIRE):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class Server:
    """``log`` is what the server says; ``folder`` holds its keys and those of its user."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"ssh://{getuser()}@127.0.0.1:{self.port}"

    @property
    def identity(self) -> Path:
        return self.folder / "user_key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def options(self) -> list[str]:
        """Of the command line."""
        return ["--known-hosts", str(self.known_hosts), "--identity", str(self.identity)]

    def sessions(self) -> list[int]:
        """Processes that serve a connection."""
        found, waiting = [], [self.process.pid]
        while waiting:
            path = Path(f"/proc/{(pid := waiting.pop())}/task/{pid}/children")
            try:
                children = [int(word) for word in path.read_text().split()]
            except OSError:
                continue
            names = {child: _name(child) for child in children}
            found += [child for child in children if names[child].startswith("sshd")]
            waiting += [child for child in children if names[child].startswith("sshd")]
        return found

    def drop_connections(self) -> None:
        """As a cable that is pulled, seen from both sides."""
        for pid in self.sessions():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def write_key(path: Path) -> str:
    """A new key pair; returns the public half."""
    path.unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True
    )
    return path.with_name(path.name + ".pub").read_text(encoding="utf-8")


@contextmanager
def open_server(folder: Path) -> Iterator[Server]:
    """Runs from the start to the end of the block; its host key is in ``known_hosts``."""
    program = find_sshd()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd separates privileges
    folder.mkdir()
    (folder / "authorized_keys").write_text(write_key(folder / "user_key"), encoding="utf-8")
    host_key = write_key(folder / "host_key")
    server = _start(program, folder, host_key)
    while server.process.poll() is not None:
        if "in use" not in server.log:  # else another test has taken the port
            absent(f"an OpenSSH server does not start here: {server.log.strip()}")
        server = _start(program, folder, host_key)
    try:
        _require_login(server)
        yield server
    finally:
        server.drop_connections()
        server.process.terminate()
        server.process.wait(timeout=START_S)


def _start(program: str, folder: Path, host_key: str) -> Server:
    """A server that greets, or has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder), encoding="utf-8")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}", encoding="utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(folder / "config")],
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    server = Server(port, folder, process)
    if not wait_until(lambda: _greets(server) or process.poll() is not None, START_S):
        process.kill()
        process.wait()
    return server


def _greets(server: Server) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=START_S) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _require_login(server: Server) -> None:
    """Some accounts may not log in (a locked one, without PAM): that is no failure of a test."""
    words = ["ssh", "-p", str(server.port), "-i", str(server.identity), "-o", "BatchMode=yes"]
    words += ["-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "IdentitiesOnly=yes"]
    ended = subprocess.run(
        [*words, f"{getuser()}@127.0.0.1", "true"], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        said = f"{ended.stderr.strip()} {server.log.strip()}"
        absent(f"nobody can log in to an OpenSSH server here: {said}")


@contextmanager
def open_small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 90 MB until the end of the block; skips the test where none can be made."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        wait_until(lambda: not at_work(folder))
        subprocess.run(["umount", str(folder)], check=True)


def at_work(folder: Path) -> list[int]:
    """Processes that have their current folder, or anything open, below ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [process / "cwd", *(process / "fd").iterdir()]
            if any(_target(link).startswith(f"{folder}/") for link in links):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether it came true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
