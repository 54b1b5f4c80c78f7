"""Everything that is measured, running: Sluice, the peers, and the engines behind the peers.

Owns their processes and says of each which are the relay's and which are the engines'. A peer that cannot be
installed or started is a fault to report; Sluice or the engines failing ends the benchmark.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from benchmarks.direct import engine_spec
from benchmarks.floor import MODEL
from benchmarks.load import Ask, BadAnswer, Endpoint, Rhythm, ask, drive
from benchmarks.measure import CommonOptions, floor_server
from benchmarks.peer_figures import SLUICES
from benchmarks.peer_programs import Peer, PeerFault, Surroundings, free_ports
from benchmarks.processes import ALWAYS_SPLIT, FLEETS, POLL_S, START_TIMEOUT_S, end, fleet, rss_mib, spawn

AT_ONCE = Rhythm(start_s=0.0, pause_s=0.0)


@dataclass(frozen=True, slots=True)
class Target:
    """`alone`: the engine that is behind it, as `benchmarks.direct` calls it. None: it cannot be had alone."""

    name: str
    case: str
    endpoint: Endpoint
    relay: tuple[int, ...]
    engines: tuple[int, ...]
    alone: str | None

    @property
    def pids(self) -> dict[str, tuple[int, ...]]:
        return {"relay": self.relay, "engines": self.engines}

    @property
    def label(self) -> str:
        return f"{self.name}.{self.case}"


@dataclass(frozen=True, slots=True)
class Floor:
    """The engines that speak HTTP; the first is also what is called directly."""

    endpoints: tuple[Endpoint, ...]
    pids: tuple[int, ...]
    prefill: Endpoint
    prefill_pid: int
    step_ms: float

    def pids_of(self, case: str) -> tuple[int, ...]:
        return self.pids if case == "whole" else (self.prefill_pid, self.pids[0])


def _url(endpoint: Endpoint) -> str:
    return f"http://{endpoint.host}:{endpoint.port}"


@contextmanager
def floor_engines(options: CommonOptions) -> Iterator[Floor]:
    with ExitStack() as stack:
        whole = [stack.enter_context(floor_server(options)) for _ in range(2)]
        prefill, prefill_pid = stack.enter_context(floor_server(options, role="prefill"))
        endpoints, pids = zip(*whole, strict=True)
        yield Floor(endpoints, pids, prefill, prefill_pid, options.step_ms)


@contextmanager
def sluice(name: str, case: str, folder: Path, options: CommonOptions) -> Iterator[Target]:
    routing = msgspec.structs.replace(ALWAYS_SPLIT, policy=SLUICES[name])
    with fleet(folder / f"{name}-{case}", FLEETS[case], engine_spec(options.step_ms), routing=routing) as running:
        yield Target(name, case, running.endpoint, tuple(running.proxy_pids), tuple(running.hosts), "instant")


@contextmanager
def peer(peer: Peer, case: str, programs: Path, folder: Path, floor: Floor) -> Iterator[Target]:
    """Raises PeerFault."""
    own = folder / f"{peer.name}-{case}"
    own.mkdir()
    ports = free_ports()
    around = Surroundings(own, *ports, tuple(map(_url, floor.endpoints)), _url(floor.prefill), floor.step_ms)
    environment = os.environ | peer.environment(own)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for program, *arguments in peer.commands(case, around):
            processes.append(_start([str(programs / program), *arguments], own / f"{len(processes)}.log", environment))
        relay, *engines = (process.pid for process in processes)
        endpoint = Endpoint(host="127.0.0.1", port=ports[0], model=MODEL, closing_chunks=peer.closing_chunks)
        _wait_until_serving(endpoint, processes, own)
        behind = tuple(engines) if peer.own_engines else floor.pids_of(case)
        yield Target(peer.name, case, endpoint, (relay,), behind, None if peer.own_engines else "floor")
    finally:
        end(processes)


def _start(command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return spawn(command, log.parent, output, environment)


def _wait_until_serving(endpoint: Endpoint, processes: list[subprocess.Popen[bytes]], logs: Path) -> None:
    """A health check may answer before there are engines, so it is asked for tokens. Raises PeerFault."""
    deadline = time.monotonic() + START_TIMEOUT_S
    users = [[ask(endpoint, "ready?", 2)]]
    while (reason := refusal(endpoint, users)) is not None:
        dead = next((number for number, process in enumerate(processes) if process.poll() is not None), None)
        if dead is not None or time.monotonic() > deadline:
            log = (logs / f"{dead or 0}.log").read_text(errors="replace")
            words = [line.strip() for line in log.splitlines() if line.strip()]
            raise PeerFault(f"did not serve: {reason}; its last words: {words[-1] if words else 'none'}")
        time.sleep(POLL_S)


def refusal(endpoint: Endpoint, users: list[list[Ask]]) -> str | None:
    """Why it does not answer, if it does not."""
    try:
        uvloop.run(drive(endpoint, users, AT_ONCE, random.Random(0)))
    except ExceptionGroup as faults:
        return first_fault(faults)
    return None


def first_fault(faults: ExceptionGroup[Exception]) -> str:
    """In one line. What is not a peer's fault is raised again."""
    theirs, ours = faults.split((BadAnswer, OSError))
    if ours is not None or theirs is None:
        raise faults
    fault: Exception = theirs
    while isinstance(fault, ExceptionGroup):
        fault = fault.exceptions[0]
    return " ".join(f"{type(fault).__name__}: {fault}".split())[:300]


def kib_per_stream(target: Target, options: CommonOptions) -> float:
    """What the relay's memory grows by when streams are open. The first ones are for its code and connections."""
    few, many = ([[ask(target.endpoint, "once", options.tokens)]] * num for num in (8, 2 * options.streams))
    uvloop.run(drive(target.endpoint, few, AT_ONCE, random.Random(0)))
    before_mib = sum(map(rss_mib, target.relay))
    at_most_mib = 0.0

    async def watched() -> None:
        nonlocal at_most_mib
        streams = asyncio.create_task(drive(target.endpoint, many, AT_ONCE, random.Random(0)))
        while not streams.done():
            at_most_mib = max(at_most_mib, sum(map(rss_mib, target.relay)))
            await asyncio.sleep(options.step_ms / 1000)
        await streams

    uvloop.run(watched())
    return (at_most_mib - before_mib) * 1024 / len(many)
