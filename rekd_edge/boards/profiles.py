"""Device profiles (``export/targets/devices/*.yaml``): what a kind of device is, and what is
expected of a bundle there. A profile holds budgets and never a measurement; those are reports of
``rekd-edge bench``, and count for a profile only where their machine is one of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rekd_edge.bundle import Bundle
from rekd_edge.bundle.manifest import MODEL_FILE
from rekd_edge.convert.spec_file import find_spec, read_spec
from rekd_edge.convert.targets import targets_dir
from rekd_edge.errors import UsageError

NOT_MEASURED = "not measured"
MOST_REPORT = 128 << 20


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MachineKind(_Spec):
    """What a report's ``machine`` must be to be a measurement of a profile."""

    architecture: str | None = None
    """As ``uname -m`` says it."""
    board: str | None = None
    """How the firmware's name of the board begins (``/proc/device-tree/model``)."""
    cores: int | None = Field(default=None, ge=1)
    """Cores open to the process."""

    def differences(self, machine: Mapping[str, Any]) -> tuple[str, ...]:
        """In words; empty where ``machine`` is of this kind."""
        found = []
        if self.architecture not in (None, machine.get("architecture")):
            found.append(f"architecture {machine.get('architecture')!r}, not {self.architecture!r}")
        name = machine.get("board")
        if self.board is not None and not str(name or "").startswith(self.board):
            found.append(f"board {name!r}, not {self.board!r}")
        cores = machine.get("cores_available")
        if self.cores not in (None, cores):
            found.append(f"{cores} cores, not {self.cores}")
        return tuple(found)


class MeasuredAs(_Spec):
    """How latency is measured there, in the terms of ``rekd-edge bench``."""

    scenario: Literal["SingleStream", "MultiStream", "Offline"]
    scope: Literal["compute", "end_to_end"]
    threads: int = Field(ge=1)


class Budgets(_Spec):
    """Upper limits; each is held by a value that is not above it."""

    p90_latency_ms: float = Field(gt=0, allow_inf_nan=False)
    """90th percentile of one query."""
    peak_memory_mb: float = Field(gt=0, allow_inf_nan=False)
    """Largest resident memory of a fresh process that answers."""
    size_mb: float = Field(gt=0, allow_inf_nan=False)
    """The model's file."""
    accuracy_drop_points: float = Field(ge=0, allow_inf_nan=False)
    """Test accuracy of the torch student minus that of the exported file, in points (percent)."""


UNITS = {
    "p90_latency_ms": "ms",
    "peak_memory_mb": "MB",
    "size_mb": "MB",
    "accuracy_drop_points": "points",
}


class DeviceProfile(_Spec):
    """One kind of device."""

    schema_version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str
    reached_by: Literal["ssh", "adb", "page"]
    """`ssh`: `rekd-edge bench` measures it, there or on a machine of its kind itself. Others are
    measured by hand, and no report counts for them."""
    machine: MachineKind
    measured_as: MeasuredAs
    budgets: Budgets
    notes: str = ""

    def require_reachable(self) -> None:
        """Raises :class:`UsageError` where no report can be a measurement of it."""
        if self.reached_by != "ssh":
            raise UsageError(
                f"{self.name} is not measured by rekd-edge bench: it is reached by "
                f"{self.reached_by}",
                hint=self.notes,
            )

    def require_machine(self, machine: Mapping[str, Any], what: str) -> None:
        """Raises :class:`UsageError` where ``machine`` is another kind."""
        self.require_reachable()
        found = self.machine.differences(machine)
        if found:
            raise UsageError(
                f"{what} is no measurement of {self.name}: {'; '.join(found)}",
                hint="name the profile of that machine, or write one (docs/boards.md)",
            )


def devices_dir() -> Path:
    return targets_dir() / "devices"


def device_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in devices_dir().glob("*.yaml")))


def load_device(name_or_path: str) -> DeviceProfile:
    """A shipped profile by name, or a file by path. Raises :class:`UsageError`, RecipeError."""
    found = find_spec(name_or_path, devices_dir(), "device profile")
    return read_spec(found, DeviceProfile, "device profile")


def this_machine() -> dict[str, Any]:
    """What a report made here will say of its machine."""
    from rekd_edge.bench.timing import describe_machine

    try:
        name = Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
    except OSError:
        name = None
    return {**describe_machine(), "board": name and name.strip("\0\n ")}


