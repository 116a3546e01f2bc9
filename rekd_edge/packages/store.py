"""Packages on disk: in the cache of the user who compiled them, and nowhere else.

CACHE/packages/aoti-cpu-DIGEST/model.pt2
CACHE/packages/aoti-cpu-DIGEST/package.json     PackageRecord
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rekd_edge.data.storage import cache_dir, sha256_of, write_text
from rekd_edge.errors import BackendError, IntegrityError
from rekd_edge.packages.spec import MadeOf, PackageRecord

PACKAGES_FOLDER = "packages"
PACKAGE_FILE = "model.pt2"
RECORD_FILE = "package.json"
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin.pickle")


@dataclass(frozen=True, slots=True)
class StoredPackage:
    """A package whose bytes are those of its side-car."""

    path: Path
    record: PackageRecord

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), **self.record.model_dump(mode="json")}


def packages_dir() -> Path:
    return cache_dir() / PACKAGES_FOLDER


def place_of(made_of: MadeOf) -> Path:
    """The folder of such a package: another one for all that may differ."""
    digest = hashlib.sha256(made_of.model_dump_json().encode()).hexdigest()[:24]
    return packages_dir() / f"{made_of.backend}-{made_of.device}-{digest}"


def write_record(folder: Path, record: PackageRecord) -> None:
    write_text(folder / RECORD_FILE, record.model_dump_json(indent=2) + "\n")


def read_package(path: Path) -> StoredPackage:
    """A package with its side-car, none of it executed.

    Raises:
        BackendError: it lies outside the user's own cache, or others may write to it: it could be
            anyone's code.
        IntegrityError: side-car and package do not belong together, or there is a pickle inside.
    """
    require_own(path)
    try:
        record = PackageRecord.model_validate_json(path.with_name(RECORD_FILE).read_bytes())
        whole = sha256_of(path) == record.package_sha256
    except OSError as error:
        raise IntegrityError(f"{error.filename} is missing", hint=_AGAIN) from error
    except ValidationError as error:
        raise IntegrityError(f"{path.with_name(RECORD_FILE)} is broken", hint=_AGAIN) from error
    if not whole or path.resolve() != (place_of(record.made_of) / PACKAGE_FILE).resolve():
        raise IntegrityError(f"{path} is not the package that its side-car describes", hint=_AGAIN)
    require_no_pickle(path)
    return StoredPackage(path, record)


_AGAIN = "export the run again with the same target, which compiles it"


def require_own(path: Path) -> None:
    """Raises :class:`BackendError` unless ``path`` is in this user's cache and nobody else may
    write to it."""
    home = packages_dir()
    if path.resolve().parent.parent != home.resolve():
        raise BackendError(
            f"{path} is compiled code and lies outside {home}: it is not run",
            hint="packages are run only on the machine and by the user that compiled them; "
            "export the run there",
        )
    if not hasattr(os, "getuid"):  # Windows keeps a user's files from others by itself
        return
    for one in (home, path.parent, path):
        try:
            found = one.stat()
        except FileNotFoundError:
            continue
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise BackendError(
                f"{one} belongs to another user, or others may write to it: it is not run",
                hint=f"remove {home} and export the run again",
            )


def require_no_pickle(path: Path) -> None:
    """Raises :class:`IntegrityError` for a package that torch would have to unpickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{path} is no package", hint=_AGAIN) from error
    pickles = [name for name in names if name.lower().endswith(_PICKLES)]
    if pickles:
        raise IntegrityError(f"{path} holds a pickle, {pickles[0]}: it is not loaded")


def find_packages(onnx_sha256: str) -> tuple[StoredPackage, ...]:
    """Packages of this user's cache that were made with the ONNX file, in the order of their names;
    what is broken is left out. Whether they may run here is :func:`~rekd_edge.packages.build
    .require_runnable`'s matter."""
    found = []
    for path in sorted(packages_dir().glob(f"*/{PACKAGE_FILE}")):
        try:
            stored = read_package(path)
        except (BackendError, IntegrityError):
            continue
        if stored.record.made_of.onnx_sha256 == onnx_sha256:
            found.append(stored)
    return tuple(found)
