"""The system's OpenSSH client: its command line, and what its complaints mean.

The user's own configuration (``~/.ssh/config``: names of boards, keys, jump hosts) is honoured;
what concerns safety is forced on the command line, which comes before it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rekd_edge.boards.address import BoardAddress
from rekd_edge.errors import BackendError, RemoteDeviceError, UsageError

CONNECT_TIMEOUT_S = 15
ALIVE_INTERVAL_S, ALIVE_COUNT = 10, 3
"""A connection whose other end is silent for the product of both is given up."""

FORCED = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "NoHostAuthenticationForLocalhost=no",
    "VerifyHostKeyDNS=no",
    "UpdateHostKeys=no",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "Tunnel=no",
    "RemoteCommand=none",
    "ControlMaster=no",
    "ControlPath=none",
    "EscapeChar=none",
    "LogLevel=INFO",
    f"ConnectTimeout={CONNECT_TIMEOUT_S}",
    f"ServerAliveInterval={ALIVE_INTERVAL_S}",
    f"ServerAliveCountMax={ALIVE_COUNT}",
)
"""No questions, no keys that were not accepted before, nothing of this machine reachable from the
board, and a connection of its own that ends with the command."""


@dataclass(frozen=True, slots=True)
class SshBoard:
    """A board, and how to get there."""

    address: BoardAddress
    known_hosts: Path | None = None
    """Instead of the user's and the system's own."""
    identity: Path | None = None
    """A key to offer, besides those that the user's configuration names; none of ssh-agent's
    others."""
    python: str = "python3"
    """Name or path of the interpreter there; a relative path starts in the home folder."""
    folder: str | None = None
    """Where the work folder is made there; None: where temporary files go."""

    def __post_init__(self) -> None:
        for option, path in (("--known-hosts", self.known_hosts), ("--identity", self.identity)):
            if path is not None:
                _require_file(option, path)
        for option, text in (("--remote-python", self.python), ("--remote-folder", self.folder)):
            if text is not None and (
                not text or text.startswith("-") or any(ord(c) < 32 or ord(c) == 127 for c in text)
            ):
                raise UsageError(f"{option} {text!r} is no path")

    def command(self, remote: str) -> list[str]:
        """``remote`` is read by the login shell of the board's user.

        Raises :class:`BackendError` where there is no ssh here.
        """
        program = shutil.which("ssh")
        if program is None:
            raise BackendError(
                "there is no ssh on this machine",
                hint="install the OpenSSH client (on Debian: apt-get install openssh-client)",
            )
        return [program, "-T", *self._options(), "--", self.address.host, remote]

    def _options(self) -> list[str]:
        options = [word for setting in FORCED for word in ("-o", setting)]
        if self.known_hosts is not None:
            options += _only(self.known_hosts)
        if self.identity is not None:
            options += ["-o", f"IdentityFile={_quoted(self.identity)}", "-o", "IdentitiesOnly=yes"]
        if self.address.user is not None:
            options += ["-l", self.address.user]
        if self.address.port is not None:
            options += ["-p", str(self.address.port)]
        return options

    def acceptance(self) -> str:
        """What a person runs to see the fingerprint of the board's key, and to accept it."""
        words = ["ssh"]
        if self.known_hosts is not None:
            words += _only(self.known_hosts)
        if self.identity is not None:
            words += ["-i", str(self.identity.resolve())]
        if self.address.port is not None:
            words += ["-p", str(self.address.port)]
        user = "" if self.address.user is None else f"{self.address.user}@"
        ask = ["-o", "StrictHostKeyChecking=ask"]
        return shlex.join([*words, *ask, f"{user}{self.address.host}", "true"])

    def forgetting(self, name: str | None = None) -> str:
        """What a person runs to drop the key that the board had before. ``name`` is what ssh calls
        the board, where it has said so: the configuration may give it another host or port."""
        host, port = self.address.host, self.address.port
        words = ["ssh-keygen", "-R"]
        words.append(name or (host if port in (None, 22) else f"[{host}]:{port}"))
        if self.known_hosts is not None:
            words += ["-f", str(self.known_hosts.resolve())]
        return shlex.join(words)


def _require_file(option: str, path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{option} {path}: there is no such file")
    if re.search(r'["\\$\x00-\x1f]', str(path.resolve())):
        raise UsageError(f"{option} {path}: ssh cannot take a path with such characters")


def _only(known_hosts: Path) -> list[str]:
    """Options with which no host key counts but those of the file."""
    files = [f"UserKnownHostsFile={_quoted(known_hosts)}", "GlobalKnownHostsFile=/dev/null"]
    command = ["KnownHostsCommand=none"] if _knows("KnownHostsCommand") else []
    return [word for setting in (*files, *command) for word in ("-o", setting)]


@cache
def _knows(option: str) -> bool:
    """Whether the ssh here is new enough for it. ``IgnoreUnknown`` would do without asking, but
    takes the place of the user's own."""
    program = shutil.which("ssh")
    if program is None:
        return False
    words = [program, "-T", "-F", "none", "-o", f"{option}=none", "-G", "board"]
    return not subprocess.run(words, capture_output=True, check=False).returncode


def _quoted(path: Path) -> str:
    """As a word of ssh's configuration, where % begins a token."""
    return '"' + str(path.resolve()).replace("%", "%%") + '"'


FINGERPRINT = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
"""Prints the fingerprint on the board itself."""


def explained(board: SshBoard, complaint: str) -> RemoteDeviceError:
    """What ssh wrote before it gave up, as one message with what to do."""
    where = str(board.address)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in complaint:
        name = re.search(r"^Host key for ([\w.:%\[\]-]+) has changed", complaint, re.MULTILINE)
        place = re.search(r"^Offending \S+ key in (.+):(\d+)", complaint, re.MULTILINE)
        known = f" (known: line {place[2]} of {printable(place[1])})" if place else ""
        return RemoteDeviceError(
            f"the host key of {where} has changed{known}: it is another machine, a new "
            "installation, or somebody between",
            hint=f"compare it with the board's own (`{FINGERPRINT}`, run there); only if they "
            f"agree: {board.forgetting(name and name[1])} && {board.acceptance()}",
        )
    if "host key is known for" in complaint:
        return RemoteDeviceError(
            f"the host key of {where} is not known, and no key is accepted unseen",
            hint=f"run `{board.acceptance()}`, compare the fingerprint that it shows with the "
            f"board's own (`{FINGERPRINT}`, run there), and say yes only if they agree",
        )
    if "UNPROTECTED PRIVATE KEY FILE" in complaint:
        return RemoteDeviceError(
            "ssh does not use a private key that others can read: " + last_line(complaint),
            hint="chmod 600 the key's file",
        )
    if "Permission denied" in complaint or "Too many authentication failures" in complaint:
        return RemoteDeviceError(
            f"{where} does not let this user in with any key that was offered",
            hint="ssh-copy-id puts a key there; --identity FILE chooses one; a key with a "
            "passphrase must be in ssh-agent",
        )
    last = last_line(complaint)
    reachable = ("resolve hostname", "Connection refused", "timed out", "No route to host")
    if any(text in complaint for text in (*reachable, "Network is unreachable")):
        return RemoteDeviceError(
            f"{where} cannot be reached: {last}",
            hint="is the board on, in the same network, and its ssh server running?",
        )
    return RemoteDeviceError(
        f"ssh to {where} failed: {last or 'it said nothing'}",
        hint=f"`{board.acceptance()}` must work first",
    )


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1].removeprefix("ssh: "))[:300] if lines else ""


def printable(text: str) -> str:
    """What came from elsewhere, without anything that could steer a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
