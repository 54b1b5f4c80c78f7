"""What a benchmark leaves: a table for people, a JSON file, and the one last line that programs read.

Owns the shape of that line and what is said of the machine and the versions.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

PACKAGES = ("sluice", "pyzmq", "uvloop", "httptools", "msgspec")


def say(text: str) -> None:
    """Progress: standard output is for the results."""
    print(text, file=sys.stderr, flush=True)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    benchmark: str
    figures: dict[str, float]
    machine: dict[str, Any]
    versions: dict[str, str]


def report(benchmark: str, figures: Mapping[str, float], others: Mapping[str, str] | None = None) -> Report:
    """`others`: versions of what else was measured."""
    digits = {name: round(value, 3) for name, value in figures.items()}
    return Report(benchmark=benchmark, figures=digits, machine=machine(), versions=versions() | dict(others or {}))


def machine() -> dict[str, Any]:
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": cpus[0].partition(":")[2].strip() if cpus else platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure over the repeats that have it; a ratio's is the median of ratios, each taken within one repeat."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: statistics.median(run[name] for run in runs if name in run) for name in names}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are figures."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write(folder: Path, result: Report, details: Mapping[str, Any]) -> Path:
    """All of the result, and the details behind the medians."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.benchmark}.json"
    whole = msgspec.to_builtins(result) | dict(details)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n")
    return path


def publish(folder: Path, result: Report, details: Mapping[str, Any], text: str) -> None:
    """Write it, and print `text` for people and the line for programs."""
    path = write(folder, result, details)
    print(text)
    print(f"written: {path}")
    print(last_line(result))


def last_line(result: Report) -> str:
    return msgspec.json.encode(result).decode()
