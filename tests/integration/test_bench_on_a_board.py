"""``rekd-edge bench BUNDLE --device ssh://...`` as a user runs it, with a real bundle."""

from __future__ import annotations

import io
import json
import platform
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rekd_edge.bench.baseline import values_of
from rekd_edge.bench.load import LoadReport
from rekd_edge.boards.address import BoardAddress
from rekd_edge.boards.load_test import load_test_job, run_load_test_on_board
from rekd_edge.boards.openssh import SshBoard
from rekd_edge.boards.profiles import MeasuredReport, judge, load_device
from rekd_edge.boards.report import checked_report
from rekd_edge.boards.session import run_on_board
from rekd_edge.bundle import open_bundle
from rekd_edge.cli.app import app
from rekd_edge.errors import GateError, IntegrityError, RemoteDeviceError, UsageError
from tests.signals import not_ignored
from tests.sshd import Server, at_work, open_small_disk, wait_until, write_key

REQUEST: dict[str, Any] = {
    "schema_version": 1,
    "scenario": "SingleStream",
    "scope": "end_to_end",
    "mode": "PerformanceOnly",
    "quick": True,
    "min_duration_s": 0.2,
    "threads": 1,
}
LONG = {**REQUEST, "min_duration_s": 300.0}
ENERGY = {
    "source": "RAPL",
    "reason": None,
    "energy_j": 1.0,
    "mean_power_w": None,
    "energy_per_query_j": 1.0,
    "counted": ["package-0"],
    "zones_j": {"package-0": 1.0},
    "poll_count": 2,
}
"""Per query, but not of the whole."""


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    folder = tmp_path / "examples"
    folder.mkdir()
    lines = [{"text": "A dull film.", "label": 0}, {"text": "A fine cast, and more of it."}]
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_bundle_is_measured_there(
    board: SshBoard, text_bundle: Path, examples: Path, place: Path
) -> None:
    seen: list[str] = []

    def look(line: str) -> None:
        if line.startswith("SingleStream"):
            seen.extend(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())

    report = run_load_test_on_board(board, text_bundle, examples, REQUEST, progress=look)
    document = report.document
    assert document["machine"]["architecture"] == platform.machine()
    assert document["result_90_percentile_latency_ns"] > 0
    assert document["cold_start"]["peak_rss_bytes"][0] > 10_000_000
    assert document["name"] == open_bundle(text_bundle).manifest.name
    copied = {path.partition("/")[2] for path in seen}
    assert {"program/rekd_bench.py", "bundle/model.onnx", "bundle/manifest.json"} <= copied
    assert not any(path.startswith(("bundle/reports", "bundle/runtime")) for path in copied)
    assert str(place) not in json.dumps(document)


def test_no_space_for_the_report_is_of_the_board(
    board: SshBoard, text_bundle: Path, examples: Path, tmp_path: Path
) -> None:
    with open_small_disk(tmp_path / "disk") as disk:

        def fill(line: str) -> None:
            if line.startswith("SingleStream"):
                with suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
                    while file.write(bytes(1 << 20)):
                        pass

        small = replace(board, folder=str(disk))
        request = {**REQUEST, "min_duration_s": 3.0}
        with pytest.raises(RemoteDeviceError, match=r"no space on .*No space left") as caught:
            run_load_test_on_board(small, text_bundle, examples, request, progress=fill)
        assert caught.value.exit_code == 5
        assert [path.name for path in disk.iterdir()] == ["other"]


def test_images_are_measured_there(board: SshBoard, image_bundle: Path, tmp_path: Path) -> None:
    import numpy as np

    from rekd_edge.bench.load import write_examples

    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    write_examples(folder, list(pixels), [0, 1])
    request = {**REQUEST, "mode": "AccuracyOnly"}
    document = run_load_test_on_board(board, image_bundle, folder, request).document
    assert document["quality"]["labelled_count"] == 2


