"""From a recipe's sections to models, recording where every weight came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rekd_edge.data.preprocess import ImagePreprocessor, Preprocessor, TextPreprocessor
from rekd_edge.errors import IntegrityError, UsageError
from rekd_edge.models.convolution import ConvEncoder
from rekd_edge.models.encoder import BertEncoder, Encoder, PatchGrid, TokenReader, VitEncoder
from rekd_edge.models.intervention import intervene_predictor, intervene_selector
from rekd_edge.models.problem import make_problem
from rekd_edge.models.rationalist import (
    BlockSelector,
    Classifier,
    Predictor,
    PublishedHead,
    Rationalist,
    Selector,
)
from rekd_edge.models.selectors import (
    AttentionMixer,
    ConvolutionMixer,
    Embedding,
    LightSelector,
    LowResolutionSelector,
    PixelEmbedding,
    SharedSelector,
    WordEmbedding,
)
from rekd_edge.models.units import require_regions, text_units
from rekd_edge.models.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OpenedBackbone,
    open_backbone,
)
from rekd_edge.recipe.schema import (
    BackboneSpec,
    DataSpec,
    PredictorSpec,
    RationalistSpec,
    Recipe,
    SelectorSpec,
    TeacherSpec,
)
from rekd_edge.selection import budget_fraction, slot_count

if TYPE_CHECKING:
    from rekd_edge.types import Modality


@dataclass(frozen=True, slots=True)
class Built:
    """A model, its preprocessor, and the source and sha256 of each backbone by name."""

    model: Rationalist | Classifier
    preprocessor: Preprocessor
    weights: dict[str, dict[str, str | None]]


def build_rationalist(spec: RationalistSpec, recipe: Recipe, num_classes: int) -> Built:
    """Selector and predictor from their weight sources.

    Raises:
        BackendError: none of a backbone's sources can be had.
        UsageError: an unknown backbone, or selector and predictor that see different tokens.
    """
    recipe = _as_seen_by(spec, recipe)
    predictor, opened = _predictor(spec.predictor, recipe, num_classes)
    preprocessor = _preprocessor(opened, recipe)
    weights = {"predictor": _provenance(opened)}
    selector, selector_opened = _selector(spec.selector, recipe, predictor.encoder)
    if selector_opened is not None:
        if not same_tokens(preprocessor, _preprocessor(selector_opened, recipe)):
            raise UsageError(
                "the selector and the predictor tokenise or normalise their input differently",
                hint="give both weights of one family, e.g. the same backbone with another depth",
            )
        weights = {"selector": _provenance(selector_opened)} | weights
    model = Rationalist(selector, predictor, recipe.rationale_ratio)
    if _intervenes(spec, recipe):
        intervene_selector(selector, num_classes)
        intervene_predictor(predictor, num_classes)
    return Built(model, preprocessor, weights)


def _intervenes(spec: RationalistSpec, recipe: Recipe) -> bool:
    objective = spec.objective if isinstance(spec, TeacherSpec) else recipe.objective
    return objective.method == "inter_rat"


def build_judge(spec: RationalistSpec, recipe: Recipe, num_classes: int) -> Built:
    """The predictor of that rationalist as a classifier, with the head it has there."""
    built = build_classifier(spec, recipe, num_classes)
    if _intervenes(spec, recipe):
        intervene_predictor(built.model.predictor, num_classes)
    return built


def build_selector(spec: RationalistSpec, recipe: Recipe, predictor: TokenReader) -> Selector:
    """One more selector like that of ``spec``, for the same ``predictor``."""
    return _selector(spec.selector, _as_seen_by(spec, recipe), predictor)[0]


def _selector(
    spec: SelectorSpec, recipe: Recipe, predictor: TokenReader
) -> tuple[Selector, OpenedBackbone | None]:
    """The selector for ``predictor``, and the backbone whose weights it starts from."""
    if spec.kind == "shared":
        if not isinstance(predictor, Encoder):
            raise UsageError(
                "selector.kind 'shared' needs a transformer as the predictor",
                hint="take kind: blocks or convolution",
            )
        depth = spec.depth
        if depth is not None and depth > predictor.num_blocks:
            raise UsageError(
                f"selector.depth is {depth}, but the predictor has {predictor.num_blocks} block(s)",
                hint="lower selector.depth",
            )
        return SharedSelector(predictor, depth), None
    if spec.kind == "blocks":
        encoder, opened = _encoder(spec, recipe, resolution=spec.resolution)
        if spec.resolution < 1:
            assert isinstance(predictor, PatchGrid)
            coarse = LowResolutionSelector(
                encoder, predictor.grid, predictor.patch_size, _head(spec, encoder)
            )
            coarse.region_size = predictor.region_size
            return coarse, opened
        _same_grid(encoder, predictor)
        return BlockSelector(encoder, _head(spec, encoder)), opened
    opened, grid = None, None
    if isinstance(predictor, PatchGrid):
        grid = predictor.grid
        pixels = PixelEmbedding(grid, predictor.patch_size, spec.width)
        pixels.region_size = predictor.region_size
        embedding: Embedding = pixels
    else:
        encoder, opened = _encoder(spec, recipe)
        assert isinstance(encoder, BertEncoder)
        embedding = WordEmbedding(encoder, spec.width)
    mixers: list[nn.Module] = [
        AttentionMixer(spec.width)
        if spec.kind == "narrow"
        else ConvolutionMixer(spec.width, spec.kernel, grid)
        for _ in range(spec.layers)
    ]
    return LightSelector(embedding, mixers), opened


def _head(spec: SelectorSpec, encoder: TokenReader) -> nn.Linear | None:
    """A head as the recipe describes it; None for the usual one."""
    if spec.head_width is None and not spec.head_dropout and spec.head_init == "normal":
        return None
    return PublishedHead(
        encoder.token_dim,
        width=spec.head_width,
        dropout=spec.head_dropout or 0.0,
        xavier=spec.head_init == "xavier",
    )


def _as_seen_by(spec: RationalistSpec, recipe: Recipe) -> Recipe:
    """The recipe with the image size of a teacher that has one of its own."""
    if not isinstance(spec, TeacherSpec) or spec.image_size is None:
        return recipe
    data = recipe.data.model_copy(update={"image_size": spec.image_size})
    return recipe.model_copy(update={"data": data})


def build_classifier(spec: RationalistSpec, recipe: Recipe, num_classes: int) -> Built:
    """The predictor's backbone as a plain classifier."""
    recipe = _as_seen_by(spec, recipe)
    predictor, opened = _predictor(spec.predictor, recipe, num_classes)
    weights = {"predictor": _provenance(opened)}
    return Built(Classifier(predictor), _preprocessor(opened, recipe), weights)


