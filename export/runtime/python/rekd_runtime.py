"""Answer from a rekd-edge bundle, with the evidence, without torch.

Needs Python 3.10 or newer, numpy and onnxruntime (or openvino, where the bundle was made for it);
for texts also tokenizers, for images Pillow:

    python BUNDLE/runtime/rekd_runtime.py "a text"           words, or @FILE, or - for lines
    python BUNDLE/runtime/rekd_runtime.py photo.jpg          an image

As a module:

    from rekd_runtime import Rationalist
    prediction = Rationalist.load("BUNDLE").predict(["a text"])[0]
    prediction.label, prediction.probability, prediction.rationale, prediction.abstain

What is answered is the bundle's ``problem_type``: one ``label`` with its ``probability``; any
number of ``labels`` with a probability of its own for each; or ``values``.

The model chooses a few words or patches (the rationale) and its answer is computed from those
alone. A bundle of two students (an ensemble) chooses words for each and answers from all of them;
``answer_rationale`` is the part from which the one that answers read, ``consulted`` the rest.
``margin`` is the gap in score between the last one kept and the best one dropped: near 0,
another machine may round to another choice. Probabilities are calibrated where the bundle says
how; ``abstain`` is True where they, or the margin, are below what the bundle answers for: show
such an answer to a person, not as an answer.

"Why not?": a bundle with class-wise rationales also says, where it is asked (``--why-not``,
``predict(..., why_not=True)``), which words or patches speak most for each other class and what the
model says from those alone. The answer is the same with and without the question.

Exit codes: 0 answered; 1 unexpected (a bug); 2 an input cannot be used; 4 a package is missing
or too old; 6 the bundle is not what its manifest promises; 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

try:
    import numpy as np
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"error: numpy is missing ({missing})\n  hint: python -m pip install numpy\n")
    raise SystemExit(4) from None

if TYPE_CHECKING:
    from PIL import Image

__version__ = "0.1.0"
FORMAT = "rekd-edge-bundle"
MANIFEST_SCHEMA_VERSION = 1
CONFIG_SCHEMA_VERSION = 3
"""Newest schemas of ``manifest.json`` and ``config.json`` that this file understands."""
MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
MODEL_FILE = "model.onnx"
WHY_NOT_FILE = "why_not.onnx"
TOKENIZER_FILE = "tokenizer.json"
CPU_PROVIDER = "CPUExecutionProvider"
TRACEBACK_VARIABLE = "REKD_EDGE_TRACEBACK"
_OUTPUTS = ("logits", "rationale_mask", "selection_score", "selection_margin")
_PAIR_OUTPUTS = ("answer_mask", "case")
"""Of a bundle of two students besides."""
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
"""What a bundle answers, in the words of transformers."""
_CANDIDATE_INPUT = "candidate_class"
"""Of ``why_not.onnx``: the class that it is asked about."""
WHY_NOT_CLASSES = 8
"""At most so many classes are asked for, the most probable: each costs about as much as an
answer."""
CASES = ("agree", "first_convinces", "partner_convinces", "confidence")
"""What decided between two students, by number (docs/bundle.md)."""
_OPTIMIZATION_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
_PIL_RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
_CHUNK_BYTES = 1 << 20
_MOST_PIXELS = 1 << 26
"""Of an image once resized: what is longer and thinner would not fit into small memories."""
_HIGHLIGHT = ("\x1b[1;7m", "\x1b[0m")
_BRACKETS = ("[", "]")
_CONSULTED_HIGHLIGHT = ("\x1b[4m", "\x1b[0m")
_CONSULTED_BRACKETS = ("(", ")")


ImageInput: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"
"""The path of an image file, a Pillow image, or pixels: uint8 ``[height, width, 3]`` (RGB) or
``[height, width]`` (grey)."""


class RekdRuntimeError(Exception):
    """An expected failure: ``message`` says what is wrong, ``hint`` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class InputError(RekdRuntimeError):
    """The command or an input cannot be used as given."""

    exit_code = 2


class BackendError(RekdRuntimeError):
    """A package is missing, or what is installed cannot run this model."""

    exit_code = 4


class IntegrityError(RekdRuntimeError):
    """The bundle is not what its manifest promises."""

    exit_code = 6


# --- the bundle -------------------------------------------------------------------------------


def verify_bundle(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Check every file of a bundle against ``manifest.json`` and return the manifest.

    Raises :class:`InputError` where ``folder`` is no folder, :class:`IntegrityError` where
    the manifest is missing, malformed or of a newer schema, where it names a path that is
    absolute, climbs out or leaves through a symbolic link, and where a file is missing, changed
    or not listed (``__pycache__`` folders are overlooked).
    """
    return _verified(Path(folder))[0]


@dataclass(slots=True)
class _Evidence:
    """What came of the files while they were hashed: the content of small ones, which are used
    from here, and the state of all others, which must be the same once they have been opened."""

    contents: dict[str, bytes]
    states: dict[str, tuple[int, ...]]


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Changes with every write, rename and replacement."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        0 if os.name == "nt" else status.st_ctime_ns,
    )


def _require_unchanged(root: Path, states: Mapping[str, tuple[int, ...]]) -> None:
    for path, state in states.items():
        try:
            same = _state((root / path).stat()) == state
        except OSError:
            same = False
        if not same:
            raise _broken(f"bundle {root}: {path!r} has changed while it was opened")


def _verified(root: Path, keep: Collection[str] = ()) -> tuple[dict[str, Any], _Evidence]:
    """:func:`verify_bundle`, and what is needed to use the very bytes that were hashed: the content
    of the files in ``keep``, the state of the others."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{root} {what}", hint="name the folder of an exported bundle")
    manifest = _read_manifest(root)
    listed: set[str] = set()
    problems: list[str] = []
    evidence = _Evidence({}, {})
    for entry in manifest["files"]:
        path = _listed_path(entry)
        if path in listed:
            raise _broken(f"{MANIFEST_FILE} lists {path!r} twice")
        listed.add(path)
        problem = _file_problem(root, path, entry, evidence, keep=path in keep)
        if problem is not None:
            problems.append(problem)
    problems += [f"{path!r} is not listed" for path in _files_in(root) if path not in listed]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise _broken(f"bundle {root}: {'; '.join(problems[:3])}{more}")
    return manifest, evidence


def _read_manifest(root: Path) -> dict[str, Any]:
    if not (root / MANIFEST_FILE).exists():
        raise _broken(f"{root} is not a bundle: it has no {MANIFEST_FILE}")
    _require_inside(root, MANIFEST_FILE)
    manifest = _read_json(root / MANIFEST_FILE)
    if manifest.get("format") != FORMAT:
        raise _broken(f"{root / MANIFEST_FILE}: format is not {FORMAT!r}")
    _require_schema(root / MANIFEST_FILE, manifest, MANIFEST_SCHEMA_VERSION)
    files = manifest.get("files")
    if not isinstance(files, list) or not files:
        raise _broken(f"{root / MANIFEST_FILE}: files is not a list of files")
    return manifest


def _require_schema(path: Path, document: dict[str, Any], newest: int) -> None:
    version = document.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _broken(f"{path}: schema_version is not a positive integer")
    if version > newest:
        raise IntegrityError(
            f"{path}: schema_version {version} is newer than {newest}, the newest known here",
            hint="upgrade rekd-edge, or run the bundle's own runtime/rekd_runtime.py",
        )


def _listed_path(entry: Any) -> str:
    """The path of one manifest entry, proven to be relative and to stay below the bundle."""
    if not isinstance(entry, dict):
        raise _broken(f"{MANIFEST_FILE}: an entry of files is not an object")
    path, digest, size = entry.get("path"), entry.get("sha256"), entry.get("size_bytes")
    if not isinstance(path, str) or not isinstance(digest, str) or not isinstance(size, int):
        raise _broken(f"{MANIFEST_FILE}: a file needs path, sha256 and size_bytes")
    unsafe = path.startswith("/") or any(character in path for character in "\\:\0")
    if unsafe or any(part in ("", ".", "..") for part in path.split("/")):
        raise _broken(f"{MANIFEST_FILE} names a path outside the bundle: {path!r}")
    return path


