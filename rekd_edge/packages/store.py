"""Packages on disk: in the cache of the user who compiled them, and nowhere else.

CACHE/packages/aoti-cpu-DIGEST/model.pt2
CACHE/packages/aoti-cpu-DIGEST/package.json     PackageRecord
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from rekd_edge.data.storage import cache_dir, sha256_of, write_text
from rekd_edge.errors import BackendError, IntegrityError
from rekd_edge.packages.spec import MadeOf, PackageRecord

PACKAGES_FOLDER = "packages"
PACKAGE_FILE = "model.pt2"
RECORD_FILE = "package.json"
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin.pickle")
_OBJECT = "custom_obj_"
_OBJECTS = "custom_objs_config.json"
"""An object of C++ beside the code, and the list of those to be made."""
_ENGINE = ("__torch__.torch.classes.tensorrt Engine", "torch.jit._pickle restore_type_tag")
"""All that an object of torch-tensorrt names: its class, and the type of its list of texts."""
_DATA = frozenset(
    [
        *("PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINUNICODE", "MARK"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2"),
    ]
)
"""Operations of a pickle that make objects of what was named, texts, lists and tuples."""


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
        IntegrityError: side-car and package do not belong together, or there is a pickle inside
            other than torch-tensorrt's engines (:func:`require_no_pickle`).
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
    require_no_pickle(path, engines=record.made_of.backend == "torch-trt")
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


def require_no_pickle(path: Path, *, engines: bool = False) -> None:
    """Raises :class:`IntegrityError` for a package with a pickle that may be more than data.

    Python's unpickler is used on none. torch-tensorrt keeps each engine as an object in torch's own
    form, which is a pickle that torch's C++ reads: with ``engines`` it is allowed where it names
    that one class and holds texts alone. Nothing is unpickled to see that.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            objects = [name for name in names if PurePosixPath(name).name.startswith(_OBJECT)]
            listed = [
                value
                for name in names
                if PurePosixPath(name).name == _OBJECTS
                for value in json.loads(archive.read(name)).values()
            ]
            refused = [name for name in names if name.lower().endswith(_PICKLES)]
            refused += [
                name for name in objects if not engines or not _is_engine(archive.read(name))
            ]
            known = {PurePosixPath(name).name for name in objects}
            refused += [str(value) for value in listed if value not in known]
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{path} is no package", hint=_AGAIN) from error
    if refused:
        raise IntegrityError(f"{path} holds a pickle, {refused[0]}: it is not loaded")


def _is_engine(content: bytes) -> bool:
    """Whether an object in torch's form is an engine of torch-tensorrt, and nothing else."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            tensors = [name for name in names if PurePosixPath(name).parent.name == "data"]
            if len(pickles) != 1 or tensors:
                return False
            named = set()
            for operation, argument, _ in pickletools.genops(archive.read(pickles[0])):
                if operation.name not in _DATA:
                    return False
                if operation.name == "GLOBAL":
                    named.add(argument)
    except (ValueError, zipfile.BadZipFile):
        return False
    return _ENGINE[0] in named and named <= set(_ENGINE)


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
