"""A batch of which anything may be killed: `python -m benchmarks.batch_kills [requests=2000] [kills=20]`.

Simulated engines on this machine, a run of the batch's own. Once undisturbed; then SIGKILL for the client, the proxy,
the controller, an agent or an engine, at random moments of its results, and the same command again whenever it has
ended; a batch that ends too early is followed by another one. Owns the experiment: each request must be in each
output once, with the text of the undisturbed batch.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count
from benchmarks.batch_work import Shape, prompts
from benchmarks.command import command
from benchmarks.processes import ProcessFault, spawn
from benchmarks.report import say
from launcher.rundir import SOURCE, RunDir
from launcher.scheduler.local import run_processes
from launcher.stopping import kill_local

CLIENT = "client"
MODULES = {  # whose process it is, by the module that it runs
    "proxy": ("proxy", "proxy.processes.process"),
    "controller": ("launcher.control.controller",),
    "agent": ("workers",),
    "engine": ("workers.host.engine_process",),
}
RUN = ("+cluster=local", "engine=sim", "run=kills", "pools.decode.max_decodes=16", "pools.decode.replicas=2")
PATIENCE_S = 240.0
LOOK_EVERY_S = 0.05


class Options(msgspec.Struct, frozen=True, kw_only=True):
    requests: Count = 2000
    kills: Count = 20
    seed: int = 0
    output: str = "bench-results"


class BrokenBatch(Exception):
    """A result is missing, there twice, or another one."""


class Batch:
    """One output file, and the command for it, given again whenever it has ended before its time."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._results = folder / f"{name}.jsonl"
        self._client: subprocess.Popen[bytes] | None = None
        self.num_starts = 0
        self.run = RunDir(folder / "runs" / "kills")

    def stored_bytes(self) -> int:
        store = self._folder / f"{self._results.name}.batch" / "results.log"
        return store.stat().st_size if store.exists() else 0

    def ended(self) -> bool:
        """With all results; else the command is given again."""
        if self._client is not None and self._client.poll() == 0:
            return True
        if self._client is None or self._client.poll() is not None:
            self.num_starts += 1
            batch = ("action=batch", "batch.input=in.jsonl", f"batch.output={self._results.name}")
            with (self._folder / "client.log").open("ab") as log:
                environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
                self._client = spawn([sys.executable, "-m", "launcher", *RUN, *batch], self._folder, log, environment)
        return False

    def pids(self, kind: str) -> list[int]:
        if kind == CLIENT:
            return [self._client.pid] if self._client is not None and self._client.poll() is None else []
        return [pid for pid in run_processes(self.run) if _module(pid) in MODULES[kind]]

    def ended_or_struck(self, kind: str, num_bytes: float, rng: random.Random) -> bool:
        """Struck once there are so many bytes of results, and such a process."""
        if self.ended():
            return True
        pids = self.pids(kind) if self.stored_bytes() > num_bytes else []
        return bool(pids) and _kill(rng.choice(pids))

    def texts(self) -> dict[str, str]:
        """Raises BrokenBatch where a request is there twice."""
        lines = [msgspec.json.decode(line) for line in self._results.read_bytes().splitlines()]
        texts = {line["custom_id"]: line["response"]["body"]["choices"][0]["text"] for line in lines}
        if len(texts) != len(lines):
            raise BrokenBatch(f"{len(lines)} results of {len(texts)} requests")
        return texts

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Raises ProcessFault."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                log = (self._folder / "client.log").read_text(errors="replace")
                raise ProcessFault(f"no {what} within {PATIENCE_S:.0f} s:\n{log[-3000:]}")
            time.sleep(LOOK_EVERY_S)


def _module(pid: int) -> str:
    """What `python -m` was given; "": the process has ended, or is none of these."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return words[words.index("-m") + 1] if "-m" in words[:-1] else ""


def _kill(pid: int) -> bool:
    """False: it has just ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def victims(num: int, rng: random.Random) -> list[str]:
    """Each kind as often as the others."""
    kinds = [CLIENT, *MODULES]
    return [kind for _ in range(0, num, len(kinds)) for kind in rng.sample(kinds, len(kinds))][:num]


def kill(batch: Batch, kinds: Sequence[str], num_bytes: int, rng: random.Random) -> int:
    """At random moments, by how many bytes of results there are. How many of these: it may end before."""
    moments = sorted(rng.uniform(0.02, 0.9) * num_bytes for _ in kinds)
    for number, (moment, kind) in enumerate(zip(moments, kinds, strict=True)):
        batch.until(partial(batch.ended_or_struck, kind, moment, rng), f"{kind} to kill")
        if batch.ended():
            return number
        say(f"killed: {kind}, at {batch.stored_bytes() / num_bytes:.0%} of the results")
    return len(kinds)


def write_input(path: Path, options: Options) -> None:
    shape = Shape(requests=options.requests, sharing=0.5, groups=6, prefix_words=60)
    with path.open("wb") as file:
        for prompt in prompts(shape, random.Random(options.seed)):
            line = {"prompt": prompt.text, "max_tokens": prompt.max_tokens, "temperature": 0}
            file.write(msgspec.json.encode(line) + b"\n")


def measure(folder: Path, options: Options) -> dict[str, float]:
    write_input(folder / "in.jsonl", options)
    rng = random.Random(options.seed)
    kinds = victims(options.kills, rng)
    undisturbed = Batch(folder, "undisturbed")
    killed: list[Batch] = []
    num_done = 0
    began_at = time.monotonic()
    try:
        undisturbed.until(undisturbed.ended, "end of the batch")
        calm_s = time.monotonic() - began_at
        while num_done < len(kinds):
            killed.append(Batch(folder, f"killed-{len(killed)}"))
            num_done += kill(killed[-1], kinds[num_done:], undisturbed.stored_bytes(), rng)
            killed[-1].until(killed[-1].ended, "end of the batch")
    finally:
        kill_local(undisturbed.run)
    if undisturbed.num_starts > 1:
        raise BrokenBatch("the undisturbed batch did not come to its end at once")
    for batch in killed:
        compare(undisturbed.texts(), batch.texts(), options.requests)
    return {f"{kind}.kills": float(kinds.count(kind)) for kind in (CLIENT, *MODULES)} | {
        "batches": len(killed),
        "starts": sum(batch.num_starts for batch in killed),
        "undisturbed.took_s": calm_s,
        "killed.took_s": time.monotonic() - began_at - calm_s,
    }


def compare(whole: Mapping[str, str], found: Mapping[str, str], num_requests: int) -> None:
    """Raises BrokenBatch."""
    different = sum(found[custom_id] != text for custom_id, text in whole.items() if custom_id in found)
    if different or whole.keys() != found.keys() or len(whole) != num_requests:
        raise BrokenBatch(f"of {len(whole)} results {len(found)} are there, {different} of them are others")


def run(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        figures = measure(Path(folder), options)
    rows = [[name, f"{value:.0f}"] for name, value in figures.items()]
    publish = report.report("batch_kills", figures)
    report.publish(Path(options.output), publish, {"options": options}, report.table(["", ""], rows))


if __name__ == "__main__":
    command(Options, run)
