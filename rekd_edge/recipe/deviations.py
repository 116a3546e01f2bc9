"""The differences between the published method and the default, and their table in the docs.

``python -m rekd_edge.recipe.deviations docs/deviations.md benchmarks/results/deviations.json``
writes the table between its marks. Figures come from the recorded results of the suites
`deviations` and `deviations-images`, by row; where there is none the table says so.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekd_edge.recipe.suite_file import figure

BEGIN = "<!-- deviations: written by `make docs` -->"
END = "<!-- end of deviations -->"
NOT_MEASURED = "not measured yet"


@dataclass(frozen=True, slots=True)
class Deviation:
    """One difference: the recipe key, its two values, and why the default differs. ``row`` names
    the row of a suite that measures it; ``measured`` says where the row has other values."""

    title: str
    key: str
    paper: str
    deploy: str
    why: str
    row: str
    measured: str = ""


DEVIATIONS = (
    Deviation(
        "selection",
        "objective.selection",
        "bernoulli",
        "exactly_k",
        "the exported graph keeps exactly k (ADR 1, 3)",
        "exactly-k",
    ),
    Deviation(
        "masking",
        "objective.masking",
        "zero",
        "exclude",
        "excluded content cannot reach the answer (ADR 2)",
        "exclude",
    ),
    Deviation(
        "special tokens",
        "objective.select_special",
        "true",
        "false",
        "text: `[CLS]` and `[SEP]` are no evidence; an image's class token is never masked",
        "no-special",
    ),
    Deviation(
        "padding",
        "objective.count_padding",
        "true",
        "false",
        "text: a share of the padded length is another ratio for each text",
        "no-padding",
    ),
    Deviation(
        "budget penalty",
        "objective.lambda_select",
        "5e-5 to 5e-2",
        "0",
        "exactly k needs none; without it a Bernoulli selector may keep everything",
        "no-budget",
    ),
    Deviation(
        "noise in KL_R",
        "objective.rationale_kd",
        "noised",
        "noiseless (between the two)",
        "two equal selectors with independent noise still have a KL of their own (ADR 5)",
        "kl-noiseless",
    ),
    Deviation(
        "form of KL_R",
        "objective.rationale_kd",
        "noised",
        "centred",
        "compares who is kept under the budget; a mean, so lambda_rationale is another (ADR 5)",
        "kl-centred",
    ),
    Deviation(
        "teacher's prediction",
        "objective.teacher_prediction",
        "student_mask",
        "own_rationale",
        "as in the paper's figure",
        "own-rationale",
    ),
    Deviation(
        "KD temperature",
        "objective.kd_schedule",
        "tau",
        "constant",
        "tau of the draw and T of KD have no reason to agree",
        "kd-constant",
    ),
    Deviation(
        "updates of tau",
        "objective.tau_updates",
        "published",
        "capped",
        "a run of fewer steps than `update_every` would never anneal",
        "tau-capped",
    ),
    Deviation(
        "evaluation",
        "objective.evaluation",
        "sampled",
        "top_k",
        "one input, one answer",
        "top-k-evaluation",
    ),
    Deviation(
        "epoch kept",
        "objective.dev_selection",
        "re_loss",
        "accuracy",
        "accuracy is what is promised; exactly k has no penalty to weigh",
        "accuracy-selection",
    ),
    Deviation(
        "batches",
        "student.train.bucket_by_length",
        "false",
        "true",
        "less padding to compute; the published budget sees the counts of like lengths together",
        "bucketed",
    ),
    Deviation(
        "start of the selector",
        "student.train.warmup",
        "none",
        "mask gradients",
        "a selector does not find the rationale by itself in a short run (below)",
        "warm-up",
    ),
    Deviation(
        "selection head",
        "student.selector.head_width",
        "256 (text)",
        "null",
        "a linear head is cheaper; the published one for images is linear too",
        "linear-head",
    ),
    Deviation(
        "start of the heads",
        "student.predictor.head_init",
        "xavier",
        "normal",
        "starts near zero: nothing is preferred",
        "normal-heads",
    ),
    Deviation(
        "dropout",
        "student.predictor.head_dropout",
        "0.5 (text), 0.1 (images)",
        "null",
        "inside the encoder the published code keeps the backbone's own: 0.1 (text), 0 (images)",
        "less-dropout",
    ),
    Deviation(
        "selector's word embeddings",
        "student.selector.train_embeddings",
        "false (text)",
        "true",
        "shipped recipes freeze those of both parts",
        "train-embeddings",
    ),
    Deviation(
        "last norm of the predictor",
        "student.predictor.final_norm",
        "false (images)",
        "true",
        "the backbone was trained with it",
        "final-norm",
    ),
    Deviation(
        "normalisation of images",
        "data.normalisation",
        "imagenet",
        "backbone",
        "what the weights were trained with",
        "backbone-normalisation",
    ),
    Deviation(
        "weight decay of biases and norms",
        "student.train.decay_all",
        "true",
        "false",
        "usual practice; the published text runs decay nothing",
        "no-decay",
    ),
    Deviation(
        "epochs of the plain classifier",
        "student.train.classifier_epochs",
        "20",
        "null",
        "as many steps as a rationalist's predictor gets",
        "more-epochs",
        "9 instead of 3: ",
    ),
)
WHOLE = "deploy"
"""The suite's row in which the whole objective is the default."""


def deviations_table(result: Mapping[str, Any] | None) -> str:
    """Markdown; ``result`` is the recorded JSON of one suite or (`tables`) of several, None where
    there is none."""
    tables = [] if result is None else result.get("tables", [result])
    rows = {row["name"]: row for table in tables for row in table["rows"]}
    lines = [
        "| difference | key | `paper` | `deploy` | why | measured effect |",
        "|---|---|---|---|---|---|",
    ]
    for item in DEVIATIONS:
        effect = _effect(rows.get(item.row))
        if item.measured and effect != NOT_MEASURED:
            effect = item.measured + effect
        cells = (item.title, f"`{item.key}`", item.paper, item.deploy, item.why, effect)
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(
        "| the whole objective | `objective.name` | paper | deploy | | "
        f"{_effect(rows.get(WHOLE))} |"
    )
    return "\n".join(lines)


def _effect(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NOT_MEASURED
    parts = [
        f"{title} {figure(summary, signed=True)}"
        for title, summary in list(row["differences"].items())[:2]
        if summary is not None
    ]
    return f"{', '.join(parts)} (to `{row['against']}`)" if parts else NOT_MEASURED


def with_table(page: str, result: Mapping[str, Any] | None) -> str:
    """``page`` with the table written anew between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marks {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{deviations_table(result)}\n{END}{after}"


def main() -> None:
    """Write the table into the page named first, from the result named second if it is there."""
    page, recorded = Path(sys.argv[1]), Path(sys.argv[2])
    result = json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else None
    temporary = page.with_name(f".{page.name}.{os.getpid()}")
    temporary.write_text(with_table(page.read_text(encoding="utf-8"), result), encoding="utf-8")
    os.replace(temporary, page)


if __name__ == "__main__":
    main()
