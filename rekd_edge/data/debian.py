"""Reading a Debian package in place, with the standard library only.

A ``.deb`` is an ``ar`` archive whose member ``data.tar.*`` holds the files. Members are read into
memory; nothing is unpacked to disk, so no name inside can lead anywhere.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO, cast

from rekd_edge.errors import IntegrityError

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
MAX_MEMBER_BYTES = 16 << 20
"""Larger files inside a package are refused."""


def read_deb_files(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Regular files of a package whose names (without the leading ``./``) are ``wanted``.

    Links, devices and folders are never read.

    Raises:
        IntegrityError: not a Debian package, truncated, or a wanted file is unreasonably large.
    """
    try:
        with path.open("rb") as file:
            part = cast(IO[bytes], _data_part(file))  # a stream is only ever read
            found: dict[str, bytes] = {}
            with tarfile.open(fileobj=part, mode="r|*") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if not member.isreg() or not wanted(name):
                        continue
                    if member.size > MAX_MEMBER_BYTES:
                        raise IntegrityError(f"{path.name}: {name} has {member.size} bytes")
                    extracted = archive.extractfile(member)
                    assert extracted is not None
                    found[name] = extracted.read()
            return found
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read as a Debian package: {error}") from error


def _data_part(file: BinaryIO) -> _Window:
    """The bytes of ``data.tar.*``."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is no ar archive")
    while header := file.read(_HEADER_BYTES):
        if len(header) < _HEADER_BYTES or header[58:] != b"`\n":
            raise ValueError("a header is broken")
        size = int(header[48:58])
        if size < 0:
            raise ValueError("a header is broken")
        if header[:16].startswith(b"data.tar"):
            return _Window(file, size)
        file.seek(size + size % 2, 1)  # members start at even offsets
    raise ValueError("it holds no data.tar")


class _Window:
    """The next ``size`` bytes of a file, and no further: what ``tarfile`` needs of a stream."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        content = self._file.read(wanted)
        if len(content) < wanted:
            raise EOFError("it is truncated")
        self._left -= len(content)
        return content
