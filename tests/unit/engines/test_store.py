"""Side-cars: what must be the same, and what is done when it is not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from rekd_edge.engines.backend import BACKENDS, Device, TensorRt
from rekd_edge.engines.find import _place
from rekd_edge.engines.spec import BuildRecipe, Profile
from rekd_edge.engines.store import (
    EngineRecord,
    Product,
    counted,
    read_engine,
    read_engines,
    read_recipe,
    runnable,
    write_recipe,
    write_record,
)
from rekd_edge.errors import BackendError, IntegrityError

CONTENT = b"the bytes of an engine"
RECIPE = BuildRecipe(
    backend="tensorrt-rtx",
    compute_capabilities=(86,),
    precision="fp16",
    onnx_sha256="0" * 64,
    profiles={"x": Profile(min=(1, 3), opt=(8, 64), max=(64, 512))},
)
RECORD = EngineRecord(
    recipe=RECIPE,
    backend_version="1.7.1",
    compute_capability=86,
    driver="575.57.08",
    engine_sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
    layers=2,
    products=(Product("a", "fp16", "fp16", "gemm"), Product("b", "int8", "int8", "gemm")),
)
GPU = Device("a GPU", 86, "575.57.08")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / f"{RECORD.stem}.engine").write_bytes(CONTENT)
    write_record(tmp_path, RECORD)
    write_recipe(tmp_path, RECIPE)
    return tmp_path


def test_an_engine_is_read_as_it_was_written(folder: Path) -> None:
    (engine,) = read_engines(folder)
    assert engine.path.name == "sm86-rtx1.7.1-fp16.engine"
    assert engine.record == RECORD
    assert read_recipe(folder) == RECIPE
    assert runnable([engine], RECIPE, "1.7.1", GPU) == engine
    assert counted(RECORD.products) == "1 fp16, 1 int8"
    assert set(json.loads(engine.path.with_suffix(".json").read_text())["checks"].values()) == {
        "not run",
        "",
    }
    assert {path.suffix for path in folder.iterdir()} == {".engine", ".json"}


@pytest.mark.parametrize(
    ("recipe", "version", "device", "reason"),
    [
        (RECIPE, "1.7.1", Device("b", 89, GPU.driver), "for SM 86, b is SM 89"),
        (RECIPE, "1.8.0", GPU, "of tensorrt-rtx 1.7.1, 1.8.0 is installed"),
        (RECIPE, "1.7.1", Device("b", 86, "580.1.0"), "driver 575.57.08, 580.1.0 is present"),
        (RECIPE.model_copy(update={"onnx_sha256": "1" * 64}), "1.7.1", GPU, "onnx_sha256"),
        (RECIPE.model_copy(update={"precision": "fp32"}), "1.7.1", GPU, "precision is fp16"),
        (RECIPE.model_copy(update={"tf32": True}), "1.7.1", GPU, "tf32 is False"),
        (RECIPE.model_copy(update={"profiles": {}}), "1.7.1", GPU, "profiles"),
    ],
)
def test_an_engine_that_differs_never_runs(
    folder: Path, recipe: BuildRecipe, version: str, device: Device, reason: str
) -> None:
    with pytest.raises(BackendError, match="no engine here may run") as found:
        runnable(read_engines(folder), recipe, version, device)
    assert found.value.exit_code == 4
    assert reason in found.value.message


def test_a_version_compatible_engine_runs_in_later_versions_of_its_major_alone() -> None:
    recipe = RECIPE.model_copy(update={"version_compatible": True})
    compatible = RECORD.model_copy(update={"recipe": recipe})
    assert compatible.differences(recipe, "1.10.0", GPU) == ()
    for other in ("1.6.9", "2.0.0"):
        assert compatible.differences(recipe, other, GPU)
    assert RECORD.differences(RECIPE, "1.10.0", GPU)


def test_a_driver_that_was_not_there_is_no_difference() -> None:
    ahead = RECORD.model_copy(update={"driver": None})
    assert ahead.differences(RECIPE, "1.7.1", GPU) == ()
    with pytest.raises(BackendError, match="there is none"):
        runnable([], RECIPE, "1.7.1", GPU)


FULL = RECIPE.model_copy(update={"backend": "tensorrt", "compute_capabilities": ()})
AGX = Device("Orin AGX", 87, "540.4.0")


def full_record(device_name: str | None) -> EngineRecord:
    return RECORD.model_copy(
        update={
            "recipe": FULL,
            "backend_version": "10.3.0",
            "compute_capability": 87,
            "driver": AGX.driver,
            "device_name": device_name,
        }
    )


def test_an_engine_of_full_tensorrt_is_bound_to_the_model_of_its_gpu() -> None:
    """Two models may share an SM: Orin AGX and Orin Nano, H100 and H200."""
    mine = full_record(AGX.name)
    assert mine.differences(FULL, "10.3.0", AGX) == ()
    (why,) = mine.differences(FULL, "10.3.0", replace(AGX, name="Orin Nano"))
    assert why == "it was built on Orin AGX, Orin Nano is present"
    named = Device("the GPU named", 87, None, present=False)
    assert mine.differences(FULL, "10.3.0", named) == ()
    (why,) = full_record(None).differences(FULL, "10.3.0", AGX)
    assert why.startswith("it was built on a GPU that its side-car does not name")
    ahead = RECORD.model_copy(update={"driver": None})
    assert ahead.differences(RECIPE, "1.7.1", Device("another", 86, None)) == ()


def test_a_side_car_of_an_earlier_version_is_read(folder: Path) -> None:
    """Without the model of the GPU, and with another word for a declared precision."""
    path = folder / f"{RECORD.stem}.json"
    old = json.loads(path.read_text())
    del old["device_name"]
    for product in old["products"]:
        product["actual"] = product.pop("declared")
    path.write_text(json.dumps(old))
    assert read_engines(folder)[0].record == RECORD


def test_the_cache_keeps_engines_of_two_gpu_models_apart() -> None:
    full, ahead = BACKENDS["tensorrt"], BACKENDS["tensorrt-rtx"]
    nano = replace(AGX, name="Orin Nano")
    places = [_place(FULL, TensorRt(full, None, "10.3.0", ()), one) for one in (AGX, nano, AGX)]
    assert places[0] == places[2] != places[1]
    rtx = TensorRt(ahead, None, "1.7.1", (86,))
    assert _place(RECIPE, rtx, GPU) == _place(RECIPE, rtx, Device("another", 86, None))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is broken: document"),
        (b'{"schema_version": 1}', "is broken: recipe"),
        (RECORD.model_dump_json().replace('"layers":2', '"layers":2,"more":1').encode(), "more"),
        (
            RECORD.model_copy(update={"engine_sha256": "f" * 64}).model_dump_json().encode(),
            "is not the engine that",
        ),
        (
            RECORD.model_copy(update={"compute_capability": 89}).model_dump_json().encode(),
            "is not the engine that",
        ),
    ],
)
def test_a_broken_side_car_is_an_integrity_error(
    folder: Path, content: bytes, problem: str
) -> None:
    path = folder / f"{RECORD.stem}.engine"
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(IntegrityError, match=problem) as found:
        read_engine(path)
    assert found.value.exit_code == 6


def test_neither_half_goes_without_the_other(folder: Path) -> None:
    path = folder / f"{RECORD.stem}.engine"
    path.rename(folder / "other.engine")
    with pytest.raises(IntegrityError, match="is missing"):
        read_engines(folder)
    path.with_suffix(".json").unlink()
    with pytest.raises(IntegrityError, match=r"other\.json is missing"):
        read_engines(folder)
    (folder / "recipe.json").unlink()
    with pytest.raises(IntegrityError, match=r"recipe\.json is missing"):
        read_recipe(folder)
