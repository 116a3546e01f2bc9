"""``rekd-edge devices [BUNDLE] [--measured FILE]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rekd_edge.cli.console import JsonOption, emit
from rekd_edge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from rekd_edge.boards.profiles import BudgetResult, DeviceProfile, MeasuredReport


def register(app: typer.Typer) -> None:
    app.command("devices")(devices)


def devices(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="A bundle folder: its size and accuracy count."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", metavar="NAME|FILE", help="Only this one; repeatable. [all]"),
    ] = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            "--measured",
            metavar="FILE",
            help="A --json FILE of `rekd-edge bench BUNDLE --profile NAME`; repeatable.",
        ),
    ] = None,
    json_path: JsonOption = None,
) -> None:
    """List device profiles with their budgets, and what has been measured of them.

    What has not been measured says so; a report of another machine is refused.
    """
    from rekd_edge.boards.profiles import device_names, judge, load_device, read_measured
    from rekd_edge.bundle import open_bundle

    profiles = [load_device(name) for name in profile or device_names()]
    reports = {path: read_measured(path) for path in measured or ()}
    opened = None if bundle is None else open_bundle(bundle)
    found = _assigned(profiles, reports)
    rows = {
        item.name: (item, judge(item, found.get(item.name), opened), found.get(item.name))
        for item in profiles
    }

    def render(console: Console) -> None:
        _render(console, list(rows.values()))

    document = {
        "schema_version": 1,
        "bundle": None if opened is None else opened.manifest.name,
        "devices": [
            {
                **item.model_dump(),
                "measured": None if report is None else report.model_dump(),
                "results": [result.to_json() for result in results],
            }
            for item, results, report in rows.values()
        ],
    }
    emit(document, json_path=json_path, render=render)


def _assigned(
    profiles: Sequence[DeviceProfile], reports: dict[Path, MeasuredReport]
) -> dict[str, MeasuredReport]:
    """Each report to the profiles of its machine."""
    found: dict[str, MeasuredReport] = {}
    for path, report in reports.items():
        fitting = [
            item
            for item in profiles
            if item.reached_by == "ssh" and not item.machine.differences(report.machine)
        ]
        if not fitting:
            machine = ", ".join(
                f"{key} {report.machine.get(key)!r}"
                for key in ("architecture", "board", "cores_available")
            )
            raise UsageError(
                f"{path} is no measurement of any of these devices: its machine has {machine}",
                hint="a profile for that machine can be named with --profile FILE",
            )
        for item in fitting:
            if item.name in found:
                raise UsageError(f"{path} is the second measurement of {item.name}")
            found[item.name] = report
    return found


def _render(
    console: Console,
    rows: Sequence[tuple[DeviceProfile, tuple[BudgetResult, ...], MeasuredReport | None]],
) -> None:
    from rich.table import Table

    table = Table(title="devices", title_justify="left", show_lines=True, padding=(0, 0))
    table.add_column("device", no_wrap=True)
    for name in ("p90 latency", "peak memory", "size", "accuracy drop"):
        table.add_column(name, justify="right", no_wrap=True)
    for item, results, _ in rows:
        table.add_row(item.name, *(f"{r.shown}\nbudget {r.limit:g} {r.unit}" for r in results))
    console.print(table)
    for item, _, report in rows:
        how = item.measured_as
        said = f"{item.name}: {item.description}; {how.scenario}, {how.scope}, {how.threads} "
        said += "thread(s)"
        if report is not None:
            validity = report.result_validity
            said += f"; measured {report.date[:10]} on {report.machine.get('cpu')}, {validity}"
        console.print(said, markup=False, soft_wrap=True)
