"""From the simulated engine's pieces of text to an OpenAI answer, in one body or as a stream.

Owns the order of events of one answer, as vLLM sends them. Tokens, stop strings and legs lie below, in
`generate`; HTTP lies above.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import msgspec

from workers.engines import Send
from workers.engines.sim.api import DONE, ApiError, Chunks, Generation, full_answer, usage
from workers.engines.sim.app import respond, start_stream
from workers.engines.sim.tokenizer import encode


class Sampling(msgspec.Struct, frozen=True):
    """What the layer below needs of a request, one per prompt."""

    max_tokens: int
    n: int
    seed: int | None
    stop: tuple[str, ...]


class Piece(msgspec.Struct, frozen=True):
    """New text of sequence `index`; `finish_reason` with its last one: stop or length."""

    index: int
    text: str
    finish_reason: str | None
    stop_reason: str | None


# Raises ApiError once the engine or the call's rules say no.
Generate = Callable[[list[int], Sampling], AsyncGenerator[Piece, None]]
Take = Callable[[Piece], Awaitable[None]]


def check_length(num_prompt_tokens: int, max_model_len: int) -> None:
    if num_prompt_tokens >= max_model_len:
        raise ApiError(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
            f"{num_prompt_tokens} input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            param="input_tokens",
        )


def limit_tokens(max_tokens: int | None, num_prompt_tokens: int, max_model_len: int) -> int:
    room = max_model_len - num_prompt_tokens
    return room if max_tokens is None else min(max_tokens, room)


async def answer(of: Generation, generate: Generate, max_model_len: int, send: Send) -> None:
    prompts = [encode(prompt) if isinstance(prompt, str) else prompt for prompt in of.prompts]
    for prompt in prompts:
        check_length(len(prompt), max_model_len)
    run = _Answer(of, prompts, generate, max_model_len)
    if of.stream:
        await _stream(of, run, send)
    else:
        await _whole(of, run, send)


class _Answer:
    """All sequences of one request. Choice `i` is sequence `i % n` of prompt `i // n`."""

    def __init__(self, of: Generation, prompts: list[list[int]], generate: Generate, max_model_len: int) -> None:
        self.num_choices = len(prompts) * of.n
        self.num_prompt_tokens = sum(map(len, prompts))
        self.num_output_tokens = 0
        self._of = of
        self._prompts = prompts
        self._generate = generate
        self._max_model_len = max_model_len

    async def run(self, take: Take) -> None:
        """The prompts are computed side by side."""
        if len(self._prompts) == 1:
            return await self._run_prompt(0, take)
        try:
            async with asyncio.TaskGroup() as tasks:
                for position in range(len(self._prompts)):
                    tasks.create_task(self._run_prompt(position, take))
        except* ApiError as errors:
            error = errors.exceptions[0]
            assert isinstance(error, ApiError)
            raised = error
        else:
            return None
        raise raised

    async def _run_prompt(self, position: int, take: Take) -> None:
        of, prompt = self._of, self._prompts[position]
        max_tokens = limit_tokens(of.max_tokens, len(prompt), self._max_model_len)
        sampling = Sampling(max_tokens, of.n, of.seed, of.stop)
        async with aclosing(self._generate(prompt, sampling)) as pieces:
            async for piece in pieces:
                self.num_output_tokens += 1
                await take(msgspec.structs.replace(piece, index=position * of.n + piece.index))

    def usage(self) -> dict[str, int | None]:
        return usage(self.num_prompt_tokens, self.num_output_tokens)


async def _whole(of: Generation, run: _Answer, send: Send) -> None:
    texts = [""] * run.num_choices
    endings: list[tuple[str, str | None]] = [("", None)] * run.num_choices

    async def take(piece: Piece) -> None:
        texts[piece.index] += piece.text
        if piece.finish_reason is not None:
            endings[piece.index] = (piece.finish_reason, piece.stop_reason)

    await run.run(take)
    choices = [(text, *ending) for text, ending in zip(texts, endings, strict=True)]
    await respond(send, full_answer(of, choices, run.usage()))


async def _stream(of: Generation, run: _Answer, send: Send) -> None:
    """The status goes out before anything is known, and an error later is an event, as in vLLM."""
    chunks = Chunks(of)
    introduced = not of.chat

    async def emit(body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def take(piece: Piece) -> None:
        nonlocal introduced
        if not introduced:
            introduced = True
            for index in range(run.num_choices):
                await emit(chunks.role(index))
        if piece.text or piece.finish_reason is not None:
            await emit(chunks.text(piece.index, piece.text, piece.finish_reason, piece.stop_reason))

    await start_stream(send)
    try:
        await run.run(take)
        if of.include_usage:
            await emit(chunks.usage(run.usage()))
    except ApiError as error:
        await emit(b"data: " + error.body + b"\n\n")
    await send({"type": "http.response.body", "body": DONE, "more_body": False})
