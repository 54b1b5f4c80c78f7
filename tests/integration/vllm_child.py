"""One real vLLM engine in a process of its own, as the engine host runs it; driven over a pipe.

Runs in a spawned process: `serve(connection, spec, placement)`. Each command is (number, name, kwargs), each
answer (number, value). A `call` goes through the envelope, the gate and the adapter, like a proxy's request.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from workers.engines import Placement
from workers.engines.vllm.engine import VllmEngine, start
from workers.host.answer import Answer, scope_of
from workers.host.calls import CURRENT, Call
from workers.message import Message
from workers.protocol import Leg, Resume, Start, Submit, Ticket
from workers.spec import EngineSpec


class Outcome(msgspec.Struct):
    status: int
    body: bytes
    ticket: Ticket | None
    failure: str | None
    retryable: bool
    ticket_used: bool
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    engine_ids: list[str]
    pieces: list[tuple[bytes, bytes]]  # of the body, with the token ids that came along


class Said:
    """Where the answer goes: a link that is never full."""

    def __init__(self) -> None:
        self.status = 0
        self.pieces: list[tuple[bytes, bytes]] = []

    @property
    def body(self) -> bytes:
        return b"".join(data for data, _ in self.pieces)

    def send(self, message: Message) -> None:
        assert isinstance(message, Start)
        self.status = message.status
        self.pieces.append((message.data, message.output_ids))

    def send_data(self, rid: int, data: bytes, output_ids: bytes = b"") -> None:
        self.pieces.append((data, output_ids))

    def room(self) -> None:
        return None

    def finish(self, data: bytes) -> None:
        self.pieces.append((data, b""))


class Child:
    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    async def call(
        self,
        leg: str = Leg.WHOLE,
        path: str = "/v1/completions",
        method: str = "POST",
        body: Any = None,
        ticket: Ticket | None = None,
        cancel_after_s: float | None = None,
        resume: Resume | None = None,
        request_id: str | None = None,
    ) -> Outcome:
        request_id = request_id or os.urandom(8).hex()
        submit = Submit(
            rid=1,
            request_id=request_id,
            leg=leg,
            method=method,
            path=path,
            query=b"",
            headers=((b"content-type", b"application/json"),),
            body=b"" if body is None else msgspec.json.encode(body),
            ticket=ticket,
            resume=resume,
        )
        call = Call(submit.request_id, leg, ticket, time.monotonic(), 30.0, time.monotonic, lambda: None)
        call.keeps_ids, call.resume = leg != Leg.PREFILL, resume
        said = Said()
        answer = Answer(submit, call, said, said.finish)

        async def run() -> None:
            CURRENT.set(call)
            await self._engine.app(scope_of(submit), answer.receive, answer.send)

        task = asyncio.create_task(run())
        await asyncio.wait({task}, timeout=cancel_after_s)
        if cancel_after_s is not None:
            await self._engine.cancel(call)
            # The abort lets the app end by itself; a cancelled app would leave its handler's tasks behind.
            await asyncio.wait({task})
        elif task.exception() is not None and call.failure is None:
            raise RuntimeError("the app failed") from task.exception()
        return self._outcome(call, said)

    def _outcome(self, call: Call, said: Said) -> Outcome:
        params = call.ticket_params
        return Outcome(
            status=said.status,
            body=said.body,
            ticket=None if params is None else Ticket("t", "prefill-0", 1, params, 1, call.num_prompt_tokens),
            failure=None if call.failure is None else call.failure.reason,
            retryable=call.failure is not None and call.failure.retryable,
            ticket_used=call.ticket_used,
            num_prompt_tokens=call.num_prompt_tokens,
            num_cached_tokens=call.num_cached_tokens,
            num_output_tokens=call.num_output_tokens,
            engine_ids=call.engine_ids,
            pieces=said.pieces,
        )

    async def release(self, params: bytes) -> None:
        await self._engine.release(params)

    async def state(self) -> dict[str, Any]:
        return {
            "leases": await self._engine.num_leases(),
            "received": self._engine.kv_tokens_received(),
            "kv_used": self._engine.kv_used(),
            "alive": self._engine.alive(),
            "version": self._engine.version,
            "capabilities": self._engine.capabilities,
        }

    async def terminate_group(self) -> None:
        """What Slurm does to every process of a step."""
        os.killpg(0, signal.SIGTERM)


async def _serve(connection: Connection, spec: EngineSpec, placement: Placement) -> None:
    loop = asyncio.get_running_loop()
    async with start(spec, placement) as engine:
        child = Child(engine)
        connection.send((0, None))

        async def obey(number: int, name: str, kwargs: dict[str, Any]) -> None:
            connection.send((number, await getattr(child, name)(**kwargs)))

        async with asyncio.TaskGroup() as tasks:
            while (command := await loop.run_in_executor(None, connection.recv)) is not None:
                tasks.create_task(obey(*command))


def serve(connection: Connection, spec: EngineSpec, placement: Placement) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_serve(connection, spec, placement))
