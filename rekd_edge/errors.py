"""Every failure that a user can cause or mend, with its exit code.

The command line turns an :class:`RekdEdgeError` into one message on standard error and the
exit code below; anything else is a bug of this program and ends with exit code 1.

| code | meaning |
|---|---|
| 0 | success |
| 1 | unexpected error (a bug: please report it) |
| 2 | usage, invalid recipe or invalid input |
| 3 | a gate failed (parity, accuracy, latency, rationale) |
| 4 | a backend, a package or an operator is missing |
| 5 | a remote device failed |
| 6 | integrity: a download, a checkpoint or a bundle is not what it should be |
| 130 | interrupted |
"""

from __future__ import annotations


class RekdEdgeError(Exception):
    """Base of all expected failures.

    The first argument says what is wrong; ``hint`` says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UsageError(RekdEdgeError):
    """The command, the recipe or an input cannot be used as given."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe, target or gate file is invalid. The message lists every problem found."""


class DataError(UsageError):
    """A data set or one of its examples cannot be used."""


class GateError(RekdEdgeError):
    """A check ran and its threshold was not met."""

    exit_code = 3


class BackendError(RekdEdgeError):
    """A runtime, optional package, network source or operator is not available here."""

    exit_code = 4


class RemoteDeviceError(RekdEdgeError):
    """A remote board could not be reached or did not finish."""

    exit_code = 5


class IntegrityError(RekdEdgeError):
    """Bytes are not the bytes that were promised (download, checkpoint, bundle)."""

    exit_code = 6
