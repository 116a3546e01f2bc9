"""Processor time of one joint training step of every method, beside RNP's.

python benchmarks/method_costs.py --output benchmarks/results

Each method trains the recipe of the sentences on the same batches; a step is counted from the
second one on, all its updates included. Processor time of one thread hardly depends on what else
runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from rekd_edge.distill.loop import Silent
from rekd_edge.machine import hardware
from rekd_edge.pipeline import train_run
from rekd_edge.recipe import find_recipe, load_recipe

RECIPE = "methods/movie-review-snippets"
OVERRIDES = (
    "data.limit={train: 640, dev: 32, test: 32}",
    "student.train.epochs=1",
    "student.train.warmup.predictor_epochs=0",
    "student.train.precision=bf16",
    "student.train.monitor=false",
    "student.train.gather=true",  # as the suites of methods
)
METHODS = {
    "RNP": ("objective.method=rnp",),
    "FR": ("objective.method=fr", "student.selector.kind=shared"),
    "N2R": ("objective.method=n2r",),
    "MMI+N2R": ("objective.method=mmi_n2r",),
    "A2R": ("objective.method=a2r",),
    "NIR": ("objective.method=nir",),
    "A2I": ("objective.method=a2i",),
    "Inter_RAT": ("objective.method=inter_rat",),
    "RNP with HardKuma": ("objective.method=rnp", "objective.selection=hard_kuma"),
    "RNP with REINFORCE": ("objective.method=rnp", "objective.selection=reinforce"),
}


class Stopwatch(Silent):
    """Processor time between steps."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def step(self, terms: dict[str, float]) -> None:
        self.stamps.append(time.process_time())


def seconds_a_step(overrides: tuple[str, ...], folder: Path) -> float:
    """Median processor time of a batch, all its updates."""
    watch = Stopwatch()
    recipe = load_recipe(find_recipe(RECIPE), [*OVERRIDES, *overrides])
    train_run(recipe, folder, device="cpu", with_fuse_report=False, listener=watch)
    spans = [end - start for start, end in zip(watch.stamps, watch.stamps[1:], strict=False)]
    return statistics.median(spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            title: seconds_a_step(overrides, Path(folder) / str(number))
            for number, (title, overrides) in enumerate(METHODS.items())
        }
    ratios = {title: round(seconds / found["RNP"], 2) for title, seconds in found.items()}
    result = {
        "recipe": RECIPE,
        "overrides": list(OVERRIDES),
        "seconds_a_step": {title: round(seconds, 4) for title, seconds in found.items()},
        "ratio_to_rnp": ratios,
        "hardware": hardware(),
        "torch": torch.__version__.partition("+")[0],
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/method_costs.py --output benchmarks/results",
    }
    lines = ["# method-costs", "", "| method | processor time of a step, RNP = 1 |", "|---|---|"]
    lines += [f"| {title} | {ratio:.2f} |" for title, ratio in ratios.items()]
    machine = result["hardware"]
    lines += [
        "",
        f"Recipe `{RECIPE}`, bf16, `train.gather`, batches of 32 sentences, one thread, median of "
        f"19 steps; RNP takes {found['RNP']:.3f} s.",
        f"{machine['processor']}, torch {result['torch']}. {result['date']}. `{result['command']}`",
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "method-costs.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.output / "method-costs.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
