"""A run's real processes on this machine, without controller or Slurm: a proxy and workers on simulated engines.

Owns the run folder, the processes and their end: whatever ends the benchmark ends them. They live in
sessions of their own, so that a Ctrl-C reaches the benchmark alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from benchmarks.load import Endpoint
from launcher.keys import api_key_file, write_keys
from launcher.rundir import SOURCE, RunDir
from proxy.spec import Deadlines, Limits, PoolCaps, ProxySpec, RoutingSpec
from workers.links.proxy_file import read_proxies
from workers.spec import EngineSpec, Role, WorkerSpec, write_json

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0
POLL_S = 0.05
UNBOUNDED = 1 << 40
CODE = "benchmark"
ALWAYS_SPLIT = RoutingSpec(whole_below_tokens=0)
FLEETS = {  # workers and their pools, a pool being named after its role
    "whole": {"any-0": "any", "any-1": "any"},
    "split": {"prefill-0": "prefill", "decode-0": "decode"},
}


_started: list[subprocess.Popen[bytes]] = []


class ProcessFault(Exception):
    """A process did not come up; the message carries the end of its log."""


def cpu_s(pid: int) -> float:
    """All threads of a process, those that have ended too, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)  # the kernel's name for a process's CPU clock (clock_getcpuclockid)


def rss_mib(pid: int) -> float:
    num_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def start(module: str, *arguments: str, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    return spawn([sys.executable, "-m", module, *arguments], SOURCE, output)


def spawn(
    command: Sequence[str],
    folder: Path,
    output: IO[bytes] | int,
    environment: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """In a session of its own. A signal that comes meanwhile waits until the process is known here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output,
            stderr=None if output == subprocess.PIPE else subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),
        )
        _started.append(process)
        return process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_all() -> None:
    """Whatever an interruption has left of what was started here."""
    end([process for process in _started if process.poll() is None])


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """All at once; an agent that is killed takes its engine along."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + END_TIMEOUT_S
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Fleet:
    """A proxy and its workers, all serving. `hosts` are the processes of the engines."""

    def __init__(
        self, path: Path, workers: dict[str, str], engine: EngineSpec, num_processes: int, routing: RoutingSpec
    ) -> None:
        self._run = RunDir(path)
        self._run.create()
        write_keys(self._run.keys)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._workers = workers
        self._engine = engine
        self._num_processes = num_processes
        self._routing = routing
        self.endpoint: Endpoint
        self.proxy_pids: list[int] = []  # those that serve, without their parent
        self.hosts: list[int] = []

    def start(self) -> None:
        """Raises ProcessFault."""
        spec = self._run.proxy_spec("p0")
        write_json(spec, self._proxy_spec())
        self._start("proxy", "proxy", spec)
        # Workers that look before one is there look again only seconds later.
        self._wait(lambda: len(read_proxies(self._run.proxies)) == self._num_processes)
        for index, worker in enumerate(self._workers):
            spec = self._run.worker_spec(worker, 0)
            write_json(spec, self._worker_spec(worker, index))
            self._start(worker, "workers", spec)
        files = read_proxies(self._run.proxies)
        self.proxy_pids = [file.pid for file in files]
        url = httpx.URL(files[0].http)
        key = api_key_file(self._run.keys).read_text()
        assert url.port is not None
        self.endpoint = Endpoint(host=url.host, port=url.port, model=self._engine.served_names[0], key=key)
        self._wait(lambda: bool(httpx.get(url.join("/ready")).json()["complete"]))
        self.hosts = [_only_child(self._processes[worker].pid) for worker in self._workers]

    def stop(self) -> None:
        end(list(self._processes.values()))

    def _start(self, name: str, module: str, spec: Path) -> None:
        with (self._run.logs / f"{name}.log").open("wb") as log:
            self._processes[name] = start(module, str(spec), output=log)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            for name, process in self._processes.items():
                if process.poll() is not None or time.monotonic() > deadline:
                    log = (self._run.logs / f"{name}.log").read_text(errors="replace")
                    raise ProcessFault(f"{name} did not come up:\n{log[-3000:]}")
            time.sleep(POLL_S)

    def _proxy_spec(self) -> ProxySpec:
        pools = set(self._workers.values())
        caps = {  # whatever the policy: who has one role has no other
            pool: PoolCaps(
                max_prefill_tokens=0 if pool == Role.DECODE else UNBOUNDED,
                max_decodes=0 if pool == Role.PREFILL else UNBOUNDED,
            )
            for pool in pools
        }
        return ProxySpec(
            run=self._run.path.name,
            run_dir=str(self._run.path),
            proxy="p0",
            code=CODE,
            models=self._engine.served_names,
            interface="lo",
            http_port=0,
            tls_cert=None,
            tls_key=None,
            pools=caps,
            pairs=((Role.PREFILL, Role.DECODE),) if Role.PREFILL in pools else (),
            workers=self._workers,
            redeem_s=30.0,
            limits=Limits(),
            deadlines=Deadlines(),
            routing=self._routing,
            processes=self._num_processes,
        )

    def _worker_spec(self, worker: str, index: int) -> WorkerSpec:
        return WorkerSpec(
            run=self._run.path.name,
            run_dir=str(self._run.path),
            worker=worker,
            pool=self._workers[worker],
            role=Role(self._workers[worker]),
            generation=0,
            index=index,
            num_nodes=1,
            gpus_per_node=0,
            engine=self._engine,
            interface="lo",
            cache_dir=str(self._run.path / "cache"),
            stage_dir=None,
            code=CODE,
            interpreter=sys.executable,
            load_timeout_s=START_TIMEOUT_S,
            drain_timeout_s=1.0,
        )


def _only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@contextmanager
def fleet(
    path: Path,
    workers: dict[str, str],
    engine: EngineSpec,
    num_processes: int = 1,
    routing: RoutingSpec = ALWAYS_SPLIT,
) -> Iterator[Fleet]:
    """`workers`: their names and pools; a pool is named after its role. `num_processes`: the proxy's."""
    running = Fleet(path, workers, engine, num_processes, routing)
    try:
        running.start()
        yield running
    finally:
        running.stop()
