"""A batch beside users: `python -m benchmarks.batch_beside [key=value ...]`.

A run of simulated engines on this machine, whose passes take long enough for this machine not to count. Users ask one
stream after the other: alone, with a batch in the background, and alone again; before all that, the batch is alone.
Owns the experiment and its figures: the users' TTFT each time, and which part of what they leave the batch takes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks import report
from benchmarks.arguments import Count, Duration
from benchmarks.command import command
from benchmarks.load import Endpoint, Outcome, Rhythm, ask, drive, prompt
from benchmarks.processes import ProcessFault, end, spawn
from benchmarks.report import say
from launcher.batch.records import MAGIC, scan
from launcher.keys import api_key_file
from launcher.rundir import SOURCE, RunDir
from launcher.twin.percentiles import percentile

MODEL = "tiny"
START_TIMEOUT_S = 120.0
LOOK_EVERY_S = 0.1
PASSES = ("before", "beside", "after")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    users: Count = 8
    requests: Count = 40  # of each user
    pause_s: Duration = 1.0  # at most, between two of them
    batch_tokens: Count = 96
    tokens: Count = 16
    prompt_chars: Count = 1200
    sequences: Count = 64  # at once in the engine that decodes
    prefill_ms: Duration = 40.0  # of each pass with prompts
    decode_ms: Duration = 50.0  # of each pass
    warm_up_s: Duration = 20.0  # until the batch has found out how many are enough
    alone_s: Duration = 30.0  # for the batch, after that
    seed: int = 0
    output: str = "bench-results"


class Run:
    """A run on this machine, and batches on it."""

    def __init__(self, folder: Path, options: Options) -> None:
        self._folder = folder
        self._options = options
        self.run_dir = RunDir(folder / "runs" / "beside")
        timing = f"{{prefill_ms: [0,0,{options.prefill_ms}], decode_ms: [0,0,{options.decode_ms}]}}"
        sim = ["engine=sim", f"engine.engine_args.timing={timing}", f"pools.decode.max_decodes={options.sequences}"]
        self._launcher = self._started(["+cluster=local", "run=beside", *sim])

    def _started(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / "launcher.log").open("ab") as log:
            environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
            return spawn([sys.executable, "-m", "launcher", *arguments], self._folder, log, environment)

    def endpoint(self) -> Endpoint:
        """Waits for it. Raises ProcessFault."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.run_dir.endpoint.exists():
            if self._launcher.poll() is not None or time.monotonic() > deadline:
                log = (self._folder / "launcher.log").read_text(errors="replace")
                raise ProcessFault(f"the run did not come up:\n{log[-3000:]}")
            time.sleep(LOOK_EVERY_S)
        url = urlsplit(json.loads(self.run_dir.endpoint.read_bytes())["url"])
        key = api_key_file(self.run_dir.keys).read_text().strip()
        return Endpoint(host=str(url.hostname), port=int(url.port or 0), model=MODEL, key=key)

    @contextmanager
    def batch(self, name: str) -> Iterator[Callable[[], int]]:
        """Under way, and longer than anybody looks at it. Yields what counts its results: raises ProcessFault."""
        client = self._started(["action=batch", "run=beside", "batch.input=in.jsonl", f"batch.output={name}.jsonl"])
        store = self._folder / f"{name}.jsonl.batch" / "results.log"

        def count() -> int:
            if client.poll() is not None:
                raise ProcessFault(f"the batch has ended with status {client.poll()}: it was to last")
            return num_results(store) if store.exists() else 0

        try:
            while not count():
                time.sleep(LOOK_EVERY_S)
            time.sleep(self._options.warm_up_s)
            yield count
        finally:
            end([client])

    def stop(self) -> None:
        end([self._launcher])


def num_results(store: Path) -> int:
    with store.open("rb") as file:
        return sum(1 for _ in scan(file, len(MAGIC)))


def users(options: Options, endpoint: Endpoint, seed: int) -> Outcome:
    rng = random.Random(seed)
    asks = [
        [ask(endpoint, prompt(options.prompt_chars, rng), options.tokens) for _ in range(options.requests)]
        for _ in range(options.users)
    ]
    rhythm = Rhythm(start_s=options.pause_s, pause_s=options.pause_s)
    outcome: Outcome = uvloop.run(drive(endpoint, asks, rhythm, rng))
    return outcome


def measure(options: Options, running: Run) -> dict[str, float]:
    endpoint = running.endpoint()
    figures: dict[str, float] = {}
    outcomes: dict[str, Outcome] = {}

    def ask_all(name: str, seed: int) -> None:
        say(f"users, {name}")
        outcomes[name] = outcome = users(options, endpoint, options.seed + seed)
        for part in (0.5, 0.9, 0.99):
            figures[f"{name}.ttft_p{part * 100:.0f}_ms"] = percentile(outcome.ttft_s, part) * 1000

    with running.batch("alone") as count:
        begun, began_at = count(), time.monotonic()
        time.sleep(options.alone_s)
        while count() == begun:  # they come to the disk once a second
            time.sleep(LOOK_EVERY_S)
        alone = (count() - begun) / (time.monotonic() - began_at)
    ask_all("before", 0)
    with running.batch("beside") as count:
        begun = count()
        ask_all("beside", 1)
        beside = (count() - begun) / outcomes["beside"].duration_s
    ask_all("after", 2)
    users_share = outcomes["beside"].num_tokens / outcomes["beside"].duration_s / (alone * options.batch_tokens)
    figures |= {"users.share": users_share, "batch.alone_per_s": alone, "batch.beside_per_s": beside}
    figures["batch.spare_share"] = beside / alone / (1 - users_share)
    calm = percentile(outcomes["before"].ttft_s + outcomes["after"].ttft_s, 0.99) * 1000
    return figures | {"ttft_p99.ratio": figures["beside.ttft_p99_ms"] / calm}


def write_input(path: Path, options: Options) -> None:
    """More than can be done meanwhile."""
    rng = random.Random(options.seed)
    with path.open("wb") as file:
        for _ in range(20_000):
            line = {"prompt": prompt(options.prompt_chars, rng), "max_tokens": options.batch_tokens, "temperature": 0}
            file.write(msgspec.json.encode(line) + b"\n")


def show(figures: Mapping[str, float]) -> str:
    rows = [[name, *(f"{figures[f'{name}.ttft_p{part}_ms']:.0f}" for part in (50, 90, 99))] for name in PASSES]
    others = [[name, f"{value:.3f}"] for name, value in figures.items() if "_ms" not in name]
    return "\n".join([report.table(["users' TTFT in ms", "p50", "p90", "p99"], rows), report.table(["", ""], others)])


def run(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        write_input(folder / "in.jsonl", options)
        running = Run(folder, options)
        try:
            figures = measure(options, running)
        finally:
            running.stop()
    result = report.report("batch_beside", figures)
    report.publish(Path(options.output), result, {"options": options}, show(figures))


if __name__ == "__main__":
    command(Options, run)
