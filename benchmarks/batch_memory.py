"""What a batch's client holds of a long file: `python -m benchmarks.batch_memory [lines=10000000] [long_line_mb=1000]`.

The first reading of the input, a result for each of its requests, and all of it again as after a crash, with the code
that does it in a batch and no service behind it. Owns the files it makes and the figures: the highest memory of a
process of its own after each stage, and CPU per line.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count
from benchmarks.command import command
from launcher.batch.request import BadLine, Defaults
from launcher.batch.store import Store
from launcher.batch.survey import Input, look, read_again

MAX_LINE_BYTES = 1 << 20
BLOCKS_AT_ONCE = 64  # of results, between two writes to the disk


class Options(msgspec.Struct, frozen=True, kw_only=True):
    lines: Count = 10_000_000
    long_line_mb: int = 0  # of one line more, which is passed over
    output: str = "bench-results"


def write_input(path: Path, num_lines: int, long_line_mb: int) -> None:
    with path.open("w") as file:
        for _ in range(long_line_mb):
            file.write("x" * 1_000_000)
        file.write("\n")  # a blank line is none
        for number in range(num_lines):
            body = f'{{"prompt":"Say what {number} is.","max_tokens":16}}'
            file.write(f'{{"custom_id":"r{number}","method":"POST","url":"/v1/completions","body":{body}}}\n')


def first_look(folder: Path) -> None:
    with closing(Store(folder / "results.log")) as store:
        look(_input(folder), store)


def results(folder: Path) -> None:
    """One for each request, as they come: the input is read a second time."""
    with closing(Store(folder / "results.log")) as store:
        blocks = read_again(_input(folder), look(_input(folder), store))
        while some := list(islice(blocks, BLOCKS_AT_ONCE)):
            for item in (item for block in some for item in block if not isinstance(item, BadLine)):
                store.append(item.ordinal, item.key, b'{"custom_id":"r","response":{"status_code":200}}', ok=True)
            store.write(store.take())


def _input(folder: Path) -> Input:
    return Input((folder / "in.jsonl",), Defaults("tiny"), MAX_LINE_BYTES)


STAGES: dict[str, Callable[[Path], None]] = {"first_look": first_look, "results": results, "after_a_crash": first_look}


def measured(stage: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """CPU in seconds and MiB, in a process of its own: the highest memory of a process never falls."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (stage, folder))


def _measure(stage: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    stage(folder)
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(options: Options) -> None:
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        write_input(Path(name) / "in.jsonl", options.lines, options.long_line_mb)
        for stage, of in STAGES.items():
            cpu_s, mib = measured(of, Path(name))
            figures |= {f"{stage}.peak_mib": mib, f"{stage}.cpu_us_per_line": cpu_s / options.lines * 1e6}
    result = report.report("batch_memory", figures)
    rows = [[s, f"{figures[f'{s}.peak_mib']:.0f}", f"{figures[f'{s}.cpu_us_per_line']:.1f}"] for s in STAGES]
    report.publish(
        Path(options.output), result, {"options": options}, report.table(["", "peak MiB", "µs of CPU per line"], rows)
    )


if __name__ == "__main__":
    command(Options, run)
