"""A run on this machine for `benchmarks.twin`, brought up by the launcher as users do, and requests asked of it.

Owns the processes, the requests' bytes and the clock readings.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks.load import BadAnswer, Client, Endpoint
from benchmarks.processes import ProcessFault, end, spawn
from benchmarks.routing.live import START_S, request_bytes
from launcher.rundir import SOURCE, RunDir
from launcher.rundir import Endpoint as EndpointFile
from launcher.twin.records import Record
from launcher.twin.traces import Request
from workers.engines.sim.events import Timing

POLYNOMIALS = ("prefill_ms", "decode_ms")
START_TIMEOUT_S, ANSWER_TIMEOUT_S, POLL_S = 400.0, 120.0, 0.2


def slower(times: float) -> Timing:
    """Than the simulator by default, so that what this machine adds is a small part."""
    timing = Timing()
    parts = {name: tuple(part * times for part in getattr(timing, name)) for name in POLYNOMIALS}
    return msgspec.structs.replace(timing, **parts)


def timing_argument(timing: Timing) -> str:
    given = ",".join(f"{name}:[{','.join(map(str, getattr(timing, name)))}]" for name in POLYNOMIALS)
    return f"+engine.engine_args.timing={{{given}}}"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


@contextmanager
def run_of(folder: Path, arguments: Sequence[str]) -> Iterator[RunDir]:
    """Serving; stopped at the end. Raises ProcessFault."""
    run, log = RunDir(folder / "runs" / "twin"), folder / "launcher.log"
    with log.open("wb") as output:
        line = [sys.executable, "-m", "launcher", "run=twin", *arguments]
        launcher = spawn(line, folder, output, environment())
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"\nready\n" not in log.read_bytes():
            if launcher.poll() is not None or time.monotonic() > deadline:
                raise ProcessFault(f"the run did not come up:\n{log.read_text()[-3000:]}")
            time.sleep(POLL_S)
        yield run
    finally:
        end([launcher])


def profile(folder: Path, run: RunDir, time_limit_s: float) -> Path:
    """Measured by the launcher's action. Raises ProcessFault."""
    line = [sys.executable, "-m", "launcher", "action=profile", "run=twin", f"profile.time_limit_s={time_limit_s:g}"]
    process = spawn(line, folder, subprocess.DEVNULL, environment())
    if process.wait() != 0:
        raise ProcessFault(f"action=profile ended with status {process.returncode}")
    return run.path / "profile" / "any.npz"


class Asked(NamedTuple):
    records: list[Record]
    began_at: float  # unix time


def asked_of(run: RunDir, requests: Sequence[Request], block_size: int) -> Asked:
    """Each at its time, its answer read to the end."""
    told = msgspec.json.decode(run.endpoint.read_bytes(), type=EndpointFile)
    address = urlsplit(told.url)
    assert address.hostname is not None and address.port is not None
    key = Path(told.api_key_file).read_text().strip()
    endpoint = Endpoint(host=address.hostname, port=address.port, model=told.models[0], key=key)
    records = [Record(request) for request in requests]
    return Asked(records, uvloop.run(_all(endpoint, records, block_size)))


async def _all(endpoint: Endpoint, records: Sequence[Record], block_size: int) -> float:
    asks = [
        request_bytes(endpoint, record.request, number, block_size, ignore_eos=True)
        for number, record in enumerate(records)
    ]
    start_s, began_at = time.perf_counter() + START_S, time.time() + START_S
    async with asyncio.TaskGroup() as tasks:
        for data, record in zip(asks, records, strict=True):
            tasks.create_task(_one(endpoint, data, record, start_s))
    return began_at


async def _one(endpoint: Endpoint, data: bytes, record: Record, start_s: float) -> None:
    """Times count from when it was sent: a busy client is nobody's fault."""
    at_s = record.request.at_s
    await asyncio.sleep(start_s + at_s - time.perf_counter())
    _, client = await asyncio.get_running_loop().create_connection(Client, endpoint.host, endpoint.port)
    try:
        sent_s = time.perf_counter()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await client.ask(data)
        if not answer.startswith(b"HTTP/1.1 200 ") or b"data: [DONE]" not in answer:
            raise BadAnswer(answer[:500].decode(errors="replace"))
        record.first_s = at_s + client.arrivals[0] - sent_s
        record.end_s = at_s + client.arrivals[-1] - sent_s
    finally:
        client.close()
