"""The mathematics of picking tokens: budget, exactly-k with a tie rule, gathering, Gumbel noise.

Everything here is a pure function of tensors, apart from models and training.
"""

from rekd_edge.selection.budget import budget_fraction, rationale_budget, slot_count
from rekd_edge.selection.draws import hard_kuma, hard_kuma_kept_chance, scored_draw
from rekd_edge.selection.estimators import Estimator, select_top_k, soft_selection
from rekd_edge.selection.gumbel import bernoulli_straight_through, gumbel_noise
from rekd_edge.selection.sparsemax import sparsemax
from rekd_edge.selection.topk import (
    LOWEST_SCORE,
    gather_slots,
    gather_tokens,
    keep_constant,
    keep_top_k,
    keep_with_margin,
    kept_positions,
    selection_margin,
    selection_threshold,
    straight_through_top_k,
)
from rekd_edge.selection.units import (
    cut_units,
    keep_units,
    of_unit,
    unit_margin,
    unit_mean,
    unit_of_starts,
    within_budget,
)

__all__ = [
    "LOWEST_SCORE",
    "Estimator",
    "bernoulli_straight_through",
    "budget_fraction",
    "cut_units",
    "gather_slots",
    "gather_tokens",
    "gumbel_noise",
    "hard_kuma",
    "hard_kuma_kept_chance",
    "keep_constant",
    "keep_top_k",
    "keep_units",
    "keep_with_margin",
    "kept_positions",
    "of_unit",
    "rationale_budget",
    "scored_draw",
    "select_top_k",
    "selection_margin",
    "selection_threshold",
    "slot_count",
    "soft_selection",
    "sparsemax",
    "straight_through_top_k",
    "unit_margin",
    "unit_mean",
    "unit_of_starts",
    "within_budget",
]
