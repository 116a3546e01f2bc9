"""``ssh://user@board:22``: where a board is."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from rekd_edge.errors import UsageError

SCHEME = "ssh://"
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_ADDRESS = re.compile(
    rf"(?:(?P<user>{_USER})@)?"
    rf"(?:(?P<host>{_HOST})|\[(?P<ip>[0-9A-Fa-f:.]+)(?:%(?P<zone>[A-Za-z0-9._-]+))?\])"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True, slots=True)
class BoardAddress:
    """``user`` and ``port`` None: what the user's ssh configuration says, or ssh's defaults."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> BoardAddress:
        """Nothing that ssh could read as an option, and nothing but user, host and port.

        Raises :class:`UsageError`.
        """
        found = _ADDRESS.fullmatch(text.removeprefix(SCHEME)) if text.startswith(SCHEME) else None
        if found is None:
            raise _unusable(text)
        port = None if found["port"] is None else int(found["port"])
        if port is not None and not 1 <= port <= 65535:
            raise _unusable(text)
        host = found["host"]
        if host is None:
            try:
                ipaddress.IPv6Address(found["ip"])
            except ValueError:
                raise _unusable(text) from None
            host = found["ip"] + (f"%{found['zone']}" if found["zone"] else "")
        return cls(host=host, user=found["user"], port=port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        return f"{SCHEME}{user}{host}" + ("" if self.port is None else f":{self.port}")


def _unusable(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is no address of a board",
        hint="write ssh://user@board, ssh://user@192.168.1.20:2222 or ssh://user@[fe80::1%usb0]; "
        "passwords are not taken: use a key (docs/boards.md)",
    )
