"""Weights and training state on disk: safetensors only, written atomically.

A training checkpoint is one file: model and optimizer tensors, and the rest (phase, step, best
result, history) as JSON in the safetensors header. Nothing is pickled, in either direction.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rekd_edge.errors import IntegrityError

_STATE_KEY = "rekd_edge.state"
JUDGE_FILE = Path("judge") / "model.safetensors"
"""Below a role's folder: its predictor as it was after training on random subsets."""


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, temporary, metadata=metadata)
        os.replace(temporary, path)
    except SafetensorError as error:
        # The library hides the operating system's error; the usual one is a full disk.
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_model(path: Path, model: nn.Module) -> None:
    """Writes all parameters and buffers of ``model``."""
    _write_tensors(path, model.state_dict(), {"format": "pt"})


def load_model(path: Path, model: nn.Module) -> None:
    """Loads weights strictly.

    Raises:
        IntegrityError: the file is missing, broken, or of another architecture.
    """
    tensors, _ = _read_tensors(path)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise IntegrityError(
            f"{path} does not fit the recipe's architecture: {str(error).splitlines()[0]}",
            hint="the run folder was made by another recipe; train again into a new folder",
        ) from error


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", hint="the run is not finished; use --resume")
    try:
        with safe_open(path, framework="pt") as handle:
            names = list(handle.keys())
            return {name: handle.get_tensor(name) for name in names}, dict(handle.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} is not a readable safetensors file: {error}",
            hint="delete it and run again with --resume, or train into a new folder",
        ) from error


def save_training_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    auxiliary: nn.Module | None = None,
) -> None:
    """Writes a resumable checkpoint: model, optimizer moments, and ``state`` (JSON values); with
    ``auxiliary``, what is trained beside the model."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if auxiliary is not None:
        tensors |= {f"auxiliary.{name}": tensor for name, tensor in auxiliary.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    _write_tensors(path, tensors, {_STATE_KEY: json.dumps(state)})


def read_training_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON state of a checkpoint written by :func:`save_training_state`.

    Raises:
        IntegrityError: the file is missing or broken, or holds no training state.
    """
    tensors, metadata = _read_tensors(path)
    if _STATE_KEY not in metadata:
        raise IntegrityError(f"{path} holds weights but no training state to resume from")
    return tensors, json.loads(metadata[_STATE_KEY])


def restore_model(
    model: nn.Module, tensors: Mapping[str, Tensor], *, prefix: str = "model."
) -> None:
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    try:
        model.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise IntegrityError(
            "the checkpoint does not fit the recipe's architecture",
            hint="train into a new folder",
        ) from error


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
