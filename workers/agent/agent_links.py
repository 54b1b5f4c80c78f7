"""The agent's links, one to every process of the proxy: the same word to all.

Owns how an agent registers. What it says of its worker, and what it does with what it hears, is the agent's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from workers.agent.slurm_env import SlurmEnv
from workers.links.link import Link
from workers.links.proxy_file import ProxyFile
from workers.links.rendezvous import Rendezvous
from workers.links.wire import decode_to_worker, identity
from workers.links.zmq_loop import read_keys
from workers.message import Message
from workers.protocol import PROTOCOL, PROXY_SILENCE_S, Part, Phase, Register, Registered
from workers.spec import WorkerSpec


class AgentLinks:
    """`phase` is asked when a link opens; `take` gets what a proxy wants of the worker."""

    def __init__(
        self,
        spec: WorkerSpec,
        env: SlurmEnv,
        incarnation: str,
        context: zmq.Context[Any],
        phase: Callable[[], Phase],
        take: Callable[[Message], None],
    ) -> None:
        self._spec = spec
        self._env = env
        self._incarnation = incarnation
        self._context = context
        self._phase = phase
        self._take = take
        self._num_sessions = 0
        self._rendezvous = Rendezvous(Path(spec.run_dir) / "proxies", self._open)

    async def run(self) -> None:
        await self._rendezvous.run()

    def linked(self) -> bool:
        return bool(self._rendezvous.links)

    def tell(self) -> None:
        for link in self._rendezvous.links.values():
            link.send(self._phase())

    def close(self, reason: str, *, as_asked: bool) -> None:
        self._rendezvous.close(reason, as_asked=as_asked)

    def _open(self, proxy: ProxyFile, endpoint: str, lost: Callable[[str, bool], None]) -> Link:
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
            on_message=lambda message: self._hear(proxy.id, message),
            on_lost=lost,
            silence_s=PROXY_SILENCE_S,
        )
        link.send(self._phase())
        return link

    def _hear(self, proxy: str, message: Message) -> None:
        if isinstance(message, Registered):
            self._rendezvous.heard(proxy, message)
        else:
            self._take(message)

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
            gpus=self._env.gpus,
        )
