"""How soon routing is right again: `python -m benchmarks.resync [repeats=3]`.

A prefill and two decode workers of real vLLM on the CPU, and a proxy that routes by what they hold. KV events of a
worker are lost, on the way and for good, the proxy is restarted, a worker is killed and started again: seconds until
the proxy's index is right. Owns the bound on these. What happens, and whether conversations then go where their KV
lies with the texts of a plain vLLM, are the tests' cases, run as the command that they are.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count, Duration
from benchmarks.command import command
from benchmarks.processes import ProcessFault, end, start
from benchmarks.report import say

CASES = "tests.e2e.resyncs"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    repeats: Count = 3
    within_s: Duration = 2.0
    output: str = "bench-results"


def measure(folder: Path, num_repeats: int) -> dict[str, list[float]]:
    """Seconds by what has happened. Raises ProcessFault where a case fails; what is at fault is said above."""
    found: dict[str, list[float]] = {}
    process = start(CASES, str(folder), str(num_repeats), output=subprocess.PIPE)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            say(line.decode().rstrip())
            for name, seconds in json.loads(line).items():
                found.setdefault(name, []).append(seconds)
        if process.wait():
            raise ProcessFault("a case has failed; what it said is above")
    finally:
        end([process])
    return found


def late(figures: Mapping[str, float], within_s: float) -> list[str]:
    return [name for name, seconds in figures.items() if name.endswith(".max_s") and seconds > within_s]


def run(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        found = measure(Path(folder), options.repeats)
    figures: dict[str, float] = {}
    for name, seconds in found.items():
        figures |= {f"{name}.median_s": statistics.median(seconds), f"{name}.max_s": max(seconds)}
    rows = [[name, f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"] for name, seconds in found.items()]
    table = report.table(["seconds until the index is right", "median", "max"], rows)
    report.publish(Path(options.output), report.report("resync", figures), {"options": options, "each": found}, table)
    if names := late(figures, options.within_s):
        raise SystemExit(f"later than {options.within_s:g} s: {', '.join(names)}")


if __name__ == "__main__":
    command(Options, run)
