"""The simulated engine's instant mode: a token per stream and step, for measuring what carries the streams.

It is the floor of the host's side, so it does nothing else: no scheduler, no tokenizer, one timer for all
streams, chunks encoded once per stream. Streams step together, or in groups that take turns. Tickets are
for show: nothing is held and nothing is read. A `send` that waits holds up all streams, as a congested link
does.
"""

from __future__ import annotations

import asyncio
import itertools
from array import array
from collections.abc import Sequence

from workers.engines import AsgiApp, Event, Send
from workers.engines.sim.answers import check_length, limit_tokens
from workers.engines.sim.api import DONE, ApiError, Chunks, Generation, full_answer, usage
from workers.engines.sim.app import App, respond, start_stream
from workers.engines.sim.args import VERSION, SimArgs, capabilities
from workers.engines.sim.legs import begin
from workers.host.calls import CURRENT, Call
from workers.host.prompt import Prompt
from workers.protocol import Leg
from workers.spec import EngineSpec

TEXT = " token"
TOKEN_IDS = (1,)
BYTES_PER_TOKEN = 4
TICKET_PARAMS = b'{"instant":true}'


class _Stream:
    """`first` opens it, `body` is every token but the last, `last` closes it."""

    __slots__ = ("begun", "body", "call", "done", "first", "last", "left", "num_prompt_tokens", "num_resumed", "send")

    def __init__(
        self, of: Generation, send: Send, call: Call | None, token: str, num_tokens: int, num_prompt_tokens: int
    ) -> None:
        chunks = Chunks(of)
        counts = chunks.usage(usage(num_prompt_tokens, num_tokens)) if of.include_usage else b""
        self.send = send
        self.call = call
        self.begun = False
        self.num_resumed = 0 if call is None else call.num_resumed_tokens
        self.left = num_tokens - self.num_resumed
        self.num_prompt_tokens = num_prompt_tokens
        self.first = _body(chunks.role(0)) if of.chat else None
        self.body = _body(chunks.text(0, token))
        self.last = _body(chunks.text(0, token, "length") + counts + DONE, more=False)
        self.done = asyncio.get_running_loop().create_future()

    async def begin(self) -> None:
        """All tokens are counted here: the rest must cost nothing but `send`."""
        self.begun = True
        if self.call is not None:
            self.call.output(self.left + 1, 0, self.num_prompt_tokens)
        if self.first is not None:
            await self.send(self.first)
        for _ in range(self.num_resumed):
            await self.send(self.body)


def _token_ids(prompt: str | list[int]) -> Sequence[int]:
    """Of a text, a token per four bytes."""
    if not isinstance(prompt, str):
        return prompt
    data = prompt.encode()
    return array("I", data[: len(data) // BYTES_PER_TOKEN * BYTES_PER_TOKEN])


def _body(data: bytes, *, more: bool = True) -> Event:
    return {"type": "http.response.body", "body": data, "more_body": more}


class InstantEngine:
    version = VERSION

    def __init__(self, spec: EngineSpec, args: SimArgs) -> None:
        self.capabilities = capabilities(spec, args)
        self.app: AsgiApp = App(self, spec.served_names, spec.model_path, self.capabilities.max_model_len)
        self._step_s = args.step_ms / 1000
        self._token = TEXT * (args.token_chars // len(TEXT)) + TEXT[: args.token_chars % len(TEXT)]
        self._groups: list[dict[int, _Stream]] = [{} for _ in range(args.step_groups)]
        self._ids = itertools.count(1)
        self._begun = asyncio.Event()
        self._num_received = 0
        self._num_prompt_tokens = 0
        self._num_generated = 0

    def kv_tokens_received(self) -> int:
        return self._num_received

    def kv_used(self) -> float:
        return 0.0

    def alive(self) -> bool:
        return True

    async def respond(self) -> None:
        """Its steps are turns of this loop."""

    async def cancel(self, call: Call) -> None:
        call.cancelled = True
        for id in map(int, call.engine_ids):
            if (stream := self._group(id).pop(id, None)) is not None:
                stream.done.set_result(None)

    def _group(self, id: int) -> dict[int, _Stream]:
        return self._groups[id % len(self._groups)]

    async def release(self, params: bytes) -> None:
        """Nothing is held."""

    def figures(self) -> dict[str, float]:
        return {
            "vllm:num_requests_running": sum(map(len, self._groups)),
            "vllm:num_requests_waiting": 0,
            "vllm:kv_cache_usage_perc": 0,
            "vllm:prompt_tokens_total": self._num_prompt_tokens,
            "vllm:generation_tokens_total": self._num_generated,
            "vllm:external_prefix_cache_hits_total": self._num_received,
        }

    async def answer(self, of: Generation, send: Send) -> None:
        if len(of.prompts) > 1 or of.n > 1 or of.stop:
            raise ApiError(400, "the instant engine serves one sequence per request, without stop strings")
        num_prompt_tokens = -(-len(of.prompts[0]) // BYTES_PER_TOKEN)
        max_model_len = self.capabilities.max_model_len
        check_length(num_prompt_tokens, max_model_len)
        num_tokens = limit_tokens(of.max_tokens, num_prompt_tokens, max_model_len)
        call = CURRENT.get()
        id = next(self._ids)
        if call is not None:
            begin(call, [id], num_prompt_tokens)
            if call.on_prompt is not None:
                call.prompted(Prompt(_token_ids(of.prompts[0])))
            if call.leg == Leg.DECODE and call.ticket is not None:
                self._num_received += num_prompt_tokens - 1
        self._num_prompt_tokens += num_prompt_tokens
        if call is not None and call.leg == Leg.PREFILL:
            call.output(1, 0, num_prompt_tokens)
            call.granted(TICKET_PARAMS)
            await self._whole(of, send, 1, num_prompt_tokens)
        elif of.stream:
            await self._stream(id, _Stream(of, send, call, self._token, num_tokens, num_prompt_tokens))
        else:
            await asyncio.sleep(num_tokens * self._step_s)
            if call is not None:
                call.output(num_tokens, 0, num_prompt_tokens)
            await self._whole(of, send, num_tokens, num_prompt_tokens)

    async def _whole(self, of: Generation, send: Send, num_tokens: int, num_prompt_tokens: int) -> None:
        text = self._token * num_tokens
        await respond(send, full_answer(of, [(text, "length", None)], usage(num_prompt_tokens, num_tokens)))

    async def _stream(self, id: int, stream: _Stream) -> None:
        await start_stream(stream.send)
        self._group(id)[id] = stream
        self._begun.set()
        try:
            await stream.done
        finally:
            self._group(id).pop(id, None)

    async def run_steps(self) -> None:
        """The one timer; runs until cancelled. It stands still while there is nothing to do, and keeps the beat."""
        loop = asyncio.get_running_loop()
        due, turn_s = loop.time(), self._step_s / len(self._groups)
        for group in itertools.cycle(self._groups):
            if not any(self._groups):
                self._begun.clear()
                await self._begun.wait()
                due += (loop.time() - due) // turn_s * turn_s
            due = max(due + turn_s, loop.time())
            await asyncio.sleep(due - loop.time())
            for stream in list(group.values()):
                if not stream.done.done():
                    await self._step(stream)

    async def _step(self, stream: _Stream) -> None:
        self._num_generated += 1
        stream.left -= 1
        if stream.call is not None:
            stream.call.outputs(TOKEN_IDS, finished=not stream.left)
        if not stream.begun:
            await stream.begin()
        if stream.left:
            await stream.send(stream.body)
        else:
            await stream.send(stream.last)
            if not stream.done.done():
                stream.done.set_result(None)
