"""A batch of which anything may be killed: `python -m benchmarks.batch_kills [requests=2000] [kills=20]`.

Simulated engines on this machine, a run of the batch's own. Once undisturbed; then SIGKILL for the client, the proxy,
the controller, an agent or an engine, at random moments of its results, and the same command again whenever it has
ended. Owns the experiment: each request must be in the output once, with the text of the undisturbed batch.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count
from benchmarks.batch_work import Shape, prompts
from benchmarks.command import command
from benchmarks.processes import ProcessFault, spawn
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
PATIENCE_S = 120.0
LOOK_EVERY_S = 0.05


class Options(msgspec.Struct, frozen=True, kw_only=True):
    requests: Count = 2000
    kills: Count = 20
    seed: int = 0
    output: str = "bench-results"


class BrokenBatch(Exception):
    """A result is missing, there twice, or another one."""


def say(text: str) -> None:
    """Progress: standard output is for the results."""
    print(text, file=sys.stderr, flush=True)


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


def kill(batch: Batch, kinds: Sequence[str], num_bytes: int, rng: random.Random) -> None:
    """At random moments, by how many bytes of results there are. Raises BrokenBatch or ProcessFault."""
    moments = sorted(rng.uniform(0.02, 0.95) * num_bytes for _ in kinds)
    for moment, kind in zip(moments, kinds, strict=True):

        def killed(moment: float = moment, kind: str = kind) -> bool:
            if batch.ended():
                raise BrokenBatch(f"it ended before it was the {kind}'s turn to be killed")
            pids = batch.pids(kind) if batch.stored_bytes() > moment else []
            return bool(pids) and _kill(rng.choice(pids))

        batch.until(killed, f"{kind} to kill, or too few results")
        say(f"killed: {kind}, at {batch.stored_bytes() / num_bytes:.0%} of the results")


def write_input(path: Path, options: Options) -> None:
    shape = Shape(requests=options.requests, sharing=0.5, groups=6, prefix_words=60)
    with path.open("wb") as file:
        for prompt in prompts(shape, random.Random(options.seed)):
            line = {"prompt": prompt.text, "max_tokens": prompt.max_tokens, "temperature": 0}
            file.write(msgspec.json.encode(line) + b"\n")


def measure(folder: Path, options: Options) -> dict[str, float]:
    write_input(folder / "in.jsonl", options)
    rng = random.Random(options.seed)
    undisturbed, killed = Batch(folder, "undisturbed"), Batch(folder, "killed")
    kinds = victims(options.kills, rng)
    took_s = {}
    try:
        for name, batch in (("undisturbed", undisturbed), ("killed", killed)):
            began_at = time.monotonic()
            if batch is killed:
                kill(killed, kinds, undisturbed.stored_bytes(), rng)
            batch.until(batch.ended, "end of the batch")
            took_s[name] = time.monotonic() - began_at
    finally:
        kill_local(killed.run)
    if undisturbed.num_starts > 1:
        raise BrokenBatch("the undisturbed batch did not come to its end at once")
    whole, found = undisturbed.texts(), killed.texts()
    different = sum(found[custom_id] != text for custom_id, text in whole.items() if custom_id in found)
    if different or whole.keys() != found.keys() or len(whole) != options.requests:
        raise BrokenBatch(f"of {len(whole)} results {len(found)} are there, {different} of them are others")
    counts = {f"{kind}.kills": float(kinds.count(kind)) for kind in (CLIENT, *MODULES)}
    return counts | {
        "requests": len(found),
        "starts": killed.num_starts,
        **{f"{name}.took_s": value for name, value in took_s.items()},
    }


def run(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        figures = measure(Path(folder), options)
    rows = [[name, f"{value:.0f}"] for name, value in figures.items()]
    publish = report.report("batch_kills", figures)
    report.publish(Path(options.output), publish, {"options": options}, report.table(["", ""], rows))


if __name__ == "__main__":
    command(Options, run)
