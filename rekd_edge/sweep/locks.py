"""Locks between processes that end with the process that holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rekd_edge.errors import BackendError


class FileLock:
    """An exclusive lock on a file. The system frees it when its process ends, however it ends, so
    no lock is ever stale; the file stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, *, wait: bool = True) -> bool:
        """Takes the lock; without ``wait`` False where another one holds it."""
        try:
            import fcntl
        except ImportError as error:
            raise BackendError("sweeps need POSIX file locks, which this system lacks") from error
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return False
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return True

    def release(self) -> None:
        """Frees the lock if it is held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    lock = FileLock(path)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
