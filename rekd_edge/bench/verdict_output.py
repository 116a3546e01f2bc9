"""A verdict for people and for build servers: a table, GitHub-flavoured Markdown, JUnit XML."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from rekd_edge.bench.baseline import RuleResult, Verdict

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("rule", "baseline", "measured", "change", "limit", "result")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def cells(result: RuleResult) -> tuple[str, ...]:
    """A rule as the row of a table."""
    unit = f" {result.unit}" if result.unit else ""
    change = "-"
    if result.change is not None:
        change = f"{result.change:+.4g}{unit}"
        if result.change_percent is not None:
            change += f" ({result.change_percent:+.1f}%)"
    return (
        result.rule,
        _number(result.baseline, unit),
        _number(result.measured, unit),
        change,
        _number(result.limit, unit),
        "passed" if result.passed else "FAILED",
    )


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.6g}{unit}"


def render(verdict: Verdict, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"rules: {heading(verdict)}", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("rule", "result") else "right")
    for result in verdict.results:
        table.add_row(*map(escape, cells(result)), style=None if result.passed else "bold red")
    console.print(table)


def heading(verdict: Verdict) -> str:
    failed = len(verdict.failures)
    total = len(verdict.results)
    return f"{failed} of {total} failed" if failed else f"all {total} held"


def markdown(verdict: Verdict) -> str:
    """A section for a job summary or a comment on a pull request."""
    against = f", baseline {_code(verdict.baseline)}" if verdict.baseline else ""
    lines = [
        f"### rekd-edge bench {_code(verdict.bundle)}: {heading(verdict)}",
        "",
        f"{_cell(verdict.setting)}, {verdict.date}{against}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for result in verdict.results:
        _, *numbers, outcome = cells(result)
        shown = outcome if result.passed else f"**{outcome}**"
        lines.append("| " + " | ".join([_code(result.rule), *numbers, shown]) + " |")
    if verdict.failures:
        lines += ["", *(f"- {_cell(failure)}" for failure in verdict.failures)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def junit_xml(verdict: Verdict) -> str:
    """One test case for each rule, as build servers read them."""
    failures = str(len(verdict.failures))
    tests = str(len(verdict.results))
    root = ET.Element("testsuites", name="rekd-edge bench", tests=tests, failures=failures)
    suite = ET.SubElement(
        root,
        "testsuite",
        name=_xml(f"rekd-edge bench {verdict.bundle}"),
        tests=tests,
        failures=failures,
        errors="0",
        skipped="0",
        timestamp=verdict.date,
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in (("setting", verdict.setting), ("baseline", verdict.baseline or "")):
        ET.SubElement(properties, "property", name=name, value=_xml(value))
    for result in verdict.results:
        case = ET.SubElement(
            suite, "testcase", classname="rekd-edge.bench", name=result.rule, time="0"
        )
        if not result.passed:
            failure = ET.SubElement(case, "failure", type="GateError", message=_xml(result.reason))
            failure.text = "; ".join(
                f"{column} {cell}" for column, cell in zip(COLUMNS, cells(result), strict=True)
            )
        else:
            ET.SubElement(case, "system-out").text = _xml(result.reason)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """XML 1.0 has no place for control characters, escaped or not."""
    return _NOT_XML.sub("\ufffd", text)
