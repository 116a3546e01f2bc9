"""Does the load test repeat? Measures a bundle several times and writes how far the medians are
apart, as JSON. Run it on a machine that does nothing else.

    python benchmarks/repeat.py BUNDLE --inputs FILE --output benchmarks/results/repeat.json

Where MLCommons' LoadGen is installed, one more run is driven by it, for its percentiles beside our
own of the same queries.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rekd_edge.bench.load import SCENARIOS
from rekd_edge.cli.console import require_writable, write_json
from rekd_edge.errors import RekdEdgeError
from rekd_edge.load_pipeline import LoadExamples, load_examples, load_test
from rekd_edge.run_folder import open_run

GOAL = 0.05
"""Of the spread of medians."""
KEPT = (
    "result_validity",
    "result_invalid_reason",
    "result_query_count",
    "result_50_percentile_latency_ns",
    "result_90_percentile_latency_ns",
    "result_99_percentile_latency_ns",
    "early_stopping_latency_ns",
    "result_samples_per_second",
    "date",
)
SHARED = (
    "scenario",
    "scope",
    "scope_in_words",
    "threads",
    "runtime",
    "provider",
    "name",
    "model_sha256",
    "inputs",
    "inputs_sha256",
    "input_count",
    "request",
    "machine",
)


def spread(values: list[float]) -> float:
    """The largest minus the least, relative to the median."""
    return (max(values) - min(values)) / median(values)


def repeat(
    bundle: Path, examples: LoadExamples, request: dict[str, Any], runs: int
) -> dict[str, Any]:
    found = []
    shared: dict[str, Any] = {}
    for number in range(runs):
        document = load_test(bundle, request, examples).document
        shared = {key: document[key] for key in SHARED}
        shares = ("other_work_cores", "stolen_share", "waiting_share")
        state = {key: document["state"][key] for key in shares}
        kept = {key: document[key] for key in KEPT if key in document}
        found.append(kept | {"state": state, "window_medians": window_medians(document)})
        print(f"run {number + 1} of {runs}: {in_words(document)}", file=sys.stderr, flush=True)
    medians = [one["result_50_percentile_latency_ns"] for one in found]
    valid = [one for one in found if one["result_validity"] == "VALID"]
    return {
        "schema_version": 1,
        "goal": GOAL,
        "p50_spread": spread(medians),
        "p90_spread": spread([one["result_90_percentile_latency_ns"] for one in found]),
        "valid_runs": len(valid),
        "p50_spread_of_valid": (
            spread([one["result_50_percentile_latency_ns"] for one in valid]) if valid else None
        ),
        "runs": found,
        "loadgen": beside_loadgen(bundle, examples, request),
        **shared,
    }


def window_medians(document: Mapping[str, Any]) -> list[float]:
    return [round(window[0], 4) for window in document["stability"]["window_medians"]]


def beside_loadgen(
    bundle: Path, examples: LoadExamples, request: dict[str, Any]
) -> dict[str, Any] | None:
    """LoadGen's percentiles and ours of the same queries; None where it is not installed."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        return None
    document = load_test(bundle, {**request, "loadgen": True}, examples).document
    keys = [f"result_{name}_percentile_latency_ns" for name in ("50", "90", "99")]
    return {
        "version": document["loadgen"]["loadgen_version"],
        "result_validity": document["result_validity"],
        "result_invalid_reason": document["result_invalid_reason"],
        "result_query_count": document["result_query_count"],
        "own": {key: document[key] for key in keys},
        "loadgen": {key: document["loadgen"][key] for key in keys},
        "target_percentile_difference": document["loadgen_difference"],
    }


def in_words(document: Mapping[str, Any]) -> str:
    p50, p90 = (document[f"result_{name}_percentile_latency_ns"] / 1e6 for name in ("50", "90"))
    reason = document["result_invalid_reason"]
    verdict = document["result_validity"] + (f": {reason}" if reason else "")
    return f"p50 {p50:.3f} ms, p90 {p90:.3f} ms, {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--inputs", type=Path, help="texts or images; else the run's test split")
    parser.add_argument("--run", type=Path, help="the run it was made from")
    parser.add_argument("--output", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scenario", choices=SCENARIOS, default="single-stream")
    parser.add_argument("--scope", choices=("compute", "end_to_end"), default="compute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--min-duration-s", type=float, default=60.0)
    options = parser.parse_args()
    if options.runs < 2:
        parser.error("--runs: at least 2")
    request = {
        "schema_version": 1,
        "scenario": SCENARIOS[options.scenario],
        "scope": options.scope,
        "threads": options.threads,
        "min_duration_s": options.min_duration_s,
        "cold_starts": 0,
    }
    try:
        require_writable(options.output)
        run = None if options.run is None else open_run(options.run)
        examples = load_examples(options.bundle, run=run, inputs_file=options.inputs)
        found = repeat(options.bundle, examples, request, options.runs)
        write_json(options.output, found)
    except RekdEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    shown = {key: found[key] for key in ("p50_spread", "p90_spread", "valid_runs")}
    print(json.dumps(shown | {"goal": GOAL}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
