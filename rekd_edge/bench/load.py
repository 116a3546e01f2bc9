"""The load test of one bundle: ``export/runtime/python/rekd_bench.py`` in a process of its own.

That program is the whole benchmark, here and on a board: numpy, the runtime and the bundle, no
torch. This module writes what it reads, runs it, and shows what it says.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from rekd_edge.bench.timing import PERCENTILES
from rekd_edge.bundle.runtime import runtime_path
from rekd_edge.errors import (
    BackendError,
    IntegrityError,
    RekdEdgeError,
    UsageError,
)
from rekd_edge.problem import PRIMARY, SCORE_TITLES
from rekd_edge.types import ProblemType

if TYPE_CHECKING:
    from rich.console import Console

PROGRAM_FILE = "rekd_bench.py"
EXAMPLES_FILE = "examples.jsonl"
LOGS_SUFFIX = ".loadgen"
"""Of the folder with LoadGen's logs beside ``NAME.json``: ``NAME.loadgen``."""
LOG_FILES = "mlperf_log_*"
SCENARIOS = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "offline": "Offline",
}
MODES = {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}
_BY_EXIT_CODE: dict[int, type[RekdEdgeError]] = {
    2: UsageError,
    4: BackendError,
    6: IntegrityError,
}
_EIGHTHS = "▁▂▃▄▅▆▇█"


def program_path() -> Path:
    """The shipped ``rekd_bench.py``; ``rekd_runtime.py`` lies beside it."""
    path = runtime_path().with_name(PROGRAM_FILE)
    if not path.is_file():
        raise IntegrityError(
            f"{PROGRAM_FILE} is missing from this installation of rekd-edge",
            hint="reinstall the package",
        )
    return path


Label = int | Sequence[int] | Sequence[float]
Example = str | np.ndarray | Path
"""A text, an image uint8 ``[height, width, 3]``, or an image file."""


def write_examples(
    folder: Path, examples: Iterable[Example], labels: Sequence[Label] | None = None
) -> int:
    """``FOLDER/examples.jsonl`` and the image files that it names; returns how many. Pixels become
    PNG files, image files are copied as they are. A label is the number of a class; 0 or 1 for
    each of several labels; or the values of a regression."""
    from PIL import Image

    lines = []
    for number, example in enumerate(examples):
        if isinstance(example, str):
            entry: dict[str, Any] = {"text": example}
        elif isinstance(example, Path):
            name = f"{number + 1:06d}{example.suffix.lower()}"
            shutil.copyfile(example, folder / name)
            entry = {"image": name}
        else:
            name = f"{number + 1:06d}.png"
            Image.fromarray(example).save(folder / name)
            entry = {"image": name}
        if labels is not None:
            entry["label"] = labels[number]
        lines.append(json.dumps(entry, ensure_ascii=True))
    (folder / EXAMPLES_FILE).write_text("\n".join(lines) + "\n", encoding="ascii")
    return len(lines)


