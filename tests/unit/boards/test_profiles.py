from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError

from rekd_edge.boards.profiles import (
    NOT_MEASURED,
    DeviceProfile,
    MeasuredReport,
    device_names,
    devices_dir,
    judge,
    load_device,
    read_measured,
)
from rekd_edge.cli.devices_command import devices
from rekd_edge.errors import RecipeError, UsageError

TWO_CORES = {"architecture": "x86_64", "board": None, "cores_available": 2, "cpu": "A processor"}


def document(**changes: Any) -> dict[str, Any]:
    """What a load test of x86-two-core may say, as far as it is read."""
    return {
        "report": "load-test",
        "scenario": "SingleStream",
        "mode": "PerformanceOnly",
        "scope": "end_to_end",
        "threads": 1,
        "result_validity": "VALID",
        "result_invalid_reason": "",
        "result_90_percentile_latency_ns": 12_000_000,
        "peak_rss_bytes": 250_000_000,
        "cold_start": {"peak_rss_bytes": [250_000_000]},
        "size_bytes": 85_000_000,
        "model_sha256": "a" * 64,
        "machine": TWO_CORES,
        "date": "2026-11-21T12:00:00+00:00",
        "something_new": 1,
        **changes,
    }


def report(**changes: Any) -> MeasuredReport:
    return MeasuredReport.model_validate(document(**changes))


def test_every_shipped_profile_loads_under_its_own_name() -> None:
    assert set(device_names()) == {
        "android-ort",
        "browser",
        "jetson-orin-nano",
        "raspberry-pi-5",
        "x86-two-core",
    }
    for name in device_names():
        assert load_device(name).name == name


def test_a_profile_without_a_measurement_has_no_number() -> None:
    for name in device_names():
        results = judge(load_device(name), None, None)
        assert [result.measured for result in results] == [None] * 4
        assert {result.shown for result in results} == {NOT_MEASURED}
        assert {result.passed for result in results} == {None}


def test_no_profile_can_hold_a_measurement(tmp_path: Path) -> None:
    text = (devices_dir() / "raspberry-pi-5.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text + "measured: {p90_latency_ms: 1}\n")
    with pytest.raises(RecipeError, match="measured: unknown key"):
        load_device(str(path))


def test_a_report_is_held_to_the_budgets() -> None:
    profile = load_device("x86-two-core")
    held = {result.budget: result for result in judge(profile, report(), None)}
    assert held["p90_latency_ms"].shown == "12 ms"
    assert [held[name].passed for name in held] == [True, True, True, None]
    slow = judge(profile, report(result_90_percentile_latency_ns=20_000_001), None)[0]
    assert slow.passed is False
    assert slow.broken_by == "p90_latency_ms is 20 ms, above 20"
    assert judge(profile, report(result_90_percentile_latency_ns=20_000_000), None)[0].passed


def test_memory_is_that_of_a_fresh_process_or_not_measured() -> None:
    without = report(cold_start=None, peak_rss_bytes=10**12)
    memory = judge(load_device("x86-two-core"), without, None)[1]
    assert (memory.budget, memory.measured) == ("peak_memory_mb", None)
    assert memory.passed is None


def test_an_invalid_result_holds_no_budget_of_time() -> None:
    invalid = report(result_validity="INVALID", result_invalid_reason="quick")
    latency, memory, *_ = judge(load_device("x86-two-core"), invalid, None)
    assert latency.passed is False
    assert latency.shown == "12 ms INVALID"
    assert "quick" in latency.broken_by
    assert memory.passed


@pytest.mark.parametrize(
    ("name", "machine", "message"),
    [
        ("raspberry-pi-5", TWO_CORES, "architecture 'x86_64', not 'aarch64'; board None"),
        (
            "raspberry-pi-5",
            {"architecture": "aarch64", "board": "Raspberry Pi 4 Model B Rev 1.5"},
            "board 'Raspberry Pi 4",
        ),
        ("jetson-orin-nano", {"architecture": "aarch64", "board": "NVIDIA Orin NX"}, "board"),
        ("x86-two-core", {**TWO_CORES, "cores_available": 8}, "8 cores, not 2"),
        ("x86-two-core", {}, "architecture None"),
        ("browser", TWO_CORES, "not measured by rekd-edge bench"),
        ("android-ort", {"architecture": "aarch64"}, "not measured by rekd-edge bench"),
    ],
)
def test_a_report_of_another_machine_is_refused(
    name: str, machine: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        judge(load_device(name), report(machine=machine), None)


def test_the_boards_are_known_by_what_their_firmware_says() -> None:
    for name, board in (
        ("raspberry-pi-5", "Raspberry Pi 5 Model B Rev 1.0"),
        ("jetson-orin-nano", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"),
    ):
        machine = {"architecture": "aarch64", "board": board, "cores_available": 6}
        assert load_device(name).machine.differences(machine) == ()


@pytest.mark.parametrize("changes", [{"threads": 2}, {"scope": "compute"}, {"scenario": "Offline"}])
def test_another_measurement_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no measurement of x86-two-core"):
        judge(load_device("x86-two-core"), report(**changes), None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"\xff",
        b'{"report": "load-test"}',
        b"[" * 100_000,
        json.dumps({**document(), "report": "suite"}).encode(),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no report of a load test"):
        read_measured(path)


def test_budgets_are_above_nothing() -> None:
    whole = load_device("browser").model_dump()
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValidationError):
            DeviceProfile.model_validate(
                {**whole, "budgets": {**whole["budgets"], "p90_latency_ms": wrong}}
            )


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
        devices(**{"bundle": None, "profile": None, "measured": None, **options, "json_path": "-"})
        return json.loads(capsys.readouterr().out)

    def test_lists_budgets_and_says_what_is_not_measured(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        devices(bundle=None, profile=None, measured=None, json_path=None)
        shown = capsys.readouterr().out
        assert shown.count(NOT_MEASURED) == 20
        assert "budget 50 ms" in shown

    def test_shows_a_measurement_where_it_belongs(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "r.json"
        path.write_text(json.dumps(document()))
        found = {item["name"]: item for item in self.run(capsys, measured=[path])["devices"]}
        measured = {
            name: [result["measured"] for result in item["results"]] for name, item in found.items()
        }
        assert measured.pop("x86-two-core") == [12.0, 250.0, 85.0, None]
        assert all(values == [None] * 4 for values in measured.values())

    def test_refuses_what_fits_no_profile(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "r.json"
        path.write_text(json.dumps(document(machine={"architecture": "riscv64"})))
        with pytest.raises(UsageError, match="architecture 'riscv64'"):
            self.run(capsys, measured=[path])
        other = tmp_path / "other.json"
        for one in (path, other):
            one.write_text(json.dumps(document()))
        with pytest.raises(UsageError, match="second measurement of x86-two-core"):
            self.run(capsys, measured=[path, other])

    def test_is_a_command_of_its_own(self) -> None:
        app = typer.Typer()
        from rekd_edge.cli.devices_command import register

        register(app)
        assert [command.name for command in app.registered_commands] == ["devices"]