def same_tokens(first: Preprocessor, second: Preprocessor) -> bool:
    """Whether two preprocessors turn any input into the same tensors."""
    return first.fingerprint == second.fingerprint


def _same_grid(first: TokenReader, second: TokenReader) -> None:
    if isinstance(first, PatchGrid) and isinstance(second, PatchGrid):
        if (first.grid, first.patch_size) != (second.grid, second.patch_size):
            raise UsageError(
                f"the selector sees {first.grid[0]} x {first.grid[1]} patches and the predictor "
                f"{second.grid[0]} x {second.grid[1]}",
                hint="choose backbones of one patch size; a convolutional one takes any "
                "(its patch_size)",
            )


def _predictor(
    spec: PredictorSpec, recipe: Recipe, num_classes: int
) -> tuple[Predictor, OpenedBackbone]:
    encoder, opened = _encoder(spec, recipe)
    if not spec.final_norm:
        if not isinstance(encoder, VitEncoder):
            raise UsageError(
                f"the predictor {opened.source} has no last norm to leave out",
                hint="take predictor.final_norm: false away; it is for vision transformers",
            )
        encoder.backbone.norm = nn.Identity()
    predictor = Predictor(
        encoder,
        num_classes,
        pooling=spec.pooling,
        dropout=spec.dropout if spec.head_dropout is None else spec.head_dropout,
        xavier=spec.head_init == "xavier",
        problem=make_problem(recipe.problem_type, num_classes),
    )
    return predictor, opened


def _encoder(
    spec: BackboneSpec, recipe: Recipe, resolution: float = 1.0
) -> tuple[TokenReader, OpenedBackbone]:
    modality: Modality = recipe.modality
    data: DataSpec = recipe.data
    image_size = round(data.image_size * resolution)
    opened = open_backbone(spec, modality, image_size=image_size, max_length=data.max_length)
    backbone: Any = opened.module
    encoder: TokenReader
    if modality == "text":
        preprocessor = _text_preprocessor(opened, data)
        special = preprocessor.special_ids
        encoder = BertEncoder(backbone, cls_id=special["cls"], sep_id=special["sep"])
        vocabulary = int(backbone.config.vocab_size)
        encoder.units = text_units(recipe.rationale_unit, preprocessor, vocabulary)
    elif spec.patch_size is not None:
        encoder = ConvEncoder(
            backbone,
            image_size=data.image_size,
            patch_size=spec.patch_size,
            depth=spec.depth,
            with_head=isinstance(spec, PredictorSpec),
        )
    else:
        encoder = VitEncoder(backbone)
    if isinstance(encoder, PatchGrid) and recipe.rationale_unit == "region" and resolution == 1:
        patches = encoder.grid[0] * encoder.grid[1]
        budget = slot_count(patches, *budget_fraction(recipe.rationale_ratio))
        require_regions(encoder.grid, recipe.region_size, budget, opened.source)
        encoder.region_size = recipe.region_size
    if not spec.train_embeddings:
        for parameter in encoder.embedding_parameters():
            parameter.requires_grad_(False)
    return encoder, opened


def _text_preprocessor(opened: OpenedBackbone, data: DataSpec) -> TextPreprocessor:
    tokenizer_file: Path | None = opened.tokenizer_file
    if tokenizer_file is None:
        raise IntegrityError(f"the weights {opened.source!r} came without a tokenizer.json")
    return TextPreprocessor(tokenizer_file, data.max_length)


def _preprocessor(opened: OpenedBackbone, recipe: Recipe) -> Preprocessor:
    if recipe.modality == "text":
        return _text_preprocessor(opened, recipe.data)
    if opened.mean is None or opened.std is None:
        raise IntegrityError(f"the weights {opened.source!r} came without a normalisation")
    if recipe.data.normalisation == "imagenet":
        return ImagePreprocessor(recipe.data.image_size, IMAGENET_MEAN, IMAGENET_STD)
    return ImagePreprocessor(recipe.data.image_size, opened.mean, opened.std)


def _provenance(opened: OpenedBackbone) -> dict[str, str | None]:
    return {"source": opened.source, "sha256": opened.sha256}
