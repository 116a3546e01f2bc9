"""Debian packages: read in place, never unpacked."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from rekd_edge.data.debian import MAX_MEMBER_BYTES, read_deb_files
from rekd_edge.errors import IntegrityError


def member(name: str, content: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
    assert len(header) == 60
    return header + content + b"\n" * (len(content) % 2)


def tar(compression: str = "xz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in (
            ("./usr/a.png", b"first"),
            ("./usr/b.txt", b"no"),
            ("../c.png", b"x"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("./usr/folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    return buffer.getvalue()


def package(tmp_path: Path, *members: bytes) -> Path:
    path = tmp_path / "some.deb"
    path.write_bytes(b"!<arch>\n" + b"".join(members))
    return path


def is_png(name: str) -> bool:
    return name.startswith("usr/") and name.endswith(".png")


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_wanted_regular_files_alone_are_read(tmp_path: Path, compression: str) -> None:
    path = package(
        tmp_path,
        member("debian-binary", b"2.0\n"),
        member("control.tar.xz", b"odd"),  # padded to an even offset
        member(f"data.tar.{compression}", tar(compression)),
    )
    before = sorted(tmp_path.rglob("*"))
    assert read_deb_files(path, is_png) == {"usr/a.png": b"first"}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([b"rubbish"], "a header is broken"),
        ([member("debian-binary", b"2.0\n")], "holds no data.tar"),
        ([member("data.tar.xz", b"not xz at all")], "cannot be read"),
        ([member("data.tar.xz", tar())[:-80]], "truncated"),
        ([member("data.tar.xz", tar()).replace(b"`\n", b"??", 1)], "a header is broken"),
    ],
)
def test_broken_packages_are_refused(tmp_path: Path, members: list[bytes], reason: str) -> None:
    with pytest.raises(IntegrityError, match=reason) as caught:
        read_deb_files(package(tmp_path, *members), is_png)
    assert caught.value.exit_code == 6


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.deb"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(IntegrityError, match="no ar archive"):
        read_deb_files(path, is_png)


def test_unreasonably_large_files_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        info = tarfile.TarInfo("./usr/a.png")
        info.size = MAX_MEMBER_BYTES + 1
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    path = package(tmp_path, member("data.tar.xz", buffer.getvalue()))
    with pytest.raises(IntegrityError, match=r"usr/a\.png has \d+ bytes"):
        read_deb_files(path, is_png)