def run_load_test(
    bundle: Path,
    examples: Path,
    request: Mapping[str, Any],
    *,
    logs: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> LoadReport:
    """Measure ``bundle`` on the examples in the folder ``examples``. LoadGen's logs are put into
    the folder ``logs``, which replaces those of an earlier run.

    Raises what the program ended with: :class:`UsageError`, :class:`BackendError`,
    :class:`IntegrityError` or KeyboardInterrupt.
    """
    with tempfile.TemporaryDirectory(prefix="rekd-edge-load-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(dict(request)), encoding="utf-8")
        report = folder / "report.json"
        command = [
            *(sys.executable, str(program_path()), str(bundle), "--examples", str(examples)),
            *("--request", str(folder / "request.json"), "--report", str(report)),
        ]
        _run(command, progress)
        document = json.loads(report.read_text(encoding="utf-8"))
        written = folder / f"report{LOGS_SUFFIX}"
        notes = _put(written, logs) if logs is not None and written.is_dir() else ()
    return LoadReport(document, notes)


def require_place_for_logs(folder: Path) -> None:
    """Raises :class:`UsageError` where ``folder`` is anything but LoadGen's logs of an earlier
    run, which are replaced."""
    others = []
    if folder.is_dir():
        others = [path for path in folder.iterdir() if not path.match(LOG_FILES)]
    if others or (folder.exists() and not folder.is_dir()):
        raise UsageError(
            f"{folder} is in the way of LoadGen's logs", hint="move it, or name another --json file"
        )


def _put(logs: Path, place: Path) -> tuple[str, ...]:
    """Copies the folder ``logs`` to ``place``, whole, over the logs of an earlier run. Where that
    fails the measurement is not lost: the reason is returned."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as name:
            whole = Path(shutil.copytree(logs, Path(name) / "logs"))
            if place.is_dir():
                for file in place.glob(LOG_FILES):
                    file.unlink()
                place.rmdir()
            whole.rename(place)
    except OSError as error:
        return (f"LoadGen's logs could not be kept in {place}: {error.strerror or error}",)
    return ()


def _run(command: Sequence[str], progress: Callable[[str], None]) -> None:
    """Passes what the program says on; raises what it ends with. It never outlives this call: it
    ends by itself where nobody reads its progress any more."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line.rstrip("\n"))
            progress(said[-1])
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stderr.close()
    if code == 0:
        return
    if code == 130:
        raise KeyboardInterrupt
    starts = [number for number, line in enumerate(said) if line.startswith("error: ")]
    if code not in _BY_EXIT_CODE or not starts:
        last = said[-1] if said else "no message"
        raise RekdEdgeError(f"the load test ended with exit code {code}: {last}")
    message, _, hint = "\n".join(said[starts[-1] :]).partition("\n  hint: ")
    raise _BY_EXIT_CODE[code](message.removeprefix("error: "), hint=hint or None)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What ``rekd_bench.py`` wrote, from here or from a board."""

    document: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())

    @property
    def valid(self) -> bool:
        return self.document["result_validity"] == "VALID"

    @property
    def passed(self) -> bool:
        return self.valid

    @property
    def missed_target(self) -> str | None:
        """Where the latency that was asked for has not been reached, by how much."""
        if self.document.get("result_perf_constraints_met", True):
            return None
        whole: str = self.document["result_invalid_reason"]
        reasons = (reason for reason in whole.split("; ") if "above the target" in reason)
        return next(reasons, whole or "the target is missed")

    def to_json(self) -> dict[str, Any]:
        return dict(self.document) | {"notes": list(self.notes)}

    def render(self, console: Console) -> None:
        document = self.document
        verdict = "VALID"
        if not self.valid:
            verdict = f"INVALID: {document['result_invalid_reason']}"
        where = f"{document['runtime']} {document['provider'].removesuffix('ExecutionProvider')}"
        console.print(
            f"load test: {document['scenario']}, {document['mode']}, {document['scope']}, "
            f"{document['threads']} thread(s), {where}, driven by {document['driver']}",
            markup=False,
        )
        console.print(verdict, markup=False, style=None if self.valid else "bold red")
        console.print(f"measured: {document['scope_in_words']}", markup=False)
        if document["quality"] is not None:
            self._render_quality(console, document["quality"])
        else:
            self._render_latency(console)
        console.print(f"inputs: {document['inputs']} ({document['input_count']})", markup=False)
        for line in (*_state_lines(document), *(f"note: {note}" for note in self.notes)):
            console.print(line, markup=False)

    def _render_latency(self, console: Console) -> None:
        from rich.table import Table

        document = self.document
        count = f"{document['result_sample_count']} examples"
        if document["scenario"] == "Offline":
            rate = document["result_samples_per_second"]
            console.print(f"throughput: {rate:.4g} examples a second ({count})", markup=False)
            console.print(f"of one run: {histogram(document['samples_ns'])}", markup=False)
            return
        queries = f"{document['result_query_count']} queries"
        if document["samples_per_query"] > 1:
            queries += f" of {document['samples_per_query']}"
        table = Table(title=f"latency of a query in ms ({queries})", title_justify="left")
        columns = {f"p{name}": f"{name}_percentile" for name in PERCENTILES}
        for title, key in (columns | {"mean": "mean", "max": "max"}).items():
            table.add_column(title, justify="right")
            columns[title] = f"{document[f'result_{key}_latency_ns'] / 1e6:.3f}"
        table.add_row(*columns.values())
        console.print(table)
        console.print(histogram(document["samples_ns"]), markup=False)
        estimate = document["early_stopping_latency_ns"]
        percentile = document["target_latency_percentile"]
        if estimate is not None:
            console.print(
                f"early stopping: the {percentile}th percentile is at most {estimate / 1e6:.3f} ms "
                "(99 % confidence)",
                markup=False,
            )
        if document.get("loadgen_difference") is not None:
            console.print(
                f"{percentile}th percentile of the samples taken here: "
                f"{document['loadgen_difference']:+.2%} from LoadGen's",
                markup=False,
            )

    def _render_quality(self, console: Console, quality: Mapping[str, Any]) -> None:
        problem: ProblemType = quality.get("problem_type", "single_label_classification")
        title = SCORE_TITLES[PRIMARY[problem]]
        right = "no labels" if quality["accuracy"] is None else f"{quality['accuracy']:.4f}"
        sure = quality["accuracy_of_answered"]
        console.print(
            f"{title} {right}, coverage {quality['coverage']:.4f} "
            f"({quality['abstained_count']} of {quality['example_count']} withheld)"
            + ("" if sure is None else f", of those answered {sure:.4f}"),
            markup=False,
        )


def _state_lines(document: Mapping[str, Any]) -> list[str]:
    lines = []
    cold = document["cold_start"]
    if cold is not None:
        start = median(cold["time_to_first_answer_ns"]) / 1e9
        lines.append(f"cold start: {start:.2f} s to the first answer (files cached)")
    if document["peak_rss_bytes"] is not None:
        lines.append(f"peak RSS: {document['peak_rss_bytes'] / 1e6:.0f} MB")
    state = document["state"]
    clock = state["clock_mhz"]
    if clock["before"] is not None:
        governor = document["machine"]["governor"]
        lines.append(
            f"clock: {clock['before']:.0f} MHz before, {clock['min']:.0f} at least, "
            f"{clock['after']:.0f} after ({clock['source']}, governor {governor or 'not told'})"
        )
    hottest = max(state["temperatures_c"]["after"].values(), default=None)
    if hottest is not None:
        lines.append(f"temperature: at most {hottest:.0f} degrees Celsius after")
    energy = state["energy"]
    if energy["source"] is None:
        lines.append(f"energy: not told ({energy['reason']})")
    elif energy["energy_per_query_j"] is not None:
        lines.append(
            f"energy: {energy['energy_per_query_j'] * 1e3:.3g} mJ a query, "
            f"{energy['mean_power_w']:.2f} W ({energy['source']}: {', '.join(energy['counted'])})"
        )
    return lines


def histogram(samples_ns: Sequence[int], width: int = 40) -> str:
    """Bars of the samples from the least to the 99th percentile, and the ends in ms."""
    ordered = np.sort(np.asarray(samples_ns, dtype=np.float64)) / 1e6
    low, high = float(ordered[0]), float(ordered[int(len(ordered) * 0.99)])
    if high <= low:
        return f"{low:.3f} ms {_EIGHTHS[-1]}"
    counts, _ = np.histogram(ordered[ordered <= high], bins=width, range=(low, high))
    heights = np.ceil(counts / counts.max() * len(_EIGHTHS)).astype(int)
    bars = "".join(" " if height == 0 else _EIGHTHS[height - 1] for height in heights)
    return f"{low:.3f} ms {bars} {high:.3f} ms (99 %)"