def _require_inside(root: Path, path: str) -> None:
    try:
        resolved = (root / path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of symbolic links
        raise _broken(f"{path!r} cannot be resolved: {error}") from error
    if not resolved.is_relative_to(root.resolve()):
        raise _broken(f"{path!r} is a symbolic link that leads out of the bundle")


def _file_problem(
    root: Path, path: str, entry: dict[str, Any], evidence: _Evidence, *, keep: bool
) -> str | None:
    """What is wrong with one file."""
    _require_inside(root, path)
    place = root / path
    if not place.is_file():
        return f"{path!r} is not a regular file" if place.exists() else f"{path!r} is missing"
    try:
        if place.stat().st_size != entry["size_bytes"]:
            return f"{path!r} has {place.stat().st_size} bytes, not {entry['size_bytes']}"
        digest = hashlib.sha256()
        with place.open("rb", buffering=0) as file:
            if keep:
                evidence.contents[path] = file.read()
                digest.update(evidence.contents[path])
            else:
                evidence.states[path] = _state(os.fstat(file.fileno()))
                chunk = memoryview(bytearray(_CHUNK_BYTES))
                while count := file.readinto(chunk):
                    digest.update(chunk[:count])
    except OSError as error:
        return f"{path!r} cannot be read: {error.strerror or error}"
    return None if digest.hexdigest() == entry["sha256"] else f"{path!r} has changed (sha256)"


def _files_in(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted(files) + linked:
            path = (Path(folder) / name).relative_to(root).as_posix()
            if path != MANIFEST_FILE:
                yield path


def _read_json(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """``content``, where the file has been read already."""
    try:
        document = json.loads((path.read_bytes() if content is None else content).decode("utf-8"))
    except OSError as error:
        raise _broken(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _broken(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise _broken(f"{path} is not a JSON object")
    return document


def _broken(message: str) -> IntegrityError:
    return IntegrityError(message, hint="copy or export the bundle again")


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What was measured to be fast for this model; the defaults are those of a bundle without."""

    threads: int | None = None
    execution_mode: str = "sequential"
    graph_optimization: str = "all"
    cpu_arena: bool = True
    memory_pattern: bool = True
    prepacking: bool = True
    spinning: bool = True
    dynamic_block_base: int = 0

    @classmethod
    def of(cls, document: Any) -> SessionSettings:
        """Raises ValueError or TypeError where a value is none that onnxruntime knows."""
        settings = cls(**(document or {}))
        flags = (
            settings.cpu_arena,
            settings.memory_pattern,
            settings.prepacking,
            settings.spinning,
        )
        counts = (1 if settings.threads is None else settings.threads, settings.dynamic_block_base)
        if not (
            all(isinstance(flag, bool) for flag in flags)
            and all(isinstance(c, int) and not isinstance(c, bool) for c in counts)
            and counts[0] >= 1
            and 0 <= counts[1] <= 64
            and settings.execution_mode in ("sequential", "parallel")
            and settings.graph_optimization in _OPTIMIZATION_LEVELS
        ):
            raise ValueError(f"runtime_settings {settings} are not known")
        return settings


TEMPERATURES = (0.01, 100.0)
"""Beyond these a quotient of logits could overflow, or say nothing."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns logits into probabilities, and below what no answer is given; the defaults are
    those of a bundle without. docs/bundle.md describes the fields."""

    temperature: float = 1.0
    confidence_threshold: float | None = None
    margin_threshold: float | None = None

    @classmethod
    def of(cls, document: Any) -> Calibration:
        """Raises KeyError, TypeError or ValueError where it cannot be applied as meant."""
        if document is None:
            return cls()
        if document["method"] != "temperature":
            raise ValueError(f"calibration by {document['method']!r} is not known")

        def number(name: str, low: float, high: float) -> float:
            value = document[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and low <= value <= high):  # not-a-number fails every comparison
                raise ValueError(f"{name} {value!r} is no number from {low:g} to {high:g}")
            return float(value)

        def threshold(name: str, high: float) -> float | None:
            return None if document[name] is None else number(name, 0, high)

        return cls(
            temperature=number("temperature", *TEMPERATURES),
            confidence_threshold=threshold("confidence_threshold", 1),
            margin_threshold=threshold("margin_threshold", sys.float_info.max),
        )

    def refusals(self, confidence: float | None, margin: float) -> tuple[str, ...]:
        """Why an answer is withheld: ``confidence``, ``margin``, both or neither."""
        found = []
        least = self.confidence_threshold
        if confidence is not None and least is not None and confidence < least:
            found.append("confidence")
        if self.margin_threshold is not None and margin < self.margin_threshold:
            found.append("margin")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Config:
    """What ``config.json`` and ``preprocessor_config.json`` say, as far as it is needed here."""

    modality: str
    problem_type: str
    """One of :data:`PROBLEM_TYPES`."""
    label_names: tuple[str, ...]
    """Classes, labels, or what the values are."""
    rationale_ratio: float
    max_length: int
    """Tokens (text); 0 for images."""
    image_size: int
    """Pixels (images); 0 for texts."""
    patch_size: int
    """Pixels of the model input (images); 0 for texts."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    model_normalises: bool
    """Images: the model takes 8-bit pixels."""
    pad_id: int
    """Token that fills a batch of texts up (text); nothing attends to it."""
    runtime: str
    """``onnxruntime`` or ``openvino``."""
    settings: SessionSettings
    calibration: Calibration
    why_not: bool = False
    """Whether there is a ``why_not.onnx``."""


def read_config(folder: Path, contents: Mapping[str, bytes] | None = None) -> Config:
    """From ``contents`` where the files have been read already. Raises :class:`IntegrityError`
    where one is malformed."""
    contents = contents or {}
    path = folder / CONFIG_FILE
    document = _read_json(path, contents.get(CONFIG_FILE))
    _require_schema(path, document, CONFIG_SCHEMA_VERSION)
    preprocessing = _read_json(folder / PREPROCESSOR_FILE, contents.get(PREPROCESSOR_FILE))
    try:
        if document["schema_version"] < 2 and document.get("calibration") is not None:
            raise ValueError("calibration needs schema_version 2")
        problem = _known_problem(document)
        modality = document["modality"]
        if modality not in ("text", "image") or preprocessing["modality"] != modality:
            raise ValueError(f"modality {modality!r} does not fit the preprocessor")
        is_text = modality == "text"
        config = Config(
            modality=modality,
            problem_type=problem,
            label_names=tuple(str(name) for name in document["label_names"]),
            rationale_ratio=float(document["rationale_ratio"]),
            max_length=int(preprocessing["max_length"]) if is_text else 0,
            image_size=0 if is_text else int(preprocessing["image_size"]),
            patch_size=0 if is_text else int(document["patch_size"]),
            mean=() if is_text else tuple(float(value) for value in preprocessing["mean"]),
            std=() if is_text else tuple(float(value) for value in preprocessing["std"]),
            interpolation="" if is_text else str(preprocessing["interpolation"]),
            model_normalises=preprocessing.get("model_normalises", False) is True,
            pad_id=int((document.get("special_ids") or {}).get("pad", 0)) if is_text else 0,
            runtime=_known_runtime(document.get("runtime", "onnxruntime")),
            settings=SessionSettings.of(document.get("runtime_settings")),
            calibration=Calibration.of(document.get("calibration")),
            why_not=document.get("why_not") is not None,
        )
        if not is_text and not (
            0 < config.patch_size <= config.image_size
            and len(config.mean) == len(config.std) == 3
            and min(config.std) > 0
            and config.interpolation in _PIL_RESAMPLE
        ):
            raise ValueError("the image settings contradict one another")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _broken(f"{path} or {PREPROCESSOR_FILE} is malformed: {error!r}") from error
    return config


def _known_problem(document: dict[str, Any]) -> str:
    problem = document.get("problem_type", SINGLE_LABEL)
    if problem not in PROBLEM_TYPES:
        raise ValueError(f"problem_type {problem!r} is not known")
    if problem != SINGLE_LABEL and document["schema_version"] < 3:
        raise ValueError(f"problem_type {problem!r} needs schema_version 3")
    if problem == REGRESSION and document.get("calibration") is not None:
        raise ValueError("a regression has no probabilities to calibrate")
    if len(document["label_names"]) < (2 if problem == SINGLE_LABEL else 1):
        raise ValueError("label_names are too few")
    return str(problem)


def _known_runtime(name: Any) -> str:
    if name not in ("onnxruntime", "openvino"):
        raise ValueError(f"runtime {name!r} is not known")
    return name


# --- answers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WordSpan:
    """A piece of the text that the answer was read from: ``text[start:end]``, in characters.

    ``word`` is the whole word around it (the tokenizer may have kept only a part of a word);
    ``tokens`` are positions on the model's token axis; ``score`` is the highest of them.
    """

    start: int
    end: int
    text: str
    word: str
    tokens: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class PatchBox:
    """A patch that the answer was read from, in pixels of the upright original image (after its
    EXIF rotation); ``row`` and ``column`` count patches from the top left."""

    x: float
    y: float
    width: float
    height: float
    row: int
    column: int
    score: float


@dataclass(frozen=True, slots=True)
class ClassRationale:
    """The best case for one class: what speaks for it most, and what the model says from that."""

    label: str
    probability: float
    """Of ``label``, from ``rationale`` alone; calibrated as the answer's."""
    says: str
    """The most probable label from ``rationale`` alone."""
    says_probability: float
    convinces: bool
    """Whether that is ``label``."""
    answer_probability: float
    """Of ``label`` in the answer, from the answer's own rationale."""
    rationale: tuple[WordSpan, ...] | tuple[PatchBox, ...]
    margin: float
    """As the answer's: near 0, another machine may round to another rationale."""
    kept: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer and its evidence. Of ``label``, ``labels`` and ``values`` the one is there that
    the bundle's ``problem_type`` asks for; the others are None."""

    source: str
    """The text, or the path of the image (empty for pixels)."""
    label: str | None
    """Single-label: the most probable one, also where ``abstain`` is True."""
    probability: float | None
    """Of ``label``; calibrated where the bundle says how."""
    probabilities: dict[str, float]
    """By label; they add up to 1 (single-label), or are each a label's own (multi-label). Empty for
    a regression."""
    abstain: bool
    """Whether the bundle does not answer for this label or its rationale: see ``refused_for``."""
    refused_for: tuple[str, ...]
    """``confidence``: the probability is below the bundle's threshold (multi-label: of the label
    that it is least sure of, ``max(p, 1 - p)``). ``margin``: the rationale is too near to a tie."""
    rationale: tuple[WordSpan, ...] | tuple[PatchBox, ...]
    margin: float
    """Score of the last kept minus the best dropped token; infinite if nothing was dropped."""
    kept: int
    """Tokens or patches in the rationale."""
    candidates: int
    """Tokens or patches it was chosen from."""
    notices: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    """Multi-label: those with a probability above one half, in the bundle's order; there may be
    none."""
    values: dict[str, float] | None = None
    """Regression: by name."""
    case: str | None = None
    """A bundle of two students: what decided between them, one of :data:`CASES`."""
    answer_rationale: tuple[WordSpan, ...] | tuple[PatchBox, ...] | None = None
    """A bundle of two students: the part of ``rationale`` that the one that answers read."""
    consulted: tuple[WordSpan, ...] | tuple[PatchBox, ...] | None = None
    """A bundle of two students: the rest of ``rationale``, which the other one read; the answer
    depends on it too."""
    width: int | None = None
    """Of the upright original image, in pixels."""
    height: int | None = None
    grid: int | None = None
    """Patches along one side of the model's view (images)."""
    overlay: str | None = None
    """Path of the overlay, where one was written."""
    why_not: tuple[ClassRationale, ...] | None = None
    """Where it was asked for: the best case for each other class, the most probable one first."""

    @property
    def rationale_mask(self) -> np.ndarray | None:
        """Images: bool ``[row, column]``, True for the patches that were read. None for texts."""
        if self.grid is None:
            return None
        kept = np.zeros((self.grid, self.grid), dtype=bool)
        for part in self.rationale:
            if isinstance(part, PatchBox):
                kept[part.row, part.column] = True
        return kept

    def to_json(self) -> dict[str, Any]:
        """Plain values only; an infinite margin is null. What the problem type does not answer is
        left out."""
        document = _without_tuples(asdict(self))
        for part in (document, *(document["why_not"] or ())):
            part["margin"] = part["margin"] if math.isfinite(part["margin"]) else None
        for name in _NOT_SHOWN[self.problem_type]:
            del document[name]
        return document

    @property
    def problem_type(self) -> str:
        """One of :data:`PROBLEM_TYPES`."""
        if self.values is not None:
            return REGRESSION
        return SINGLE_LABEL if self.labels is None else MULTI_LABEL


_NOT_SHOWN = {
    SINGLE_LABEL: ("labels", "values"),
    MULTI_LABEL: ("label", "probability", "values"),
    REGRESSION: ("label", "probability", "probabilities", "labels"),
}


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids int64 ``[1, token]`` and where each token lies in the text."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    offsets: list[tuple[int, int]]
    words: list[int | None]
    """Number of the word that each token belongs to; None for special tokens."""
    dropped_tokens: int
    """Tokens beyond what the model reads."""


class TextEncoder:
    """``tokenizer.json`` with the bundle's own truncation and no padding. ``content`` is that of
    the file, where it has been read already."""

    def __init__(self, folder: Path, max_length: int, content: bytes | None = None) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise _missing("tokenizers", "a text bundle", error) from error
        path = folder / TOKENIZER_FILE
        try:
            content = path.read_bytes() if content is None else content
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except FileNotFoundError as error:
            raise _broken(f"{path} is missing") from error
        except Exception as error:  # tokenizers raises bare Exception for a malformed file
            raise _broken(f"{path} is not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    def encode(self, text: str, place: str) -> EncodedText:
        """Raises :class:`InputError` where nothing of the text is left to read."""
        if not text.strip():
            raise InputError(f"{place}: the text is empty", hint="give at least one word")
        try:
            encoding = self._tokenizer.encode(text)
        except (TypeError, UnicodeEncodeError) as error:
            raise InputError(
                f"{place}: the text is not valid Unicode", hint="encode it as UTF-8"
            ) from error
        if all(encoding.special_tokens_mask):
            raise InputError(
                f"{place}: no token of the text is left after normalisation",
                hint="give at least one visible word",
            )
        ids = np.asarray([encoding.ids], dtype=np.int64)
        dropped = sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
        return EncodedText(
            input_ids=ids,
            attention_mask=np.ones_like(ids),
            offsets=[(int(start), int(end)) for start, end in encoding.offsets],
            words=list(encoding.word_ids),
            dropped_tokens=dropped,
        )


@dataclass(frozen=True, slots=True)
class View:
    """How an image became model input: resized to ``resized_width x resized_height``, then a
    square of side ``size`` was cut out at ``left``, ``top`` (pixels)."""

    width: int
    height: int
    resized_width: int
    resized_height: int
    left: int
    top: int
    size: int

    def box(self, row: int, column: int, patch_size: int) -> tuple[float, float, float, float]:
        """``x, y, width, height`` of a patch in pixels of the original image."""
        scale_x = self.width / self.resized_width
        scale_y = self.height / self.resized_height
        return (
            round((self.left + column * patch_size) * scale_x, 3),
            round((self.top + row * patch_size) * scale_y, 3),
            round(patch_size * scale_x, 3),
            round(patch_size * scale_y, 3),
        )


def view_of(width: int, height: int, size: int) -> View:
    """The short side becomes ``size`` (the long one is rounded down); the centre is cut out."""
    if width <= height:
        new_width, new_height = size, max(size, size * height // width)
    else:
        new_width, new_height = max(size, size * width // height), size
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return View(width, height, new_width, new_height, left, top, size)


def read_image(path: Path) -> Image.Image:
    """Any image file as upright 8-bit RGB: grey and palette become RGB, CMYK is converted,
    transparency is laid over white, 16-bit grey keeps its upper 8 bits.

    Raises :class:`InputError` where it is missing, corrupt, too large or no image.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise _missing("pillow", "an image bundle", error) from error
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # broken metadata, whole pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                return upright_rgb(image, str(path))
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image, or of an unknown format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: the image is too large: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _corrupt(str(path), error) from error


def upright_rgb(image: Image.Image, place: str) -> Image.Image:
    """A Pillow image as :func:`read_image` gives it."""
    from PIL import ImageOps

    try:
        image.load()
        return _as_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _corrupt(place, error) from error


def _corrupt(place: str, error: Exception) -> InputError:
    return InputError(f"{place}: the image is corrupt or truncated: {error}")


def image_of_pixels(pixels: np.ndarray) -> Image.Image:
    """uint8 ``[height, width, 3]`` (RGB) or ``[height, width]`` (grey), as a camera gives them."""
    try:
        from PIL import Image
    except ImportError as error:
        raise _missing("pillow", "an image bundle", error) from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise InputError(
            f"pixels are uint8 [height, width, 3] or [height, width], not {pixels.dtype} "
            f"{list(pixels.shape)}"
        )
    if min(pixels.shape[:2]) < 1:
        raise InputError(f"an image of {list(pixels.shape)} has no pixels")
    return Image.fromarray(pixels).convert("RGB")


def _as_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, in 16 or 32 bits
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        foreground = image.convert("RGBA")
        background = Image.new("RGBA", foreground.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, foreground)
    return image.convert("RGB")


def encode_image(image: Image.Image, config: Config) -> tuple[np.ndarray, View]:
    """``pixel_values`` ``[1, 3, size, size]`` of an RGB image, uint8 where the model normalises,
    else float32."""
    view = view_of(image.width, image.height, config.image_size)
    if view.resized_width * view.resized_height > _MOST_PIXELS:
        raise InputError(
            f"an image of {image.width}x{image.height} pixels is too long and thin",
            hint="cut out the part that matters",
        )
    size = config.image_size
    if image.size != (size, size):
        resample = _PIL_RESAMPLE[config.interpolation]
        image = image.resize((view.resized_width, view.resized_height), resample)
        image = image.crop((view.left, view.top, view.left + size, view.top + size))
    pixels = np.asarray(image, dtype=np.uint8)[None]
    if config.model_normalises:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), view
    scale = np.float32(1 / 255) / np.asarray(config.std, dtype=np.float32)
    shift = np.asarray(config.mean, dtype=np.float32) / np.asarray(config.std, dtype=np.float32)
    values = pixels.astype(np.float32) * scale - shift
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)), view


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Over the last axis, in float64: ``[..., class]`` -> ``[..., class]``."""
    wide = logits.astype(np.float64) / temperature
    exponents = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Of each logit by itself, in float64."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64) / temperature))


@dataclass(frozen=True, slots=True)
class Said:
    """What one row of logits says; docs/bundle.md has the rules. ``confidence`` is what is held to
    the bundle's threshold, None where there is nothing to hold."""

    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    values: dict[str, float] | None = None
    confidence: float | None = None


def read_logits(
    logits: np.ndarray,
    problem_type: str,
    names: Sequence[str],
    temperature: float = 1.0,
) -> Said:
    """The meaning of ``[label]``: the most probable class; the labels above one half, which is a
    logit above 0 whatever the temperature; or values."""

    def by_name(numbers: np.ndarray) -> dict[str, float]:
        return dict(zip(names, map(float, numbers), strict=True))

    if problem_type == REGRESSION:
        return Said(values=by_name(logits))
    if problem_type == MULTI_LABEL:
        each = sigmoid(logits, temperature)
        return Said(
            labels=tuple(name for name, logit in zip(names, logits, strict=True) if logit > 0),
            probabilities=by_name(each),
            confidence=float(np.maximum(each, 1 - each).min()),
        )
    shared = softmax(logits, temperature)
    best = int(logits.argmax())
    probability = float(shared[best])
    return Said(names[best], probability, by_name(shared), confidence=probability)


class Rationalist:
    """A verified bundle, ready to answer. Use :meth:`load`."""

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        config: Config,
        session: Any,
        encoder: TextEncoder | None,
        open_why_not: Callable[[], Any] | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.config = config
        self._session = session
        self._input_names = tuple(value.name for value in session.get_inputs())
        answered = {value.name for value in session.get_outputs()}
        self._outputs = _OUTPUTS + (_PAIR_OUTPUTS if answered.issuperset(_PAIR_OUTPUTS) else ())
        self._encoder = encoder
        self._open_why_not = open_why_not
        self._why_not: Any = None

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        *,
        threads: int | None = None,
        provider: str | None = None,
    ) -> Rationalist:
        """Verify every byte of the bundle, then open its model. Small files are used from the bytes
        that were hashed; the model's must be the same file, unchanged, once it is open.

        ``provider`` is onnxruntime's, or OpenVINO's device; by default the CPU.
        ``threads`` defaults to those of the bundle's settings or all, but never to more than the
        cores open to this process. Raises :class:`IntegrityError`, :class:`BackendError` or
        :class:`InputError`.
        """
        folder = Path(bundle)
        needed = {CONFIG_FILE, PREPROCESSOR_FILE, MODEL_FILE}
        small = {CONFIG_FILE, PREPROCESSOR_FILE, TOKENIZER_FILE}
        manifest, evidence = _verified(folder, keep=small)
        listed = {entry["path"] for entry in manifest["files"]}
        if needed - listed:
            raise _broken(f"bundle {folder} has no {', '.join(sorted(needed - listed))}")
        config = read_config(folder, evidence.contents)
        if config.why_not and WHY_NOT_FILE not in listed:
            raise _broken(f"bundle {folder} has no {WHY_NOT_FILE}")
        cores = resolve_threads(threads, config.settings.threads)
        encoder = None
        if config.modality == "text":
            tokenizer = evidence.contents.get(TOKENIZER_FILE)
            if tokenizer is None:
                raise _broken(f"bundle {folder} has no {TOKENIZER_FILE}")
            encoder = TextEncoder(folder, config.max_length, tokenizer)

        def opened(name: str, states: Mapping[str, tuple[int, ...]]) -> Any:
            if config.runtime == "openvino":
                session: Any = _OpenVinoSession(folder / name, cores, provider or "CPU")
            else:
                session = _open_session(
                    folder / name, cores, provider or CPU_PROVIDER, config.settings
                )
            _require_unchanged(folder, states)
            return session

        def asked() -> Any:
            return opened(WHY_NOT_FILE, {WHY_NOT_FILE: evidence.states[WHY_NOT_FILE]})

        session = opened(MODEL_FILE, evidence.states)
        ask = asked if config.why_not else None
        model = cls(folder, manifest, config, session, encoder, ask)
        model._require_interface(MODEL_FILE, session)
        return model

    def _require_interface(self, file: str, session: Any, *more: str) -> None:
        expected = {"text": ("input_ids", "attention_mask"), "image": ("pixel_values",)}
        inputs = tuple(value.name for value in session.get_inputs())
        outputs = {value.name for value in session.get_outputs()}
        wanted = (*expected[self.config.modality], *more)
        if inputs != wanted or not outputs.issuperset(_OUTPUTS):
            raise _broken(
                f"{file} has inputs {', '.join(inputs)} and outputs "
                f"{', '.join(sorted(outputs))}, not those of a {self.config.modality} rationalist"
            )

    def predict(
        self, inputs: Sequence[str] | Sequence[ImageInput], *, why_not: bool = False
    ) -> list[Prediction]:
        """Answer texts, or images, one by one: an answer does not depend on its neighbours.
        ``why_not`` adds the best case for each other class (:attr:`Prediction.why_not`).
        Raises :class:`InputError` naming the first input that cannot be used, or where the bundle
        has no class-wise rationales."""
        return list(self.iter_predict(inputs, why_not=why_not))

    def iter_predict(
        self, inputs: Iterable[str] | Iterable[ImageInput], *, why_not: bool = False
    ) -> Iterator[Prediction]:
        """:meth:`predict`, answer by answer."""
        if isinstance(inputs, str | bytes | os.PathLike):
            raise InputError("predict takes a list of inputs", hint="predict([one_input])")
        if why_not:
            self._ask()
        for number, item in enumerate(inputs, start=1):
            encoded = self.encode(item, f"input {number}")
            prediction = self.decode(encoded, self.run_encoded([encoded])[0])
            yield self.add_why_not(encoded, prediction) if why_not else prediction

    def _ask(self) -> Any:
        """The session of ``why_not.onnx``, opened at the first question."""
        if self.config.problem_type != SINGLE_LABEL:
            raise InputError(
                f"bundle {self.folder} does not answer with one class of several, so it cannot "
                "say why not another",
                hint=f"ask a bundle with problem_type {SINGLE_LABEL}",
            )
        if self._open_why_not is None:
            raise InputError(
                f"bundle {self.folder} has no class-wise rationales, so it cannot say why not",
                hint="train with class_wise_rationales: true and export again",
            )
        if self._why_not is None:
            session = self._open_why_not()
            self._require_interface(WHY_NOT_FILE, session, _CANDIDATE_INPUT)
            self._why_not = session
        return self._why_not

    def add_why_not(self, encoded: Encoded, prediction: Prediction) -> Prediction:
        """``prediction`` of ``encoded`` with the best case for each other class, at most
        :data:`WHY_NOT_CLASSES`, the most probable first. Raises :class:`InputError` where the
        bundle has no class-wise rationales."""
        session, names = self._ask(), self.config.label_names
        others = [name for name in names if name != prediction.label]
        others.sort(key=lambda name: -prediction.probabilities[name])
        found = []
        for name in others[:WHY_NOT_CLASSES]:
            candidate = np.asarray([names.index(name)], dtype=np.int64)
            answers = session.run(list(_OUTPUTS), {**encoded.arrays, _CANDIDATE_INPUT: candidate})
            (answer,) = self._answers(WHY_NOT_FILE, answers, [encoded])
            said = read_logits(
                answer.logits, SINGLE_LABEL, names, self.config.calibration.temperature
            )
            assert said.label is not None
            assert said.probability is not None
            found.append(
                ClassRationale(
                    label=name,
                    probability=said.probabilities[name],
                    says=said.label,
                    says_probability=said.probability,
                    convinces=said.label == name,
                    answer_probability=prediction.probabilities[name],
                    rationale=self._part_of(encoded, answer)(answer.kept),
                    margin=answer.margin,
                    kept=int(answer.kept.sum()),
                )
            )
        notices = prediction.notices
        if len(others) > len(found):
            asked = f"the {len(found)} most probable of the {len(others)} other classes"
            notices += (f"why not: asked for {asked}",)
        return replace(prediction, why_not=tuple(found), notices=notices)

    def encode(self, item: str | ImageInput, place: str = "the input") -> Encoded:
        """The first third of :meth:`predict`: a text or an image as the model's input. Raises
        :class:`InputError` naming ``place``."""
        if self._encoder is None:
            return self._encode_image(item, place)
        if not isinstance(item, str):
            raise InputError(f"{place}: a text is due, not {type(item).__name__}")
        text = self._encoder.encode(item, place)
        arrays = {"input_ids": text.input_ids, "attention_mask": text.attention_mask}
        return Encoded(item, arrays, text.input_ids.shape[1], text=text)

    def decode(self, encoded: Encoded, answer: Answer) -> Prediction:
        """The last third of :meth:`predict`: what the model said, with its evidence in words or
        boxes."""
        if encoded.text is None:
            return self._image_prediction(encoded, answer)
        return self._text_prediction(encoded, encoded.text, answer)

    def _part_of(
        self, whole: Encoded, answer: Answer
    ) -> Callable[[np.ndarray], tuple[WordSpan, ...] | tuple[PatchBox, ...]]:
        """What says of kept positions, bool ``[token]``, what they are in the input."""
        if whole.text is not None:
            text, encoded = whole.source, whole.text
            return lambda kept: word_spans(text, encoded, kept, answer.scores)
        view = whole.view
        assert view is not None
        patch_size = self.config.patch_size
        grid = self.config.image_size // patch_size

        def boxes(kept: np.ndarray) -> tuple[PatchBox, ...]:
            found = []
            for position in np.flatnonzero(kept):
                row, column = divmod(int(position), grid)
                box = view.box(row, column, patch_size)
                found.append(PatchBox(*box, row, column, float(answer.scores[position])))
            return tuple(found)

        return boxes

    def _text_prediction(self, whole: Encoded, encoded: EncodedText, answer: Answer) -> Prediction:
        text = whole.source
        notices = ()
        if encoded.dropped_tokens:
            total = encoded.dropped_tokens + sum(word is not None for word in encoded.words)
            end = max(end for _, end in encoded.offsets)
            notices = (
                f"truncated: the model reads the first {total - encoded.dropped_tokens} of "
                f"{total} tokens (to character {end} of {len(text)})",
            )
        return self._prediction(
            text,
            answer,
            part=self._part_of(whole, answer),
            candidates=sum(word is not None for word in encoded.words),
            notices=notices,
        )

    def _encode_image(self, item: ImageInput, place: str) -> Encoded:
        source = ""
        if isinstance(item, str | os.PathLike):
            source = os.fspath(item)
            image = read_image(Path(source))
        elif isinstance(item, np.ndarray):
            image = image_of_pixels(item)
        elif hasattr(item, "getexif"):
            image = upright_rgb(item, place)
        else:
            raise InputError(f"{place}: an image is due, not {type(item).__name__}")
        pixels, view = encode_image(image, self.config)
        grid = self.config.image_size // self.config.patch_size
        return Encoded(source, {"pixel_values": pixels}, grid * grid, view=view)

    def _image_prediction(self, encoded: Encoded, answer: Answer) -> Prediction:
        view = encoded.view
        assert view is not None
        grid = self.config.image_size // self.config.patch_size
        part = self._part_of(encoded, answer)
        prediction = self._prediction(
            encoded.source, answer, part=part, candidates=grid * grid, notices=()
        )
        return replace(prediction, width=view.width, height=view.height, grid=grid)

    def run_encoded(self, encoded: Sequence[Encoded]) -> list[Answer]:
        """The middle third of :meth:`predict`: one run of the model over all of ``encoded``, texts
        filled up to the longest. In company an answer may differ by rounding. Raises
        :class:`InputError` where the model takes one input at a time."""
        feeds = encoded[0].arrays if len(encoded) == 1 else self._batch(encoded)
        return self._answers(MODEL_FILE, self._session.run(list(self._outputs), feeds), encoded)

    def _answers(
        self, file: str, answers: Sequence[np.ndarray], encoded: Sequence[Encoded]
    ) -> list[Answer]:
        """What the model in ``file`` said of ``encoded``, one by one."""
        logits, kept, scores, margin, *decision = answers
        classes, rows = len(self.config.label_names), len(encoded)
        tokens = max(one.tokens for one in encoded)
        by_token = (rows, tokens)
        shapes = ((rows, classes), by_token, by_token, (rows,), by_token, (rows,))[: len(answers)]
        found = tuple(array.shape for array in answers)
        if found != shapes:
            raise _broken(f"{file} answers in shapes {found} where {shapes} are due")
        if not np.isfinite(logits).all() or np.isnan(margin).any():
            raise RekdRuntimeError(
                f"{file} answers with numbers that are not finite",
                hint="check the bundle with `rekd-edge check`",
            )
        alone = [
            Answer(
                logits[row],
                kept[row, : one.tokens].astype(bool),
                scores[row, : one.tokens],
                float(margin[row]),
            )
            for row, one in enumerate(encoded)
        ]
        if not decision:
            return alone
        return [
            _decided(answer, read[: one.tokens].astype(bool), int(case))
            for answer, one, read, case in zip(alone, encoded, *decision, strict=True)
        ]

    @property
    def takes_batches(self) -> bool:
        """Whether :meth:`run_encoded` takes several inputs at once."""
        return not isinstance(self._session.get_inputs()[0].shape[0], int)

    def _batch(self, encoded: Sequence[Encoded]) -> dict[str, np.ndarray]:
        """``[batch, ...]`` of each input."""
        if not encoded or not self.takes_batches:
            raise InputError(f"{MODEL_FILE} takes one input at a time, not {len(encoded)}")
        tokens = max(one.tokens for one in encoded)
        feeds = {}
        for name in self._input_names:
            rows = [one.arrays[name] for one in encoded]
            if self._encoder is not None:
                filling = self.config.pad_id if name == "input_ids" else 0
                batch = np.full((len(rows), tokens), filling, dtype=np.int64)
                for row, own in zip(batch, rows, strict=True):
                    row[: own.shape[1]] = own[0]
                rows = [batch]
            feeds[name] = np.concatenate(rows)
        return feeds

    def _prediction(
        self,
        source: str,
        answer: Answer,
        *,
        part: Callable[[np.ndarray], tuple[WordSpan, ...] | tuple[PatchBox, ...]],
        candidates: int,
        notices: tuple[str, ...],
    ) -> Prediction:
        """``part`` says what kept positions, bool ``[token]``, are in the input."""
        config = self.config
        said = read_logits(
            answer.logits,
            config.problem_type,
            config.label_names,
            config.calibration.temperature,
        )
        refused_for = config.calibration.refusals(said.confidence, answer.margin)
        return Prediction(
            source=source,
            label=said.label,
            probability=said.probability,
            probabilities=said.probabilities,
            labels=said.labels,
            values=said.values,
            abstain=bool(refused_for),
            refused_for=refused_for,
            rationale=part(answer.kept),
            margin=answer.margin,
            kept=int(answer.kept.sum()),
            candidates=candidates,
            notices=notices,
            case=answer.case,
            answer_rationale=None if answer.read is None else part(answer.read),
            consulted=None if answer.read is None else part(answer.kept & ~answer.read),
        )


@dataclass(frozen=True, slots=True)
class Encoded:
    """One input as :meth:`Rationalist.encode` gives it."""

    source: str
    """The text, or the path of the image (empty for pixels)."""
    arrays: dict[str, np.ndarray]
    """``[1, ...]`` by the name of the model's input."""
    tokens: int
    """Tokens, special ones included, or patches."""
    text: EncodedText | None = None
    view: View | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of one input: float32 ``[class]``, bool ``[token]``, float32 ``[token]``,
    a float; of two students also what the one that answers read, bool ``[token]``, and the case."""

    logits: np.ndarray
    kept: np.ndarray
    scores: np.ndarray
    margin: float
    read: np.ndarray | None = None
    case: str | None = None


def _decided(answer: Answer, read: np.ndarray, case: int) -> Answer:
    """What one of two students answered from ``read``, bool ``[token]``."""
    if not 0 <= case < len(CASES) or (read & ~answer.kept).any():
        raise _broken(f"{MODEL_FILE} answers in case {case}, or from what it did not keep")
    return replace(answer, read=read, case=CASES[case])


def session_options(onnxruntime: Any, threads: int, settings: SessionSettings) -> Any:
    """The options of ``rekd_edge/runtime_options.py`` (a test holds the two in step)."""
    parallel = settings.execution_mode == "parallel" and threads > 1
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 2 if parallel else 1
    options.intra_op_num_threads = threads // 2 if parallel else threads
    mode = onnxruntime.ExecutionMode
    options.execution_mode = mode.ORT_PARALLEL if parallel else mode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, _OPTIMIZATION_LEVELS[settings.graph_optimization]
    )
    options.enable_cpu_mem_arena = settings.cpu_arena
    options.enable_mem_pattern = settings.memory_pattern
    spins = "1" if settings.spinning else "0"
    entries = {
        "session.disable_prepacking": "0" if settings.prepacking else "1",
        "session.intra_op.allow_spinning": spins,
        "session.inter_op.allow_spinning": spins,
        "session.force_spinning_stop": "1",  # threads sleep between two queries
    }
    if settings.dynamic_block_base:
        entries["session.dynamic_block_base"] = str(settings.dynamic_block_base)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def _open_session(path: Path, threads: int, provider: str, settings: SessionSettings) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime", "this bundle", error) from error
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise BackendError(
            f"this onnxruntime has no {provider}, only {', '.join(available)}",
            hint="install a build of onnxruntime that has it",
        )
    options = session_options(onnxruntime, threads, settings)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's own classes share no documented base
        reason = " ".join(str(error).split())
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} cannot open {path}: {reason}",
            hint="python -m pip install --upgrade onnxruntime",
        ) from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"{provider} was asked for and onnxruntime fell back to {session.get_providers()[0]}"
        )
    return session


@dataclass(frozen=True, slots=True)
class _Port:
    name: str
    shape: tuple[int | str, ...] = ()


class _OpenVinoSession:
    """OpenVINO with the three methods of an onnxruntime session that are used here. It computes in
    fp32 on the device and the threads asked for, or refuses."""

    def __init__(self, path: Path, threads: int, device: str) -> None:
        try:
            import openvino
        except ImportError as error:
            raise _missing("openvino", "this bundle", error) from error
        asked = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        core = openvino.Core()
        try:
            compiled = core.compile_model(
                core.read_model(str(path)),
                device,
                {
                    **asked,
                    "PERFORMANCE_HINT": "LATENCY",
                    "NUM_STREAMS": "1",
                    "EXECUTION_MODE_HINT": "ACCURACY",
                },
            )
        except Exception as error:  # openvino raises bare RuntimeError
            reason = " ".join(str(error).split())
            raise BackendError(
                f"openvino {openvino.__version__} cannot open {path}: {reason}",
                hint="python -m pip install --upgrade openvino",
            ) from error
        found = {
            "INFERENCE_PRECISION_HINT": compiled.get_property(
                "INFERENCE_PRECISION_HINT"
            ).to_string(),
            "INFERENCE_NUM_THREADS": compiled.get_property("INFERENCE_NUM_THREADS"),
        }
        devices = list(compiled.get_property("EXECUTION_DEVICES"))
        if found != asked or devices != [device]:
            raise BackendError(
                f"asked openvino for {asked} on {device}, it would run with {found} on {devices}"
            )
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def get_inputs(self) -> list[_Port]:
        return [
            _Port(
                port.get_node().get_friendly_name(),
                tuple("?" if side.is_dynamic else len(side) for side in port.get_partial_shape()),
            )
            for port in self._compiled.inputs
        ]

    def get_outputs(self) -> list[_Port]:
        return [_Port(name) for port in self._compiled.outputs for name in port.get_names()]

    def run(self, outputs: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        answers = self._request.infer(feeds)
        return [answers[name] for name in outputs]


def resolve_threads(
    threads: int | None,
    stored: int | None = None,
    cgroup_root: Path = Path("/sys/fs/cgroup"),
) -> int:
    """As asked; or the cores open to this process (affinity and cgroup quota), of which
    ``stored``, found on another machine perhaps, takes no more than there are."""
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        return threads
    cores = _available_cores(cgroup_root)
    return cores if stored is None else min(stored, cores)


def _available_cores(cgroup_root: Path) -> int:
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    quota = cpu_quota(cgroup_root)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cpu_quota(root: Path) -> float | None:
    """In cores, from cgroup v2 or v1; None where there is no limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = [word for name in files for word in (root / name).read_text("ascii").split()]
            quota, period = words[:2]
            if quota in ("max", "-1"):
                return None
            return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return None


def _missing(package: str, what: str, error: ImportError) -> BackendError:
    return BackendError(
        f"{what} needs {package}, which cannot be imported ({error})",
        hint=f"python -m pip install {package}",
    )


def word_spans(
    text: str, encoded: EncodedText, kept: np.ndarray, scores: np.ndarray
) -> tuple[WordSpan, ...]:
    """Kept tokens as pieces of the text: neighbouring tokens of one word are joined.

    ``kept`` is bool ``[token]``, ``scores`` float ``[token]``. Whatever was not kept stays
    outside, even inside a word: the answer was not read from it.
    """
    whole: dict[int, tuple[int, int]] = {}
    for word, (start, end) in zip(encoded.words, encoded.offsets, strict=True):
        if word is not None:
            first, last = whole.get(word, (start, end))
            whole[word] = (min(first, start), max(last, end))
    runs: list[list[int]] = []
    for position in np.flatnonzero(kept):
        token = int(position)
        word = encoded.words[token]
        if word is None:
            raise _broken(f"{MODEL_FILE} keeps token {token}, which is not part of the text")
        if runs and runs[-1][-1] == token - 1 and encoded.words[runs[-1][-1]] == word:
            runs[-1].append(token)
        else:
            runs.append([token])
    spans = []
    for run in runs:
        start = min(encoded.offsets[token][0] for token in run)
        end = max(encoded.offsets[token][1] for token in run)
        word = encoded.words[run[0]]
        assert word is not None
        spans.append(
            WordSpan(
                start=start,
                end=end,
                text=text[start:end],
                word=text[slice(*whole[word])],
                tokens=tuple(run),
                score=max(float(scores[token]) for token in run),
            )
        )
    return tuple(spans)


# --- for people -------------------------------------------------------------------------------


def highlight(
    text: str, spans: Iterable[WordSpan], *, color: bool, consulted: Iterable[WordSpan] = ()
) -> str:
    """The text with its rationale marked: bold and reversed, or in [brackets]; what was
    ``consulted`` besides is underlined, or in (parentheses).

    Control characters of the text are shown as pictures: a text must not steer the terminal.
    """
    marks = _HIGHLIGHT if color else _BRACKETS
    others = _CONSULTED_HIGHLIGHT if color else _CONSULTED_BRACKETS
    marked = [(start, end, marks) for start, end in _joined(text, spans)]
    marked += [(start, end, others) for start, end in _joined(text, consulted)]
    pieces, position = [], 0
    for start, end, (opening, closing) in sorted(marked):
        pieces += [visible(text[position:start]), opening, visible(text[start:end]), closing]
        position = end
    return "".join([*pieces, visible(text[position:])])


def _joined(text: str, spans: Iterable[WordSpan]) -> Iterator[tuple[int, int]]:
    """Spans without overlap; those with nothing but blanks between them become one."""
    current: tuple[int, int] | None = None
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        if current is not None and not text[current[1] : span.start].strip():
            current = (current[0], max(current[1], span.end))
        else:
            if current is not None:
                yield current
            current = (span.start, span.end)
    if current is not None:
        yield current


def visible(text: str) -> str:
    """Control characters other than line end and tab as pictures of the same length, and the
    characters that turn the direction of a text round (bidirectional overrides) as a box."""

    def picture(character: str) -> str:
        code = ord(character)
        if code < 32 and character not in "\n\t":
            return chr(0x2400 + code)
        turned = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
        return "\ufffd" if 127 <= code < 160 or 0xD800 <= code < 0xE000 or turned else character

    return "".join(map(picture, text))


def answer_in_words(prediction: Prediction) -> str:
    """What was answered, on one line; of several labels and values each with its number."""
    if prediction.values is not None:
        values = prediction.values.items()
        return ", ".join(f"{visible(name)}  {value:.6g}" for name, value in values)
    if prediction.labels is None:
        return f"{visible(prediction.label or '')}  {prediction.probability:.3f}"
    of = prediction.probabilities
    if not prediction.labels:
        nearest = max(of, key=lambda name: of[name])
        return f"no label, nearest {visible(nearest)}  {of[nearest]:.3f}"
    return ", ".join(f"{visible(name)}  {of[name]:.3f}" for name in prediction.labels)


def describe(prediction: Prediction, *, color: bool) -> str:
    """An answer for the terminal, without a final line end."""
    unit = "tokens" if prediction.grid is None else "patches"
    withheld = ""
    if prediction.abstain:
        withheld = f"no answer ({' and '.join(prediction.refused_for)} too low), at best "
    decided = ""
    if prediction.case is not None:
        decided = f", two students: {prediction.case.replace('_', ' ')}"
    head = (
        f"{withheld}{answer_in_words(prediction)}  "
        f"(from {prediction.kept} of {prediction.candidates} {unit}, margin "
        f"{prediction.margin:.3g}{decided})"
    )
    read = prediction.rationale
    if prediction.answer_rationale is not None:
        read = prediction.answer_rationale
    consulted = prediction.consulted or ()
    body = _marked(prediction, read, consulted, color=color)
    if prediction.grid is not None:
        pixels = f"({prediction.width}x{prediction.height} pixels)"
        body.insert(0, f"{visible(prediction.source)} {pixels}")
        if prediction.overlay is not None:
            body.append(f"overlay: {visible(prediction.overlay)}")
    for one in prediction.why_not or ():
        body += [
            "",
            _best_case(one, prediction),
            *_marked(prediction, one.rationale, (), color=color),
        ]
    return "\n".join([head, *body])


def _best_case(one: ClassRationale, prediction: Prediction) -> str:
    """One line over the rationale for a class."""
    label = visible(one.label)
    said = f"{label} {one.probability:.3f}"
    if not one.convinces:
        still = "still " if one.says == prediction.label else ""
        said = f"{still}{visible(one.says)} {one.says_probability:.3f}, {said}"
    unit = "tokens" if prediction.grid is None else "patches"
    return (
        f"why not {label}? from its best {one.kept} {unit} alone: {said}  "
        f"(in the answer {one.answer_probability:.3f}, margin {one.margin:.3g})"
    )


def _marked(
    prediction: Prediction,
    read: Sequence[WordSpan | PatchBox],
    consulted: Sequence[WordSpan | PatchBox],
    *,
    color: bool,
) -> list[str]:
    """Lines that show the input with ``read`` and ``consulted`` marked; no grid of more than 32
    patches a side."""
    if prediction.grid is None:
        spans = [part for part in read if isinstance(part, WordSpan)]
        others = [part for part in consulted if isinstance(part, WordSpan)]
        return [highlight(prediction.source, spans, color=color, consulted=others)]
    marks = {(p.row, p.column): "+" for p in consulted if isinstance(p, PatchBox)}
    marks |= {(p.row, p.column): "#" for p in read if isinstance(p, PatchBox)}
    if prediction.grid > 32:
        return []
    side = range(prediction.grid)
    return ["  " + " ".join(marks.get((r, c), ".") for c in side) for r in side]


def use_color(stream: TextIO) -> bool:
    """Whether to highlight with terminal codes: on a terminal, unless ``NO_COLOR`` is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def draw_overlay(image: Image.Image, boxes: Iterable[PatchBox]) -> Image.Image:
    """The image with everything dimmed that the answer was not read from, kept patches
    outlined. Small images are enlarged (a multiple of their size), very large ones reduced."""
    from PIL import Image, ImageDraw

    long_side = max(image.size)
    scale = max(1, 384 // long_side) if long_side <= 2048 else 2048 / long_side
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    enlarged = image.resize(
        size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    )
    dimmed = Image.blend(enlarged.convert("L").convert("RGB"), Image.new("RGB", size), 0.65)
    kept = Image.new("L", size, 0)
    corners = [
        (
            round(box.x * scale),
            round(box.y * scale),
            max(round(box.x * scale), round((box.x + box.width) * scale) - 1),
            max(round(box.y * scale), round((box.y + box.height) * scale) - 1),
        )
        for box in boxes
    ]
    for rectangle in corners:
        ImageDraw.Draw(kept).rectangle(rectangle, fill=255)
    picture = Image.composite(enlarged, dimmed, kept)
    for rectangle in corners:
        line = max(1, min(size) // 200)
        ImageDraw.Draw(picture).rectangle(rectangle, outline=(255, 214, 0), width=line)
    return picture


def write_overlay(prediction: Prediction, path: Path) -> Prediction:
    """Draw the answer's overlay as a PNG at ``path`` (whole or not at all) and return the
    prediction with ``overlay`` set. Raises :class:`InputError` where it cannot be written."""
    boxes = [part for part in prediction.rationale if isinstance(part, PatchBox)]
    if not prediction.source:
        raise InputError("an overlay needs an image file", hint="use draw_overlay with the image")
    picture = draw_overlay(read_image(Path(prediction.source)), boxes)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    _write_bytes(path, buffer.getvalue(), hint="choose another folder, or use --no-overlay")
    return replace(prediction, overlay=str(path))


def write_overlays(predictions: Sequence[Prediction], folder: Path) -> list[Prediction]:
    """``<image name>.rationale.png`` for each, numbered where two images share a name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot make the folder {folder}: {reason}",
            hint="choose another folder, or use --no-overlay",
        ) from error
    used: set[str] = set()
    written = []
    for prediction in predictions:
        stem = name = Path(prediction.source).stem
        number = 1
        while name in used:
            number += 1
            name = f"{stem}-{number}"
        used.add(name)
        written.append(write_overlay(prediction, folder / f"{name}.rationale.png"))
    return written


def _write_bytes(path: Path, content: bytes, *, hint: str) -> None:
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).chmod(0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


# --- the command ------------------------------------------------------------------------------


def read_inputs(arguments: Sequence[str], modality: str, stdin: TextIO) -> Iterator[str]:
    """Texts, or paths of images, from command-line arguments.

    ``-`` stands for one input a line of standard input. For texts, ``@FILE`` is the content of a
    file and ``@@...`` a text that begins with ``@``. Raises :class:`InputError` where
    something cannot be read or is not UTF-8.
    """
    for argument in arguments:
        if argument == "-":
            yield from _lines(stdin)
        elif modality == "text" and argument.startswith("@@"):
            yield argument[1:]
        elif modality == "text" and argument.startswith("@"):
            yield _text_file(Path(argument[1:]))
        else:
            yield argument


def _lines(stdin: TextIO) -> Iterator[str]:
    stream = getattr(stdin, "buffer", None)
    number = 0
    for line in stdin if stream is None else stream:
        number += 1
        if isinstance(line, bytes):
            try:
                line = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"standard input, line {number}: not UTF-8") from error
        line = line.rstrip("\r\n")
        if not line.strip():
            raise InputError(f"standard input, line {number}: empty")
        yield line
    if number == 0:
        raise InputError("standard input is empty", hint="give one input a line")


def _text_file(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise InputError(
                f"{path}: not UTF-8 (byte {error.start})", hint="convert it to UTF-8"
            ) from error
        raise InputError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}",
            hint="a text that begins with @ is written @@...",
        ) from error
    if not text.strip():
        raise InputError(f"{path}: the text is empty")
    return text


def answer(
    bundle: str | os.PathLike[str],
    arguments: Sequence[str],
    *,
    threads: int | None,
    overlay: Path | None,
    stdin: TextIO,
    why_not: bool = False,
) -> tuple[Rationalist, list[Prediction]]:
    """Everything that the command line does, short of printing. ``overlay`` None writes no
    picture."""
    model = Rationalist.load(bundle, threads=threads)
    inputs = list(read_inputs(arguments, model.config.modality, stdin))
    predictions = model.predict(inputs, why_not=why_not)
    if model.config.modality == "image" and overlay is not None:
        predictions = write_overlays(predictions, overlay)
    return model, predictions


def result_document(model: Rationalist, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """What ``--json`` shows."""
    return {
        "schema_version": 1,
        "bundle": str(model.folder),
        "name": model.manifest.get("name"),
        "modality": model.config.modality,
        "problem_type": model.config.problem_type,
        "label_names": list(model.config.label_names),
        "rationale_ratio": model.config.rationale_ratio,
        "predictions": [prediction.to_json() for prediction in predictions],
    }


def notices(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Remarks for standard error, one a line."""
    for number, prediction in enumerate(predictions, start=1):
        for notice in prediction.notices:
            yield f"note: input {number}: {notice}"


def _parser() -> argparse.ArgumentParser:
    own = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(
        description="Answer from a rekd-edge bundle and show what the answer was read from.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a text, @FILE with a text, an image file, or - for one input a line",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=own if (own / MANIFEST_FILE).is_file() else None,
        required=not (own / MANIFEST_FILE).is_file(),
        help="the bundle folder (default: the one this file lies in)",
    )
    parser.add_argument("--version", action="version", version=f"rekd-edge-runtime {__version__}")
    parser.add_argument(
        "--json", metavar="PATH|-", help="write the result as JSON; - prints only JSON"
    )
    parser.add_argument("--threads", type=int, help="default: the cores open to this process")
    parser.add_argument(
        "--overlay",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="images: where to write <name>.rationale.png (default: the current folder)",
    )
    parser.add_argument("--no-overlay", action="store_true", help="images: write no picture")
    parser.add_argument(
        "--why-not",
        action="store_true",
        help="also show the best case for each other class, and what the model says from that",
    )
    return parser


def _show(options: argparse.Namespace) -> None:
    model, predictions = answer(
        options.bundle,
        options.inputs,
        threads=options.threads,
        overlay=None if options.no_overlay else options.overlay,
        stdin=sys.stdin,
        why_not=options.why_not,
    )
    for line in notices(predictions):
        print(line, file=sys.stderr)
    document = result_document(model, predictions)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    if options.json is not None:
        _write_bytes(Path(options.json), text.encode(), hint="name a file in an existing folder")
    color = use_color(sys.stdout)
    print("\n\n".join(describe(prediction, color=color) for prediction in predictions))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; failures become one message, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        _show(_parser().parse_args(argv))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone: not our failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        return _fail("interrupted", 130, error)
    except RekdRuntimeError as error:
        return _fail(f"error: {error}", error.exit_code, error)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        details = f"run with {TRACEBACK_VARIABLE}=1 for details"
        return _fail(f"unexpected: {what} (a bug: please report it; {details})", 1, error)
    return 0


def _fail(message: str, exit_code: int, error: BaseException) -> int:
    if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
        traceback.print_exception(error)
    print(message, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