def test_a_bundle_that_changes_on_the_way_is_refused_there(
    board: SshBoard, text_bundle: Path, examples: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "bundle"
    shutil.copytree(text_bundle, broken)
    job = load_test_job(open_bundle(broken), examples, REQUEST)
    model = bytearray((broken / "model.onnx").read_bytes())
    model[100] ^= 1
    (broken / "model.onnx").write_bytes(model)
    with pytest.raises(IntegrityError, match=r"'model\.onnx' has changed \(sha256\)") as caught:
        run_on_board(board, job)
    assert caught.value.exit_code == 6


def test_what_the_program_refuses_is_said_here(
    board: SshBoard, text_bundle: Path, examples: Path
) -> None:
    with pytest.raises(UsageError, match=r"on ssh://.*scope 'all' is none of compute"):
        run_load_test_on_board(board, text_bundle, examples, {**REQUEST, "scope": "all"})


def test_loadgen_stays_here(board: SshBoard, text_bundle: Path, examples: Path) -> None:
    with pytest.raises(UsageError, match="this machine alone"):
        run_load_test_on_board(board, text_bundle, examples, {**REQUEST, "loadgen": True})


@pytest.fixture(scope="module")
def written(server: Server, text_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A true report, as its bytes."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "examples.jsonl").write_text('{"text": "A dull film."}\n')
    board = SshBoard(
        BoardAddress.parse(server.address),
        server.known_hosts,
        server.identity,
        python=sys.executable,
    )
    return run_on_board(board, load_test_job(open_bundle(text_bundle), folder, REQUEST))[1]


def test_a_true_report_passes_as_it_is(written: bytes) -> None:
    assert checked_report(written, {"scenario": "SingleStream"}, REQUEST) == json.loads(written)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("extra", 1, "extra"),
        ("samples_ns", [1.5], "samples_ns"),
        ("samples_ns", [], "latencies"),
        ("samples_ns", ["1"], "samples_ns"),
        ("sample_examples", [0], "sample_examples"),
        ("result_validity", "GOOD", "result_validity"),
        ("result_90_percentile_latency_ns", None, "result_90"),
        ("result_90_percentile_latency_ns", -1, "result_90"),
        ("stability", None, ""),
        ("machine", {"cpu": "x"}, "machine"),
        ("machine.cpu", "x" * 5000, "machine.cpu"),
        ("machine.onnxruntime", {"a": 1}, "machine.onnxruntime"),
        ("state.energy.zones_j", {"a": "b"}, "zones_j"),
        ("cold_start.time_to_first_answer_ns", [], "time_to_first"),
        ("date", "today", "date"),
        ("model_sha256", "../../etc/passwd", "model_sha256"),
        ("quality", {"accuracy": 2}, "quality"),
        ("state.energy", ENERGY, "part of the energy"),
        ("request.threads", 2, "request.threads is 2, and was to be 1"),
        ("request.scope", "compute", "request.scope is 'compute'"),
        ("request.min_duration_s", 0.1, "request.min_duration_s is 0.1"),
        ("scenario", "Offline", "scenario is 'Offline'|latencies"),
        ("manifest_sha256", "0" * 64, "manifest_sha256 is"),
    ],
)
def test_a_false_report_is_refused(written: bytes, path: str, value: Any, message: str) -> None:
    document = json.loads(written)
    promised = {key: document[key] for key in ("scenario", "manifest_sha256")}
    part = document
    *parents, last = path.split(".")
    for name in parents:
        part = part[name]
    part[last] = value
    if path == "stability":
        del document["stability"]
        message = "no latencies"
    with pytest.raises(ValueError, match=message):
        checked_report(json.dumps(document).encode(), promised, REQUEST)


def test_a_report_without_one_of_its_parts_is_refused_or_does_as_well(written: bytes) -> None:
    whole = json.loads(written)
    places = [(whole, key) for key in whole]
    places += [
        (whole[part], key) for part in ("machine", "state", "cold_start") for key in whole[part]
    ]
    places += [
        (whole["state"][part], key)
        for part in ("clock_mhz", "energy")
        for key in whole["state"][part]
    ]
    refused = 0
    for part, key in places:
        value = part.pop(key)
        try:
            found = checked_report(json.dumps(whole).encode(), {})
        except ValueError:
            refused += 1
        else:
            LoadReport(found).render(Console(file=io.StringIO()))
            values_of(found)
        part[key] = value
    assert refused > 60


