"""A report for people: what was seen, and below each finding that asks for something, what to do.

Owns the screen for a moment. Decides nothing.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.site.finding import Finding, Level, Report

COLORS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "red"}


def show(report: Report, console: Console | None = None) -> None:
    console = console or Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.print(_table(report), soft_wrap=False)
    else:
        for finding in report.findings:
            console.print(f"{finding.level.value:<8} {finding.topic:<13} {finding.seen}", markup=False)
            if finding.todo:
                console.print(f"{'':<22} -> {finding.todo}", markup=False)
    console.print(f"\n{summary(report)}", markup=False)
    for setting in report.settings:
        console.print(f"  {setting}", markup=False)


def summary(report: Report) -> str:
    counted = f"{_counted(report.faults, 'fault')}, {_counted(report.warnings, 'warning')}"
    return f"{counted}; to set:" if report.settings else counted


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "what", "seen, and what to do"):
        table.add_column(name, overflow="fold")
    for finding in report.findings:
        table.add_row(Text(finding.level.value, style=COLORS[finding.level]), finding.topic, _words(finding))
    return table


def _words(finding: Finding) -> Text:
    return Text(finding.seen + (f"\n-> {finding.todo}" if finding.todo else ""))
