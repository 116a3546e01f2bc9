"""The neighbours' methods as objectives of joint training (docs/methods.md).

:func:`build_method` makes the one that a recipe names. What a recipe may combine is in
:mod:`rekd_edge.recipe.methods`, which needs no torch.
"""

from __future__ import annotations

from rekd_edge.distill.targets import TargetSource
from rekd_edge.methods.a2i import A2i
from rekd_edge.methods.a2r import A2r
from rekd_edge.methods.base import Method, Parts
from rekd_edge.methods.n2r import N2r
from rekd_edge.methods.nir import Nir, PatchNoise, WordNoise
from rekd_edge.methods.rnp import Rnp
from rekd_edge.models.rationalist import Rationalist
from rekd_edge.recipe.schema import ObjectiveSpec

_WITH_PARTS = {"a2r": A2r, "nir": Nir, "a2i": A2i}


def build_method(
    model: Rationalist,
    spec: ObjectiveSpec,
    targets: TargetSource | None,
    parts: Parts,
    *,
    gather: bool = False,
) -> Method:
    """The objective of ``spec.method``, any but ``rekd``; with ``targets`` it distils too.
    ``gather``: :attr:`Method.gather`."""
    if spec.method in {"rnp", "fr", "inter_rat"}:
        method: Method = Rnp(model, spec, targets)
    elif spec.method in {"n2r", "mmi_n2r"}:
        method = N2r(model, spec, targets)
    else:
        method = _WITH_PARTS[spec.method](model, spec, targets, parts)
    method.gather = gather
    return method


__all__ = ["Method", "Parts", "PatchNoise", "WordNoise", "build_method"]
