"""Selector and predictor of a run as ordinary models of transformers and timm.

    DIR/README.md       what opens each folder, and what its answers are
    DIR/predictor/      config.json, model.safetensors; texts: tokenizer.json and its config
    DIR/selector/       the same, and head.safetensors where the plain model has no such head

Each folder is opened again and compared with the trained module before DIR gets its name. A part
that no plain model can hold is left out, with the reason (docs/interop.md, docs/adr/0026). One role
is written at a time: of two students that answer together, the student or the partner.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rekd_edge.data.preprocess import ImagePreprocessor, Preprocessor, TextPreprocessor
from rekd_edge.data.storage import write_text
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.models.convolution import ConvEncoder
from rekd_edge.models.encoder import BertEncoder, TokenReader, VitEncoder, patch_grid
from rekd_edge.models.rationalist import (
    BlockSelector,
    Classifier,
    Predictor,
    PublishedHead,
    Selector,
)
from rekd_edge.models.selectors import LowResolutionSelector, SharedSelector
from rekd_edge.run_folder import Run

Role = Literal["student", "partner", "teacher"]
PartName = Literal["selector", "predictor"]
TOLERANCE = 1e-4
"""Largest difference between a part and its plain model, relative to the largest answer or 1."""
SELECTOR_LABELS = ("drop", "keep")
HEAD_FILE = "head.safetensors"


@dataclass(frozen=True, slots=True)
class PlainPart:
    """One folder that was written."""

    name: PartName
    library: Literal["transformers", "timm"]
    model: str
    """The class of transformers, or the architecture of timm."""
    opens_with: str
    """Python, with ``FOLDER`` for the folder."""
    answer: str
    """How the part's own answer follows from that of the plain model."""
    max_difference: float
    """Largest absolute difference of that answer on example inputs, folder against trained part."""


@dataclass(frozen=True, slots=True)
class PlainModels:
    """What :func:`write_plain_models` wrote; ``left_out`` gives the reason by part."""

    path: Path
    role: Role
    parts: tuple[PlainPart, ...]
    left_out: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "path": str(self.path),
            "role": self.role,
            "parts": [asdict(part) for part in self.parts],
            "left_out": dict(self.left_out),
        }


class _NotPlainError(Exception):
    """Why no plain model can hold a part."""


def write_plain_models(run: Run, output: Path, role: Role = "student") -> PlainModels:
    """Write the selector and the predictor of ``role`` to ``output``, a new folder, whole or not at
    all.

    Raises:
        UsageError: ``output`` exists, the run has no such role, or no part is a plain model.
        IntegrityError: weights are missing or broken, or a folder does not answer as its part does.
    """
    if os.path.lexists(output):
        raise UsageError(f"{output} exists", hint="name a new folder")
    selector, predictor, preprocessor = _trained(run, role)
    parts: list[PlainPart] = []
    left_out: dict[str, str] = {}
    with _new_folder(output) as folder:
        if selector is None:
            left_out["selector"] = "a plain classifier has none"
        else:
            try:
                parts.append(_write_selector(folder / "selector", selector, preprocessor))
            except _NotPlainError as reason:
                left_out["selector"] = str(reason)
        try:
            written = _write_predictor(
                folder / "predictor", predictor, run.label_names, preprocessor
            )
            parts.append(written)
        except _NotPlainError as reason:
            left_out["predictor"] = str(reason)
        if not parts:
            raise UsageError(
                f"no part of the {role} of {run.path} is a plain model:\n  "
                + "\n  ".join(f"{name}: {reason}" for name, reason in left_out.items()),
                hint="the bundle opens in optimum whatever its parts are (docs/interop.md)",
            )
        result = PlainModels(output, role, tuple(parts), left_out)
        write_text(folder / "README.md", _readme(result))
    return result


def _trained(run: Run, role: Role) -> tuple[Selector | None, Predictor, Preprocessor]:
    if role == "teacher":
        teacher = run.teacher()
        if teacher is None:
            raise UsageError(f"{run.path} has no teacher", hint="leave --role out")
        return teacher.selector, teacher.predictor, run.teacher_preprocessor
    if role == "partner":
        partner = run.partner()
        if partner is None:
            raise UsageError(f"{run.path} has no partner", hint="leave --role out")
        return partner.selector, partner.predictor, run.preprocessor
    if run.recipe.task == "classify":
        return None, run.classifier().eval().predictor, run.preprocessor
    student = run.student()
    return student.selector, student.predictor, run.preprocessor


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder under a temporary name that becomes ``path`` at the end, or vanishes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}", hint="name another folder"
        ) from error
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if os.path.lexists(path):  # made by somebody else meanwhile
            raise UsageError(f"{path} exists", hint="name a new folder")
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