class MeasuredReport(BaseModel):
    """What is read of a load test's report; it may hold more."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    report: Literal["load-test"]
    scenario: str
    mode: str
    scope: str
    threads: int
    result_validity: Literal["VALID", "INVALID"]
    result_invalid_reason: str
    result_90_percentile_latency_ns: int | None = None
    """Null in AccuracyOnly mode, which measures no latency."""
    peak_rss_bytes: int | None
    cold_start: dict[str, Any] | None
    """Fresh processes. Null: ``peak_rss_bytes`` is that of the process that measured, which holds
    more than an answer needs."""
    size_bytes: int
    model_sha256: str
    machine: dict[str, Any]
    date: str


def read_measured(path: Path) -> MeasuredReport:
    """Raises :class:`UsageError` where ``path`` is no load test of one bundle."""
    try:
        if path.stat().st_size > MOST_REPORT:
            raise UsageError(f"{path} is larger than any report")
        return MeasuredReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{path} is no report of a load test ({where + ': ' if where else ''}{first['msg']})",
            hint="write one with: rekd-edge bench BUNDLE --scenario SingleStream --json FILE",
        ) from error


@dataclass(frozen=True, slots=True)
class BudgetResult:
    """One budget. ``measured`` None: nothing says what the value is, so neither holds nor breaks;
    ``broken_by`` says what is wrong otherwise, empty where it holds."""

    budget: str
    unit: str
    limit: float
    measured: float | None
    broken_by: str = ""
    invalid: bool = False
    """Whether the value is that of an INVALID result."""

    @property
    def passed(self) -> bool | None:
        return None if self.measured is None else not self.broken_by

    @property
    def shown(self) -> str:
        """The value in words."""
        if self.measured is None:
            return NOT_MEASURED
        verdict = " INVALID" if self.invalid else " BROKEN" if self.broken_by else ""
        return f"{self.measured:.3g} {self.unit}{verdict}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def judge(
    profile: DeviceProfile, report: MeasuredReport | None, bundle: Bundle | None
) -> tuple[BudgetResult, ...]:
    """Holds what is known to the budgets. Size and accuracy are those of the bundle where there is
    one; latency and memory come from a report alone, memory where it has cold starts.

    Raises:
        UsageError: the report is of another machine, another measurement or another model.
    """
    if report is not None:
        _require_fitting(profile, report, bundle)
    invalid = ""
    values: dict[str, float | None] = dict.fromkeys(UNITS)
    if report is not None:
        if report.result_90_percentile_latency_ns is not None:
            values["p90_latency_ms"] = report.result_90_percentile_latency_ns / 1e6
        if report.peak_rss_bytes is not None and report.cold_start is not None:
            values["peak_memory_mb"] = report.peak_rss_bytes / 1e6
        values["size_mb"] = report.size_bytes / 1e6
        if report.result_validity != "VALID":
            invalid = f"the result is INVALID: {report.result_invalid_reason}"
    if bundle is not None:
        values["size_mb"] = (
            sum(f.size_bytes for f in bundle.manifest.files if f.path.startswith(MODEL_FILE)) / 1e6
        )
        accuracy = bundle.manifest.accuracy
        if {"student", "student_onnx"} <= accuracy.keys():
            drop = (accuracy["student"] - accuracy["student_onnx"]) * 100
            values["accuracy_drop_points"] = drop
    results = []
    for name, limit in profile.budgets.model_dump().items():
        value, unit = values[name], UNITS[name]
        broken, is_invalid = "", bool(invalid) and name == "p90_latency_ms" and value is not None
        if value is not None and is_invalid:
            broken = f"{name} is {value:.6g} {unit}, but {invalid}"
        elif value is not None and round(value, 9) > limit:
            broken = f"{name} is {value:.6g} {unit}, above {limit:g}"
        results.append(BudgetResult(name, unit, limit, value, broken, is_invalid))
    return tuple(results)


def _require_fitting(profile: DeviceProfile, report: MeasuredReport, bundle: Bundle | None) -> None:
    profile.require_machine(report.machine, "the report")
    wanted = profile.measured_as
    if report.mode == "PerformanceOnly":
        found = (report.scenario, report.scope, report.threads)
        due = (wanted.scenario, wanted.scope, wanted.threads)
        if found != due:
            raise UsageError(
                f"the report is no measurement of {profile.name}: {_in_words(*found)}, not "
                f"{_in_words(*due)}",
                hint=f"measure with --profile {profile.name}",
            )
    if bundle is not None:
        ours = {f.path: f.sha256 for f in bundle.manifest.files}[MODEL_FILE]
        if report.model_sha256 != ours:
            raise UsageError(
                f"the report is of another model ({report.model_sha256[:12]}) than the bundle's "
                f"({ours[:12]})",
                hint="measure this bundle",
            )


def _in_words(scenario: str, scope: str, threads: int) -> str:
    return f"{scenario}, {scope}, {threads} thread(s)"
