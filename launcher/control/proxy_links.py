"""The controller's links to the processes of the run's proxy: the fleet comes in, jobs and drain commands go out.

Owns the sockets. A new process is told the jobs at once; one that is lost tells no fleet any more. Processes of the
proxy that is to follow are told the same; what they see does not count yet.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq

from launcher.control.views import merged, sees_as_much
from launcher.rundir import RunDir
from workers.controller_messages import ControllerHello, DrainWorker, FleetView, Jobs, SetCaps
from workers.links.link import Link
from workers.links.proxy_file import ProxyFile, proxy_of
from workers.links.rendezvous import Rendezvous
from workers.links.wire import decode_to_controller, identity
from workers.links.zmq_loop import read_keys
from workers.message import Message
from workers.protocol import PROTOCOL, PROXY_SILENCE_S, Registered


class ProxyLinks:
    """`on_fleet(view)`: what all processes of `proxy` see, None when nobody tells."""

    def __init__(self, run: RunDir, name: str, proxy: str, on_fleet: Callable[[FleetView | None], None]) -> None:
        self._run = run
        self._name = name
        self._proxy = proxy
        self._on_fleet = on_fleet
        self._jobs = Jobs(())
        self._successors: tuple[ProxyFile, ...] = ()
        self._caps = SetCaps(())
        self._context: zmq.Context[Any] = zmq.Context()
        self._rendezvous = Rendezvous(run.proxies, self._open)
        self._views: dict[str, FleetView] = {}
        self.http = ""  # of that proxy's process that was found last

    async def run(self) -> None:
        await self._rendezvous.run()

    def close(self, reason: str) -> None:
        self._rendezvous.close(reason)
        self._context.destroy(linger=500)

    def tell(self, jobs: Jobs) -> None:
        """Called often; says only what is new."""
        jobs = msgspec.structs.replace(jobs, successors=self._successors)
        if jobs != self._jobs:
            self._jobs = jobs
            self.say(jobs)

    def introduce(self, successors: tuple[ProxyFile, ...]) -> None:
        """The processes of the proxy that is to follow: workers link to them too, and so does this."""
        self._successors = successors
        self.tell(self._jobs)

    def may_follow(self, successors: Sequence[ProxyFile]) -> bool:
        """Whether each of them sees the fleet as those that serve do."""
        views = [self._views.get(file.id) for file in successors]
        return all(view is not None and sees_as_much(view, self._seen()) for view in views)

    def _seen(self) -> FleetView | None:
        return merged(view for process, view in self._views.items() if proxy_of(process) == self._proxy)

    def set_caps(self, caps: SetCaps) -> None:
        """As `tell`."""
        if caps != self._caps:
            self._caps = caps
            self.say(caps)

    def say(self, message: Jobs | DrainWorker | SetCaps) -> None:
        for link in self._rendezvous.links.values():
            link.send(message)

    def _open(self, proxy: ProxyFile, endpoint: str, lost: Callable[[str, bool], None]) -> Link:
        session = secrets.token_hex(4)
        if proxy_of(proxy.id) == self._proxy:
            self.http = proxy.http

        def gone(reason: str, final: bool) -> None:
            lost(reason, final)
            self._views.pop(proxy.id, None)
            self._on_fleet(self._seen())

        link = Link(
            self._context,
            endpoint,
            identity=identity("controller", 0, session),
            server_public=proxy.public_key,
            keys=read_keys(str(self._run.path), "controller"),
            hello=ControllerHello(PROTOCOL, self._name, session),
            decode=decode_to_controller,
            on_message=lambda message: self._hear(proxy.id, message),
            on_lost=gone,
            silence_s=PROXY_SILENCE_S,
        )
        link.send(self._jobs)
        if self._caps != SetCaps(()):
            link.send(self._caps)
        return link

    def _hear(self, proxy: str, message: Message) -> None:
        if isinstance(message, FleetView):
            self._views[proxy] = message
            self._on_fleet(self._seen())
        elif isinstance(message, Registered):
            self._rendezvous.heard(proxy, message)
