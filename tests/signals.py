"""Signals that tests send to processes which they start."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_ignored() -> Iterator[None]:
    """What is started in the block heeds SIGINT and SIGHUP, also where the tests themselves were
    started with these ignored (``nohup``, a background job), which children inherit."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]
    ignored = [one for one in numbers if signal.getsignal(one) == signal.SIG_IGN]
    for one in ignored:
        signal.signal(one, lambda number, frame: None)  # a handler does not survive exec
    try:
        yield
    finally:
        for one in ignored:
            signal.signal(one, signal.SIG_IGN)
