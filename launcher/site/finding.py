"""What the doctor says about a site: one finding per thing it looked at, and all of them as a report.

Owns the shapes and the order. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`todo` is empty where nothing is to be done; `setting` is the key and value that would do it."""

    topic: str
    level: Level
    seen: str
    todo: str = ""
    setting: str = ""  # cluster.gres=gpu:h100


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`doctor.json`."""

    cluster: str | None
    slurm_version: str
    submitted: bool
    jobs: tuple[str, ...]  # ids of the check jobs
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> int:
        return sum(finding.level is Level.FAULT for finding in self.findings)

    @property
    def warnings(self) -> int:
        return sum(finding.level is Level.WARNING for finding in self.findings)

    @property
    def settings(self) -> list[str]:
        """What would be set, each once; a setting of a finding that is ok is only its confirmation."""
        wanted = (finding.setting for finding in self.findings if finding.level is not Level.OK)
        return list(dict.fromkeys(setting for setting in wanted if setting))


def ok(topic: str, seen: str) -> Finding:
    return Finding(topic=topic, level=Level.OK, seen=seen)


def warning(topic: str, seen: str, todo: str = "", setting: str = "") -> Finding:
    return Finding(topic=topic, level=Level.WARNING, seen=seen, todo=todo, setting=setting)


def fault(topic: str, seen: str, todo: str, setting: str = "") -> Finding:
    return Finding(topic=topic, level=Level.FAULT, seen=seen, todo=todo, setting=setting)


def listed(words: Iterable[str], none: str = "none") -> str:
    return ", ".join(words) or none
