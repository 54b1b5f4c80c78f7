"""An engine alone, called in process: `python -m benchmarks.direct`.

Either the instant engine's app, without host, link or proxy, or the floor's engine, without HTTP. What a process
with that engine costs beyond this is its transport. Same load, answers thrown away; prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Literal

import msgspec
import uvloop

from benchmarks.arguments import Count, Duration, read_arguments
from benchmarks.floor import MODEL, Body, Floor, answer
from benchmarks.load import PATH, Ask, Endpoint, Rhythm, ask, prompt
from workers.engines import AsgiApp, Event
from workers.engines.sim.args import SimArgs
from workers.engines.sim.instant import InstantEngine
from workers.host.answer import scope_of
from workers.host.calls import CURRENT, Call
from workers.protocol import Leg, Submit
from workers.spec import EngineSpec, HandoffSpec

MAX_MODEL_LEN = 1 << 20
BLOCK_SIZE = 16


User = tuple[list[bytes], list[float]]  # what is asked, and the pause before each
Serve = Callable[[bytes, str], Coroutine[None, None, None]]  # the body of a request, and its leg


class Options(msgspec.Struct, frozen=True, kw_only=True):
    engine: Literal["instant", "floor"] = "instant"
    streams: Count
    tokens: Count
    step_ms: Duration
    prompt_chars: Count
    rounds: Count
    start_s: float
    pause_s: float
    staggered: bool
    seed: int
    split: bool  # each request is a prefill leg, then a decode leg


class DirectCost(msgspec.Struct, frozen=True, kw_only=True):
    cpu_s: float
    num_requests: int
    num_tokens: int


def engine_spec(step_ms: float, block_size: int = BLOCK_SIZE) -> EngineSpec:
    """Of every engine in this benchmark. Memory is no limit: nothing is computed."""
    return EngineSpec(
        kind="sim",
        device="cpu",
        version=None,
        model_path=MODEL,
        served_names=(MODEL,),
        max_model_len=MAX_MODEL_LEN,
        block_size=block_size,
        tensor_parallel=1,
        pipeline_parallel=1,
        args={"mode": "instant", "step_ms": step_ms, "num_blocks": MAX_MODEL_LEN},
        environment={},
        prefix=(),
        handoff=HandoffSpec(connector="NixlConnector", buffer_device="cpu", lease_s=120.0, redeem_s=30.0),
    )


def _body(asked: Ask) -> bytes:
    return asked.data.partition(b"\r\n\r\n")[2]


async def _call(app: AsgiApp, body: bytes, leg: str) -> None:
    submit = Submit(0, "direct", leg, "POST", PATH, b"", ((b"content-type", b"application/json"),), body)
    unread: list[bytes] = [body]

    async def receive() -> Event:
        if not unread:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": unread.pop(), "more_body": False}

    async def send(event: Event) -> None:
        """To nobody."""

    now = time.monotonic()
    CURRENT.set(Call(submit.request_id, leg, None, now, 30.0, time.monotonic, lambda: None))
    await app(scope_of(submit), receive, send)


class _Nobody:
    """Where a stream of the floor's engine goes."""

    def __init__(self, num_tokens: int) -> None:
        self._left = num_tokens
        self.done = asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> None:
        self._left -= 1
        if not self._left:
            self.done.set_result(None)

    def is_closing(self) -> bool:
        return False


async def _floor_call(floor: Floor, data: bytes, leg: str) -> None:
    body = msgspec.json.decode(data, type=Body)
    if leg == Leg.PREFILL:
        answer(body, 0)
        return
    nobody = _Nobody(body.max_tokens)
    floor.open(nobody, body)
    await nobody.done


async def _nothing(data: bytes, leg: str) -> None:
    """What the load itself costs must not be counted as the engine's."""


async def _user(serve: Serve, bodies: Sequence[bytes], pauses_s: Sequence[float], *, split: bool) -> None:
    for body, pause_s in zip(bodies, pauses_s, strict=True):
        await asyncio.sleep(pause_s)
        if split:
            await asyncio.create_task(serve(body, Leg.PREFILL))
        await asyncio.create_task(serve(body, Leg.DECODE if split else Leg.WHOLE))


async def _drive(serve: Serve, users: Sequence[User], *, split: bool) -> float:
    """The CPU that it took."""
    before = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for bodies, pauses_s in users:
            tasks.create_task(_user(serve, bodies, pauses_s, split=split))
    return time.process_time() - before


def _engine(options: Options) -> tuple[Serve, Coroutine[None, None, None]]:
    """What serves a request, and what has to run for it."""
    if options.engine == "floor":
        floor = Floor(options.step_ms / 1000)
        return partial(_floor_call, floor), floor.run()
    spec = engine_spec(options.step_ms)
    engine = InstantEngine(spec, msgspec.convert(spec.args, SimArgs))
    return partial(_call, engine.app), engine.run_steps()


async def main(options: Options) -> DirectCost:
    rng = random.Random(options.seed)
    nobody = Endpoint(host="", port=0, model=MODEL)
    text = prompt(options.prompt_chars, rng)
    rhythm = Rhythm(start_s=options.start_s, pause_s=options.pause_s, staggered=options.staggered)
    lengths = [rhythm.lengths(options.rounds, options.tokens, rng) for _ in range(options.streams)]
    users = [
        ([_body(ask(nobody, text, num_tokens)) for num_tokens in own], rhythm.pauses_s(len(own), rng))
        for own in lengths
    ]
    load_s = await _drive(_nothing, users, split=options.split)
    serve, running = _engine(options)
    steps = asyncio.create_task(running)
    cpu_s = await _drive(serve, users, split=options.split) - load_s
    steps.cancel()
    return DirectCost(cpu_s=cpu_s, num_requests=sum(map(len, lengths)), num_tokens=sum(map(sum, lengths)))


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(main(read_arguments(Options, sys.argv[1:])))).decode())
