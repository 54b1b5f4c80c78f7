"""The instant engine's app called in process, without host, link or proxy: `python -m benchmarks.direct`.

What an engine host costs beyond this is the host's transport. Same load, same app, answers thrown away;
prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

import msgspec
import uvloop

from benchmarks.arguments import Count, Duration, read_arguments
from benchmarks.load import PATH, Ask, Endpoint, Rhythm, ask, prompt
from workers.answer import scope_of
from workers.calls import CURRENT, Call
from workers.engines import AsgiApp, Event
from workers.engines.sim_args import SimArgs
from workers.engines.sim_instant import InstantEngine
from workers.protocol import Leg, Submit
from workers.spec import EngineSpec, HandoffSpec

MODEL = "sim"
MAX_MODEL_LEN = 1 << 20
BLOCK_SIZE = 16


class Options(msgspec.Struct, frozen=True, kw_only=True):
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


def engine_spec(step_ms: float) -> EngineSpec:
    """Of every engine in this benchmark. Memory is no limit: nothing is computed."""
    return EngineSpec(
        kind="sim",
        version=None,
        model_path=MODEL,
        served_names=(MODEL,),
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
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


async def _user(app: AsgiApp, bodies: list[bytes], pauses_s: list[float], *, split: bool) -> None:
    for body, pause_s in zip(bodies, pauses_s, strict=True):
        await asyncio.sleep(pause_s)
        if split:
            await asyncio.create_task(_call(app, body, Leg.PREFILL))
        await asyncio.create_task(_call(app, body, Leg.DECODE if split else Leg.WHOLE))


async def main(options: Options) -> DirectCost:
    spec = engine_spec(options.step_ms)
    engine = InstantEngine(spec, msgspec.convert(spec.args, SimArgs))
    rng = random.Random(options.seed)
    nobody = Endpoint(host="", port=0, model=MODEL)
    text = prompt(options.prompt_chars, rng)
    rhythm = Rhythm(start_s=options.start_s, pause_s=options.pause_s, staggered=options.staggered)
    lengths = [rhythm.lengths(options.rounds, options.tokens, rng) for _ in range(options.streams)]
    steps = asyncio.create_task(engine.run_steps())
    before = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for own in lengths:
            bodies = [_body(ask(nobody, text, num_tokens)) for num_tokens in own]
            tasks.create_task(_user(engine.app, bodies, rhythm.pauses_s(len(own), rng), split=options.split))
    cpu_s = time.process_time() - before
    steps.cancel()
    return DirectCost(cpu_s=cpu_s, num_requests=sum(map(len, lengths)), num_tokens=sum(map(sum, lengths)))


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(main(read_arguments(Options, sys.argv[1:])))).decode())
