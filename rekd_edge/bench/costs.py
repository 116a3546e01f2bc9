"""How the cost of a query grows with ratio, length or image size, batch and depth, and how far it
is from what the machine can do.

At each point the fused form and the plain classifier are measured in one interleaved run with
matrix products alone (at a large square, and at the shape of the plain model's widest layer) and
with the memory's bandwidth. A finished point is a file of its own, so a sweep can be resumed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rekd_edge.bench.cost_models import (
    FULL,
    TINY,
    Axis,
    CostPoint,
    Scale,
    build_forms,
    example,
)
from rekd_edge.bench.limits import (
    BandwidthProbe,
    bandwidth_buffer_bytes,
    product_input,
    write_product,
)
from rekd_edge.bench.measure import cold_starts, measure_in_turn
from rekd_edge.bench.operator_times import profile
from rekd_edge.bench.report import BenchSettings
from rekd_edge.bench.timing import describe_machine, ratio_of_medians
from rekd_edge.runners import OnnxRunner, resolve_threads

if TYPE_CHECKING:
    from rekd_edge.types import Modality

SCHEMA_VERSION = 1
FORMS = ("gathered", "plain")
SQUARE, LAYER, BANDWIDTH = "square product", "layer product", "bandwidth"
POINTS_FOLDER = "points"
MOST_QUERIES = 100


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What is swept around a base point of each modality, and how long each point is measured:
    at least ``settings.min_count`` queries, and as many as the gathered form answers in
    ``settings.min_duration_s``, up to :data:`MOST_QUERIES`.
    ``square`` is the side of the large product; ``bandwidth_queries`` triads go before, among and
    after the rounds."""

    scale: Scale
    bases: Mapping[Modality, CostPoint]
    axes: Mapping[Modality, Mapping[Axis, tuple[float, ...]]]
    square: int
    settings: BenchSettings
    bandwidth_bytes: int
    bandwidth_queries: int = 6
    threads: int = 1
    quick: bool = False

    def points(self, modality: Modality, axis: Axis) -> tuple[CostPoint, ...]:
        """Along one axis, by its value."""
        return tuple(
            replace(self.bases[modality], **{axis: value if axis == "ratio" else int(value)})
            for value in self.axes[modality][axis]
        )

    def all_points(self) -> tuple[CostPoint, ...]:
        """Each once; those that share their files are neighbours."""
        found = {
            point: None
            for modality, axes in self.axes.items()
            for axis in axes
            for point in self.points(modality, axis)
        }
        return tuple(sorted(found, key=lambda p: (str(p.model), p.tokens, p.batch)))

    def max_tokens(self) -> int:
        return max(point.tokens for point in self.all_points())

    @property
    def fingerprint(self) -> str:
        """Of what a point's figures depend on besides the point, the processor included."""
        machine = describe_machine()
        settings = (
            *(self.scale, self.square, self.settings, self.threads, self.max_tokens()),
            *(machine["cpu"], machine.get("onnxruntime"), SCHEMA_VERSION, MOST_QUERIES),
        )
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def full_plan(threads: int | None = 1) -> CostPlan:
    """Text to 4,096 tokens and images to 448 pixels: the better part of an hour on two cores."""
    ratios, batches = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0), (1, 2, 4, 8, 16, 32)
    return CostPlan(
        scale=FULL,
        bases={
            "text": CostPoint("text", 0.2, 128, 0, 1, 3),
            "image": CostPoint("image", 0.2, 0, 224, 1, 12),
        },
        axes={
            "text": {
                "ratio": ratios,
                "tokens": (32, 64, 128, 256, 512, 1024, 2048, 4096),
                "batch": batches,
                "depth": (1, 2, 3, 6, 12),
            },
            "image": {
                "ratio": ratios,
                "image_size": (84, 112, 168, 224, 336, 448),
                "batch": batches,
                "depth": (3, 6, 9, 12),
            },
        },
        square=1024,
        settings=BenchSettings(min_duration_s=1.0, min_count=15, warmup_count=2, cold_starts=1),
        bandwidth_bytes=bandwidth_buffer_bytes(),
        threads=resolve_threads(threads),
    )


