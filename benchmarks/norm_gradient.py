"""Where the gradient of N2R's norm points, and that of the cross-entropy, by how much is kept: the
warmed-up predictor of a run reads random subsets of development images whose objects are known.

python benchmarks/norm_gradient.py runs/n2r-images/rnp/seed-0 --output benchmarks/results

For each image the gradients with respect to the tokens' weights are added up over the subsets and
ranked against the gold mask (area under the ROC curve: .5 is chance, below it the gradient points
away from the object). Beside it the value itself: the correlation, over the subsets of an image, of
the logarithm of the norm (of minus the cross-entropy) with the share of the object that is kept.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import ImagePreprocessor
from rekd_edge.evaluate.gold import image_gold
from rekd_edge.machine import hardware
from rekd_edge.models.encoder import patch_grid
from rekd_edge.run_folder import open_run

SHARES = (0.15, 0.25, 0.5, 0.75, 1.0)
BATCH = 50


def roc_area(score: Tensor, gold: Tensor) -> Tensor:
    """``[image]``: chance that a gold token scores above another one; both ``[image, token]``."""
    above = (score[:, :, None] > score[:, None, :]).float()
    level = (score[:, :, None] == score[:, None, :]).float()
    pairs = gold[:, :, None] * (1 - gold)[:, None, :]
    return ((above + level / 2) * pairs).sum((1, 2)) / pairs.sum((1, 2))


def within(value: Tensor, share: Tensor) -> Tensor:
    """Pearson correlation over the subsets of each image; both ``[subset, image]``."""
    value, share = value - value.mean(0), share - share.mean(0)
    return (value * share).sum(0) / (value.norm(dim=0) * share.norm(dim=0)).clamp_min(1e-12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--subsets", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = open_run(options.run)
    predictor, examples = run.judge("student"), run.data().dev
    if predictor is None or not isinstance(run.preprocessor, ImagePreprocessor):
        parser.error(f"{options.run} is no run on images whose predictor was warmed up")
    predictor.eval().requires_grad_(False)
    grid = patch_grid(predictor.encoder)
    assert grid is not None
    gold = torch.as_tensor(np.stack(image_gold(examples, run.preprocessor, grid)))
    gold = gold.flatten(1).float()
    usable = (gold.sum(1) > 0) & (gold.sum(1) < gold.shape[1])
    weight = predictor.head.weight - predictor.head.weight.mean(dim=0)

    def values(view: Any, keep: Tensor, labels: Tensor) -> dict[str, Tensor]:
        read = predictor.represent(view.content, view.position, keep)
        return {
            "norm": (read @ weight.T).norm(dim=1).log(),
            "cross_entropy": -cross_entropy(predictor.answer(read), labels, reduction="none"),
        }

    rows = []
    for share in SHARES:
        draw = torch.Generator().manual_seed(0)
        areas: dict[str, list[Tensor]] = {}
        agreement: dict[str, list[Tensor]] = {}
        for start, batch in zip(
            range(0, len(examples), BATCH),
            make_loader(examples, run.preprocessor, batch_size=BATCH, shuffle=False),
            strict=True,
        ):
            view = predictor.encoder.view(batch.inputs)
            truth = gold[start : start + len(view.selectable)]
            gradient: dict[str, Tensor] = {}
            value: dict[str, list[Tensor]] = {}
            shown = []
            for _ in range(options.subsets if share < 1 else 1):
                kept = round(share * truth.shape[1])
                index = torch.rand(truth.shape, generator=draw).topk(kept, dim=1).indices
                keep = torch.zeros_like(truth).scatter_(1, index, 1.0).requires_grad_()
                shown.append((keep.detach() * truth).sum(1) / truth.sum(1).clamp_min(1))
                for name, found in values(view, keep, batch.labels).items():
                    value.setdefault(name, []).append(found.detach())
                    one = torch.autograd.grad(found.sum(), keep, retain_graph=True)[0]
                    gradient[name] = gradient.get(name, torch.zeros_like(one)) + one
            for name, summed in gradient.items():
                areas.setdefault(name, []).append(roc_area(summed, truth))
                if share < 1:
                    one = within(torch.stack(value[name]), torch.stack(shown))
                    agreement.setdefault(name, []).append(one)
        row: dict[str, Any] = {"share": share}
        for name, found in areas.items():
            row[name] = _mean(torch.cat(found)[usable])
            if share < 1:
                row[f"{name}_value"] = _mean(torch.cat(agreement[name])[usable])
        rows.append(row)
        print(json.dumps(row))
    result = {
        "name": "norm-gradient",
        "recipe": run.recipe.name,
        "images": int(usable.sum()),
        "subsets": options.subsets,
        "rows": rows,
        "hardware": hardware(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/norm_gradient.py runs/n2r-images/rnp/seed-0 "
        "--output benchmarks/results",
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "norm-gradient"
    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_table(result), encoding="utf-8")


def _mean(values: Tensor) -> dict[str, float]:
    """Over images, and its standard error."""
    error = values.std() / len(values) ** 0.5
    return {"mean": round(float(values.mean()), 4), "error": round(float(error), 4)}


def _table(result: dict[str, Any]) -> str:
    lines = [
        "# norm-gradient",
        "",
        "| share kept | gradient of log norm | gradient of - cross-entropy | log norm and gold "
        "| - cross-entropy and gold |",
        "|---|---|---|---|---|",
    ]
    columns = ("norm", "cross_entropy", "norm_value", "cross_entropy_value")
    for row in result["rows"]:
        cells = [
            f"{row[name]['mean']:.3f} ± {row[name]['error']:.3f}" if name in row else ""
            for name in columns
        ]
        lines.append(f"| {row['share']:.2f} | {' | '.join(cells)} |")
    lines += [
        "",
        "Gradient: area under the ROC curve against the patches of the object, of gradients with "
        f"respect to patch weights summed over {result['subsets']} random subsets an image; value: "
        "correlation with the share of the object that is kept over the subsets of an image. Mean "
        f"± standard error over {result['images']} development images; recipe "
        f"`{result['recipe']}`, predictor after its warm-up on random subsets, one seed.",
        f"{result['hardware']['processor']}, one thread.",
        "",
        f"{result['date']}. `{result['command']}`",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
