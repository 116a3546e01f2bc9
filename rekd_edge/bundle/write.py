"""Write a bundle: all files under a temporary name, then one rename."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

from rekd_edge import __version__
from rekd_edge.bundle.card import model_card
from rekd_edge.bundle.manifest import (
    CARD_FILE,
    CONFIG_FILE,
    LABELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    RECIPE_FILE,
    REPORTS_FOLDER,
    RUNTIME_FILE,
    WHY_NOT_FILE,
    BundleConfig,
    BundleManifest,
    FileEntry,
    GateRecord,
    Lineage,
)
from rekd_edge.bundle.read import verify_bundle
from rekd_edge.bundle.runtime import runtime_path
from rekd_edge.engines.store import ENGINES_FOLDER, StoredEngine, read_engines
from rekd_edge.engines.store import RECIPE_FILE as ENGINE_RECIPE
from rekd_edge.errors import IntegrityError, UsageError

_RECORDED_PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "tokenizers",
    "torch",
    "pillow",
)
_RECORDED_BACKBONES = ("timm", "transformers")
_REPORT_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]*$")


class Preprocessor(Protocol):
    """What is needed of a preprocessor: it writes its own files."""

    def save(self, folder: Path) -> None: ...


def write_bundle(
    folder: Path,
    *,
    onnx: Path,
    preprocessor: Preprocessor,
    label_names: Sequence[str],
    config: BundleConfig,
    recipe_yaml: str,
    lineage: Lineage,
    reports: Mapping[str, Mapping[str, Any]],
    gates: Sequence[GateRecord] = (),
    accuracy: Mapping[str, float] | None = None,
    accuracy_per_class: Mapping[str, float] | None = None,
    target: str = "onnx",
    name: str | None = None,
    engines: Sequence[StoredEngine] = (),
    why_not: Path | None = None,
) -> BundleManifest:
    """Write a complete bundle to ``folder``, which must not exist yet (or be empty).

    ``onnx`` is copied as ``model.onnx``; external data named ``<onnx name>.data`` beside it is
    copied too. ``reports`` become ``reports/<name>.json``; NaN and infinity become null.
    ``name`` defaults to the recipe's name. ``engines``, which lie in one folder with their build
    recipe, are copied with it; ``why_not`` is copied as ``why_not.onnx``. Everything is written
    beside ``folder`` under a temporary name, verified, and renamed at the end: an interruption
    leaves no half bundle.

    Raises :class:`UsageError` where ``folder`` is taken or an argument contradicts another, and
    :class:`IntegrityError` where the result does not verify.
    """
    if tuple(label_names) != config.label_names:
        raise UsageError(
            f"label_names {tuple(label_names)} are not those of config {config.label_names}"
        )
    if (why_not is None) != (config.why_not is None):
        raise UsageError(f"config and files do not agree on whether there is a {WHY_NOT_FILE}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"cannot write the bundle: {folder} exists", hint="name a new folder or remove it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _copy_model(onnx, temporary)
        if why_not is not None:
            shutil.copyfile(why_not, temporary / WHY_NOT_FILE)
        preprocessor.save(temporary)
        _write_text(temporary / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")
        _write_text(temporary / LABELS_FILE, _json(list(label_names)))
        _write_text(temporary / RECIPE_FILE, portable_recipe(recipe_yaml))
        for report_name, report in reports.items():
            if not _REPORT_NAME.match(report_name):
                raise UsageError(f"a report cannot be called {report_name!r}")
            _write_text(temporary / REPORTS_FOLDER / f"{report_name}.json", _json(report))
        if engines:
            _copy_engines(engines, temporary / ENGINES_FOLDER)
        runtime = temporary / RUNTIME_FILE
        runtime.parent.mkdir()
        shutil.copyfile(runtime_path(), runtime)
        draft = BundleManifest(
            name=name or lineage.recipe_name,
            created=_now(),
            modality=config.modality,
            target=target,
            versions=_versions(),
            lineage=lineage,
            accuracy=dict(accuracy or {}),
            accuracy_per_class=dict(accuracy_per_class or {}),
            gates=tuple(gates),
            files=(),
        )
        _write_text(temporary / CARD_FILE, model_card(draft, config, sorted(reports), engines))
        manifest = draft.model_copy(update={"files": tuple(_entries(temporary))})
        _write_text(temporary / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
        if verify_bundle(temporary) != manifest:
            raise IntegrityError(f"{MANIFEST_FILE} does not read back as it was written")
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def portable_recipe(recipe_yaml: str) -> str:
    """The resolved recipe without the writer's folders: an absolute path to own data or weights
    says nothing on another machine, so only its last part is kept."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 10**6
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(recipe_yaml)
    _shorten_paths(document)
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _shorten_paths(node: Any) -> None:
    """Edits a loaded YAML tree in place, so that its layout is kept."""
    if isinstance(node, list):
        for item in node:
            _shorten_paths(item)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in _PATH_KEYS and isinstance(value, str):
            node[key] = _last_part(value)
        elif key == "weights" and isinstance(value, list):
            for position, source in enumerate(value):
                if isinstance(source, str) and source.startswith(_PATH_SOURCE):
                    value[position] = _PATH_SOURCE + _last_part(source[len(_PATH_SOURCE) :])
        else:
            _shorten_paths(value)


_PATH_KEYS = ("path", "test_path", "run", "predictor_run")
_PATH_SOURCE = "path:"


def _last_part(path: str) -> str:
    pure = PureWindowsPath(path) if PureWindowsPath(path).drive else PurePosixPath(path)
    return (pure.name or ".") if pure.is_absolute() else path


def _copy_model(onnx: Path, folder: Path) -> None:
    shutil.copyfile(onnx, folder / MODEL_FILE)
    data = onnx.with_name(onnx.name + ".data")
    if data.is_file():
        if onnx.name != MODEL_FILE:
            raise UsageError(
                f"{onnx.name} keeps its weights in {data.name}, a name that is fixed in the file",
                hint=f"export it under the name {MODEL_FILE}",
            )
        shutil.copyfile(data, folder / data.name)


def _copy_engines(engines: Sequence[StoredEngine], folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(engines[0].path.parent / ENGINE_RECIPE, folder / ENGINE_RECIPE)
    for engine in engines:
        for path in (engine.path, engine.path.with_suffix(".json")):
            shutil.copyfile(path, folder / path.name)
    read_engines(folder)


def _entries(folder: Path) -> Iterable[FileEntry]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield FileEntry(
                path=path.relative_to(folder).as_posix(),
                sha256=digest,
                size_bytes=path.stat().st_size,
            )


def _versions() -> dict[str, str]:
    versions = {"rekd-edge": __version__, "python": platform.python_version()}
    for package in _RECORDED_PACKAGES + _RECORDED_BACKBONES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _now() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC)
    return moment.isoformat(timespec="seconds")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _json(value: Any) -> str:
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
