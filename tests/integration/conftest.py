"""A board for tests: this machine, behind an OpenSSH server of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rekd_edge.boards.address import BoardAddress
from rekd_edge.boards.openssh import SshBoard
from tests.sshd import Server, at_work, open_server, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with open_server(tmp_path_factory.mktemp("sshd") / "server") as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where work folders are made; nothing may be left there, and nobody."""
    folder = tmp_path / "on the board"
    folder.mkdir()
    yield folder
    assert wait_until(lambda: not at_work(folder)), "a process is left on the board"
    assert wait_until(lambda: not list(folder.iterdir())), "a folder is left on the board"


@pytest.fixture
def board(server: Server, place: Path) -> SshBoard:
    return SshBoard(
        BoardAddress.parse(server.address),
        server.known_hosts,
        server.identity,
        python=sys.executable,
        folder=str(place),
    )