def test_a_target_that_is_missed_without_a_reason_is_missed(written: bytes) -> None:
    document = json.loads(written)
    document |= {"result_perf_constraints_met": False, "result_invalid_reason": "quick"}
    found = checked_report(json.dumps(document).encode(), {})
    assert LoadReport(found).missed_target == "quick"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 10**6, b'{"a":' * 10**5])
def test_what_is_no_report_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="document"):
        checked_report(content, {})


def test_text_of_a_report_cannot_steer_the_terminal(written: bytes) -> None:
    document = json.loads(written)
    document["machine"]["cpu"] = "a\x1b[2Jb\n"
    found = checked_report(json.dumps(document).encode(), {})
    assert found["machine"]["cpu"] == "a\ufffd[2Jb\ufffd"


def test_size_and_accuracy_are_those_of_the_bundle(text_bundle: Path) -> None:
    opened = open_bundle(text_bundle)
    size, drop = judge(load_device("browser"), None, opened)[2:]
    assert size.measured == (text_bundle / "model.onnx").stat().st_size / 1e6
    assert drop.measured is None, "the bundle does not say how accurate its student was"
    manifest = opened.manifest.model_copy(
        update={"accuracy": {"student": 0.80, "student_onnx": 0.78}}
    )
    worse = judge(load_device("browser"), None, replace(opened, manifest=manifest))[3]
    assert worse.broken_by == "accuracy_drop_points is 2 points, above 1"


def test_a_report_of_another_model_is_refused(text_bundle: Path, written: bytes) -> None:
    document = json.loads(written)
    machine = {"architecture": "x86_64", "cores_available": 2}
    report = MeasuredReport.model_validate({**document, "machine": machine})
    profile = load_device("x86-two-core")
    assert judge(profile, report, open_bundle(text_bundle))[1].passed
    other = report.model_copy(update={"model_sha256": "0" * 64})
    with pytest.raises(UsageError, match="another model"):
        judge(profile, other, open_bundle(text_bundle))


def run_here(*words: str) -> None:
    """The command line in this process, failures as they are raised."""
    app(list(words), standalone_mode=False)


