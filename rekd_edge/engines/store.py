"""Engines on disk: each beside a side-car that says what it was made of, and none runs elsewhere.

engines/recipe.json                      BuildRecipe: enough to build any of them again
engines/sm86-rtx1.7.1.116-fp16.engine
engines/sm86-rtx1.7.1.116-fp16.json      EngineRecord
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from rekd_edge.data.storage import sha256_of
from rekd_edge.engines.backend import BACKENDS, Device
from rekd_edge.engines.spec import BuildRecipe, Sha256, Spec
from rekd_edge.errors import BackendError, IntegrityError

ENGINES_FOLDER = "engines"
RECIPE_FILE = "recipe.json"
Kind = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
Outcome = Literal["passed", "not run"]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Product:
    """A product of the graph in an engine. ``declared`` is the precision of the layer that stands
    for it, None where none does. Of an engine built ahead that is all there is to know: its kernels
    are compiled on the GPU."""

    node: str
    requested: Kind
    declared: Kind | None
    layer: str | None

    @property
    def as_requested(self) -> bool:
        return self.declared == self.requested


def counted(products: Iterable[Product]) -> str:
    """Products by precision, in words: ``4 fp32, 10 int8``."""
    counts = Counter(one.declared or "missing" for one in products)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


class EngineChecks(Spec):
    """What was checked of the engine itself, on a GPU. Nothing is taken over from the ONNX file."""

    parity: Outcome = "not run"
    """Its answers beside the torch model's: sizes, logits, scores, rationales."""
    accuracy: Outcome = "not run"
    latency: Outcome = "not run"
    reason: str = ""
    """Why what was not run was not."""


class EngineRecord(Spec):
    """The side-car of one engine. An engine that differs in any of this is another one."""

    schema_version: Literal[1] = 1
    recipe: BuildRecipe
    """ONNX sha256, shapes, precision and options."""
    backend_version: str
    compute_capability: int
    """86 is SM 8.6."""
    driver: str | None
    """NVIDIA's driver where it was built, which it then needs; null where it was built ahead of
    time (`tensorrt-rtx`), whichever GPU was there."""
    device_name: str | None = None
    """The GPU model that it was built on, and runs on; null where it was built ahead of time. An
    engine of `tensorrt` without it is of an earlier version, and is built again."""
    engine_sha256: Sha256
    size_bytes: int = Field(ge=1)
    layers: int = Field(ge=1)
    products: tuple[Product, ...]
    """Matrix products and convolutions of the graph, each with the precision that its layer
    declares."""
    checks: EngineChecks = EngineChecks()

    @field_validator("products", mode="before")
    @classmethod
    def _products_before(cls, products: Any) -> Any:
        """Side-cars used to say `actual` for what a layer declares."""
        if not isinstance(products, list):
            return products
        return [
            {"declared" if key == "actual" else key: value for key, value in one.items()}
            if isinstance(one, dict)
            else one
            for one in products
        ]

    @property
    def stem(self) -> str:
        """The name of its files: ``<sm>-<trt>-<precision>``."""
        short = BACKENDS[self.recipe.backend].short
        return f"sm{self.compute_capability}-{short}{self.backend_version}-{self.recipe.precision}"

    def _loads_in(self, version: str) -> bool:
        """The same version; or a later one of the same major, where the engine was built for it."""
        if self.backend_version == version:
            return True
        built, present = (
            [int(part) for part in one.split(".") if part.isdigit()]
            for one in (self.backend_version, version)
        )
        return self.recipe.version_compatible and built[0] == present[0] and built < present

    def differences(self, recipe: BuildRecipe, version: str, device: Device) -> tuple[str, ...]:
        """Why it must not run: in words, each thing that is other than wanted or present."""
        found = []
        if self.compute_capability != device.compute_capability:
            found.append(
                f"it is for SM {self.compute_capability}, {device.name} is "
                f"SM {device.compute_capability}"
            )
        ahead = BACKENDS[self.recipe.backend].builds_ahead
        if not ahead and device.present and self.device_name != device.name:
            built_on = self.device_name or "a GPU that its side-car does not name"
            found.append(f"it was built on {built_on}, {device.name} is present")
        if not self._loads_in(version):
            found.append(
                f"it is of {self.recipe.backend} {self.backend_version}, {version} is installed"
            )
        if None not in (self.driver, device.driver) and self.driver != device.driver:
            found.append(f"it was built with driver {self.driver}, {device.driver} is present")
        for name in BuildRecipe.model_fields:
            mine, wanted = getattr(self.recipe, name), getattr(recipe, name)
            if mine != wanted and name != "compute_capabilities":
                found.append(f"its {name} is {mine}, wanted is {wanted}")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine whose bytes are those of its side-car."""

    path: Path
    record: EngineRecord


def write_record(folder: Path, record: EngineRecord) -> StoredEngine:
    """Writes the side-car; its engine is there already."""
    _write(folder / f"{record.stem}.json", record)
    return StoredEngine(folder / f"{record.stem}.engine", record)


def write_recipe(folder: Path, recipe: BuildRecipe) -> None:
    _write(folder / RECIPE_FILE, recipe)


def read_recipe(folder: Path) -> BuildRecipe:
    """Raises :class:`IntegrityError` for one that is missing or malformed."""
    return _read(folder / RECIPE_FILE, BuildRecipe)


def read_engine(path: Path) -> StoredEngine:
    """An engine with its side-car, none of it executed.

    Raises :class:`IntegrityError` where the side-car is missing or malformed, or is not that of
    these bytes.
    """
    record = _read(path.with_suffix(".json"), EngineRecord)
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", hint="build it again")
    if sha256_of(path) != record.engine_sha256 or path.name != f"{record.stem}.engine":
        raise IntegrityError(
            f"{path} is not the engine that {path.stem}.json describes", hint="build it again"
        )
    return StoredEngine(path, record)


def read_engines(folder: Path) -> tuple[StoredEngine, ...]:
    """All engines of a folder, in the order of their names. Errors as :func:`read_engine`; a
    side-car without its engine is one, too."""
    stems = {path.stem for path in folder.glob("*.json") if path.name != RECIPE_FILE}
    stems |= {path.stem for path in folder.glob("*.engine")}
    return tuple(read_engine(folder / f"{stem}.engine") for stem in sorted(stems))


def runnable(
    engines: Iterable[StoredEngine], recipe: BuildRecipe, version: str, device: Device
) -> StoredEngine:
    """The engine made for exactly this. Raises :class:`BackendError` where there is none."""
    reasons = []
    for engine in engines:
        found = engine.record.differences(recipe, version, device)
        if not found:
            return engine
        reasons.append(f"{engine.path.name}: {'; '.join(found)}")
    raise BackendError(
        "no engine here may run on this machine:\n  " + "\n  ".join(reasons or ["there is none"]),
        hint="leave out --no-build, and it is built",
    )


def _read(path: Path, kind: type[Model]) -> Model:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing", hint="build the engine again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise IntegrityError(
            f"{path} is broken: {where}: {first['msg']}", hint="build the engine again"
        ) from error


def _write(path: Path, record: BaseModel) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
        file.write(record.model_dump_json(indent=2) + "\n")
    Path(temporary).chmod(0o644)
    os.replace(temporary, path)
