"""Engines that serve less than their checks need, and those whose GPU is not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from torch import nn

from rekd_edge.check import TextEdges, load_gates
from rekd_edge.engines.backend import Device
from rekd_edge.engines.spec import BuildRecipe, Profile
from rekd_edge.engines.store import EngineRecord, Product, read_engine, write_record
from rekd_edge.engines.verify import check_engine
from rekd_edge.types import AxisSpec, IoSpec, TensorSpec

CONTENT = b"the bytes of an engine"
BATCH = AxisSpec("batch", None)
TEXT = IoSpec((TensorSpec("ids", "int64", (BATCH, AxisSpec("token", None))),), ())
SIDE = AxisSpec("side", 32)
IMAGE = IoSpec((TensorSpec("pixels", "uint8", (BATCH, SIDE, SIDE)),), ())
EDGES = TextEdges(cls_id=1, sep_id=2, pad_id=0, max_length=32)
GPU = Device("a GPU", 86, None)


def checked(folder: Path, io_spec: IoSpec, profile: Profile, device: Device | None) -> str:
    """Why nothing of the engine was checked, as its side-car says."""
    (name,) = [tensor.name for tensor in io_spec.inputs]
    record = EngineRecord(
        recipe=BuildRecipe(
            backend="tensorrt-rtx",
            compute_capabilities=(86,),
            precision="fp32",
            onnx_sha256="0" * 64,
            profiles={name: profile},
        ),
        backend_version="1.7.1",
        compute_capability=86,
        driver=None,
        engine_sha256=hashlib.sha256(CONTENT).hexdigest(),
        size_bytes=len(CONTENT),
        layers=1,
        products=(Product("a", "fp32", "fp32", "gemm"),),
    )
    (folder / f"{record.stem}.engine").write_bytes(CONTENT)
    engine = check_engine(
        write_record(folder, record),
        device,
        model=nn.Identity(),
        io_spec=io_spec,
        label_names=("no", "yes"),
        batches=(),
        gates=load_gates("default"),
        edges=EDGES if io_spec is TEXT else None,
    )
    assert read_engine(engine.path) == engine
    checks = engine.record.checks
    assert {checks.parity, checks.accuracy, checks.latency} == {"not run"}
    return checks.reason


@pytest.mark.parametrize(
    ("least", "most", "reason"),
    [
        ((1, 3), (64, 16), "serves 3 to 16 tokens; the checks need 3 to 32"),
        ((1, 8), (64, 32), "serves 8 to 32 tokens; the checks need 3 to 32"),
        ((2, 3), (64, 32), "serves batches of 2 to 64; the checks need batches of 1"),
    ],
)
def test_an_engine_that_serves_less_than_its_checks_need_says_so(
    tmp_path: Path, least: tuple[int, ...], most: tuple[int, ...], reason: str
) -> None:
    assert checked(tmp_path, TEXT, Profile(min=least, opt=most, max=most), GPU) == reason


def test_images_are_asked_in_batches_of_one(tmp_path: Path) -> None:
    profile = Profile(min=(4, 32, 32), opt=(8, 32, 32), max=(8, 32, 32))
    assert checked(tmp_path, IMAGE, profile, GPU).startswith("serves batches of 4 to 8;")


@pytest.mark.parametrize(
    ("device", "here"), [(None, "no GPU"), (Device("b", 89, None), "b, SM 89")]
)
def test_an_engine_that_serves_enough_needs_its_gpu(
    tmp_path: Path, device: Device | None, here: str
) -> None:
    profile = Profile(min=(1, 3), opt=(8, 32), max=(64, 32))
    found = checked(tmp_path, TEXT, profile, device)
    assert found == f"needs a GPU of SM 86; there was {here}"
