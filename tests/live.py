"""A run of real processes on this machine, without the launcher: a proxy and worker agents with their engines.

Owns the run folder, the processes and their end. What the launcher does around them has tests of its own.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import zmq

from proxy.spec import Deadlines, Limits, PoolCaps, ProxySpec, RoutingSpec
from workers.links.proxy_file import ProxyFile, read_proxies
from workers.spec import EngineSpec, HandoffSpec, Role, WorkerSpec, write_json

SOURCE = Path(__file__).resolve().parent.parent
API_KEY = "sk-test-user"
READER_KEY = "sk-test-reader"
OPERATOR_KEY = "sk-test-operator"
STEP_TIMEOUT_S = {"sim": 8.0, "vllm": 60.0}  # real steps may be starved; whether a hang is noticed is tested in sim
SIM_ARGS: dict[str, Any] = {"num_blocks": 2048}


def sim_engine(**changes: Any) -> EngineSpec:
    fields: dict[str, Any] = {
        "kind": "sim",
        "device": "cpu",
        "version": None,
        "model_path": "tiny",
        "served_names": ("tiny",),
        "max_model_len": 4096,
        "block_size": 16,
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "args": SIM_ARGS,
        "environment": {},
        "prefix": (),
        "handoff": HandoffSpec(connector="NixlConnector", buffer_device="cpu", lease_s=120.0, redeem_s=30.0),
    }
    return EngineSpec(**{**fields, **changes})


class Live:
    """Processes are started by name and ended by id."""

    def __init__(self, path: Path, **proxy_changes: Any) -> None:
        self.path = path
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._below: set[psutil.Process] = set()
        for folder in ("keys", "proxies", "specs", "logs", "home"):
            (path / folder).mkdir(parents=True, mode=0o700)
        self._write_keys()
        self.proxy_changes = proxy_changes
        self.url = ""

    def _write_keys(self) -> None:
        for name in ("proxy", "worker", "controller"):
            public, secret = zmq.curve_keypair()
            write_json(self.path / "keys" / f"{name}.json", {"public": public.decode(), "secret": secret.decode()})
        keys = [("test", API_KEY, "user"), ("reader", READER_KEY, "reader"), ("operator", OPERATOR_KEY, "operator")]
        entries = [{"name": n, "hash": hashlib.sha256(k.encode()).hexdigest(), "class": c} for n, k, c in keys]
        write_json(self.path / "keys" / "api_keys.json", entries)

    # ------------------------------------------------------------ processes

    def start_proxy(self, workers: dict[str, str]) -> None:
        fields: dict[str, Any] = {
            "run": "test",
            "run_dir": str(self.path),
            "proxy": "p0",
            "code": "test",
            "models": ("tiny",),
            "interface": "lo",
            "http_port": 0,
            "tls_cert": None,
            "tls_key": None,
            "pools": {
                "prefill": PoolCaps(max_prefill_tokens=65536, max_decodes=0),
                "decode": PoolCaps(max_prefill_tokens=65536, max_decodes=256),
            },
            "pairs": (("prefill", "decode"),),
            "workers": workers,
            "redeem_s": 30.0,
            "limits": Limits(),
            "deadlines": Deadlines(),
            "routing": RoutingSpec(),
        }
        path = self.path / "specs" / "p0.json"
        write_json(path, ProxySpec(**{**fields, **self.proxy_changes}))
        self._start("proxy", "-m", "proxy", str(path))
        num_processes = self.proxy_changes.get("processes", 1)
        wait_for(lambda: len(self.proxy_files()) == num_processes, "the proxy's files")
        self.url = self.proxy_files()[0].http

    def proxy_files(self) -> list[ProxyFile]:
        """Of the processes that live below the proxy."""
        pid = self.processes["proxy"].pid
        return [file for file in read_proxies(self.path / "proxies") if parent_of(file.pid) == pid]

    def start_worker(
        self,
        worker: str,
        engine: EngineSpec,
        *,
        generation: int = 0,
        index: int = 0,
        interface: str = "lo",
        gpus_per_node: int = 0,
        stage_dir: str | None = None,
        takes_turns: bool = False,
        drain_timeout_s: float = 10.0,
        **environment: str,
    ) -> None:
        pool = worker.rsplit("-", 1)[0]
        spec = WorkerSpec(
            run="test",
            run_dir=str(self.path),
            worker=worker,
            pool=pool,
            role=Role(pool),
            generation=generation,
            index=index,
            num_nodes=1,
            gpus_per_node=gpus_per_node,
            engine=engine,
            interface=interface,
            cache_dir=str(self.path / "cache"),
            stage_dir=stage_dir,
            code="test",
            interpreter=sys.executable,
            load_timeout_s=240.0,
            drain_timeout_s=drain_timeout_s,
            step_timeout_s=STEP_TIMEOUT_S[engine.kind],
            takes_turns=takes_turns,
        )
        path = self.path / "specs" / f"{worker}.{generation}.json"
        write_json(path, spec)
        home = {"HOME": str(self.path / "home")}  # nothing is to be written there
        self._start(f"{worker}", "-m", "workers", str(path), **(home | environment))

    def _start(self, name: str, *arguments: str, **environment: str) -> None:
        log = self.path / "logs" / f"{name}.log"
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), **environment}
        with log.open("ab") as file:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments], stdout=file, stderr=file, env=environment, cwd="/"
            )

    def log(self, name: str) -> str:
        return (self.path / "logs" / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        self._remember(name)
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def engine_pid(self, worker: str) -> int:
        """The engine process of a worker: its agent's only child."""
        self._remember(worker)
        agent = self.processes[worker].pid
        (child,) = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        return int(child)

    def stop(self) -> None:
        for name in self.processes:
            self._remember(name)
        for name in sorted(self.processes, reverse=True):  # the proxy goes last but one: agents drain by themselves
            self.processes[name].send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        wait_for(lambda: not any(map(lives, self._below)), "the last of what they had started to end", 60.0)

    def _remember(self, name: str) -> None:
        """What is below a process now, which is to end with it, however that ends."""
        with suppress(psutil.NoSuchProcess):
            self._below |= set(psutil.Process(self.processes[name].pid).children(recursive=True))

    # ------------------------------------------------------------ asking

    def client(self, key: str = API_KEY, **changes: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=60, **changes)

    def fleet(self) -> dict[str, Any]:
        with self.client() as client:
            answer: dict[str, Any] = client.get("/fleet").json()
        return answer

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        def ready() -> bool:
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended:\n{self.log(name)[-3000:]}"
            return bool(self.fleet()["ready"])

        wait_for(ready, "the fleet to be ready", timeout_s)

    def metric(self, name: str, worker: str | None = None) -> float:
        """One figure of the proxy's, or of an engine's own."""
        path = "/metrics" if worker is None else f"/workers/{worker}/metrics"
        with self.client() as client:
            lines = client.get(path).raise_for_status().text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group of its own, with all of the group."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.05)


@contextmanager
def live(path: Path, workers: dict[str, EngineSpec], **proxy_changes: Any) -> Iterator[Live]:
    """A run that is ready; at its end nothing of it is left."""
    run = Live(path, **proxy_changes)
    try:
        run.start_proxy({name: name.rsplit("-", 1)[0] for name in workers})
        for index, (name, engine) in enumerate(workers.items()):
            run.start_worker(name, engine, index=index)
        run.wait_ready(240.0)
        yield run
    finally:
        run.stop()


def replaced(spec: EngineSpec, **changes: Any) -> EngineSpec:
    return msgspec.structs.replace(spec, **changes)
