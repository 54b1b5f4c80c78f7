"""`python -m proxy.processes.process SPEC NUMBER LINK_PORT LISTENER...`: one process of the proxy.

A child of `python -m proxy`.

Owns the process: keys, its links' socket, its file in `proxies/`, and the orderly end. The listening sockets
come from its parent, whose word on the channel says which ones to take connections from. A process without a
parent finishes what it has and ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop
import zmq

from proxy.account_keeper import AccountKeeper
from proxy.app import App
from proxy.auth import ApiKeys
from proxy.dispatch import Dispatch
from proxy.http.listening import tls_context
from proxy.http.open_files import fit_open_files
from proxy.http.serve import Server
from proxy.link import CONTROLLER, WORKER
from proxy.monitoring.accounts import Accounts
from proxy.own_routes import OwnRoutes
from proxy.prefixes.prompts import Prompts
from proxy.processes.family import (
    ALIVE_S,
    PARENT_WORDS,
    AcceptOn,
    Alive,
    Answer,
    ChannelToParent,
    Family,
    Leave,
    Opened,
    Seen,
    Show,
    Shown,
    process_id,
)
from proxy.processes.processes import STOP_GRACE_S
from proxy.processes.siblings import Siblings
from proxy.spec import ProxySpec
from proxy.zap import Zap
from workers.agent.channel import Channel
from workers.agent.network import address_of
from workers.beat import until_next_mark
from workers.digest.chains import Hasher
from workers.links.proxy_file import ProxyFile
from workers.links.zmq_loop import read_keys
from workers.logs import start_logging
from workers.spec import read_spec, write_json

log = logging.getLogger("sluice.proxy")

KEY_RELOAD_S = 5.0
NOBODY = Family((), (), frozenset(), proves=False)
AT_ONCE = Leave(STOP_GRACE_S, at_once=True)
# Requests make little garbage in cycles: a collection per 700 new objects would only walk what is alive.
GC_THRESHOLD = 50_000


class Given(NamedTuple):
    """What the parent decides."""

    spec: ProxySpec
    id: str
    link_port: int
    listeners: Sequence[socket.socket]


class Process:
    """`run` returns when it has left."""

    def __init__(
        self, given: Given, parent: ChannelToParent, context: zmq.Context[zmq.Socket[bytes]], zap: Zap
    ) -> None:
        """Binds the links."""
        self._given = given
        self._parent = parent
        self._spec = spec = given.spec
        run_dir = Path(spec.run_dir)
        self._path = run_dir / "proxies" / f"{given.id}.json"
        tls = tls_context(spec.tls_cert, spec.tls_key)
        self._keys = ApiKeys(run_dir / "keys" / "api_keys.json")
        self._curve = read_keys(spec.run_dir, "proxy")
        self._server = Server()
        address = address_of(spec.interface)
        accounts = Accounts(given.id, secrets.token_hex(3), os.getpid(), time.time())
        prompts = Prompts(spec, secrets.token_bytes(16), Hasher(read_keys(spec.run_dir, WORKER).secret.encode()))
        self._dispatch = dispatch = Dispatch(
            spec,
            context,
            address,
            given.link_port,
            self._curve,
            zap,
            lambda: self._server.connections,
            accounts,
            prompts,
        )
        self._keeper = AccountKeeper(run_dir / "accounting", accounts, lambda: len(dispatch.flights.open))
        self._routes = OwnRoutes(spec, given.id, zap, self._dispatch)
        self._siblings = Siblings(parent, self._routes.snapshot)
        app = App(spec, self._keys, self._dispatch, self._routes, self._siblings)
        self._server.start(app.handle, app.admit, spec.limits, tls)
        self._link = f"tcp://{address}:{self._dispatch.links.port}"
        self._leaving: asyncio.Task[None] | None = None
        self._left = asyncio.Event()
        self._parent_lives = True

    async def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._leave, AT_ONCE)
        file = self._file()
        await asyncio.to_thread(write_json, self._path, file)
        self._dispatch.on_change = self._tell
        self._parent.say(Opened(file))
        log.info("serves %s, links on %s", file.http, self._link)
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        beside = [asyncio.ensure_future(task) for task in (self._obey(), self._watch_keys(), self._say_alive())]
        keeping = asyncio.ensure_future(self._keeper.run())
        await self._left.wait()
        for task in beside:
            task.cancel()
        self._keeper.close()
        await keeping
        self._dispatch.close("the proxy stops")

    def _file(self) -> ProxyFile:
        host, port = self._given.listeners[0].getsockname()[:2]
        return ProxyFile(
            id=self._given.id,
            addresses=(self._link,),
            public_key=self._curve.public,
            http=f"{'https' if self._spec.tls_cert else 'http'}://{host}:{port}",
            pid=os.getpid(),
        )

    async def _watch_keys(self) -> None:
        while True:
            await asyncio.sleep(KEY_RELOAD_S)
            await asyncio.to_thread(self._keys.reload_if_changed)

    # ------------------------------------------------------------ the parent

    async def _say_alive(self) -> None:
        while True:
            self._parent.say(Alive())
            await until_next_mark(ALIVE_S)

    async def _obey(self) -> None:
        async for message in self._parent.messages():
            match message:
                case Family():
                    self._dispatch.meet(message)
                case AcceptOn(slots) if self._leaving is None:
                    await self._server.accept_on({slot: self._given.listeners[slot] for slot in slots})
                    if slots:
                        self._dispatch.serve()
                case Leave():
                    self._leave(message)
                case Show(number, since):
                    self._parent.say(Shown(number, self._routes.snapshot(since)))
                case Answer():
                    self._siblings.answered(message)
        log.warning("its parent is gone")
        self._parent_lives = False
        self._dispatch.meet(NOBODY)
        self._leave(AT_ONCE)

    def _tell(self) -> None:
        self._parent.say(Seen(self._dispatch.fleet.serving_lives(), self._dispatch.fleet.proofs()))

    # ------------------------------------------------------------ the end

    def _leave(self, leave: Leave) -> None:
        """Also while it leaves already: there may be less time by now."""
        if self._leaving is not None:
            self._leaving.cancel()
        self._leaving = asyncio.ensure_future(self._end(leave))

    async def _end(self, leave: Leave) -> None:
        """Without a parent the file stays: the next one finds the ports in it."""
        log.info("leaves, %d connections are open", self._server.connections)
        self._dispatch.retire()
        self._server.draining = True
        await asyncio.sleep(leave.accept_s)
        await self._server.accept_on({})
        for listener in self._given.listeners:
            listener.close()
        if self._parent_lives:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
        await (self._server.close if leave.at_once else self._server.retire)(leave.grace_s)
        self._parent.say(Shown(0, self._routes.snapshot(0)))
        self._left.set()


async def main(given: Given) -> None:
    parent: ChannelToParent = await Channel.over(socket.socket(fileno=os.dup(0)), PARENT_WORDS)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    zap = Zap(context, {read_keys(given.spec.run_dir, who).public.encode(): who for who in (WORKER, CONTROLLER)})
    zap.start()
    try:
        await Process(given, parent, context, zap).run()
    finally:
        zap.stop()
        context.destroy(linger=500)
        parent.close()


def read_arguments(path: str, number: str, link_port: str, *listeners: str) -> Given:
    spec = read_spec(Path(path), ProxySpec)
    spec = msgspec.structs.replace(spec, limits=fit_open_files(spec.limits, len(spec.workers)))
    sockets = [socket.socket(fileno=int(descriptor)) for descriptor in listeners]
    return Given(spec, process_id(spec.proxy, int(number)), int(link_port), sockets)


if __name__ == "__main__":
    given = read_arguments(*sys.argv[1:])
    output = start_logging(given.id)
    uvloop.run(main(given))
    output.stop()
