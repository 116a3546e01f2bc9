"""Why attention trains in float32 on the CPU: PyTorch's fused attention in both types, forward and
backward, interleaved; and weighted attention in bfloat16, by its formula and as it trains.

python benchmarks/attention.py --output benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rekd_edge.machine import hardware
from rekd_edge.models.encoder import weighted_attention, weighted_formula

SHAPES = ((32, 12, 32, 32), (32, 12, 64, 32), (32, 12, 128, 32), (32, 6, 37, 64), (32, 6, 257, 64))
TYPES = (torch.bfloat16, torch.float32)


def milliseconds(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[float, float]:
    """One forward and one backward pass of ``[batch, head, token, channel]``."""
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    start = time.perf_counter()
    answer = scaled_dot_product_attention(query, key, value)
    between = time.perf_counter()
    answer.backward(torch.ones_like(answer))
    return (between - start) * 1e3, (time.perf_counter() - between) * 1e3


def weighted_milliseconds(shape: tuple[int, ...], attend: Callable[..., Tensor]) -> float:
    """Forward and backward pass under autocast; a third of the keys counts."""
    query, key, value = (
        torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    weight = (torch.arange(shape[2]) % 3 == 0).float().repeat(shape[0], 1).requires_grad_(True)
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        answer = attend(query, key, value, weight)
    answer.backward(torch.ones_like(answer))
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for shape in SHAPES:
        seen: dict[torch.dtype, list[tuple[float, float]]] = {dtype: [] for dtype in TYPES}
        for _ in range(options.rounds + 2):
            for dtype in TYPES:
                seen[dtype].append(milliseconds(shape, dtype))
        weighted: dict[str, list[float]] = {"formula": [], "function": []}
        for _ in range(options.rounds + 2):
            weighted["formula"].append(weighted_milliseconds(shape, weighted_formula))
            weighted["function"].append(weighted_milliseconds(shape, weighted_attention))
        row: dict[str, object] = {"shape": list(shape)}
        for name, times in weighted.items():
            row[f"weighted_{name}_ms"] = round(statistics.median(times[2:]), 3)
        for dtype, name in zip(TYPES, ("bf16", "fp32"), strict=True):
            for side, label in enumerate(("forward", "backward")):
                times = [one[side] for one in seen[dtype][2:]]
                row[f"{name}_{label}_ms"] = round(statistics.median(times), 3)
        rows.append(row)
    result = {
        "rows": rows,
        "rounds": options.rounds,
        "hardware": hardware(),
        "torch": torch.__version__.partition("+")[0],
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/attention.py --output benchmarks/results",
    }
    lines = [
        "# attention",
        "",
        "| batch, heads, tokens, channels | bf16 forward | backward | fp32 forward | backward "
        "| weighted, formula | as it trains |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row[f'{name}_{side}_ms']:.1f} ms" for name in ("bf16", "fp32")
                 for side in ("forward", "backward")]  # fmt: skip
        cells += [f"{row[f'weighted_{name}_ms']:.1f} ms" for name in ("formula", "function")]
        lines.append(f"| {row['shape']} | {' | '.join(cells)} |")
    machine = result["hardware"]
    lines += [
        "",
        f"`scaled_dot_product_attention` of torch {result['torch']}, one thread, median of "
        f"{options.rounds} interleaved rounds. Weighted: forward and backward in bf16 autocast.",
        f"{machine['processor']}. {result['date']}. `{result['command']}`",
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "attention.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.output / "attention.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
