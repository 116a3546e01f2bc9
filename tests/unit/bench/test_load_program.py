"""``rekd_bench.py`` without a model: its request, its statistics, what it reads of a machine."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rekd_edge.bench.load import program_path
from rekd_edge.bench.timing import PERCENTILES, describe_machine
from rekd_edge.problem import PRIMARY, scores
from rekd_edge.types import ProblemType
from tests.bench_program import load_program, request, write_texts

program = load_program()


def refusal(document: Any, example_count: int = 100) -> str:
    with pytest.raises(program.InputError) as caught:
        program.Request.of(document).resolved(example_count)
    return str(caught.value)


def asked(**fields: Any) -> dict[str, Any]:
    return {"schema_version": 1, "scenario": "SingleStream", **fields}


# --- the request ------------------------------------------------------------------------------


def test_everything_wrong_with_a_request_is_said_at_once() -> None:
    said = refusal({"schema_version": 2, "scenaro": "Offline", "threads": 1.5, "quick": 1})
    assert "schema_version is 2, not 1" in said
    assert "'scenaro' is not known" in said
    assert "scenario is missing" in said
    assert "threads is 1.5, not int | None" in said
    assert "quick is 1, not bool" in said


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scenario": "Server"}, "scenario 'Server' is none of SingleStream, MultiStream, Offline"),
        ({"scope": "all"}, "scope 'all' is none of compute, end_to_end"),
        ({"min_query_count": 0}, "min_query_count 0 is not from 1"),
        ({"min_duration_s": float("nan")}, "min_duration_s is nan"),
        ({"idle_gap_ms": -1}, "idle_gap_ms -1 is not from 0"),
        ({"batch": 8}, "SingleStream asks one example at a time"),
        ({"scenario": "Offline", "idle_gap_ms": 5}, "Offline is a single query"),
        ({"scenario": "Offline", "target_latency_ms": 5}, "Offline is about throughput"),
        ({"mode": "AccuracyOnly", "target_latency_ms": 5}, "measures no latency"),
        ({"official": True, "quick": True}, "official or quick, not both"),
        ({"official": True, "mode": "AccuracyOnly"}, "official is about PerformanceOnly"),
        ({"official": True, "min_duration_s": 599.9}, "at least 600 s"),
        ({"official": True, "min_query_count": 99}, "at least 100 queries, not 99"),
        ({"official": True, "idle_gap_ms": 1}, "without a pause"),
        ({"scenario": "MultiStream", "official": True, "samples_per_query": 4}, "is 8 samples"),
        ({"scenario": "MultiStream", "official": True, "min_query_count": 661}, "662 queries"),
        ({"scenario": "Offline", "official": True, "min_query_count": 99}, "at least 100 queries"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(fields: dict[str, Any], reason: str) -> None:
    assert reason in refusal(asked(**fields))


def test_an_official_run_is_as_long_as_loadgens() -> None:
    found = {
        scenario: program.Request.of(asked(scenario=scenario, official=True)).resolved(30_000)
        for scenario in program.SCENARIOS
    }
    assert {one.min_duration_s for one in found.values()} == {600.0}
    counts = {scenario: one.min_query_count for scenario, one in found.items()}
    assert counts == {"SingleStream": 100, "MultiStream": 662, "Offline": 24_576}
    small = program.Request.of(asked(scenario="Offline", official=True)).resolved(1_500)
    assert small.min_query_count == 1_500


def test_a_quick_run_is_short() -> None:
    quick = program.Request.of(asked(quick=True)).resolved(10)
    assert (quick.min_duration_s, quick.min_query_count, quick.cold_starts) == (1.0, 20, 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ('{"image": "a.png"}', '{"text": ..., "label": ...} is due'),
        ('{"text": "a", "more": 1}', "is due"),
        ('{"text": 3}', "text is not a string"),
        ('{"text": "a", "label": true}', "label is not a number"),
        ('{"text": "a", "label": 3}', "labels 0 to 2, not 3"),
    ],
)
def test_a_bad_line_of_examples_is_named(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text('{"text": "good"}\n\n' + line)
    with pytest.raises(program.InputError, match="line 3") as caught:
        program.read_examples(tmp_path, "text", 3)
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "sub/a.png", "", "..", "out.png", "b"])
def test_an_image_is_a_plain_file_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "a.png", folder / "sub" / "a.png"):
        place.write_bytes(b"png")
    (folder / "out.png").symlink_to(tmp_path / "a.png")
    (folder / "examples.jsonl").write_text(json.dumps({"image": name}))
    with pytest.raises(program.InputError, match="line 1"):
        program.read_examples(folder, "image", 2)


def test_examples_are_read_with_their_labels(tmp_path: Path) -> None:
    write_texts(tmp_path, ["one", "zwei \u2028 drei"], [1, 0])
    found, digest = program.read_examples(tmp_path, "text", 2)
    assert [(one.item, one.label) for one in found] == [("one", 1), ("zwei \u2028 drei", 0)]
    assert len(digest) == 64
    (tmp_path / "examples.jsonl").write_text("\n")
    with pytest.raises(program.InputError, match="holds no example"):
        program.read_examples(tmp_path, "text", 2)


# --- statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize(("percentile", "count"), [(90, 64), (99, 662), (99.9, 6636), (50, 11)])
def test_the_fewest_queries_for_an_estimate(percentile: float, count: int) -> None:
    """64 and 662 are what LoadGen asks for; 50: 12 / 2**11 = 0.0059 and 11 / 2**10 = 0.0107."""
    assert program.early_stopping_count(percentile) == count
    assert program.early_stopping_estimate(range(count - 1), percentile) is None
    assert program.early_stopping_estimate(range(count), percentile) == count - 1


def test_late_queries_are_counted_as_by_hand() -> None:
    # 0.9**44 = 0.0097: with none late, 44 queries pass and 43 (0.0108) do not.
    assert [program.allowed_overlatency(n, 90) for n in (43, 44, 63, 64)] == [-1, 0, 0, 1]
    # LoadGen 6.0.17 discards the 79 slowest of 1,033 queries.
    assert program.allowed_overlatency(1033, 90) == 80
    assert program.allowed_overlatency(600_000, 90) == 59_459


def test_percentiles_are_loadgens() -> None:
    ordered = list(range(1, 101))
    found = [program.percentile_of(ordered, float(name)) for name in PERCENTILES]
    assert found == [51, 91, 96, 98, 100, 100]
    assert program.percentile_of([7], 99.9) == 7
    assert program.PERCENTILES == PERCENTILES


def noisy(count: int, *, noise: float = 0.03, seed: int = 0) -> list[int]:
    """Around 1 ms."""
    draw = random.Random(seed)
    return [int(1e6 * (1 + abs(draw.gauss(0, noise)))) for _ in range(count)]


def test_a_quiet_run_holds_still() -> None:
    for seed in range(20):
        for count in (100, 300, 2000):
            queries = [number % 20 for number in range(count)]
            windows = program.windows_of(noisy(count, seed=seed), queries)
            assert windows.problem == "", (seed, count)
            assert len(windows.medians) == min(5, count // 50)


def test_texts_of_different_lengths_are_no_unrest() -> None:
    queries = [number % 40 for number in range(1000)]
    samples = [base * (1 + query) for base, query in zip(noisy(1000), queries, strict=True)]
    assert program.windows_of(samples, queries).problem == ""
    assert max(samples) > 30 * min(samples)


def test_a_step_of_a_tenth_does_not_hold_still() -> None:
    samples = noisy(1000)
    samples[700:] = [int(sample * 1.1) for sample in samples[700:]]
    windows = program.windows_of(samples, [0] * 1000)
    assert windows.problem.startswith("medians of 5 windows from 0.98")
    assert windows.problem.endswith("of the run's (5% allowed)")


def test_a_drift_of_four_percent_is_allowed_and_of_seven_is_not() -> None:
    for drift, still in ((0.04, True), (0.07, False)):
        samples = [int(s * (1 + drift * i / 5000)) for i, s in enumerate(noisy(5000))]
        assert (program.windows_of(samples, [0] * 5000).problem == "") is still


def test_a_median_that_is_not_known_is_unrest() -> None:
    samples = [int(1e6 * (1 if number % 2 else 2)) for number in range(200)]
    windows = program.windows_of(samples, [0] * 200)
    assert windows.problem == "the 99 % interval of the median is 66.7% wide"


def test_too_few_queries_have_no_windows() -> None:
    windows = program.windows_of(noisy(99), list(range(99)))
    assert windows.medians == ()
    assert not windows.repeated


# --- the machine ------------------------------------------------------------------------------


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


CPU = "sys/devices/system/cpu"


def watched(root: Path, before: dict[str, object], after: dict[str, object]) -> Any:
    """A watch over a machine of files that change while it looks away."""
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    named = {
        state: {name.replace("cpuN", f"cpu{core}"): value for name, value in files.items()}
        for state, files in (("before", before), ("after", after))
    }
    machine = program.Machine(tree(root, named["before"]))
    watch = program.Watch(machine)
    watch.start()
    for answered in range(1, 401):
        if answered == 250:
            tree(root, named["after"])
        watch._next_poll = 0
        watch.between(answered)
    watch.stop(400)
    return watch


def test_clocks_and_governor_come_from_cpufreq(tmp_path: Path) -> None:
    files: dict[str, object] = {
        f"{CPU}/cpuN/cpufreq/scaling_cur_freq": 3_000_000,
        f"{CPU}/cpuN/cpufreq/scaling_governor": "schedutil",
    }
    watch = watched(tmp_path, files, {f"{CPU}/cpuN/cpufreq/scaling_cur_freq": 2_000_000})
    told = watch.to_json(400)["clock_mhz"]
    assert told == {
        "before": 3000.0,
        "after": 2000.0,
        "min": 2000.0,
        "max": 3000.0,
        "source": "cpufreq",
        "reason": None,
    }
    assert watch.machine.governors() == ["schedutil"]
    assert watch.problems(400, idle_gap=False)[0] == "the clock fell from 3000 to 2000 MHz"
    assert "clock" not in " ".join(watch.problems(400, idle_gap=True))


def test_a_clock_that_wavers_a_little_or_starts_slowly_is_no_unrest(tmp_path: Path) -> None:
    name = f"{CPU}/cpuN/cpufreq/scaling_cur_freq"
    watch = watched(tmp_path, {name: 3_000_000}, {name: 2_900_000})
    watch.clocks[0] = (0, 800.0)  # idle, before the first query
    assert watch._clock_problem(400) == ""


def test_without_cpufreq_the_clock_comes_from_cpuinfo_or_is_not_told(tmp_path: Path) -> None:
    told = watched(tmp_path, {"proc/cpuinfo": "cpu MHz\t\t: 2599.996\ncpu MHz : x"}, {})
    assert told.to_json(1)["clock_mhz"]["source"] == "/proc/cpuinfo"
    assert told.to_json(1)["clock_mhz"]["min"] == 2599.996
    silent = watched(tmp_path / "bare", {"etc/empty": ""}, {}).to_json(1)
    assert silent["clock_mhz"]["before"] is None
    assert "neither cpufreq" in silent["clock_mhz"]["reason"]
    assert silent["energy"] == {
        "source": None,
        "reason": "no RAPL counter and no INA3221 rail",
    }
    assert silent["temperatures_c"] == {"before": {}, "after": {}}
    assert silent["other_work_cores"] is None


def test_throttling_that_happens_during_the_run_is_unrest(tmp_path: Path) -> None:
    counter = f"{CPU}/cpu0/thermal_throttle/core_throttle_count"
    firmware = "sys/devices/platform/soc/soc:firmware/get_throttled"
    fan, brake = ("sys/class/thermal/cooling_device0", "sys/class/thermal/cooling_device1")
    watch = watched(
        tmp_path,
        {
            counter: 7,
            firmware: "0",
            f"{fan}/type": "pwm-fan",
            f"{fan}/cur_state": 0,
            f"{brake}/type": "thermal-cpufreq-0",
            f"{brake}/cur_state": 0,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 41_500,
        },
        {
            counter: 9,
            firmware: "e0008",
            f"{fan}/cur_state": 2,
            f"{brake}/cur_state": 1,
            "sys/class/thermal/thermal_zone0/temp": 83_250,
        },
    )
    assert watch.problems(400, idle_gap=False)[:3] == [
        f"{firmware} said that it is throttled",
        f"{counter} rose from 7 to 9",
        "cooling_device1 thermal-cpufreq-0 went from 0 to 1",
    ]
    told = watch.to_json(400)
    assert told["temperatures_c"]["before"] == {"thermal_zone0 cpu-thermal": 41.5}
    assert told["temperatures_c"]["after"] == {"thermal_zone0 cpu-thermal": 83.25}


@pytest.mark.parametrize(
    "folder", ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"], ids=["3, 4", "5"]
)
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("0", "0", "0"), ""),
        (("50000", "50000", "50000"), ""),
        (("50000", "50004", "50000"), "said that it is throttled"),
        (("0", "20000", "20000"), f"rose from 0 to {0x20000}"),
    ],
    ids=["never", "long ago", "again, and over by the end", "between two looks"],
)
def test_a_raspberry_pi_says_when_it_is_throttled(
    folder: str, flags: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    name = f"sys/devices/platform/{folder}/get_throttled"
    watch = program.Watch(program.Machine(tree(tmp_path, {name: flags[0]})))
    watch.start()
    for answered, value in enumerate(flags, start=1):
        tree(tmp_path, {name: value})
        watch._next_poll = 0
        watch.between(answered)
    watch.stop(3)
    about = [one for one in watch.problems(3, idle_gap=False) if one.startswith(name)]
    assert about == ([f"{name} {said}"] if said else [])


def test_many_counters_are_one_short_reason(tmp_path: Path) -> None:
    names = [f"{CPU}/cpu{n}/thermal_throttle/core_throttle_count" for n in range(300)]
    watch = watched(tmp_path, dict.fromkeys(names, 0), dict.fromkeys(names, 1))
    problems = watch.problems(400, idle_gap=False)
    assert problems[3] == "and 297 more of the kind"
    assert len("; ".join(problems)) < 1000


def test_rapl_is_added_up_across_its_wrap(tmp_path: Path) -> None:
    zone = "sys/class/powercap"
    energy = program.Energy(
        tree(
            tmp_path,
            {
                f"{zone}/intel-rapl:0/name": "package-0",
                f"{zone}/intel-rapl:0/energy_uj": 9_000_000,
                f"{zone}/intel-rapl:0/max_energy_range_uj": 10_000_000,
                f"{zone}/intel-rapl:0:0/name": "core",
                f"{zone}/intel-rapl:0:0/energy_uj": 0,
                f"{zone}/intel-rapl:0:1/name": "dram",
                f"{zone}/intel-rapl:0:1/energy_uj": 0,
                f"{zone}/intel-rapl:1/name": "psys",
                f"{zone}/intel-rapl:1/energy_uj": 0,
            },
        )
    )
    energy.poll(0)
    for package, core, memory, whole in ((9_500_000, 1, 2, 3), (1_500_000, 9, 500_000, 9)):
        tree(tmp_path, {f"{zone}/intel-rapl:0/energy_uj": package})
        tree(tmp_path, {f"{zone}/intel-rapl:0:0/energy_uj": core})
        tree(tmp_path, {f"{zone}/intel-rapl:0:1/energy_uj": memory})
        tree(tmp_path, {f"{zone}/intel-rapl:1/energy_uj": whole})
        energy.poll(10**9)
    told = energy.to_json(2.0, 100)
    assert told["source"] == "RAPL"
    assert told["counted"] == ["package-0", "package-0 dram"]
    assert told["energy_j"] == pytest.approx(3.0)  # 0.5 + 2.0 + 0.5
    assert told["mean_power_w"] == pytest.approx(1.5)
    assert told["energy_per_query_j"] == pytest.approx(0.03)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_rapl_without_permission_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    tree(tmp_path, {str(path.relative_to(tmp_path)): 1})
    path.chmod(0)
    told = program.Energy(tmp_path).to_json(1.0, 1)
    assert told == {
        "source": None,
        "reason": "RAPL needs permission to read sys/class/powercap/intel-rapl:0/energy_uj",
    }


@pytest.mark.parametrize("kind", ["hwmon", "iio"])
def test_the_rails_of_a_jetson_are_integrated(kind: str, tmp_path: Path) -> None:
    place = "sys/class/hwmon/hwmon3"
    old = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"

    def power(whole_mw: int) -> dict[str, object]:
        if kind == "iio":
            return {
                f"{old}/rail_name_0": "POM_5V_IN",
                f"{old}/in_power0_input": whole_mw,
                f"{old}/rail_name_1": "POM_5V_CPU",
                f"{old}/in_power1_input": 400,
            }
        return {
            f"{place}/name": "ina3221",
            f"{place}/in1_label": "VDD_IN",
            f"{place}/in1_input": 5_000,
            f"{place}/curr1_input": whole_mw // 5,
            f"{place}/in2_label": "VDD_CPU",
            f"{place}/in2_input": 4_000,
            f"{place}/curr2_input": 100,
        }

    energy = program.Energy(tree(tmp_path, power(2_000)))
    energy.poll(0)
    tree(tmp_path, power(4_000))
    energy.poll(2 * 10**9)  # 2 W to 4 W in two seconds
    energy.poll(3 * 10**9)
    told = energy.to_json(3.0, 10)
    assert told["source"] == "INA3221"
    assert told["counted"] == ["VDD_IN" if kind == "hwmon" else "POM_5V_IN"]
    assert told["energy_j"] == pytest.approx(10.0)
    cpu = "VDD_CPU" if kind == "hwmon" else "POM_5V_CPU"
    assert told["zones_j"][cpu] == pytest.approx(1.2)


def test_other_work_and_stolen_time_are_unrest(tmp_path: Path) -> None:
    second = os.sysconf("SC_CLK_TCK")
    watch = program.Watch(program.Machine(tree(tmp_path, {"proc/stat": f"cpu {'0 ' * 10}"})))
    watch.start()
    watch.stop(1)
    watch.stopped_ns = watch.started_ns + 10 * 10**9
    watch.before["own_s"], watch.after["own_s"] = 0.0, 10.0
    busy, stolen = 19 * second, second
    tree(tmp_path, {"proc/stat": f"cpu {busy} 0 0 0 0 0 0 {stolen} 0 0\ncpu0 1"})
    watch.after["ticks"] = watch.machine.processor_ticks()
    watch.before["waited_ns"], watch.after["waited_ns"] = 0, 3 * 10**8
    assert watch.shares() == {
        "other_work_cores": pytest.approx(0.9),
        "stolen_share": pytest.approx(0.05),
        "waiting_share": pytest.approx(0.03),
    }
    problems = watch.problems(1, idle_gap=False)
    assert problems[:2] == [
        "waited for a core for 3.0% of the time",
        "a hypervisor took 5.0% of the time",
    ]
    if (os.cpu_count() or 1) < 18:
        assert problems[2] == "other work took 0.90 cores"


def test_where_the_system_does_not_tell_the_load_average_counts(tmp_path: Path) -> None:
    watch = program.Watch(program.Machine(tmp_path))
    watch.start()
    watch.stop(1)
    watch.stopped_ns = watch.started_ns + 10 * 10**9
    watch.before["own_s"], watch.after["own_s"] = 0.0, 10.0
    watch.after["load_average_1m"] = 1.9
    assert watch.problems(1, idle_gap=False) == []
    watch.after["load_average_1m"] = 2.5
    assert watch.problems(1, idle_gap=False) == ["the load average is 2.50"]


def test_the_machine_is_described_as_by_the_other_benchmark() -> None:
    mine, theirs = program.Machine().describe(), describe_machine()
    for name in ("cpu", "architecture", "system", "cores_available", "cpu_quota", "onnxruntime"):
        assert mine[name] == theirs[name], name
    assert mine["memory_bytes"] is None or mine["memory_bytes"] > 1e8


def test_a_digest_tells_label_and_rationale() -> None:
    digest = program.answer_digest(1, [True, False, True])
    assert digest == "77dacff19465b7f7"  # printf 1:101 | sha256sum
    assert program.answer_digest(0, [True, False, True]) != digest
    assert program.answer_digest(1, [True, True, True]) != digest


def test_settings_reach_loadgen_in_its_units() -> None:
    loadgen = pytest.importorskip("mlperf_loadgen")
    wanted = request("MultiStream", min_duration_s=2.5, min_query_count=700, seed=9)
    settings = program.loadgen_settings(loadgen, wanted, 4e6)
    assert settings.scenario == loadgen.TestScenario.MultiStream
    assert settings.mode == loadgen.TestMode.PerformanceOnly
    assert (settings.min_duration_ms, settings.min_query_count) == (2500, 700)
    assert settings.multi_stream_samples_per_query == 8
    assert settings.multi_stream_expected_latency_ns == 2_000_000
    assert settings.sample_index_rng_seed == 9
    assert settings.multi_stream_target_latency_percentile == 0.99
    assert settings.single_stream_target_latency_percentile == 0.9


def test_a_log_without_results_is_said(tmp_path: Path) -> None:
    log = tmp_path / "mlperf_log_detail.txt"
    with pytest.raises(load_program().runtime.RekdRuntimeError, match="left no results"):
        program.read_loadgen_log(log)
    log.write_text(
        ":::MLLOG broken\nother\n"
        ':::MLLOG {"key": "loadgen_version", "value": "6.0"}\n'
        ':::MLLOG {"key": "result_99.90_percentile_latency_ns", "value": 5}\n'
        ':::MLLOG {"key": "result_90.00_percentile_per_query_latency_ns", "value": 4}\n'
    )
    assert program.read_loadgen_log(log) == {
        "loadgen_version": "6.0",
        "result_99.9_percentile_latency_ns": 5,
        "result_90_percentile_per_query_latency_ns": 4,
    }


def test_it_is_python_310(tmp_path: Path) -> None:
    import ast

    ast.parse(program_path().read_text(encoding="utf-8"), feature_version=(3, 10))


# --- several labels, and values ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "label", "message"),
    [
        ("multi_label_classification", [1, 0, 1], None),
        ("multi_label_classification", [1, 0], "label is a list of 3, 0 or 1 each"),
        ("multi_label_classification", [1, 0, 2], "0 or 1 each"),
        ("multi_label_classification", [1, 0, True], "0 or 1 each"),
        ("multi_label_classification", 1, "label is a list of 3"),
        ("regression", [1.5, -2, 0], None),
        ("regression", [1.5, -2, "0"], "label is a list of 3, a number each"),
        ("regression", [1.5, -2, float("nan")], "a number each"),
        ("regression", 1.5, "label is a list of 3"),
    ],
)
def test_labels_are_those_of_the_problem_type(
    problem: str, label: Any, message: str | None, tmp_path: Path
) -> None:
    line = json.dumps({"text": "a", "label": label})
    (tmp_path / "examples.jsonl").write_text(line + "\n" + json.dumps({"text": "b"}))
    if message is None:
        examples, _ = program.read_examples(tmp_path, "text", 3, problem)
        assert [one.label for one in examples] == [label, None]
        return
    with pytest.raises(program.InputError, match=f"line 1: .*{message}"):
        program.read_examples(tmp_path, "text", 3, problem)


def test_its_scores_are_those_of_the_package() -> None:
    rng = np.random.default_rng(0)
    logits, values = rng.normal(size=(50, 4)), rng.normal(size=(50, 4))
    labels = (rng.random((50, 4)) < 0.3).astype(float)
    single = rng.integers(0, 4, 50)
    cases: tuple[tuple[ProblemType, np.ndarray, np.ndarray], ...] = (
        ("single_label_classification", single, logits.argmax(axis=1)),
        ("multi_label_classification", labels, (logits > 0).astype(int)),
        ("regression", values + logits / 4, values),
    )
    for problem, due, found in cases:
        # What stands for a decision in `scores`: logits.
        given = values if problem == "regression" else logits
        expected = scores(given, due, problem)[PRIMARY[problem]]
        assert program.score_of(found.tolist(), due.tolist(), problem) == pytest.approx(expected)
    none = [[0, 0]] * 3
    assert program.score_of(none, none, "multi_label_classification") == 0.0
    flat = [[5.0], [5.0]]
    assert program.score_of(flat, flat, "regression") == 1.0
    assert program.score_of([[5.0], [6.0]], flat, "regression") == 0.0


def test_digests_of_labels_and_of_values() -> None:
    kept = [True, False, True]
    assert program.answer_digest([1, 0], kept) != program.answer_digest([0, 1], kept)
    assert program.answer_digest([1.25, 0.5], kept) == program.answer_digest([1.26, 0.5], kept)
    assert program.answer_digest([1.25], kept) != program.answer_digest([1.25], [True, True, True])


def test_loadgen_gets_equally_many_bytes_an_example() -> None:
    logits = [np.array([1.0, -1.0, 2.0], np.float32), np.array([-1.0, -1.0, 0.5], np.float32)]
    single = program.loadgen_answers(logits, "single_label_classification")
    assert (single.typecode, single.tolist()) == ("i", [2, 2])
    several = program.loadgen_answers(logits, "multi_label_classification")
    assert (several.typecode, several.tolist()) == ("i", [1, 0, 1, 0, 0, 1])
    values = program.loadgen_answers(logits, "regression")
    assert (values.typecode, values.tolist()) == ("f", [1.0, -1.0, 2.0, -1.0, -1.0, 0.5])
