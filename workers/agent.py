"""The worker agent: one per node of a worker's job. Rank 0's speaks for the worker.

Owns the worker's phase, Slurm's signals and clock, the drain, and the agent's links. It imports neither
torch nor vllm and touches no request, so it answers in time whatever the engine does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from workers.channel import Broken, Idle, Ready
from workers.engine_child import END_TIMEOUT_S, EngineChild, started
from workers.faults import WorkerFault, story
from workers.lifecycle import DRAINING, FAILED, LOADING, READY, STOPPED, Lifecycle
from workers.link import Link
from workers.network import NetworkFault
from workers.placing import check_engine_version, make_local_dir, place
from workers.protocol import PROTOCOL, PROXY_SILENCE_S, Drain, Message, Part, Phase, Register
from workers.rendezvous import ProxyFile, RefusedForGood, Rendezvous
from workers.slurm_env import SlurmEnv
from workers.spec import WorkerSpec, write_json
from workers.walltime import walltime_drain
from workers.wire import decode_to_worker, identity
from workers.zmq_loop import read_keys

log = logging.getLogger("sluice.agent")

# What Slurm, a site's preemption and a person at a terminal send to end a job's processes.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
WALLTIME = "walltime"
GOODBYE_S = 0.2


class Stop(msgspec.Struct, frozen=True):
    """The worker is to end. Who says so first decides why, and how long the drain may take."""

    reason: str
    drain_s: float


class Agent:
    """`run` returns the process's exit status."""

    def __init__(self, spec: WorkerSpec, spec_path: Path, env: SlurmEnv, context: zmq.Context[Any]) -> None:
        self._spec = spec
        self._spec_path = spec_path
        self._env = env
        self._context = context
        self._started_at = time.time()
        self._incarnation = secrets.token_hex(4)
        self._life = Lifecycle()
        self._num_sessions = 0
        self._stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        self._rendezvous = Rendezvous(Path(spec.run_dir) / "proxies", self._open_link)

    @property
    def _is_head(self) -> bool:
        return self._env.node_rank == 0

    async def run(self) -> int:
        self._obey_signals()
        local_dir = make_local_dir(tempfile.gettempdir())
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(self._obey_the_clock())]
                if self._is_head:
                    beside.append(tasks.create_task(self._rendezvous.run()))
                await self._live(local_dir)
                for task in beside:
                    task.cancel()
        except* (WorkerFault, NetworkFault, RefusedForGood) as group:
            if not self._life.ended:
                self._step(FAILED, story(group))
        finally:
            await asyncio.sleep(GOODBYE_S)  # the last phase should still leave
            self._rendezvous.close(self._life.detail)
            await asyncio.to_thread(shutil.rmtree, local_dir, ignore_errors=True)
        return 0 if self._life.phase == STOPPED else 1

    # ------------------------------------------------------------ phases

    async def _live(self, local_dir: Path) -> None:
        check_engine_version(self._spec)
        placement = await place(self._spec, self._env, self._incarnation, local_dir)
        path = local_dir / "placement.json"
        await asyncio.to_thread(write_json, path, placement)
        self._step(LOADING, f"engine {self._spec.engine.kind}")
        async with started(self._command(path), self._spec.engine.environment) as child:
            try:
                if await self._load(child):
                    await self._serve(child)
            except WorkerFault as fault:
                self._step(FAILED, str(fault))  # at once: cleaning up may take a while
                raise
            self._step(STOPPED, self._stop.result().reason)

    def _command(self, placement: Path) -> list[str]:
        module = ["-m", "workers.engine_process", str(self._spec_path), str(placement)]
        return [*self._spec.engine.prefix, self._spec.interpreter, *module]

    async def _load(self, child: EngineChild) -> bool:
        """True once the engine is ready; False if asked to stop before. A headless rank is never ready."""
        timeout_s = self._spec.load_timeout_s if self._is_head else None
        try:
            async with asyncio.timeout(timeout_s):
                word = await self._word_or_stop(child)
        except TimeoutError:
            raise WorkerFault(f"engine not ready after {timeout_s:.0f} s (engine.load_timeout_s)") from None
        if isinstance(word, Ready):
            self._step(READY, word.detail)
        elif not isinstance(word, Stop):
            raise self._ended(child, word)
        return isinstance(word, Ready)

    async def _serve(self, child: EngineChild) -> None:
        """Until asked to stop, then until nothing is left. Raises WorkerFault where the engine ends by itself."""
        stop = await self._word_or_stop(child)
        if not isinstance(stop, Stop):
            raise self._ended(child, stop)
        self._step(DRAINING, stop.reason)
        child.finish(stop.drain_s)
        try:
            async with asyncio.timeout(stop.drain_s + END_TIMEOUT_S):
                word = await child.word()
        except TimeoutError:
            raise WorkerFault(f"the engine process did not drain within {stop.drain_s:.0f} s") from None
        if not isinstance(word, Idle):
            raise self._ended(child, word)

    async def _word_or_stop(self, child: EngineChild) -> object:
        """What comes first; if both are there, the engine's word: it may be its last."""
        listening = asyncio.ensure_future(child.word())
        try:
            either: set[asyncio.Future[Any]] = {listening, self._stop}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return listening.result() if listening.done() else self._stop.result()
        finally:
            listening.cancel()

    def _ended(self, child: EngineChild, word: object) -> WorkerFault:
        if isinstance(word, Broken):
            return WorkerFault(word.reason)
        last = "\n".join(child.tail)
        return WorkerFault(f"the engine process ended by itself while {self._life.phase}; its last lines:\n{last}")

    def _step(self, phase: str, detail: str = "") -> None:
        self._life.step(phase, detail)
        log.info("%s%s", phase, f": {detail}" if detail else "")
        for link in self._rendezvous.links.values():
            link.send(Phase(phase, detail))

    # ------------------------------------------------------------ who asks to stop

    def _ask_to_stop(self, reason: str, drain_s: float) -> None:
        if not self._stop.done():
            self._stop.set_result(Stop(reason, drain_s))

    def _obey_signals(self) -> None:
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(
                number, self._ask_to_stop, signal.Signals(number).name, self._spec.drain_timeout_s
            )

    async def _obey_the_clock(self) -> None:
        """The head drains before its job ends; the other nodes of its engine must hold out until it has."""
        if self._env.end_time is None:
            return
        drain_timeout_s = self._spec.drain_timeout_s if self._is_head else 0.0
        drain = walltime_drain(self._started_at, self._env.end_time, drain_timeout_s)
        log.info("the job's walltime ends in %.0f s", self._env.end_time - self._started_at)
        await asyncio.sleep(drain.at - time.time())
        self._ask_to_stop(WALLTIME, drain.timeout_s)

    def _take(self, message: Message) -> None:
        if isinstance(message, Drain):
            self._ask_to_stop(message.reason, message.timeout_s)

    # ------------------------------------------------------------ links

    def _open_link(self, proxy: ProxyFile, endpoint: str, lost: Callable[[str, bool], None]) -> Link:
        self._num_sessions += 1
        session = f"{self._incarnation}-agent-{self._num_sessions}"
        link = Link(
            self._context,
            endpoint,
            identity=identity(self._spec.worker, self._spec.generation, session),
            server_public=proxy.public_key,
            keys=read_keys(self._spec.run_dir, "worker"),
            hello=self._registration(session),
            decode=decode_to_worker,
            on_message=self._take,
            on_lost=lost,
            silence_s=PROXY_SILENCE_S,
        )
        link.send(Phase(self._life.phase, self._life.detail))
        return link

    def _registration(self, session: str) -> Register:
        return Register(
            protocol=PROTOCOL,
            code=self._spec.code,
            engine_version=self._spec.engine.version or "",
            worker=self._spec.worker,
            pool=self._spec.pool,
            role=self._spec.role,
            generation=self._spec.generation,
            incarnation=self._incarnation,
            session=session,
            part=Part.AGENT,
            node=self._env.node,
            job=self._env.job,
            end_time=self._env.end_time,
        )