# --- the parts --------------------------------------------------------------------------------


def _write_selector(folder: Path, selector: Selector, preprocessor: Preprocessor) -> PlainPart:
    if isinstance(selector, SharedSelector):
        raise _NotPlainError(
            "it is the predictor's own first blocks with a norm and a head, not a model of its own"
        )
    if not isinstance(selector, BlockSelector):
        raise _NotPlainError(
            "it is convolutions or a narrow transformer over embeddings without context, a model "
            "that neither transformers nor timm has"
        )
    encoder = selector.encoder
    if isinstance(encoder, BertEncoder):
        return _write_bert_selector(folder, selector, encoder, _text(preprocessor))
    return _write_image_selector(folder, selector, encoder, _image(preprocessor))


def _write_predictor(
    folder: Path, predictor: Predictor, label_names: tuple[str, ...], preprocessor: Preprocessor
) -> PlainPart:
    encoder = predictor.encoder
    if isinstance(encoder, BertEncoder):
        return _write_bert_predictor(folder, predictor, encoder, label_names, _text(preprocessor))
    return _write_image_predictor(folder, predictor, encoder, label_names, _image(preprocessor))


def _text(preprocessor: Preprocessor) -> TextPreprocessor:
    assert isinstance(preprocessor, TextPreprocessor)
    return preprocessor


def _image(preprocessor: Preprocessor) -> ImagePreprocessor:
    assert isinstance(preprocessor, ImagePreprocessor)
    return preprocessor


# --- texts ------------------------------------------------------------------------------------


def _write_bert_selector(
    folder: Path, selector: BlockSelector, encoder: BertEncoder, preprocessor: TextPreprocessor
) -> PlainPart:
    inputs = _example_texts(encoder)
    attended = inputs["attention_mask"][:, 1:] > 0
    if _is_linear(selector.head):
        _save_bert(folder, encoder, selector.head, SELECTOR_LABELS, preprocessor)
        plain = _open_bert(folder, "BertForTokenClassification")
        with torch.no_grad():
            expected, found = selector(inputs).logits, plain(**inputs).logits[:, 1:]
        name, keys = "BertForTokenClassification", ""
        answer = "logits[..., 1] - logits[..., 0] is the score"
    else:
        _save_bert(folder, encoder, None, (), preprocessor)
        _save_head(folder, selector.head)
        plain = _open_bert(folder, "BertModel")
        with torch.no_grad():
            expected = encoder.token_features(encoder.view(inputs))
            found = plain(**inputs).last_hidden_state[:, 1:]
        name, keys = "BertModel", ", add_pooling_layer=False"
        answer = f"its hidden states are what the head ({HEAD_FILE}) scores; it is no linear one"
    return PlainPart(
        "selector",
        "transformers",
        name,
        f'transformers.{name}.from_pretrained("FOLDER"{keys})',
        f"{answer} of a token; [CLS], [SEP] and padding are never chosen",
        _require_equal("selector", found[attended], expected[attended]),
    )


def _write_bert_predictor(
    folder: Path,
    predictor: Predictor,
    encoder: BertEncoder,
    label_names: tuple[str, ...],
    preprocessor: TextPreprocessor,
) -> PlainPart:
    _save_bert(folder, encoder, predictor.head, label_names, preprocessor)
    plain = _open_bert(folder, "BertForTokenClassification")
    inputs = _example_texts(encoder)
    with torch.no_grad():
        expected = Classifier(predictor)(inputs)
        logits = plain(**inputs).logits
    if predictor.pooling == "cls":
        found = logits[:, 0]
        answer = "logits[:, 0], those of [CLS], are the predictor's on the whole text"
    else:
        weight = inputs["attention_mask"].unsqueeze(2)
        found = (logits * weight).sum(dim=1) / weight.sum(dim=1)
        answer = (
            "the mean of logits over all tokens that are not padding is the predictor's on the "
            "whole text"
        )
    return PlainPart(
        "predictor",
        "transformers",
        "BertForTokenClassification",
        'transformers.BertForTokenClassification.from_pretrained("FOLDER")',
        answer,
        _require_equal("predictor", found, expected),
    )


def _is_linear(head: nn.Linear) -> bool:
    return not isinstance(head, PublishedHead) or isinstance(head.hidden, nn.Identity)


