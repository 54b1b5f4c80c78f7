"""The simulated engine: vLLM's shape without a model, for tests, scale and planning; its time is made up.

Owns what lies between the OpenAI layer and the scheduler: the leg rules, the tickets' way over the wire
and what a call learns from its outputs, each as the vLLM adapter does it. Never a stand-in for vLLM in a
claim about vLLM.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container
from contextlib import asynccontextmanager

import msgspec

from workers.engines import AsgiApp, Engine, Placement, Send
from workers.engines.sim import answers as sim_answers
from workers.engines.sim import events as ev
from workers.engines.sim.answers import Piece, Sampling
from workers.engines.sim.api import Generation
from workers.engines.sim.app import App
from workers.engines.sim.args import VERSION, SimArgs, capabilities, read_args
from workers.engines.sim.handoff import Answer, Ask, HandOver, HolderGone, keep_alive, listen, read, release
from workers.engines.sim.instant import InstantEngine
from workers.engines.sim.kv_events import publisher
from workers.engines.sim.legs import begin, failed, resumed_tokens, source_of, tell
from workers.engines.sim.live import LiveCore, Output, Outputs
from workers.engines.sim.log import WEIGHTS_READ
from workers.engines.sim.sequence import chain
from workers.engines.sim.tokenizer import StopScanner, decode
from workers.host.calls import CURRENT, Call
from workers.host.prompt import Prompt
from workers.protocol import Leg
from workers.spec import EngineSpec

log = logging.getLogger("sluice.sim")


class SimEngine:
    """`holder` is what tickets say of this engine: everything but the ticket itself."""

    version = VERSION

    def __init__(self, spec: EngineSpec, args: SimArgs, live: LiveCore, tasks: asyncio.TaskGroup) -> None:
        self.capabilities = capabilities(spec, args)
        self.app: AsgiApp = App(self, spec.served_names, spec.model_path, self.capabilities.max_model_len)
        self.holder: HandOver
        self._args = args
        self._live = live
        self._tasks = tasks
        self.unread: dict[int, HandOver] = {}  # the tickets of decode legs, until their KV is here

    # ------------------------------------------------------------ the host's side

    def kv_tokens_received(self) -> int:
        return self._live.core.counters.remote_tokens

    def kv_used(self) -> float:
        return self._live.core.scheduler.cache.usage

    def alive(self) -> bool:
        return True

    async def respond(self) -> None:
        """Its steps are turns of this loop."""

    async def cancel(self, call: Call) -> None:
        call.cancelled = True
        for id in map(int, call.engine_ids):
            self._end(id)
            if (source := self.unread.pop(id, None)) is not None:
                await self._release(source)

    async def release(self, params: bytes) -> None:
        await self._release(msgspec.json.decode(params, type=HandOver))

    async def _release(self, source: HandOver) -> None:
        if source.engine_id == self.holder.engine_id:
            self._live.apply(ev.Release(source.ticket))
        else:
            await release(source, self._args.read_timeout_s)

    def hand_out(self, ask: Ask) -> Answer:
        """A reader's request: what the blocks contain now, and the end of their ticket or its heartbeat."""
        if ask.engine_id != self.holder.engine_id:
            return Answer(error=f"engine {ask.engine_id} is gone, this is {self.holder.engine_id}")
        if ask.keep:
            self._live.apply(ev.Extend(ask.ticket))
            return Answer()
        contents = self._live.core.contents(ask.ticket, ask.blocks)
        self._live.apply(ev.Release(ask.ticket))
        return Answer(contents)

    # ------------------------------------------------------------ the app's side

    async def answer(self, generation: Generation, send: Send) -> None:
        await sim_answers.answer(generation, self.generate, self.capabilities.max_model_len, send)

    def figures(self) -> dict[str, float]:
        core = self._live.core
        return {
            "vllm:num_requests_running": core.scheduler.num_running,
            "vllm:num_requests_waiting": core.scheduler.num_waiting,
            "vllm:kv_cache_usage_perc": core.scheduler.cache.usage,
            "vllm:prompt_tokens_total": core.counters.prompt_tokens,
            "vllm:generation_tokens_total": core.counters.generated_tokens,
            "vllm:prefix_cache_queries_total": core.counters.cache_queries,
            "vllm:prefix_cache_hits_total": core.counters.cache_hits,
            "vllm:external_prefix_cache_hits_total": core.counters.remote_tokens,
            "vllm:num_preemptions_total": core.counters.preemptions,
        }

    async def generate(self, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """The text of one prompt's sequences, as the leg of the call of this context wants it."""
        call = CURRENT.get()
        leg = Leg.WHOLE if call is None else call.leg
        ids = [self._live.new_id() for _ in range(sampling.n)]
        source = source_of(call)
        if call is not None:
            call.resampled = sampling.seed is not None
            begin(call, ids, len(prompt))
            call.prompted(Prompt(prompt))
        if source is not None:
            self.unread[ids[0]] = source
        stop = sampling.stop if leg != Leg.PREFILL else ()
        scanners = {id: StopScanner(stop) for id in ids}  # of the sequences that go on
        outputs: Outputs = asyncio.Queue()
        resumed = resumed_tokens(call)
        max_tokens = sampling.max_tokens - len(resumed)
        try:
            for index, id in enumerate(ids):
                salt = _salt(sampling.seed, index)
                self._live.submit(
                    _submit(id, prompt + resumed, max_tokens, salt, leg, remote=source is not None), outputs
                )
            num_new_prompt_tokens = len(prompt)
            for token in resumed if leg != Leg.PREFILL else ():
                yield Piece(0, scanners[ids[0]].push(decode((token,)), last=False)[0], None, None)
            while scanners:
                output = await self._next(outputs, scanners, call)
                piece = _piece(output, output.id - ids[0], scanners[output.id])
                if call is not None:
                    assert output.token is not None
                    tell(call, output.token, finished=piece.finish_reason is not None)
                    call.output(1, output.num_cached_tokens, num_new_prompt_tokens)
                    num_new_prompt_tokens = 0
                    if leg == Leg.PREFILL:
                        call.granted(self._params(output, len(prompt) + len(resumed)))
                if piece.finish_reason is not None:
                    del scanners[output.id]
                    self._live.apply(ev.Abort(output.id))
                yield piece
        finally:
            self._leave(ids, granted=call is not None and call.ticket_params is not None)

    async def _next(self, outputs: Outputs, open_ids: Container[int], call: Call | None) -> Output:
        """The next token of a sequence that goes on; on the way it fetches what is asked for."""
        while True:
            output = await outputs.get()
            if type(output) is ev.Fetch:
                await self._fetch(output, call)
            elif type(output) is Output and output.id in open_ids:
                if output.token is not None:
                    return output
                assert output.ended is not None
                raise failed(call, f"the engine ended the request: {output.ended.reason}")

    async def _fetch(self, fetch: ev.Fetch, call: Call | None) -> None:
        source = self.unread.get(fetch.id)
        if source is None:  # cancelled: the ticket is released and the end is on its way
            return
        await asyncio.sleep(self._args.timing.handoff_s(fetch.num_tokens))
        try:
            contents = await read(source, source.blocks[fetch.first_block :], self._args.read_timeout_s)
        except HolderGone as gone:
            failed(call, str(gone))
            self._live.apply(ev.Lost(fetch.id))
        else:
            self._live.apply(ev.Arrived(fetch.id, contents))
        self.unread.pop(fetch.id, None)

    def _end(self, id: int) -> None:
        """A finish that crosses it leaves a ticket that nobody was told about: it has the request's id."""
        self._live.apply(ev.Abort(id))
        self._live.apply(ev.Release(id))

    def _leave(self, ids: list[int], *, granted: bool) -> None:
        """However it ends, nothing of it stays but a ticket handed out: no sequence, no ticket to be read."""
        for id in ids if not granted else ():
            self._end(id)
        if (source := self.unread.pop(ids[0], None)) is not None:
            self._tasks.create_task(self._release(source))

    def _params(self, output: Output, num_tokens: int) -> bytes:
        """A prefill leg's one token is its last: the ticket is open."""
        assert output.ended is not None
        blocks = output.ended.held_blocks
        return msgspec.json.encode(
            msgspec.structs.replace(self.holder, ticket=output.id, blocks=blocks, num_tokens=num_tokens)
        )


def _submit(id: int, prompt: list[int], max_tokens: int, salt: int, leg: str, *, remote: bool) -> ev.Submit:
    if leg == Leg.PREFILL:
        return ev.Submit(id, prompt, 1, hold=True)
    return ev.Submit(id, prompt, max_tokens, salt=salt, remote=remote)


def _salt(seed: int | None, index: int) -> int:
    """Of one of several sequences; 0 is greedy."""
    return chain(seed, (index,)) if seed is not None and (seed, index) != (0, 0) else 0


def _piece(output: Output, index: int, scanner: StopScanner) -> Piece:
    assert output.token is not None
    text, stop_reason = scanner.push(decode((output.token,)), last=output.ended is not None)
    reason = "stop" if stop_reason is not None else None if output.ended is None else output.ended.reason
    return Piece(index, text, reason, stop_reason)


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group around somebody else's code, whose exception is handed on as it was raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None


@asynccontextmanager
async def start(
    spec: EngineSpec, placement: Placement, imported: Callable[[], None] = lambda: None
) -> AsyncIterator[Engine]:
    """Raises ValueError if the arguments are wrong, RuntimeError if they ask for a failed start."""
    args = read_args(spec)
    imported()
    await asyncio.sleep(args.load_time_s)
    if args.warm_up_s:
        log.info(WEIGHTS_READ, args.load_time_s)
        await asyncio.sleep(args.warm_up_s)
    if args.fail_at_start is not None:
        raise RuntimeError(args.fail_at_start)
    async with _tasks() as tasks:
        engine = _instant(spec, args, tasks) if args.mode == "instant" else _scheduled(spec, args, placement, tasks)
        async with engine as started:
            yield started


@asynccontextmanager
async def _instant(spec: EngineSpec, args: SimArgs, tasks: asyncio.TaskGroup) -> AsyncIterator[Engine]:
    engine = InstantEngine(spec, args)
    steps = tasks.create_task(engine.run_steps())
    try:
        yield engine
    finally:
        steps.cancel()


@asynccontextmanager
async def _scheduled(
    spec: EngineSpec, args: SimArgs, placement: Placement, tasks: asyncio.TaskGroup
) -> AsyncIterator[Engine]:
    with publisher(placement.local_dir, spec.block_size) as kv_events:
        config = args.core(spec)
        live = LiveCore(config, kv_events.publish)
        engine = SimEngine(spec, args, live, tasks)
        async with listen(placement.address, engine.hand_out) as port:
            engine_id = f"{placement.worker}/{placement.generation}/{placement.session}"
            engine.holder = HandOver(engine_id, placement.address, port, 0, [], 0)
            heartbeats = tasks.create_task(keep_alive(engine.unread, config.lease_s, args.read_timeout_s))
            try:
                yield engine
            finally:
                heartbeats.cancel()
                live.close()
