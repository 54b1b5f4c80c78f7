"""The worker agent: one per node of a worker's job. Rank 0's speaks for the worker.

Owns the worker's phase, Slurm's signals and clock, the drain, and the agent's links. It imports neither
torch nor vllm and touches no request, so it answers in time whatever the engine does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import signal
import time
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from workers.agent.agent_links import AgentLinks
from workers.agent.channel import Broken, ChannelMessage, Idle, Ready, Stage
from workers.agent.ending import Ending, Stop
from workers.agent.engine_child import END_TIMEOUT_S, EngineChild, started
from workers.agent.lifecycle import DRAINING, FAILED, LOADING, READY, STARTING, STOPPED, Lifecycle
from workers.agent.local_folder import local_folder
from workers.agent.network import NetworkFault
from workers.agent.notice import Notice
from workers.agent.placing import place
from workers.agent.preflight import size
from workers.agent.slurm_env import SlurmEnv
from workers.agent.startup import engine_process, preflight, staged
from workers.agent.turn import OwnTurn
from workers.agent.walltime import WALLTIME, walltime_drain
from workers.engines import Placement, stages_told
from workers.faults import WorkerFault, story
from workers.links.rendezvous import RefusedForGood
from workers.message import Message
from workers.protocol import Drain, Phase, YourTurn
from workers.spec import WorkerSpec, write_json
from workers.stages import ENVIRONMENT, IMPORT, PREFLIGHT, STAGING, TURN, WEIGHTS, StageClock, in_words
from workers.staging.caches import engine_cache
from workers.staging.staging_process import Progress

log = logging.getLogger("sluice.agent")

# What Slurm, a site's preemption and a person at a terminal send to end a job's processes.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
WAITS_FOR_TURN = "waits for its turn to read the model"
GOODBYE_S = 0.2

T = TypeVar("T")


class Agent:
    """`run` returns the process's exit status."""

    def __init__(self, spec: WorkerSpec, spec_path: Path, env: SlurmEnv, context: zmq.Context[Any]) -> None:
        self._spec = spec
        self._spec_path = spec_path
        self._env = env
        self._started_at = time.time()
        self._incarnation = secrets.token_hex(4)
        self._life = Lifecycle()
        self._stages = StageClock()
        if env.start_time is not None:
            self._stages.add(ENVIRONMENT, self._started_at - env.start_time)
        self._told_by = stages_told(spec.engine.kind)
        self._turn = OwnTurn()
        self._ending = Ending()
        self._signal = asyncio.Event()
        self._links = AgentLinks(spec, env, self._incarnation, context, self._phase, self._take)

    @property
    def _is_head(self) -> bool:
        return self._env.node_rank == 0

    async def run(self) -> int:
        self._obey_signals()
        try:
            with local_folder() as local_dir:
                async with asyncio.TaskGroup() as tasks:
                    beside = [tasks.create_task(self._obey_the_clock())]
                    if self._is_head:
                        beside.append(tasks.create_task(self._links.run()))
                        beside.append(tasks.create_task(self._heed_slurm()))
                    await self._live(local_dir)
                    for task in beside:
                        task.cancel()
        except* (WorkerFault, NetworkFault, RefusedForGood) as group:
            if not self._life.ended:
                self._step(FAILED, story(group))
        finally:
            await asyncio.sleep(GOODBYE_S)  # the last phase should still leave
            self._links.close(self._life.detail, as_asked=self._life.phase == STOPPED)
        return 0 if self._life.phase == STOPPED else 1

    # ------------------------------------------------------------ phases

    async def _live(self, local_dir: Path) -> None:
        with ExitStack() as held:
            placement = await self._or_stop(self._prepare(local_dir, held))
            if isinstance(placement, Stop):
                self._step(STOPPED, placement.reason)
            else:
                await self._run_engine(placement, local_dir)

    async def _run_engine(self, placement: Placement, local_dir: Path) -> None:
        path = local_dir / "placement.json"
        await asyncio.to_thread(write_json, path, placement)
        self._enter(IMPORT, LOADING)
        process = await engine_process(self._spec, self._spec_path, path, placement.model_path)
        async with started(*process, self._hear) as child:
            try:
                if await self._load(child):
                    await self._serve(child)
            except WorkerFault as fault:
                self._step(FAILED, str(fault))  # at once: cleaning up may take a while
                raise
            self._step(STOPPED, self._ending.reason)

    async def _prepare(self, local_dir: Path, held: ExitStack) -> Placement:
        """All that can be found out and brought near before anything is loaded."""
        self._enter(PREFLIGHT, STARTING)
        facts = await preflight(self._spec, self._env, self._spec_path, local_dir)
        cache_dir = engine_cache(self._spec, facts)
        if self._spec.takes_turns and self._is_head:  # the other nodes wait for the head
            await self._wait_for_turn()
        placement = await place(self._spec, self._env, self._incarnation, local_dir=str(local_dir), cache_dir=cache_dir)
        if self._spec.stage_dir is None:
            return placement
        self._enter(STAGING, STARTING)
        folder = await staged(self._spec_path, self._tell_progress, held)
        if self._spec.num_nodes == 1:  # else others still copy
            self._turn.end()
        return msgspec.structs.replace(placement, model_path=folder)

    async def _wait_for_turn(self) -> None:
        self._stages.enter(TURN, time.monotonic())
        self._turn.ask()
        self._step(STARTING, WAITS_FOR_TURN)
        await self._turn.come(self._links.linked)

    def _tell_progress(self, progress: Progress) -> None:
        copied, total = size(progress.copied_bytes), size(progress.total_bytes)
        by = ", copied by another worker of this node" if progress.by_another else ""
        self._step(STARTING, f"{STAGING}: {copied} of {total}{by}")

    async def _load(self, child: EngineChild) -> bool:
        """True once the engine is ready; False if asked to stop before. A headless rank is never ready."""
        timeout_s = self._spec.load_timeout_s if self._is_head else None
        try:
            async with asyncio.timeout(timeout_s):
                while isinstance(word := await self._or_stop(child.word()), Stage):
                    self._enter(word.name, LOADING)
        except TimeoutError:
            raise WorkerFault(f"engine not ready after {timeout_s:.0f} s (engine.load_timeout_s)") from None
        if isinstance(word, Ready):
            self._stages.end(time.monotonic())
            self._turn.end()
            log.info("the start took: %s", in_words(self._stages.times))
            self._step(READY)
        elif not isinstance(word, Stop):
            raise self._ended(child, word)
        return isinstance(word, Ready)

    async def _serve(self, child: EngineChild) -> None:
        """Until asked to stop, then until nothing is left. Raises WorkerFault where the engine ends by itself."""
        word = await self._or_stop(child.word())
        if isinstance(word, Stop):
            self._step(DRAINING, word.reason)
        while isinstance(word, Stop):
            word = await self._drain(child, word.until)
        if not isinstance(word, Idle):
            raise self._ended(child, word)

    async def _drain(self, child: EngineChild, until: float) -> ChannelMessage | Stop | None:
        """The engine's word, or a nearer end."""
        left_s = max(until - asyncio.get_running_loop().time(), 0.0)
        child.finish(left_s)
        try:
            async with asyncio.timeout(left_s + END_TIMEOUT_S):
                return await self._or_stop(child.word(), until)
        except TimeoutError:
            raise WorkerFault(f"the engine process did not drain within {left_s:.0f} s") from None

    async def _or_stop(self, work: Coroutine[Any, Any, T], than: float = math.inf) -> T | Stop:
        """What comes first; if both are there, the work's outcome: an engine's word may be its last."""
        working, asking = asyncio.ensure_future(work), asyncio.ensure_future(self._ending.nearer(than))
        either: set[asyncio.Future[Any]] = {working, asking}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else asking.result()
        finally:
            for task in either:
                task.cancel()
            await asyncio.wait(either)

    def _ended(self, child: EngineChild, word: object) -> WorkerFault:
        if isinstance(word, Broken):
            return WorkerFault(word.reason)
        last = "\n".join(child.tail)
        return WorkerFault(f"the engine process ended by itself while {self._life.phase}; its last lines:\n{last}")

    def _hear(self, line: str) -> None:
        """The engine's output, as it passes."""
        for part, seconds in self._told_by(line).items():
            self._stages.tell(part, seconds)
            if part == WEIGHTS and self._turn.end():
                self._links.tell()

    def _enter(self, stage: str, phase: str) -> None:
        self._stages.enter(stage, time.monotonic())
        self._step(phase, stage)

    def _step(self, phase: str, detail: str = "") -> None:
        self._life.step(phase, detail)
        log.info("%s%s", phase, f": {detail}" if detail else "")
        if self._life.ended:
            self._turn.end()
        self._links.tell()

    def _phase(self) -> Phase:
        return Phase(self._life.phase, self._life.detail, self._stages.times, self._turn.state, self._turn.waited_s)

    # ------------------------------------------------------------ who asks to stop

    def _obey_signals(self) -> None:
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._obey_signal, signal.Signals(number).name)

    def _obey_signal(self, name: str) -> None:
        """At once: the proxy is to know. That there is less time for it is told by Slurm a little later."""
        self._ending.ask(name, self._spec.drain_timeout_s)
        self._signal.set()

    async def _heed_slurm(self) -> None:
        """A drain that Slurm would cut short ends before, and what runs goes on elsewhere as asked."""
        if not self._env.by_slurm:
            return
        notice = Notice(self._env.job)
        await notice.learn()
        while True:
            await self._signal.wait()
            self._signal.clear()
            self._ending.ask("a signal", await notice.drain_s(time.time()))

    async def _obey_the_clock(self) -> None:
        """The head drains before its job ends; the other nodes of its engine must hold out until it has."""
        if self._env.end_time is None:
            return
        drain_timeout_s = self._spec.drain_timeout_s if self._is_head else 0.0
        drain = walltime_drain(self._started_at, self._env.end_time, drain_timeout_s)
        log.info("the job's walltime ends in %.0f s", self._env.end_time - self._started_at)
        await asyncio.sleep(drain.at - time.time())
        self._ending.ask(WALLTIME, drain.timeout_s)

    def _take(self, message: Message) -> None:
        if isinstance(message, Drain):
            self._ending.ask(message.reason, message.timeout_s)
        elif isinstance(message, YourTurn):
            self._turn.give()
