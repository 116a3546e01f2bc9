from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from rekd_edge.boards.address import BoardAddress
from rekd_edge.boards.openssh import SshBoard, explained
from rekd_edge.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://pi@board", BoardAddress("board", "pi")),
        ("ssh://board", BoardAddress("board")),
        ("ssh://pi@board:2222/", BoardAddress("board", "pi", 2222)),
        ("ssh://my.user@raspberrypi.local", BoardAddress("raspberrypi.local", "my.user")),
        ("ssh://pi@192.168.1.20:22", BoardAddress("192.168.1.20", "pi", 22)),
        ("ssh://pi@[2001:db8::1]:2222", BoardAddress("2001:db8::1", "pi", 2222)),
        ("ssh://pi@[fe80::1%usb0]", BoardAddress("fe80::1%usb0", "pi")),
    ],
)
def test_an_address_is_user_host_and_port(text: str, expected: BoardAddress) -> None:
    assert BoardAddress.parse(text) == expected
    assert BoardAddress.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "board",
        "pi@board",
        "ssh://",
        "ssh://pi@",
        "ssh://@board",
        "ssh://-oProxyCommand=touch${IFS}x",
        "ssh://pi@-oProxyCommand=x",
        "ssh://-l@board",
        "ssh://pi:secret@board",
        "ssh://pi@board:0",
        "ssh://pi@board:65536",
        "ssh://pi@board:",
        "ssh://pi@board/home",
        "ssh://pi@board?x",
        "ssh://pi@board#x",
        "ssh://pi@board;reboot",
        "ssh://pi@board\n",
        "ssh://pi@bo ard",
        "ssh://pi@`x`",
        "ssh://pi@$(x)",
        "ssh://pi@2001:db8::1",
        "ssh://pi@[1.2.3.4]",
        "ssh://pi@[::1",
        "ssh://pi@[::1%$(x)]",
        "SSH://pi@board",
        "http://board",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no address of a board"):
        BoardAddress.parse(text)


def test_the_command_asks_nothing_and_trusts_nothing_new(tmp_path: Path) -> None:
    known, key = tmp_path / "known 100%", tmp_path / "key"
    for path in (known, key):
        path.touch()
    board = SshBoard(BoardAddress("::1", "pi", 2222), known, key)
    words = board.command("true")
    settings = [words[i + 1] for i, word in enumerate(words) if word == "-o"]
    for forced in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ControlPath=none"):
        assert forced in settings
    assert f'UserKnownHostsFile="{tmp_path}/known 100%%"' in settings
    assert "IdentitiesOnly=yes" in settings
    only = [word for word in settings if "KnownHosts" in word and "=" in word]
    assert "GlobalKnownHostsFile=/dev/null" in only
    shown = shlex.split(board.acceptance())
    assert [word for word in shown if "KnownHosts" in word] == only
    assert words[-3:] == ["--", "::1", "true"]
    assert words[words.index("-l") + 1] == "pi"
    assert words[words.index("-p") + 1] == "2222"


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh")
def test_with_known_hosts_no_other_host_key_counts(tmp_path: Path) -> None:
    """What ssh makes of its options under a configuration that names other sources of keys."""
    known, config = tmp_path / "known", tmp_path / "config"
    known.touch()
    config.write_text(
        "IgnoreUnknown KnownHostsCommand,NotAnOption\nNotAnOption yes\n"
        "KnownHostsCommand /bin/echo\nGlobalKnownHostsFile /etc/a\nUserKnownHostsFile /etc/b\n"
    )
    program, *words = SshBoard(BoardAddress("board"), known).command("true")
    done = subprocess.run(
        [program, "-F", str(config), "-G", *words], capture_output=True, text=True, check=True
    )
    found = [line for line in done.stdout.splitlines() if "knownhosts" in line.split()[0]]
    places = {line.split()[0]: line.split()[1] for line in found if not line.startswith("hash")}
    assert places.pop("knownhostscommand", "none") == "none"
    assert places == {"userknownhostsfile": str(known), "globalknownhostsfile": "/dev/null"}


def test_the_key_to_forget_is_under_the_name_that_ssh_uses(tmp_path: Path) -> None:
    complaint = (
        "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\r\n"
        "Host key for [192.168.1.20]:2222 has changed and you have requested strict checking.\r\n"
    )
    board = SshBoard(BoardAddress("kitchen"))
    assert "ssh-keygen -R '[192.168.1.20]:2222' &&" in str(explained(board, complaint).hint)
    silent = complaint.partition("Host key")[0]
    assert "ssh-keygen -R kitchen &&" in str(explained(board, silent).hint)


@pytest.mark.parametrize("option", ["python", "folder"])
@pytest.mark.parametrize("text", ["", "-c", "--help", "a\nb", "a\0b", "\x1b[2J"])
def test_options_in_place_of_paths_are_refused(option: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"--remote-{option}"):
        replace(SshBoard(BoardAddress("board")), **{option: text})


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--known-hosts"):
        SshBoard(BoardAddress("board"), known_hosts=tmp_path / "none")
    odd = tmp_path / 'a"b'
    odd.touch()
    with pytest.raises(UsageError, match="--identity"):
        SshBoard(BoardAddress("board"), identity=odd)


@pytest.mark.parametrize(
    ("complaint", "message"),
    [
        ("ssh: Could not resolve hostname x: Name or service not known", "cannot be reached"),
        ("ssh: connect to host x port 22: Connection timed out", "cannot be reached"),
        ("kex_exchange_identification: Connection closed by remote host", "failed: kex_exchange"),
        ("pi@x: Permission denied (publickey).", "does not let this user in"),
        ("", "it said nothing"),
        ("a\x1b[2Jb", "a\ufffd[2Jb"),
    ],
)
def test_complaints_of_ssh_become_one_message(complaint: str, message: str) -> None:
    error = explained(SshBoard(BoardAddress("x", "pi")), complaint)
    assert message in error.message
    assert error.hint
    assert error.exit_code == 5
