"""Load the torch-free runtime from this package's own resources.

Code found inside a bundle is never executed by ``rekd-edge``: the runtime copied into a bundle
is for machines without this package.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from rekd_edge.errors import BackendError, IntegrityError, RekdEdgeError, UsageError
from rekd_edge.resources import export_dir

_BY_EXIT_CODE: dict[int, type[RekdEdgeError]] = {
    2: UsageError,
    4: BackendError,
    6: IntegrityError,
}


def runtime_path() -> Path:
    """The shipped ``rekd_runtime.py``."""
    path = export_dir() / "runtime" / "python" / "rekd_runtime.py"
    if not path.is_file():
        raise IntegrityError(
            "rekd_runtime.py is missing from this installation of rekd-edge",
            hint="reinstall the package",
        )
    return path


@lru_cache(maxsize=1)
def load_runtime() -> ModuleType:
    """The runtime as a module. It needs numpy; onnxruntime, tokenizers and Pillow are imported
    by it only where a bundle needs them."""
    path = runtime_path()
    name = "rekd_edge._shipped_runtime"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise IntegrityError(f"{path} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being executed
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def runtime_errors() -> Iterator[None]:
    """Turn the runtime's failures into those of this package, exit code for exit code."""
    runtime = load_runtime()
    try:
        yield
    except runtime.RekdRuntimeError as error:
        kind = _BY_EXIT_CODE.get(error.exit_code, RekdEdgeError)
        raise kind(error.message, hint=error.hint) from error
