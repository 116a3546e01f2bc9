"""What a schema cannot say: rules between the values of a valid recipe.

They need no network, data or torch, so that a long run does not start with a doomed recipe.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace

from rekd_edge.recipe.black_box import black_box_problems
from rekd_edge.recipe.class_wise import class_wise_problems
from rekd_edge.recipe.form import form_problems
from rekd_edge.recipe.methods import method_problems
from rekd_edge.recipe.problem import problem_type_problems
from rekd_edge.recipe.schema import (
    BackboneSpec,
    DataSpec,
    ObjectiveSpec,
    RationalistSpec,
    Recipe,
    TransferSpec,
)
from rekd_edge.recipe.units import unit_problems

WEIGHT_SOURCES = ("package", "hub", "timm", "path", "random")
FILE_SOURCES = ("image-folder", "csv", "jsonl", "parquet", "eraser")
"""Values of ``data.source`` that read ``data.path``."""

EXACTLY_K_KEYS = ("estimator", "ratio_schedule", "lambda_contiguity", "norm_ratio")
"""Keys of an objective that only ``selection: exactly_k`` reads."""

Location = tuple[int | str, ...]


def find_problems(recipe: Recipe) -> Iterator[tuple[Location, str]]:
    """Every contradiction as (where, what)."""
    yield from _data_problems(recipe.data, recipe.modality)
    if recipe.transfer is not None:
        yield from _transfer_problems(recipe.transfer, recipe.modality)
    if recipe.teacher is not None:
        image_size = recipe.teacher.image_size or recipe.data.image_size
        yield from _rationalist_problems(("teacher",), recipe.teacher, recipe.modality, image_size)
        if recipe.teacher.image_size is not None:
            if recipe.modality != "image":
                yield ("teacher", "image_size"), "is for images; the data are texts"
            elif recipe.teacher.run is not None:
                yield ("teacher", "image_size"), "has no meaning for a teacher loaded from a run"
        yield from _objective_problems(("teacher", "objective"), recipe.teacher.objective, recipe)
        if recipe.teacher.train.warmup.selector.startswith("teacher"):
            yield (
                ("teacher", "train", "warmup", "selector"),
                "a teacher has no teacher to learn from (use 'mask_gradient' or 'occlusion')",
            )
    yield from _rationalist_problems(
        ("student",), recipe.student, recipe.modality, recipe.data.image_size
    )
    yield from _objective_problems(("objective",), recipe.objective, recipe)
    yield from black_box_problems(recipe)
    yield from problem_type_problems(recipe)
    yield from unit_problems(recipe)
    yield from ((("class_wise_rationales",), problem) for problem in class_wise_problems(recipe))
    if recipe.ensemble is not None:
        place = ("ensemble", "partner")
        partner = recipe.ensemble.partner
        yield from _rationalist_problems(place, partner, recipe.modality, recipe.data.image_size)
        if recipe.objective.form.select_special and partner.selector.kind != "blocks":
            yield (*place, "selector", "kind"), "must be 'blocks' where select_special is true"
        for key, message in method_problems(recipe.objective, partner):
            if key[0] == "..":
                yield (*place, *key[1:]), message


def _objective_problems(
    location: Location, objective: ObjectiveSpec, recipe: Recipe
) -> Iterator[tuple[Location, str]]:
    form = objective.form
    schedule = objective.ratio_schedule
    if schedule is not None and schedule.start < recipe.rationale_ratio:
        below = f"is below rationale_ratio ({recipe.rationale_ratio}), but the budget only falls"
        yield (*location, "ratio_schedule", "start"), below
    if objective.norm_ratio is not None and objective.norm_ratio < recipe.rationale_ratio:
        yield (*location, "norm_ratio"), f"is below rationale_ratio ({recipe.rationale_ratio})"
    trained = recipe.student if location == ("objective",) else recipe.teacher
    if trained is not None:
        for key, message in method_problems(objective, trained):
            inside = key[0] != ".."
            role = location[:-1] if len(location) > 1 else ("student",)
            yield (*location, *key) if inside else (*role, *key[1:]), message
    if form.selection != "exactly_k":
        unused = ObjectiveSpec()
        for key in EXACTLY_K_KEYS:
            if getattr(objective, key) != getattr(unused, key):
                yield (*location, key), f"has no meaning where selection is {form.selection!r}"
    if recipe.modality == "image":
        for key in ("select_special", "count_padding"):
            if getattr(objective, key):
                yield (
                    (*location, key),
                    "is for text: images have no padding and keep their class token",
                )
        form = replace(form, select_special=False, count_padding=False)
    for key, message in form_problems(form, lambda_select=objective.lambda_select):
        yield (*location, key), message
    scoring = [recipe.teacher, recipe.student] if location == ("objective",) else [recipe.teacher]
    kinds = {model.selector.kind for model in scoring if model is not None}
    if form.select_special and kinds != {"blocks"}:
        yield (
            (*location, "select_special"),
            "needs selectors of kind: blocks, which alone score [CLS]: set select_special: false",
        )


def _data_problems(data: DataSpec, modality: str) -> Iterator[tuple[Location, str]]:
    if data.source in FILE_SOURCES and not data.path:
        yield ("data", "path"), f"is needed where data.source is {data.source!r}"
    if data.source == "huggingface":
        if not (data.name or data.path):
            yield ("data", "name"), "(or data.path) is needed where data.source is 'huggingface'"
    elif data.source not in FILE_SOURCES:
        for key in ("path", "test_path"):
            if getattr(data, key):
                yield ("data", key), f"has no meaning where data.source is {data.source!r}"
    if data.source == "image-folder" and modality != "image":
        yield ("data", "source"), "'image-folder' needs modality: image"
    if data.source == "eraser":
        if modality != "text":
            yield ("data", "source"), "'eraser' needs modality: text"
        if data.test_path:
            yield ("data", "test_path"), "has no meaning where data.source is 'eraser'"
    if data.labels is not None:
        if len(set(data.labels)) < len(data.labels):
            yield ("data", "labels"), "names a class twice"
        if len(data.labels) < 2:
            yield ("data", "labels"), "needs at least two classes"


def _transfer_problems(transfer: TransferSpec, modality: str) -> Iterator[tuple[Location, str]]:
    source = transfer.source
    if source in {"huggingface", "eraser"}:
        yield ("transfer", "source"), f"{source!r} cannot be a transfer set; name a table or folder"
    elif source in FILE_SOURCES and not transfer.path:
        yield ("transfer", "path"), f"is needed where transfer.source is {source!r}"
    elif source not in FILE_SOURCES and transfer.path:
        yield ("transfer", "path"), f"has no meaning where transfer.source is {source!r}"
    if source == "image-folder" and modality != "image":
        yield ("transfer", "source"), "'image-folder' needs modality: image"


def _rationalist_problems(
    location: Location, rationalist: RationalistSpec, modality: str, image_size: int
) -> Iterator[tuple[Location, str]]:
    for part in ("selector", "predictor"):
        backbone: BackboneSpec = getattr(rationalist, part)
        for index, source in enumerate(backbone.weights):
            message = _weights_problem(source, modality)
            if message:
                yield (*location, part, "weights", index), message
        patch_size = backbone.patch_size
        if patch_size is not None and modality != "image":
            yield (*location, part, "patch_size"), "is for images; words need no patches"
        elif patch_size is not None and image_size % patch_size:
            yield (
                (*location, part, "patch_size"),
                f"{patch_size} does not divide the image size {image_size}",
            )
    warmup = rationalist.train.warmup
    if warmup.predictor_run is not None and warmup.predictor_epochs == 0:
        yield (
            (*location, "train", "warmup", "predictor_run"),
            "is for a predictor that is warmed up: state the predictor_epochs that it had",
        )
    if modality == "text" and not rationalist.predictor.final_norm:
        yield (
            (*location, "predictor", "final_norm"),
            "is for images: BERT has no norm after its blocks",
        )
    selector = rationalist.selector
    if selector.kind != "blocks":
        for key in ("head_width", "head_dropout"):
            if getattr(selector, key) is not None:
                yield (*location, "selector", key), "is for kind: blocks"
        if selector.head_init != "normal":
            yield (*location, "selector", "head_init"), "is for kind: blocks"
    if selector.kind == "convolution" and selector.kernel % 2 == 0:
        yield (*location, "selector", "kernel"), f"must be odd, not {selector.kernel}"
    if selector.kind == "narrow" and selector.width % 32:
        yield (*location, "selector", "width"), "must be a multiple of 32 for kind: narrow"
    if selector.resolution < 1 and (modality != "image" or selector.kind != "blocks"):
        yield (
            (*location, "selector", "resolution"),
            "is for images and kind: blocks (leave it at 1)",
        )


def _weights_problem(source: str, modality: str) -> str | None:
    kind, colon, name = source.partition(":")
    if not colon or not name.strip():
        kinds = ", ".join(f"{kind}:" for kind in WEIGHT_SOURCES)
        return f"{source!r} must be a source and a name, with one of {kinds}"
    if kind not in WEIGHT_SOURCES:
        close = difflib.get_close_matches(kind, WEIGHT_SOURCES, n=1, cutoff=0.5)
        meant = f" (did you mean '{close[0]}:{name}'?)" if close else ""
        return f"unknown weights source {kind!r} in {source!r}{meant}"
    if kind == "timm" and modality != "image":
        return f"{source!r} is an image backbone, but modality is {modality!r}"
    return None
