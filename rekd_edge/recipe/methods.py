"""What ``objective.method`` can be, and what each method asks of the rest of a recipe.

Like the rest of this package it needs no torch. The objectives are in :mod:`rekd_edge.methods`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rekd_edge.recipe.form import ObjectiveForm, Selection

if TYPE_CHECKING:
    from rekd_edge.recipe.schema import ObjectiveSpec, RationalistSpec

MethodName = Literal["rekd", "rnp", "fr", "n2r", "mmi_n2r", "a2r", "nir", "a2i", "inter_rat"]

PENALTIES = ("lambda_sparsity", "lambda_coherence")
NORM = ("lambda_norm", "norm_of", "norm_ratio")
METHOD_KEYS = (*PENALTIES, *NORM, "lambda_divergence", "noise_share", "lambda_attack")
"""Keys of an objective that only some methods read."""
REKD_KEYS = ("lambda_select", "lambda_contiguity")
"""Keys of an objective that only REKD reads."""


@dataclass(frozen=True, slots=True)
class Method:
    """``selections`` to draw with, the first by default; ``keys`` of :data:`METHOD_KEYS` that it
    reads; ``alternates``: a batch gets two updates, in which other parts are held still."""

    title: str
    selections: tuple[Selection, ...]
    keys: tuple[str, ...]
    alternates: bool = False


_COOPERATIVE: tuple[Selection, ...] = ("bernoulli", "exactly_k")
_EVERY: tuple[Selection, ...] = ("bernoulli", "exactly_k", "hard_kuma", "reinforce")

METHODS: dict[MethodName, Method] = {
    "rekd": Method("REKD", _COOPERATIVE, ()),
    "rnp": Method("RNP", _EVERY, PENALTIES),
    "fr": Method("FR", _EVERY, PENALTIES),
    "n2r": Method("N2R", _COOPERATIVE, (*PENALTIES, *NORM), alternates=True),
    "mmi_n2r": Method("MMI+N2R", _COOPERATIVE, (*PENALTIES, *NORM), alternates=True),
    "a2r": Method("A2R", ("exactly_k",), ("lambda_divergence",)),
    "nir": Method("NIR", ("exactly_k",), ("lambda_divergence", "noise_share")),
    "a2i": Method("A2I", _COOPERATIVE, (*PENALTIES, "lambda_attack"), alternates=True),
    "inter_rat": Method("Inter_RAT", _COOPERATIVE, PENALTIES),
}

_FIXED = {
    "masking": ("exclude", "the exported predictor reads the kept tokens alone"),
    "rationale_kd": ("centred", "a method has no noised logits to compare"),
    "evaluation": ("top_k", "a method is judged as it is exported"),
    "dev_selection": ("accuracy", "`re_loss` is the loss of REKD"),
}
"""Choices of the form that methods other than REKD leave open to nobody, and why."""


def method_problems(
    objective: ObjectiveSpec, rationalist: RationalistSpec
) -> Iterator[tuple[tuple[str, ...], str]]:
    """What contradicts the objective's method, as (key below the objective, what); a first element
    ``..`` means a key of the rationalist that it trains."""
    name = objective.method
    method = METHODS[name]
    for key in METHOD_KEYS:
        if key not in method.keys and getattr(objective, key) != _default(objective, key):
            readers = ", ".join(other for other, facts in METHODS.items() if key in facts.keys)
            yield (key,), f"has no meaning for method {name!r}; it is read by {readers}"
    form = objective.form
    if form.selection not in method.selections:
        able = ", ".join(
            other for other, facts in METHODS.items() if form.selection in facts.selections
        )
        yield (
            ("selection",),
            f"{form.selection!r} cannot train method {name!r}, which draws with "
            f"{' or '.join(method.selections)}; {form.selection!r} is for {able}",
        )
    if name == "rekd":
        return
    yield from _unlike_rekd(objective, form, name)
    yield from _penalty_problems(objective, form, method)
    yield from _model_problems(objective, rationalist, method)


def _default(objective: ObjectiveSpec, key: str) -> object:
    return type(objective).model_fields[key].default


def _unlike_rekd(
    objective: ObjectiveSpec, form: ObjectiveForm, name: str
) -> Iterator[tuple[tuple[str, ...], str]]:
    if objective.name == "paper":
        yield ("name",), f"'paper' is the published form of REKD; method {name!r} needs 'deploy'"
        return
    for key, (value, why) in _FIXED.items():
        if getattr(form, key) != value:
            yield (key,), f"must be {value!r} for method {name!r}: {why}"
    for key in ("select_special", "count_padding"):
        if getattr(form, key):
            yield (key,), f"must be false for method {name!r}, which chooses among content tokens"
    if form.teacher_prediction == "student_mask":
        yield (
            ("teacher_prediction",),
            f"must be 'own_rationale' or 'full_input' for method {name!r}",
        )
    for key in REKD_KEYS:
        if getattr(objective, key):
            other = "lambda_sparsity" if key == "lambda_select" else "lambda_coherence"
            yield (key,), f"is for method 'rekd'; the papers' own penalty is {other}"


def _penalty_problems(
    objective: ObjectiveSpec, form: ObjectiveForm, method: Method
) -> Iterator[tuple[tuple[str, ...], str]]:
    fixed = {
        "exactly_k": "fixes the count",
        "hard_kuma": "finds the weight of its count by itself (Lagrange)",
    }
    stated = objective.lambda_sparsity != _default(objective, "lambda_sparsity")
    if stated and form.selection in fixed and "lambda_sparsity" in method.keys:
        yield (
            ("lambda_sparsity",),
            f"has no meaning where selection is {form.selection!r}, which {fixed[form.selection]}",
        )


def _model_problems(
    objective: ObjectiveSpec, rationalist: RationalistSpec, method: Method
) -> Iterator[tuple[tuple[str, ...], str]]:
    name, selector, train = objective.method, rationalist.selector, rationalist.train
    shared = selector.kind == "shared"
    if name == "fr" and not shared:
        yield (
            ("..", "selector", "kind"),
            f"must be 'shared' for method 'fr', whose selector and predictor are one encoder; "
            f"with {selector.kind!r} it is method 'rnp'",
        )
    if name in {"n2r", "mmi_n2r"} and shared:
        yield (
            ("..", "selector", "kind"),
            f"'shared' cannot train method {name!r}: its selector moves while the predictor, whose "
            "blocks these are, is held still",
        )
    if name in {"a2r", "nir"} and selector.resolution < 1:
        yield (
            ("..", "selector", "resolution"),
            f"must be 1 for method {name!r}, whose soft predictor reads the selector's states of "
            "each patch",
        )
    if name == "inter_rat" and (selector.head_width or selector.head_dropout):
        key = "head_width" if selector.head_width else "head_dropout"
        yield (
            ("..", "selector", key),
            "has no meaning for method 'inter_rat', which brings a head of its own",
        )
    if method.selections == ("exactly_k",) and objective.estimator != "sigmoid":
        yield ("estimator",), f"has no meaning for method {name!r}: its selection has no gradient"
    if train.selector_learning_rate == 0:
        yield (
            ("..", "train", "selector_learning_rate"),
            f"0 keeps the selector as the warm-up left it, and method {name!r} is about how to "
            "train it",
        )
    if method.alternates and train.gradient_accumulation > 1:
        yield (
            ("..", "train", "gradient_accumulation"),
            f"must be 1 for method {name!r}, which updates two parts in turn on each batch",
        )
