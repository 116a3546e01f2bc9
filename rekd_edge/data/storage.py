"""The user's cache folder, and writing files so that a half-written one is never seen."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

CACHE_VARIABLE = "REKD_EDGE_CACHE"
OFFLINE_VARIABLE = "REKD_EDGE_OFFLINE"
_CHUNK_BYTES = 1 << 20


def cache_dir() -> Path:
    """The folder of downloads and converted weights: ``REKD_EDGE_CACHE``, or the platform's
    user cache folder. It is not created here."""
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("rekd-edge", appauthor=False)


def is_offline() -> bool:
    """Whether ``REKD_EDGE_OFFLINE`` forbids every use of the network."""
    return os.environ.get(OFFLINE_VARIABLE, "").strip().lower() not in {"", "0", "false", "no"}


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on success flush it to disk and rename it to
    ``path``, on any failure (a full disk, an interruption) remove it and leave ``path`` alone.

    Raises:
        OSError: what the file system says; ``path`` is unchanged then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, entirely or not at all."""
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8, entirely or not at all."""
    write_bytes(path, content.encode("utf-8"))
