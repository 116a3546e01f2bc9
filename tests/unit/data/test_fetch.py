"""Archives: verified, all or nothing, offline afterwards. pip and npm are the real ones."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from rekd_edge.data import fetch as fetch_module
from rekd_edge.data.archives import ARCHIVES, TUXPAINT_STAMPS, VADER_SENTIMENT
from rekd_edge.data.fetch import PinnedArchive, archive_path, fetch, is_cached, read_member
from rekd_edge.errors import BackendError, IntegrityError

SMALL_NPM = PinnedArchive(
    package="is-number",
    version="7.0.0",
    registry="npm",
    filename="is-number-7.0.0.tgz",
    sha256="0" * 64,
    size_bytes=4000,
    licence="MIT",
)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REKD_EDGE_OFFLINE", raising=False)
    return tmp_path / "cache"


def left_behind(cache: Path) -> list[str]:
    """Files of the cache, but for locks."""
    return sorted(
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


def tool_that(code: str) -> list[str]:
    """Stands where `python -m pip` stands: a program that gets pip's arguments."""
    return [sys.executable, "-c", textwrap.dedent(code)]


def test_downloads_once_and_then_needs_no_network(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(VADER_SENTIMENT)
    assert path == archive_path(VADER_SENTIMENT)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == VADER_SENTIMENT.sha256
    assert left_behind(empty_cache) == [f"archives/{VADER_SENTIMENT.filename}"]
    assert is_cached(VADER_SENTIMENT)
    monkeypatch.setenv("REKD_EDGE_OFFLINE", "1")
    monkeypatch.setattr(fetch_module, "_pip_command", lambda archive: pytest.fail("used pip"))
    assert fetch(VADER_SENTIMENT) == path


def test_wrong_hash_from_pip_is_an_integrity_error_and_leaves_nothing(empty_cache: Path) -> None:
    wrong = replace(VADER_SENTIMENT, sha256="0" * 64)
    with pytest.raises(IntegrityError, match="not the pinned file") as caught:
        fetch(wrong)
    assert caught.value.exit_code == 6
    assert left_behind(empty_cache) == []


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_wrong_hash_from_npm_is_an_integrity_error_and_leaves_nothing(empty_cache: Path) -> None:
    with pytest.raises(IntegrityError, match=r"with sha256 .*; the file was removed"):
        fetch(SMALL_NPM)
    assert left_behind(empty_cache) == []


def test_truncated_download_is_removed(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truncating = tool_that(f"""
        import sys
        folder = sys.argv[sys.argv.index("-d") + 1]
        open(folder + "/{VADER_SENTIMENT.filename}", "wb").write(b"half")
    """)
    monkeypatch.setattr(fetch_module, "_pip_command", lambda archive: truncating)
    with pytest.raises(IntegrityError, match="downloaded with sha256"):
        fetch(VADER_SENTIMENT)
    assert left_behind(empty_cache) == []


def test_broken_cached_file_offline_is_removed_and_named(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive_path(VADER_SENTIMENT)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"truncated")
    monkeypatch.setenv("REKD_EDGE_OFFLINE", "1")
    with pytest.raises(IntegrityError, match="broken and was removed") as caught:
        fetch(VADER_SENTIMENT)
    assert str(path) in caught.value.message
    assert not path.exists()


def test_broken_cached_file_is_downloaded_again(empty_cache: Path) -> None:
    path = archive_path(VADER_SENTIMENT)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"truncated")
    fetch(VADER_SENTIMENT)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == VADER_SENTIMENT.sha256


def test_offline_with_nothing_cached_says_what_to_do(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKD_EDGE_OFFLINE", "1")
    with pytest.raises(BackendError, match="not cached") as caught:
        fetch(VADER_SENTIMENT)
    assert caught.value.exit_code == 4
    assert "rekd-edge data fetch" in str(caught.value)
    assert VADER_SENTIMENT.filename in str(caught.value)


def test_unreachable_registry_is_a_backend_error(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Port 9 of this machine answers nothing; PIP_CONFIG_FILE keeps other indexes out.
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(BackendError, match=r"pip could not download vaderSentiment 2\.5"):
        fetch(VADER_SENTIMENT)
    assert left_behind(empty_cache) == []


def test_missing_tools_are_named(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetch_module.importlib.metadata, "distributions", lambda name: ())
    with pytest.raises(BackendError, match="there is no pip") as caught:
        fetch(VADER_SENTIMENT)
    assert "ensurepip" in str(caught.value)
    with pytest.raises(BackendError, match="there is no npm"):
        fetch(SMALL_NPM)


def test_full_disk_before_the_download(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetch_module.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(OSError, match=r"needs 2 MB, 0 MB are free") as caught:
        fetch(VADER_SENTIMENT)
    assert caught.value.errno == errno.ENOSPC
    assert left_behind(empty_cache) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_that_fills_up_during_the_download(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filling = tool_that(f"""
        import sys
        folder = sys.argv[sys.argv.index("-d") + 1]
        open(folder + "/{VADER_SENTIMENT.filename}", "wb").write(b"half")
        with open("/dev/full", "w") as file:
            file.write("x" * 100000)
    """)
    monkeypatch.setattr(fetch_module, "_pip_command", lambda archive: filling)
    with pytest.raises(OSError, match="filled up") as caught:
        fetch(VADER_SENTIMENT)
    assert caught.value.errno == errno.ENOSPC
    assert left_behind(empty_cache) == []


def test_killed_download_leaves_no_file_under_its_final_name(
    empty_cache: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    code = f"""
        import sys
        from rekd_edge.data import fetch as module
        from rekd_edge.data.archives import VADER_SENTIMENT
        slow = '''
        import sys, time
        folder = sys.argv[sys.argv.index("-d") + 1]
        open(folder + "/{VADER_SENTIMENT.filename}", "wb").write(b"half")
        open({str(begun)!r}, "w").close()
        time.sleep(20)
        '''
        import textwrap
        module._pip_command = lambda archive: [sys.executable, "-c", textwrap.dedent(slow)]
        module.fetch(VADER_SENTIMENT)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not begun.exists():
        assert process.poll() is None, "the download ended early"
        assert time.monotonic() < deadline, "the download did not begin"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    final = archive_path(VADER_SENTIMENT)
    assert not final.exists()
    assert left_behind(empty_cache), "the half-written file should still be in its own folder"
    fetch(VADER_SENTIMENT)
    assert left_behind(empty_cache) == [f"archives/{VADER_SENTIMENT.filename}"]


def test_two_processes_download_once(empty_cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"""
        import sys
        from rekd_edge.data import fetch as module
        from rekd_edge.data.archives import VADER_SENTIMENT
        real = module._download_with_pip
        def counted(archive, folder):
            with open({str(log)!r}, "a") as file:
                file.write("x")
            real(archive, folder)
        module._download_with_pip = counted
        module.fetch(VADER_SENTIMENT)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert log.read_text() == "x"


def test_members_are_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "some.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("inside.txt")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"ok"))
    assert read_member(path, "inside.txt") == b"ok"
    with pytest.raises(IntegrityError, match=r"holds no outside\.txt"):
        read_member(path, "outside.txt")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(IntegrityError, match="cannot be read as an archive"):
        read_member(path, "inside.txt")


def test_every_archive_is_pinned() -> None:
    for archive in ARCHIVES:
        assert len(archive.sha256) == 64
        assert int(archive.sha256, 16)
        assert archive.size_bytes > 0
        assert archive.version in archive.filename


DEBIAN = replace(TUXPAINT_STAMPS, package="hello", version="0-none", filename="hello_0_all.deb")


def test_apt_is_asked_for_the_pinned_version(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in the place of apt-get that writes what it was asked for into its folder."""
    content = b"a package"
    pinned = replace(DEBIAN, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nprintf "%s" "a package" > hello_0_all.deb\necho "$@" > ../said\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert fetch(pinned).read_bytes() == content
    assert left_behind(empty_cache) == ["archives/hello_0_all.deb"]
    archive_path(pinned).unlink()
    with pytest.raises(IntegrityError, match=r"with sha256 .*; the file was removed"):
        fetch(DEBIAN)
    assert left_behind(empty_cache) == []
    program.write_text(
        "#!/bin/sh\necho \"E: Version '0-none' for 'hello' was not found\"\nexit 100\n"
    )
    with pytest.raises(BackendError, match="apt-get could not download hello 0-none: E: Version"):
        fetch(DEBIAN)
    monkeypatch.setattr(fetch_module.shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match="there is no apt-get here") as caught:
        fetch(DEBIAN)
    assert "hello_0_all.deb" in str(caught.value)
