"""Atomic writes: on any failure the old file, or none, and no temporary file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rekd_edge.data.storage import atomic_file, cache_dir, is_offline, write_bytes, write_text


def test_writes_and_makes_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "straße")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "straße".encode()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_write_beyond_a_file_size_limit_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
        import resource
        from pathlib import Path
        from rekd_edge.data.storage import write_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(Path({str(tmp_path / "file")!r}), b"x" * 100000)
        except OSError as error:
            print("refused", error.errno)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"refused {errno.EFBIG}\n"
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupted_write() -> None:
        with atomic_file(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert list(tmp_path.iterdir()) == []


def test_cache_dir_and_offline_follow_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKD_EDGE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("REKD_EDGE_CACHE")
    assert cache_dir().name == "rekd-edge"
    for value, expected in (("1", True), ("true", True), ("0", False), ("", False)):
        monkeypatch.setenv("REKD_EDGE_OFFLINE", value)
        assert is_offline() is expected