def quick_plan(threads: int | None = 1) -> CostPlan:
    """The same with tiny models and few points, to see that it works; the figures mean nothing."""
    return CostPlan(
        scale=TINY,
        bases={
            "text": CostPoint("text", 0.25, 16, 0, 1, 1),
            "image": CostPoint("image", 0.25, 0, 56, 1, 1),
        },
        axes={
            "text": {"ratio": (0.25, 1.0), "tokens": (16, 48), "batch": (1, 2)},
            "image": {"image_size": (56, 84)},
        },
        square=128,
        settings=BenchSettings(
            min_duration_s=0.0,
            min_count=5,
            warmup_count=1,
            cold_starts=1,
            rss_queries=2,
            quick=True,
        ),
        bandwidth_bytes=4 * 10**6,
        bandwidth_queries=3,
        threads=resolve_threads(threads),
        quick=True,
    )


def measure_costs(
    plan: CostPlan, output: Path, *, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measures every point that is not in ``output`` yet and writes ``costs.json`` and
    ``costs.md`` there; returns the content of the former."""
    from rekd_edge.bench.cost_table import cost_table
    from rekd_edge.machine import package_versions

    folder = output / POINTS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    measured: dict[CostPoint, dict[str, Any]] = {}
    files = _Files(plan)
    points = plan.all_points()
    try:
        for number, point in enumerate(points, start=1):
            stored = folder / f"{point.name}.json"
            found = _stored(stored, plan)
            if found is None:
                progress(f"{number} of {len(points)}: {point.name}")
                found = _measure_point(point, plan, files.of(point))
                _write(stored, found)
            measured[point] = found
    finally:
        files.close()
    report = {
        "schema_version": SCHEMA_VERSION,
        "quick": plan.quick,
        "plan": {
            "scale": asdict(plan.scale),
            "square": plan.square,
            "threads": plan.threads,
            "settings": asdict(plan.settings),
            "bandwidth_buffer_bytes": plan.bandwidth_bytes,
        },
        "machine": describe_machine(),
        "versions": package_versions(),
        "curves": [
            {
                "modality": modality,
                "axis": axis,
                "points": [measured[point] for point in plan.points(modality, axis)],
            }
            for modality, axes in plan.axes.items()
            for axis in axes
        ],
    }
    _write(output / "costs.json", report)
    (output / "costs.md").write_text(cost_table(report), encoding="utf-8", newline="\n")
    return report


def _stored(path: Path, plan: CostPlan) -> dict[str, Any] | None:
    """A point that was measured earlier under the same plan."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("fingerprint") == plan.fingerprint
    return found if same else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


class _Files:
    """The exported forms of the last model asked for, and the products, in a temporary folder."""

    def __init__(self, plan: CostPlan) -> None:
        self.plan = plan
        self.folder = Path(tempfile.mkdtemp(prefix="rekd-edge-costs-"))
        self.model: tuple[object, ...] | None = None

    def of(self, point: CostPoint) -> dict[str, Path]:
        from rekd_edge.convert import convert_to_onnx, load_target

        paths = {name: self.folder / f"{name}.onnx" for name in FORMS}
        if self.model != point.model:
            self.model = None
            forms = build_forms(point, self.plan.scale, self.plan.max_tokens())
            for name, form in zip(FORMS, forms, strict=True):
                convert_to_onnx(
                    form, form.io_spec(), paths[name], target=load_target("onnx"), metadata={}
                )
            self.model = point.model
        return paths

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _measure_point(point: CostPoint, plan: CostPlan, files: Mapping[str, Path]) -> dict[str, Any]:
    inputs = example(point, plan.scale)
    rows = point.batch * _tokens(point, plan.scale)
    width = plan.scale.width
    shapes = {SQUARE: (plan.square,) * 3, LAYER: (rows, width, 4 * width)}
    work: dict[str, int] = {}
    everything: dict[str, Path] = dict(files)
    folder = next(iter(files.values())).parent
    for name, shape in shapes.items():
        everything[name] = folder / f"{name.split()[0]}.onnx"
        work[name] = write_product(everything[name], *shape)
    feeds = {
        name: product_input(*shapes[name][:2]) if name in shapes else inputs for name in everything
    }
    samples, moved = _interleaved(everything, feeds, plan)
    peak = max(work[name] / _seconds(samples[name]) for name in shapes)
    bandwidth = moved / _seconds(samples[BANDWIDTH])
    memory = _peak_memory(files, inputs, plan)
    forms = {}
    for name, file in files.items():
        spent = profile(file, inputs, threads=plan.threads)
        seconds = _seconds(samples[name])
        ratio = ratio_of_medians(samples[name], samples["plain"])
        forms[name] = {
            "latency_ms": {
                "p10": float(np.percentile(samples[name], 10)) / 1e6,
                "p50": seconds * 1e3,
                "p90": float(np.percentile(samples[name], 90)) / 1e6,
            },
            "queries": int(samples[name].size),
            "ratio_to_plain": ratio.to_json(),
            "flops": spent.flops,
            "product_bytes": spent.product_bytes,
            "gflops_per_s": spent.flops / seconds / 1e9,
            "bound_ms": spent.flops / peak * 1e3,
            "share_of_bound": spent.flops / peak / seconds,
            "time_shares": spent.shares,
            "other_operators": dict(list(spent.other_operators.items())[:8]),
            "size_bytes": file.stat().st_size,
            **memory[name],
        }
    return {
        "point": asdict(point),
        "fingerprint": plan.fingerprint,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "limits": {
            "peak_gflops_per_s": peak / 1e9,
            "products": {
                name: {"shape": list(shapes[name]), "gflops_per_s": rate / 1e9}
                for name, rate in ((n, work[n] / _seconds(samples[n])) for n in shapes)
            },
            "bandwidth_gb_per_s": bandwidth / 1e9,
        },
        "forms": forms,
    }


def _tokens(point: CostPoint, scale: Scale) -> int:
    """That the plain classifier works on, class token included."""
    if point.modality == "text":
        return point.tokens
    return (point.image_size // scale.patch_size) ** 2 + 1


def _interleaved(
    files: Mapping[str, Path], feeds: Mapping[str, Mapping[str, np.ndarray]], plan: CostPlan
) -> tuple[dict[str, np.ndarray], int]:
    """Nanoseconds of each file and of the triad, and the bytes that one triad moves."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(OnnxRunner(path, threads=plan.threads))
            for name, path in files.items()
        }
        inputs = {name: [feeds[name]] for name in runners}
        outputs: dict[str, Sequence[str]] = {
            name: runner.output_names for name, runner in runners.items()
        }
        spent = 0.0
        for name, runner in runners.items():
            for _ in range(plan.settings.warmup_count):
                started = time.perf_counter()
                runner.run_named(feeds[name], outputs[name])
                if name == FORMS[0]:
                    spent = time.perf_counter() - started
        wanted = min(MOST_QUERIES, int(plan.settings.min_duration_s / spent))
        probe = BandwidthProbe(plan.bandwidth_bytes)
        probe.run_named({}, ())
        half = replace(
            plan.settings,
            min_duration_s=0.0,
            min_count=-(-max(plan.settings.min_count, wanted) // 2),
        )
        third = replace(plan.settings, min_duration_s=0.0, min_count=plan.bandwidth_queries // 3)

        def triads() -> np.ndarray:
            only = BANDWIDTH
            return measure_in_turn({only: probe}, {only: ()}, {only: [{}]}, third)[only]

        before = triads()
        first = measure_in_turn(runners, outputs, inputs, half)
        among = triads()
        second = measure_in_turn(runners, outputs, inputs, half)
        samples = {name: np.concatenate([first[name], second[name]]) for name in files}
        samples[BANDWIDTH] = np.concatenate([before, among, triads()])
        return samples, probe.moved_bytes


def _peak_memory(
    files: Mapping[str, Path], inputs: Mapping[str, np.ndarray], plan: CostPlan
) -> dict[str, dict[str, int | None]]:
    """Of a fresh process that answers a few queries, and before it had loaded the model."""
    request = {
        "runtime": "onnxruntime",
        "threads": plan.threads,
        "provider": "CPUExecutionProvider",
        "settings": None,
        "queries": 3,
    }
    cold = cold_starts(
        files,
        dict.fromkeys(files, inputs),
        max(1, plan.settings.cold_starts),
        dict.fromkeys(files, request),
    )
    return {
        name: {
            "peak_rss_bytes": found.peak_rss_bytes[0],
            "rss_before_model_bytes": found.rss_before_model_bytes[0],
        }
        for name, found in cold.items()
    }


def _seconds(samples_ns: np.ndarray) -> float:
    return float(np.median(samples_ns)) / 1e9
