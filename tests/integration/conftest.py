"""Runs of the smoke recipes; a board: this machine, behind an OpenSSH server of its own."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rekd_edge.boards.address import BoardAddress
from rekd_edge.boards.openssh import SshBoard
from tests.sshd import Server, at_work, open_server, wait_until

if TYPE_CHECKING:
    from rekd_edge.run_folder import Run


@pytest.fixture(scope="session")
def smoke_run(
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> Callable[[str, Path], Run]:
    """``smoke_run("text", folder)`` puts a finished run of recipe smoke/text there: a copy of one
    that is trained once, without what only resuming reads."""
    from rekd_edge.pipeline import train_run
    from rekd_edge.recipe import find_recipe, load_recipe
    from rekd_edge.run_folder import open_run

    def copied(kind: str, folder: Path) -> Run:
        def train(place: Path) -> None:
            train_run(load_recipe(find_recipe(f"smoke/{kind}")), place / "run", device="cpu")

        unread = shutil.ignore_patterns("last.safetensors", "tensorboard")
        shutil.copytree(made_once(f"smoke-{kind}", train) / "run", folder, ignore=unread)
        return open_run(folder)

    return copied


@pytest.fixture(scope="module")
def converted_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For modules that export one student again and again to see what comes after the conversion:
    the same weights are converted for a target once, and are a copy of that file later."""
    from rekd_edge import export_pipeline
    from rekd_edge.convert import convert_to_onnx, weights_sha256

    folder = tmp_path_factory.mktemp("converted")

    def convert(model: Any, io_spec: Any, path: Path, *, target: Any, metadata: Any) -> None:
        made_of = (type(model), weights_sha256(model), io_spec, target, sorted(metadata.items()))
        kept = folder / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()}.onnx"
        if not kept.exists():
            convert_to_onnx(model, io_spec, kept, target=target, metadata=metadata)
        shutil.copyfile(kept, path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export_pipeline, "convert_to_onnx", convert)
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with open_server(tmp_path_factory.mktemp("sshd") / "server") as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where work folders are made; nothing may be left there, and nobody."""
    folder = tmp_path / "on the board"
    folder.mkdir()
    yield folder
    assert wait_until(lambda: not at_work(folder)), "a process is left on the board"
    assert wait_until(lambda: not list(folder.iterdir())), "a folder is left on the board"


@pytest.fixture
def board(server: Server, place: Path) -> SshBoard:
    return SshBoard(
        BoardAddress.parse(server.address),
        server.known_hosts,
        server.identity,
        python=sys.executable,
        folder=str(place),
    )