def _save_bert(
    folder: Path,
    encoder: BertEncoder,
    head: nn.Linear | None,
    label_names: tuple[str, ...],
    preprocessor: TextPreprocessor,
) -> None:
    """``head`` None writes the encoder alone."""
    from transformers import BertForTokenClassification, BertModel

    config = copy.deepcopy(encoder.backbone.config)
    if head is None:
        plain: Any = BertModel(config, add_pooling_layer=False)
        plain.load_state_dict(encoder.backbone.state_dict())
    else:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: index for index, name in enumerate(label_names)}
        plain = BertForTokenClassification(config)
        plain.bert.load_state_dict(encoder.backbone.state_dict())
        plain.classifier.load_state_dict(head.state_dict())
    plain.save_pretrained(folder)
    preprocessor.save_tokenizer(folder)


def _open_bert(folder: Path, name: str) -> Any:
    import transformers

    # Without a pooler: it would start from random weights, and nothing here has one.
    keys = {"add_pooling_layer": False} if name == "BertModel" else {}
    return getattr(transformers, name).from_pretrained(folder, local_files_only=True, **keys).eval()


def _example_texts(encoder: BertEncoder) -> dict[str, Tensor]:
    """Two rows of word pieces, the second one padded; the same each time."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(encoder.backbone.config.vocab_size)
    length = min(24, encoder.max_positions)
    ids = torch.randint(0, vocabulary, (2, length), generator=generator)
    ids[:, 0] = encoder.cls_id
    attended = torch.ones_like(ids)
    attended[1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": attended}


# --- images -----------------------------------------------------------------------------------


def _write_image_selector(
    folder: Path, selector: BlockSelector, encoder: TokenReader, preprocessor: ImagePreprocessor
) -> PlainPart:
    name = _architecture(encoder)
    grid = patch_grid(encoder)
    assert grid is not None
    if isinstance(encoder, VitEncoder):
        keys = _vit_keys(encoder) | {"global_pool": ""}
        size = grid[0] * encoder.patch_size[0]
        prefix = encoder.num_prefix_tokens
        answer = f"its tokens from {prefix} on are what the head ({HEAD_FILE}) scores, row by row"
    else:
        keys, size, prefix = {}, preprocessor.image_size, 0
        answer = (
            f"its feature map (forward_features), resampled to {grid[0]} x {grid[1]}, is what the "
            f"head ({HEAD_FILE}) scores"
        )
    _save_timm(folder, name, encoder, None, keys, (), preprocessor, size)
    _save_head(folder, selector.head)
    plain = _open_timm(folder)
    pixels = _example_images(size)
    with torch.no_grad():
        if isinstance(encoder, VitEncoder):
            found = plain(pixels)[:, prefix:]
            expected = encoder.token_features(encoder.view({"pixel_values": pixels}))
        else:
            assert isinstance(encoder, ConvEncoder)
            found = plain.forward_features(pixels)
            expected = encoder.backbone.forward_features(pixels)
    if isinstance(selector, LowResolutionSelector):
        answer += (
            f" on the image resized to {size} pixels (bilinear); the scores are resized "
            f"to {selector.grid[0]} x {selector.grid[1]}"
        )
    return PlainPart(
        "selector",
        "timm",
        name,
        'timm.create_model("local-dir:FOLDER", pretrained=True)',
        answer,
        _require_equal("selector", found, expected),
    )


def _write_image_predictor(
    folder: Path,
    predictor: Predictor,
    encoder: TokenReader,
    label_names: tuple[str, ...],
    preprocessor: ImagePreprocessor,
) -> PlainPart:
    name = _architecture(encoder)
    head: nn.Linear | None = predictor.head
    answer = "its logits are the predictor's on the whole image"
    keys: dict[str, Any] = {}
    if isinstance(encoder, VitEncoder):
        keys = _vit_keys(encoder)
        if predictor.pooling == "cls":
            keys["global_pool"] = "token"
        elif encoder.num_prefix_tokens == 1:
            keys |= {"global_pool": "avg", "pool_include_prefix": True}
        else:  # timm averages register tokens too, or leaves the class token out
            head = None
            keys["global_pool"] = ""
            answer = (
                f"the mean of its tokens without 1 to {encoder.num_prefix_tokens - 1} is what the "
                f"head ({HEAD_FILE}) classifies: the predictor's logits on the whole image"
            )
    elif isinstance(encoder, ConvEncoder) and encoder.level is not None:
        raise _NotPlainError(f"its network was cut after feature level {encoder.level + 1}")
    size = preprocessor.image_size
    _save_timm(folder, name, encoder, head, keys, label_names, preprocessor, size)
    plain = _open_timm(folder)
    pixels = _example_images(size)
    with torch.no_grad():
        expected = Classifier(predictor)({"pixel_values": pixels})
        found = plain(pixels)
        if head is None:
            _save_head(folder, predictor.head)
            counted = [0, *range(encoder.num_prefix_tokens, found.shape[1])]  # type: ignore[union-attr]
            found = predictor.head(found[:, counted].mean(dim=1))
    return PlainPart(
        "predictor",
        "timm",
        name,
        'timm.create_model("local-dir:FOLDER", pretrained=True)',
        answer,
        _require_equal("predictor", found, expected),
    )


def _architecture(encoder: TokenReader) -> str:
    assert isinstance(encoder, VitEncoder | ConvEncoder)
    return str(encoder.backbone.pretrained_cfg["architecture"])


def _vit_keys(encoder: VitEncoder) -> dict[str, Any]:
    """What timm must be told to make the same network, as it was cut and used here."""
    return {
        "img_size": encoder.grid[0] * encoder.patch_size[0],
        "depth": encoder.num_blocks,
        "final_norm": not isinstance(encoder.backbone.norm, nn.Identity),
        "fc_norm": False,
    }


def _save_timm(
    folder: Path,
    name: str,
    encoder: TokenReader,
    head: nn.Linear | None,
    keys: Mapping[str, Any],
    label_names: tuple[str, ...],
    preprocessor: ImagePreprocessor,
    size: int,
) -> None:
    """``head`` None writes the network without a classifier."""
    import timm
    from timm.models import save_for_hf

    assert isinstance(encoder, VitEncoder | ConvEncoder)
    plain: Any = timm.create_model(
        name, pretrained=False, num_classes=len(label_names) if head is not None else 0, **keys
    )
    state = {
        key: value
        for key, value in encoder.backbone.state_dict().items()
        if not key.startswith(("fc_norm.", "attn_pool."))  # never applied here
    }
    if head is not None:
        classifier = plain.get_classifier()
        place = next(name for name, module in plain.named_modules() if module is classifier)
        state |= {f"{place}.{key}": value for key, value in head.state_dict().items()}
    own = plain.state_dict()
    other = sorted(set(own) ^ set(state))
    if other or any(own[key].shape != state[key].shape for key in own):
        what = f" ({', '.join(other[:2])}{'...' if len(other) > 2 else ''})" if other else ""
        raise _NotPlainError(f"it is not timm's {name}: layers were cut or are others{what}")
    plain.load_state_dict(state)
    save_for_hf(
        plain,
        str(folder),
        model_config={"label_names": list(label_names)} if head is not None else {},
        safe_serialization=True,
        data_config={
            "input_size": (3, size, size),
            "mean": preprocessor.mean,
            "std": preprocessor.std,
            "interpolation": preprocessor.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
    )
    # transformers takes the number of classes from the top of this file, and fails where
    # model_args has it too.
    path = folder / "config.json"
    configuration = json.loads(path.read_text(encoding="utf-8"))
    configuration["model_args"].pop("num_classes", None)
    write_text(path, json.dumps(configuration, indent=2) + "\n")


def _open_timm(folder: Path) -> Any:
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _example_images(size: int) -> Tensor:
    return torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))


# --- shared -----------------------------------------------------------------------------------


def _save_head(folder: Path, head: nn.Linear) -> None:
    tensors = {name: value.detach().contiguous() for name, value in head.state_dict().items()}
    save_file(tensors, folder / HEAD_FILE, metadata={"format": "pt"})


def _require_equal(name: str, found: Tensor, expected: Tensor) -> float:
    difference = float((found - expected).abs().max()) if found.shape == expected.shape else None
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if difference is None or not difference <= allowed:  # not-a-number fails, too
        raise IntegrityError(
            f"the plain model of the {name} does not answer as the {name} does "
            f"(difference {difference}, allowed {allowed:.2g})",
            hint="nothing was written; please report it with the versions of timm and transformers",
        )
    return difference


def _readme(result: PlainModels) -> str:
    lines = [
        f"# The parts of a rationalist ({result.role}) as plain models",
        "",
        "Ordinary folders with weights as safetensors. In the rationalist the selector scores "
        "every token or patch of the input, and the predictor reads the best few alone. On the "
        "whole input, as here, the predictor sees more than it was trained on, so its answers are "
        "not those of the bundle.",
    ]
    for part in result.parts:
        lines += [
            "",
            f"## {part.name}/: {part.library}, {part.model}",
            "",
            f"    {part.opens_with.replace('FOLDER', part.name)}",
            "",
            f"{part.answer[0].upper()}{part.answer[1:]}.",
        ]
    for name, reason in result.left_out.items():
        lines += ["", f"## No {name}/", "", f"{reason[0].upper()}{reason[1:]}."]
    return "\n".join(lines) + "\n"
