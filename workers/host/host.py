"""The engine host: runs one engine and answers legs of requests that proxies send.

Owns the calls in progress, the tickets handed out and this worker's own load figures. It knows no
Slurm and reacts to none of Slurm's signals; its agent starts it, tells it to drain and ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from workers.beat import until_next_mark
from workers.digest.chains import Hasher
from workers.digest.digest_publisher import DigestPublisher
from workers.engines import Engine, Placement
from workers.host.answer import Answer, scope_of
from workers.host.calls import CURRENT, Call, CallRefused
from workers.host.load import SHARED_INTERVAL_S, LoadReports, Work
from workers.host.prompt import trace_of
from workers.host.running import LegKey, Running
from workers.host.tickets import TicketBook
from workers.kv_messages import Computed, DigestWanted
from workers.links.link import Link
from workers.links.proxy_file import ProxyFile
from workers.links.rendezvous import Rendezvous
from workers.links.wire import decode_to_worker, identity
from workers.links.zmq_loop import CurveKeys
from workers.message import Message
from workers.protocol import (
    BEAT_INTERVAL_S,
    PROTOCOL,
    PROXY_SILENCE_S,
    Cancel,
    Cancelled,
    End,
    Failed,
    Leg,
    Part,
    Prefilled,
    Register,
    Registered,
    Release,
    Submit,
    Ticket,
    TicketClosed,
)
from workers.spec import WorkerSpec

log = logging.getLogger("sluice.host")

_NO_DEADLINE = contextlib.nullcontext()
APP_END_S = 1.0  # for the app to end by itself once its engine has dropped the call


class Host:
    """`serve` runs until cancelled."""

    def __init__(
        self, spec: WorkerSpec, engine: Engine, placement: Placement, keys: CurveKeys, context: zmq.Context[Any]
    ) -> None:
        self._spec = spec
        self._engine = engine
        self._block_size = engine.capabilities.block_size
        self._placement = placement
        self._keys = keys
        self._hasher = Hasher(keys.secret.encode())
        self._context = context
        handoff = spec.engine.handoff
        self._redeem_s = handoff.redeem_s if handoff else 0.0
        self._tickets = TicketBook(handoff.lease_s if handoff else 0.0)
        self._running: dict[LegKey, Running] = {}
        self._links: dict[str, Link] = {}
        self._reports = LoadReports()
        self._figures = (0, 0.0)  # the engine's own: KV tokens received, part of the KV cache in use
        self._news: asyncio.TimerHandle | None = None  # until the proxies hear what others' work has become
        self._num_sessions = 0
        self.rendezvous = Rendezvous(Path(spec.run_dir) / "proxies", self._open_link)

    @property
    def idle(self) -> bool:
        """Nothing runs and nobody may still come for KV."""
        return not self._running and not self._tickets.num_blocks

    async def serve(self) -> None:
        publisher = DigestPublisher(self._context, self._placement.local_dir, self._hasher, self._block_size)
        with publisher as self._digest:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self.rendezvous.run())
                tasks.create_task(self._report())

    def hand_back(self, reason: str) -> None:
        """What still runs goes on elsewhere: all that it has sent until now has arrived by then, and is enough."""
        for running in list(self._running.values()):
            if not running.reported and not running.cancelled:
                self._say(running, Failed(running.submit.rid, reason, retryable=True))
                self._cancel(running)

    # ------------------------------------------------------------ links

    def _open_link(self, proxy: ProxyFile, endpoint: str, lost: Callable[[str, bool], None]) -> Link:
        self._num_sessions += 1
        session = f"{self._placement.session}-host-{self._num_sessions}"

        def on_lost(reason: str, final: bool) -> None:
            self._drop(proxy.id, link, reason)
            lost(reason, final)

        link = Link(
            self._context,
            endpoint,
            identity=identity(self._spec.worker, self._spec.generation, session),
            server_public=proxy.public_key,
            keys=self._keys,
            hello=self._registration(session),
            decode=decode_to_worker,
            on_message=lambda message: self._take(proxy.id, link, message),
            on_lost=on_lost,
            silence_s=PROXY_SILENCE_S,
        )
        self._links[proxy.id] = link
        self._work_changed()
        return link

    def _registration(self, session: str) -> Register:
        return Register(
            protocol=PROTOCOL,
            code=self._spec.code,
            engine_version=self._engine.version,
            worker=self._spec.worker,
            pool=self._spec.pool,
            role=self._spec.role,
            generation=self._spec.generation,
            incarnation=self._placement.session,
            session=session,
            part=Part.HOST,
            capabilities=self._engine.capabilities,
        )

    def _drop(self, proxy: str, link: Link, reason: str) -> None:
        """A proxy that has gone waits for nothing any more."""
        self._links.pop(proxy, None)
        self._digest.leave(link)
        for running in [r for r in self._running.values() if r.link is link]:
            log.warning("request %s cancelled: its proxy is gone (%s)", running.submit.request_id, reason)
            self._cancel(running)
        for ticket in self._tickets.take_of(proxy):
            self._tasks.create_task(self._release(ticket))

    # ------------------------------------------------------------ messages

    def _take(self, proxy: str, link: Link, message: Message) -> None:
        if type(message) is Submit:
            self._submit(proxy, link, message)
        elif type(message) is Cancel:
            if (running := self._running.get((link, message.rid))) is not None:  # else its end is on its way
                self._cancel(running)
        elif type(message) is Release:
            self._tasks.create_task(self._release(message.ticket))
        elif type(message) is TicketClosed:
            self._close(message.ticket_id)
        elif type(message) is Registered:
            self.rendezvous.heard(proxy, message)
        elif type(message) is DigestWanted:
            self._digest.begin(link)

    def _submit(self, proxy: str, link: Link, submit: Submit) -> None:
        key = (link, submit.rid)  # in place of the record, which would then live, with its body, until a collection
        call = Call(
            request_id=submit.request_id,
            leg=submit.leg,
            ticket=submit.ticket,
            received_at=time.monotonic(),
            redeem_s=self._redeem_s,
            clock=time.monotonic,
            changed=lambda: self._changed(key),
            priority=submit.priority,
            resume=submit.resume,
            keeps_ids=submit.wants_ids and submit.leg != Leg.PREFILL,
        )
        if submit.wants_trace and submit.leg != Leg.DECODE:
            call.on_prompt = lambda prompt: link.send_along(
                trace_of(prompt, submit.rid, self._hasher, self._block_size)
            )
        answer = Answer(submit, call, link, lambda data: self._finish(key, data))
        running = Running(proxy, submit, link, call, answer)
        self._running[key] = running
        self._work_changed()
        running.task = self._tasks.create_task(self._run(running))

    async def _run(self, running: Running) -> None:
        """One call of the app. The answer, a Failed, a Prefilled or a Cancelled ends it: exactly one."""
        submit, call, answer = running.submit, running.call, running.answer
        CURRENT.set(call)
        try:
            async with _NO_DEADLINE if submit.deadline_s is None else asyncio.timeout(submit.deadline_s):
                await self._engine.app(scope_of(submit), answer.receive, answer.send)
        except asyncio.CancelledError:
            if not running.cancelled:
                raise
        except TimeoutError:
            answer.leave()
            await self._engine.cancel(call)
            call.fail(CallRefused("deadline passed on the worker", retryable=False, status=504))
        except Exception as fault:  # the top of a request: whatever the app raised is told to the proxy
            log.exception("request %s failed in the engine's app", submit.request_id)
            answer.leave()
            await self._engine.cancel(call)
            call.fail(CallRefused(f"{type(fault).__name__} in the engine", retryable=False))
        finally:
            if not running.cancelled:
                self._forget(running)
        if not running.cancelled:
            self._conclude(running)

    def _conclude(self, running: Running) -> None:
        call, rid = running.call, running.submit.rid
        if running.reported:
            return
        if call.failure is not None:
            failure = call.failure
            message: Message = Failed(rid, failure.reason, failure.retryable, failure.status)
        elif running.answer.opened:
            message = Failed(rid, "the engine's app did not complete its answer", False)
        else:
            message = Failed(rid, "the engine's app ended without an answer", True)
        self._say(running, message)

    def _finish(self, key: LegKey, data: bytes) -> None:
        """The app's answer is complete with these bytes. What it still does is nobody's business."""
        if (running := self._running.get(key)) is not None and not running.reported:
            call, rid = running.call, running.submit.rid
            rest = running.link.take_data(rid) + data
            told = (call.num_answered_prompt_tokens, call.num_cached_tokens, call.num_answered_tokens)
            self._say(running, End(rid, *told, rest))

    def _changed(self, key: LegKey) -> None:
        """A prefill leg is done when its engine has finished, whatever the app still has to say."""
        self._work_changed()
        if (running := self._running.get(key)) is None:
            return
        call = running.call
        if call.leg != Leg.PREFILL and call.good_output and not running.computed:
            running.computed = True
            running.link.send(Computed(running.submit.rid, call.num_prompt_tokens, call.num_cached_tokens))
        if call.leg == Leg.PREFILL and call.granted_at is not None and not running.reported:
            ticket = self._grant(running.proxy, call)
            self._say(running, Prefilled(running.submit.rid, ticket, call.num_prompt_tokens, call.num_cached_tokens))

    def _grant(self, proxy: str, call: Call) -> Ticket | None:
        if call.ticket_params is None:
            return None
        blocks = -(-call.num_prompt_tokens // self._block_size)
        ticket = Ticket(
            id=f"{self._placement.session}-{secrets.token_hex(6)}",
            worker=self._spec.worker,
            generation=self._spec.generation,
            params=call.ticket_params,
            num_blocks=blocks,
            num_prompt_tokens=call.num_prompt_tokens,
        )
        self._tickets.grant(ticket, proxy, time.monotonic())
        return ticket

    def _say(self, running: Running, message: Message) -> None:
        running.reported = True
        running.link.send(message)

    # ------------------------------------------------------------ cancelling and releasing

    def _cancel(self, running: Running) -> None:
        if not running.cancelled:
            running.cancelled = True
            self._tasks.create_task(self._cancel_on_engine(running))

    async def _cancel_on_engine(self, running: Running) -> None:
        """Acknowledged only when nothing of it is left; an answer that crossed the cancel says so itself."""
        running.answer.leave()
        try:
            await self._engine.cancel(running.call)
        except TimeoutError:
            log.error("request %s: its KV blocks stay pinned until their lease ends", running.submit.request_id)
        assert running.task is not None
        await asyncio.wait({running.task}, timeout=APP_END_S)
        running.task.cancel()
        self._forget(running)
        if not running.reported:
            self._say(running, Cancelled(running.submit.rid))

    async def _release(self, ticket: Ticket) -> None:
        try:
            await self._engine.release(ticket.params)
        except TimeoutError:
            log.error("ticket %s: its KV blocks stay pinned until their lease ends", ticket.id)
            return
        self._close(ticket.id)

    def _close(self, ticket_id: str) -> None:
        self._tickets.close(ticket_id)
        self._work_changed()

    def _forget(self, running: Running) -> None:
        self._running.pop((running.link, running.submit.rid), None)
        self._work_changed()

    # ------------------------------------------------------------ load

    async def _report(self) -> None:
        """The engine's own figures cost more than the rest: they are read once per beat."""
        while True:
            await until_next_mark(BEAT_INTERVAL_S)
            self._tickets.expire(time.monotonic())
            self._figures = (self._engine.kv_tokens_received(), self._engine.kv_used())
            self._tell(beat=True)

    def _work_changed(self) -> None:
        """Where several proxies send work, each soon hears of a change in the others' share, several at once."""
        if self._news is None and len(self._links) > 1:
            self._news = asyncio.get_running_loop().call_later(SHARED_INTERVAL_S, self._tell)

    def _tell(self, *, beat: bool = False) -> None:
        self._news = None
        streaming = {running.link for running in self._running.values() if running.answer.opened}
        for proxy, load in self._reports.due(self._work(), *self._figures, self._links, beat=beat):
            link = self._links[proxy]
            (link.send_along if link in streaming else link.send)(load)  # the next tokens take it along

    def _work(self) -> dict[str, Work]:
        """By proxy, those that have gone included. A scrape (GET) is no work."""
        work: defaultdict[str, Work] = defaultdict(Work)
        for running in self._running.values():
            if running.submit.method == "GET":
                continue
            call, of = running.call, work[running.proxy]
            of.running += call.good_output
            of.waiting += not call.good_output
            of.decodes += call.leg != Leg.PREFILL
            of.prefill_tokens += call.open_prefill_tokens
        for proxy, num_blocks in self._tickets.blocks_by_proxy().items():
            work[proxy].pinned_blocks = num_blocks
        return work
