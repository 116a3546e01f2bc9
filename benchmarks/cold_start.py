"""How long a device waits for the first answer of a bundle, and how much memory that takes.

    python benchmarks/cold_start.py --python ENVIRONMENT/bin/python --output benchmarks/results \
        BUNDLE=INPUT [BUNDLE=INPUT ...]

Every start is a new process of ``--python``, best an environment with numpy, onnxruntime,
tokenizers and Pillow alone, in two forms: ``script`` is ``python BUNDLE/runtime/rekd_runtime.py
INPUT``; ``wheel`` is ``python -m rekd_runtime --bundle BUNDLE INPUT``, where rekd-edge-runtime is
installed there. Bundles and forms take turns. Seconds are from just before the process is made to
the first byte of its answer; processor seconds are those of the whole process, which other load on
the machine moves less; memory is its largest resident set, from ``wait4``. Files are in the page
cache, as after an earlier start.

The part that starts processes imports nothing large: a new process counts the peak of the one that
made it as its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

GOAL_S = 0.7
BUSY = 1.3
"""A start that takes so many times its processor seconds has waited for others: the median is then
no measure of the runtime, and the row is marked so."""
MB = 1_000_000
"""All MB here are 10^6 bytes."""
PROBE = """
import time
begin = time.process_time_ns()
import importlib.util, json, sys
marks = []
def mark(name):
    marks.append((name, time.process_time_ns()))
import numpy
mark("import numpy")
if sys.argv[1] == "script":
    spec = importlib.util.spec_from_file_location(
        "rekd_runtime", sys.argv[2] + "/runtime/rekd_runtime.py")
    runtime = importlib.util.module_from_spec(spec)
    sys.modules["rekd_runtime"] = runtime
    sys.dont_write_bytecode = True
    code = compile(open(spec.origin, "rb").read(), spec.origin, "exec")
    exec(code, runtime.__dict__)
else:
    import rekd_runtime as runtime
mark("import runtime")
verified = runtime._verified
def timed(*words, **named):
    mark("before verify")
    found = verified(*words, **named)
    mark("read and hash")
    return found
runtime._verified = timed
opened = runtime._open_session
def timed_session(*words, **named):
    import onnxruntime
    mark("import onnxruntime")
    found = opened(*words, **named)
    mark("open session")
    return found
runtime._open_session = timed_session
built = runtime.TextEncoder.__init__
def timed_encoder(*words, **named):
    built(*words, **named)
    mark("tokenizer")
runtime.TextEncoder.__init__ = timed_encoder
model = runtime.Rationalist.load(sys.argv[2])
mark("rest of load")
model.predict([sys.argv[3]])
mark("first answer")
last, parts = begin, {}
for name, moment in marks:
    parts[name] = parts.get(name, 0) + (moment - last) / 1e6
    last = moment
