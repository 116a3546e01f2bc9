"""Where ``rekd-edge bench BUNDLE`` measures: ``--device ssh://user@board`` and ``--profile``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekd_edge.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rekd_edge.bench import BenchReport
    from rekd_edge.bench.load import LoadReport
    from rekd_edge.boards.openssh import SshBoard
    from rekd_edge.boards.profiles import BudgetResult, DeviceProfile
    from rekd_edge.boards.session import BoardFacts


@dataclass(frozen=True, slots=True)
class Place:
    """``board`` None: this machine. ``profile`` is what is expected there."""

    board: SshBoard | None = None
    profile: DeviceProfile | None = None

    def __bool__(self) -> bool:
        return self.board is not None or self.profile is not None

    def inspect(self, facts: BoardFacts) -> None:
        """Another kind of board is no use measuring. Cores are judged by the report, which knows
        what a container allows."""
        if self.profile is not None:
            machine = {
                "architecture": facts.architecture,
                "board": facts.model,
                "cores_available": self.profile.machine.cores,
            }
            assert self.board is not None
            self.profile.require_machine(machine, str(self.board.address))

    def load_options(self, options: Mapping[str, Any], threads: int | None) -> dict[str, Any]:
        """``options`` of a load test with what the profile says, and ``threads`` among them.
        Raises :class:`UsageError` where they contradict it."""
        found = {**options, "--threads": threads}
        if self.profile is None:
            return {**found, "--scenario": options["--scenario"] or "single-stream"}
        from rekd_edge.bench.load import SCENARIOS

        how = self.profile.measured_as
        names = {scenario: name for name, scenario in SCENARIOS.items()}
        due = {
            "--scenario": names[how.scenario],
            "--scope": how.scope,
            "--threads": how.threads,
        }
        for option, value in due.items():
            if found[option] not in (None, value):
                raise UsageError(
                    f"{option} {found[option]}: {self.profile.name} is measured with {value}",
                    hint=f"leave {option} or --profile out",
                )
        return found | due

    def judge(self, bundle: Path, report: BenchReport | LoadReport) -> tuple[BudgetResult, ...]:
        if self.profile is None:
            return ()
        from rekd_edge.boards.profiles import MeasuredReport, judge
        from rekd_edge.bundle import open_bundle

        measured = MeasuredReport.model_validate(report.to_json())
        return judge(self.profile, measured, open_bundle(bundle))

    def to_json(self, results: tuple[BudgetResult, ...]) -> dict[str, Any]:
        if self.profile is None:
            return {}
        return {
            "profile": {
                "name": self.profile.name,
                "budgets": self.profile.budgets.model_dump(),
                "results": [result.to_json() for result in results],
            }
        }

    def render(self, results: tuple[BudgetResult, ...], console: Console) -> None:
        for item in results:
            assert self.profile is not None
            console.print(
                f"{self.profile.name}: {item.budget} {item.shown}, budget {item.limit:g} "
                f"{item.unit}",
                markup=False,
                style="bold red" if item.broken_by else None,
            )


def open_place(
    device: str | None,
    profile: str | None,
    *,
    known_hosts: Path | None,
    identity: Path | None,
    remote_python: str | None,
    remote_folder: str | None,
) -> Place:
    """Raises :class:`UsageError` for everything that can be wrong before a connection is made."""
    opened = None
    if profile is not None:
        from rekd_edge.boards.profiles import load_device

        opened = load_device(profile)
        opened.require_reachable()
    if device is None:
        given = {
            "--known-hosts": known_hosts,
            "--identity": identity,
            "--remote-python": remote_python,
            "--remote-folder": remote_folder,
        }
        options = [name for name, value in given.items() if value is not None]
        if options:
            raise UsageError(f"{', '.join(options)}: only for --device ssh://user@board")
        if opened is not None:
            from rekd_edge.boards.profiles import this_machine

            opened.require_machine(this_machine(), "this machine")
        return Place(profile=opened)
    from rekd_edge.boards.address import BoardAddress
    from rekd_edge.boards.openssh import SshBoard

    board = SshBoard(
        BoardAddress.parse(device),
        known_hosts=known_hosts,
        identity=identity,
        python="python3" if remote_python is None else remote_python,
        folder=remote_folder,
    )
    return Place(board, opened)


def is_address(device: str | None) -> bool:
    """Whether ``--device`` names a board, not what trains a suite."""
    return device is not None and ("://" in device or "@" in device)