class TestCommand:
    @pytest.fixture
    def words(self, server: Server, text_bundle: Path, place: Path, tmp_path: Path) -> list[str]:
        texts = tmp_path / "texts.txt"
        texts.write_text("A dull film.\nA fine cast, and more of it.\n")
        return [
            *("bench", str(text_bundle), "--device", server.address, *server.options()),
            *("--inputs", str(texts)),
            *("--remote-python", sys.executable, "--remote-folder", str(place)),
        ]

    @pytest.fixture
    def profile(self, tmp_path: Path) -> Path:
        path = tmp_path / "this.yaml"
        path.write_text(
            "schema_version: 1\nname: this\ndescription: here\nreached_by: ssh\n"
            f"machine: {{architecture: {platform.machine()}}}\n"
            "measured_as: {scenario: SingleStream, scope: compute, threads: 1}\n"
            "budgets: {p90_latency_ms: 1000, peak_memory_mb: 1, size_mb: 100, "
            "accuracy_drop_points: 1}\n"
        )
        return path

    def test_measures_and_holds_to_a_profile(
        self, words: list[str], profile: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "o.json"
        options = ["--profile", str(profile), "--json", str(output), "--min-duration-s", "0.5"]
        options += ["--fail-on", "size_mb>0.001"]
        with pytest.raises(GateError, match=r"(?s)size_mb is .*peak_memory_mb is"):
            run_here(*words, *options)
        document = json.loads(output.read_text())
        assert document["profile"]["results"][1]["passed"] is False
        assert document["profile"]["results"][3]["measured"] is None
        assert document["scenario"] == "SingleStream"
        assert document["bundle"]["name"] == document["name"]

    def test_a_profile_holds_here_too(
        self,
        text_bundle: Path,
        profile: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        texts = tmp_path / "texts.txt"
        texts.write_text("A dull film.\n")
        options = ["--inputs", str(texts), "--quick", "--profile", str(profile)]
        with pytest.raises(GateError, match=r"(?s)the result is INVALID.*peak_memory_mb is"):
            run_here("bench", str(text_bundle), *options)
        assert "this: p90_latency_ms" in capsys.readouterr().out
        with pytest.raises(UsageError, match="--threads 2: this is measured with 1"):
            run_here("bench", str(text_bundle), *options, "--threads", "2")

    def test_another_kind_of_board_is_refused_before_anything_is_copied(
        self, words: list[str]
    ) -> None:
        with pytest.raises(UsageError, match=r"is no measurement of raspberry-pi-5: .*board"):
            run_here(*words, "--profile", "raspberry-pi-5")

    def test_a_changed_host_key_is_one_message(
        self, words: list[str], server: Server, tmp_path: Path
    ) -> None:
        other = tmp_path / "known"
        other.write_text(f"[127.0.0.1]:{server.port} {write_key(tmp_path / 'other')}")
        command = [sys.executable, "-m", "rekd_edge", *words, "--known-hosts", str(other)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 5
        assert done.stderr.startswith("error: the host key of")
        assert done.stderr.count("\n") == 2
        assert done.stdout == ""

    @pytest.mark.parametrize(
        "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
    )
    def test_interrupted_in_the_middle(
        self, words: list[str], place: Path, tmp_path: Path, number: signal.Signals
    ) -> None:
        output = tmp_path / "o.json"
        options = ["--min-duration-s", "300", "--json", str(output)]
        with not_ignored():
            local = subprocess.Popen(
                [sys.executable, "-m", "rekd_edge", *words, *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            # Once the program is there and has opened the model it measures.
            assert wait_until(lambda: _measures(place), 120)
            local.send_signal(number)
            _, said = local.communicate(timeout=180)
        finally:
            local.kill()
        assert not output.exists()
        if number == signal.SIGINT:
            assert local.returncode == 130
            assert "Traceback" not in said
            assert not list(place.iterdir()), "gone before the command has ended"


def _measures(place: Path) -> bool:
    maps = []
    for pid in at_work(place):
        try:
            maps.append(Path(f"/proc/{pid}/maps").read_text())
        except OSError:
            continue
    return any("onnxruntime" in text for text in maps) and bool(list(place.glob("*/request.json")))


def test_the_connection_drops_while_it_measures(
    board: SshBoard, server: Server, text_bundle: Path, examples: Path
) -> None:
    def drop(line: str) -> None:
        if line.startswith("SingleStream"):
            server.drop_connections()

    with pytest.raises(RemoteDeviceError, match="was lost") as caught:
        run_load_test_on_board(board, text_bundle, examples, LONG, progress=drop)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--identity", "x"], "only for --device"),
        (["--device", "pi@board"], "no address of a board"),
        (["--device", "ssh://-oProxyCommand=x"], "no address of a board"),
        (["--device", "ssh://board", "--known-hosts", "/none"], "there is no such file"),
        (["--device", "ssh://board", "--remote-python", "-c"], "is no path"),
        (["--device", "ssh://board", "--threads", "1,2"], "one number of threads"),
        (["--device", "cpu"], "only for --suite"),
        (["--profile", "browser"], "is not measured by rekd-edge bench"),
        (["--profile", "rasberry-pi-5"], "did you mean 'raspberry-pi-5'"),
    ],
)
def test_options_that_cannot_be_used(options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_here("bench", "somewhere", *options)


def test_a_suite_is_not_measured_on_a_board() -> None:
    with pytest.raises(UsageError, match="only for a bundle"):
        run_here("bench", "--suite", "latency", "--device", "ssh://board")