print(json.dumps(parts))
"""


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def start(command: list[str], folder: Path) -> dict[str, float]:
    """One process: seconds to the first byte, processor seconds and peak memory."""
    reading, writing = os.pipe()
    log = (folder / "stderr").open("w+b")
    before = time.monotonic_ns()
    process = os.posix_spawn(
        command[0],
        command,
        clean_environment(),
        file_actions=[
            (os.POSIX_SPAWN_DUP2, writing, 1),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            (os.POSIX_SPAWN_CLOSE, reading),
        ],
    )
    os.close(writing)
    first = os.read(reading, 1)
    answered = time.monotonic_ns()
    while os.read(reading, 65536):
        pass
    os.close(reading)
    _, status, usage = os.wait4(process, 0)
    if status != 0 or not first:
        log.seek(0)
        sys.exit(f"{' '.join(command)} failed: {log.read().decode()}")
    log.close()
    return {
        "first_answer_s": (answered - before) / 1e9,
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_mb": usage.ru_maxrss * 1024 / MB,
    }


def forms(python: str, bundle: Path, text: str) -> dict[str, list[str]]:
    words = ["--threads", "1"]
    if (bundle / "tokenizer.json").is_file() is False:
        words += ["--no-overlay"]
    found = {"script": [python, str(bundle / "runtime/rekd_runtime.py"), *words, text]}
    has = subprocess.run(
        [python, "-c", "import rekd_runtime"], capture_output=True, env=clean_environment()
    )
    if has.returncode == 0:
        found["wheel"] = [python, "-m", "rekd_runtime", "--bundle", str(bundle), *words, text]
    return found


def parts_ms(python: str, form: str, bundle: Path, text: str, rounds: int) -> dict[str, float]:
    """Median processor milliseconds of each part, inside the process."""
    seen: list[dict[str, float]] = []
    for _ in range(rounds):
        done = subprocess.run(
            [python, "-c", PROBE, form, str(bundle), text],
            capture_output=True,
            text=True,
            check=True,
            env=clean_environment(),
        )
        seen.append(json.loads(done.stdout))
    return {name: round(statistics.median(one[name] for one in seen), 1) for name in seen[0]}


def own_peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def measure(options: argparse.Namespace) -> dict[str, Any]:
    given = dict(pair.split("=", 1) for pair in options.bundles)
    python = str(Path(options.python).absolute())
    cases = {
        (name, form): command
        for name, text in given.items()
        for form, command in forms(python, Path(name), text).items()
    }
    samples: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
    order = list(cases)
    loads = [os.getloadavg()[0]]
    for number in range(options.rounds + 1):
        shift = number % len(order)
        for case in order[shift:] + order[:shift]:
            found = start(cases[case], options.scratch)
            if number:  # the first fills caches
                samples[case].append(found)
    loads.append(os.getloadavg()[0])
    rows = []
    for (name, form), seen in samples.items():
        bundle = Path(name)
        size = sum(path.stat().st_size for path in bundle.glob("model.onnx*")) / MB
        config = json.loads((bundle / "config.json").read_text())
        seconds = sorted(one["first_answer_s"] for one in seen)
        median = statistics.median(seconds)
        processor = statistics.median(one["processor_s"] for one in seen)
        peak = max(one["peak_rss_mb"] for one in seen)
        rows.append(
            {
                "bundle": bundle.name,
                "modality": config["modality"],
                "precision": config["precision"],
                "form": form,
                "model_mb": round(size, 1),
                "first_answer_s": {
                    "least": round(seconds[0], 3),
                    "median": round(median, 3),
                    "most": round(seconds[-1], 3),
                },
                "processor_s": round(processor, 3),
                "invalid": "the machine was busy" if median > BUSY * processor else None,
                "peak_rss_mb": round(peak, 1),
                "peak_rss_goal_mb": round(3 * size + 60, 1),
                "within_time": median <= GOAL_S,
                "within_time_by_processor": processor <= GOAL_S,
                "within_memory": peak <= 3 * size + 60,
                "samples_s": [round(value, 4) for value in seconds],
                "parts_processor_ms": parts_ms(
                    python, form, bundle, given[name], options.part_rounds
                ),
            }
        )
    return {"rows": rows, "load_1min": loads, "starter_peak_mb": round(own_peak_mb(), 1)}


def table(result: dict[str, Any]) -> str:
    lines = [
        "# cold-start",
        "",
        "| bundle | model, MB | form | first answer, s: median (least) | processor, s | peak, MB "
        "| goals: 0.7 s, 3 x model + 60 MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        first = row["first_answer_s"]
        said = {True: "held", False: "MISSED"}
        time_goal = said[row["within_time"]]
        if row["invalid"] is not None:
            time_goal = f"INVALID (busy), by processor {said[row['within_time_by_processor']]}"
        kept = [f"time {time_goal}", f"memory {said[row['within_memory']]}"]
        lines.append(
            f"| {row['modality']} {row['precision']} | {row['model_mb']} | {row['form']} | "
            f"{first['median']:.2f} ({first['least']:.2f}) | {row['processor_s']:.2f} | "
            f"{row['peak_rss_mb']:.0f} of {row['peak_rss_goal_mb']:.0f} | {', '.join(kept)} |"
        )
    lines += ["", "Where the processor's time goes, median milliseconds:", ""]
    names = list(
        dict.fromkeys(name for row in result["rows"] for name in row["parts_processor_ms"])
    )
    names = [name for name in names if name != "before verify"]
    lines.append("| bundle, form | " + " | ".join(names) + " |")
    lines.append("|---" * (len(names) + 1) + "|")
    for row in result["rows"]:
        cells = [f"{row['parts_processor_ms'].get(name, 0):.0f}" for name in names]
        label = f"{row['modality']} {row['precision']}, {row['form']}"
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    machine = result["machine"]
    lines += [
        "",
        f"{result['rounds']} starts of each in turn, one thread, {machine['cpu']}, "
        f"{result['cores']} core(s) open to the processes, load before and after "
        f"{result['load_1min'][0]:.1f} and {result['load_1min'][1]:.1f}. Python "
        f"{result['python']}, "
        + ", ".join(f"{k} {v}" for k, v in result["packages"].items())
        + ". "
        f"{result['date']}. `{result['command']}`",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE=INPUT")
    parser.add_argument("--python", default=sys.executable, help="[this one]")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--part-rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        options.scratch = Path(scratch)
        result = measure(options)
    code = (
        "import json, platform; from importlib import metadata\n"
        "names = ('numpy', 'onnxruntime', 'tokenizers', 'pillow')\n"
        "print(json.dumps([platform.python_version(), {n: metadata.version(n) for n in names}]))"
    )
    told = subprocess.run(
        [options.python, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    result["python"], result["packages"] = json.loads(told)
    result["rounds"] = options.rounds
    result["cores"] = len(os.sched_getaffinity(0))
    result["date"] = datetime.now(UTC).date().isoformat()
    names = " ".join(f"{Path(pair.split('=', 1)[0]).name}=..." for pair in options.bundles)
    result["command"] = f"python benchmarks/cold_start.py --python PYTHON --output OUT {names}"
    from rekd_edge.bench.timing import describe_machine

    result["machine"] = describe_machine()
    text = json.dumps(result, indent=2) + "\n"
    (options.output / "cold-start.json").write_text(text, encoding="utf-8")
    (options.output / "cold-start.md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
