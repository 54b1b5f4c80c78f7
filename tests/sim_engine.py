"""A simulated engine on the test's event loop, and ASGI clients for it: below the host, without a link."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import uvloop

from workers.engines import Engine, Placement, engine_start
from workers.host.calls import CURRENT, Call
from workers.protocol import Leg, Ticket
from workers.spec import EngineSpec, HandoffSpec

FAST = {"timing": {"prefill_ms": [0, 0, 0], "decode_ms": [0, 0, 0.1]}, "read_timeout_s": 0.3}
PROMPT = "the prompt of the test is long enough for more than one block of tokens"
LONG_S = 60.0
_worker = itertools.count()


@asynccontextmanager
async def engine(
    *, lease_s: float = LONG_S, max_model_len: int = 1000, local_dir: str | None = None, **args: Any
) -> AsyncIterator[Engine]:
    handoff = HandoffSpec(connector="sim", buffer_device="cpu", lease_s=lease_s, redeem_s=LONG_S)
    spec = EngineSpec(
        kind="sim",
        device="cpu",
        version="sim-1",
        model_path="/models/tiny",
        served_names=("tiny", "also-tiny"),
        max_model_len=max_model_len,
        block_size=4,
        tensor_parallel=1,
        pipeline_parallel=1,
        args={"num_blocks": 256, **FAST, **args},
        environment={},
        prefix=(),
        handoff=handoff,
    )
    with tempfile.TemporaryDirectory(prefix="sluice-") as short_path:
        placement = _placement(short_path if local_dir is None else local_dir)
        async with engine_start("sim")(spec, placement) as started:
            yield started


def _placement(local_dir: str) -> Placement:
    return Placement(
        worker=f"worker-{next(_worker)}",
        generation=1,
        session="s",
        address="127.0.0.1",
        interface=None,
        handoff_port=0,
        head_address="127.0.0.1",
        head_port=0,
        node_rank=0,
        num_nodes=1,
        local_dir=local_dir,
        cache_dir=local_dir,
        model_path="/models/tiny",
    )


class Client:
    """One ASGI request; `leave` is a disconnect."""

    def __init__(self, engine: Engine, path: str, body: Any = None) -> None:
        self.engine = engine
        self.scope = {"type": "http", "method": "GET" if body is None else "POST", "path": path, "headers": []}
        data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": data, "more_body": False})
        self.sent: list[dict[str, Any]] = []
        self.seen = asyncio.Event()

    async def send(self, event: Any) -> None:
        self.sent.append(event)
        self.seen.set()

    async def run(self, call: Call | None = None) -> Client:
        CURRENT.set(call)
        await self.engine.app(self.scope, self.incoming.get, self.send)
        return self

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        assert self.sent[-1]["more_body"] is False
        return b"".join(event.get("body", b"") for event in self.sent[1:])

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def events(self) -> list[Any]:
        *events, done, rest = self.body.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        return [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events]


def new_call(leg: str, ticket: Ticket | None = None) -> Call:
    return Call("r1", leg, ticket, 0.0, LONG_S, lambda: 0.0, lambda: None)


def ticket_of(call: Call) -> Ticket:
    assert call.ticket_params is not None
    return Ticket("t", "worker", 1, call.ticket_params, 1, call.num_prompt_tokens)


def complete(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **changes}


async def post(to: Engine, path: str = "/v1/completions", call: Call | None = None, **body: Any) -> Client:
    return await Client(to, path, complete(**body) if path == "/v1/completions" else body).run(call)


async def prefilled(holder: Engine) -> Call:
    call = new_call(Leg.PREFILL)
    await post(holder, call=call)
    assert call.failure is None
    return call


async def metric(of: Engine, name: str) -> float:
    text = (await Client(of, "/metrics").run()).body.decode()
    [line] = [line for line in text.splitlines() if line.startswith(name + "{")]
    return float(line.split()[-1])


async def until_free(of: Engine) -> None:
    """Nothing runs, waits or is pinned."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    async with asyncio.timeout(LONG_S):
        while any([await metric(of, name) for name in names]):  # noqa: ASYNC110 (an engine has no event for it)
            await asyncio.sleep(0.005)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(test())
