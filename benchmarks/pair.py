"""What a pair of students costs: where they agree, where not, and beside one of twice the size.

    python benchmarks/pair.py PAIR_RUN --double DOUBLE_RUN --output benchmarks/results/interactive

PAIR_RUN and DOUBLE_RUN are run folders over the same data, for instance those of the suite
benchmarks/suites/interactive.yaml (rows `pair` and `double`, one seed). Queries are single examples
of the test split in ONNX Runtime, one thread; the files take turns. Where the two agree and where
they do not is measured apart, so that each query's path is known. Writes OUTPUT-latency.json and
OUTPUT-latency.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rekd_edge.bench import BenchSettings, bench_files
from rekd_edge.check.inputs import examples_of
from rekd_edge.convert import load_target
from rekd_edge.distill.checkpoint import write_json
from rekd_edge.errors import UsageError
from rekd_edge.export_pipeline import convert_run, test_batches
from rekd_edge.fuse import FusedPair
from rekd_edge.machine import hardware, package_versions
from rekd_edge.run_folder import Run, open_run
from rekd_edge.runners import OnnxRunner

EXAMPLES = 600
PATHS = ("agree", "disagree")


def measure(pair: Run, double: Run, target: str, settings: BenchSettings) -> dict[str, Any]:
    fused = pair.fused()
    if not isinstance(fused, FusedPair):
        raise UsageError(f"{pair.path} holds one student", hint="name a run with an ensemble")
    spec = load_target(target)
    examples = examples_of(test_batches(pair.data().test, pair.preprocessor), EXAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        models = {
            "pair": (pair, fused),
            "student": (pair, fused.alone()),
            "partner": (pair, fused.partner),
            "double": (double, double.fused()),
        }
        files = {name: Path(folder) / f"{name}.onnx" for name in models}
        for name, (run, model) in models.items():
            convert_run(run, model, spec, files[name], {"recipe": run.recipe.name})
        with OnnxRunner(files["pair"], threads=1) as runner:
            cases = np.concatenate([runner.run_named(e, ("case",))["case"] for e in examples])
        found: dict[str, Any] = {}
        for path in PATHS:
            queries = [
                example
                for example, case in zip(examples, cases, strict=True)
                if (case == 0) == (path == "agree")
            ]
            if queries:
                report = bench_files(files, queries, settings=settings, reference="student")
                found[path] = {
                    "queries": len(queries),
                    "invalid_reasons": list(report.invalid_reasons),
                    "date": report.date,
                    "milliseconds": {
                        name: {p: nanoseconds / 1e6 for p, nanoseconds in one.latency_ns.items()}
                        for name, one in report.candidates.items()
                    },
                    "measured": {n: one.query_count for n, one in report.candidates.items()},
                }
        sizes = {name: file.stat().st_size for name, file in files.items()}
    return {
        "target": target,
        "examples": len(examples),
        "disagree_share": float((cases > 0).mean()),
        "size_bytes": sizes,
        "paths": found,
    }


def medians(result: dict[str, Any], path: str) -> dict[str, float]:
    """Milliseconds of the median by file."""
    return {name: found["50"] for name, found in result["paths"][path]["milliseconds"].items()}


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| file | precision | agree, ms | disagree, ms | expected, ms | size, MB |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        times = {path: medians(result, path) for path in result["paths"]}
        share = result["disagree_share"]
        for name, size in result["size_bytes"].items():
            both = [times.get(path, {}).get(name) for path in PATHS]
            known = [value for value in both if value is not None]
            expected = statistics.fmean(known)
            if len(known) == 2:
                expected = (1 - share) * known[0] + share * known[1]
            cells = ["-" if value is None else f"{value:.2f}" for value in both]
            row = [name, result["target"], *cells, f"{expected:.2f}", f"{size / 1e6:.1f}"]
            lines.append(f"| {' | '.join(row)} |")
    shares = ", ".join(f"{one['disagree_share']:.1%} ({one['target']})" for one in results)
    machine = hardware()
    lines += [
        "",
        f"Median of one query, one thread, ONNX Runtime, {machine['processor']}. The two students "
        f"disagree on {shares} of {results[0]['examples']} test examples; *expected* weighs the "
        "two medians by that share.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pair", type=Path)
    parser.add_argument("--double", type=Path, required=True)
    parser.add_argument("--targets", default="onnx,onnx-int8")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each file and path")
    parser.add_argument("--output", type=Path, required=True, help="without an ending")
    options = parser.parse_args()
    settings = BenchSettings(min_duration_s=options.seconds, min_count=200)
    pair, double = open_run(options.pair), open_run(options.double)
    results = [measure(pair, double, target, settings) for target in options.targets.split(",")]
    document = {"results": results, "hardware": hardware(), "versions": package_versions()}
    name = options.output.with_name(f"{options.output.name}-latency.json")
    write_json(name, document)
    name.with_suffix(".md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
