"""The OpenAI shapes of the simulated engine, as vLLM has them: requests, errors, answers and stream chunks.

Pure. Says which requests are wrong and whose fault it is; what the simulator cannot do is refused and
never ignored. Fields it does not know are ignored, as in vLLM; `kv_transfer_params` is one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from workers.engines.sim.tokenizer import render_chat

encode_json = msgspec.json.encode
DONE = b"data: [DONE]\n\n"
MAX_N = 128


class ApiError(Exception):
    """An answer in vLLM's error shape."""

    def __init__(self, status: int, message: str, *, type: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = encode_json({"error": {"message": message, "type": type, "param": param, "code": int(status)}})


def status_error(status: HTTPStatus, message: str = "") -> ApiError:
    """What the HTTP layer says, before a handler has seen the request."""
    return ApiError(status, message or status.phrase, type=status.phrase)


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = False


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    max_tokens: int | None = None
    n: int | None = 1
    seed: int | None = None
    temperature: float | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # Not simulated: refused if asked for.
    echo: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    prompt_logprobs: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    tools: Any = None
    suffix: Any = None
    use_beam_search: Any = None


_NOT_SIMULATED = (
    "echo",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "response_format",
    "structured_outputs",
    "tools",
    "suffix",
    "use_beam_search",
)
_HARMLESS: tuple[Any, ...] = (None, False, 0, [], "", {"type": "text"})


class CompletionRequest(_Request, frozen=True, kw_only=True):
    prompt: str | list[int | str | list[int]]


class Part(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str | list[Part] | None = None

    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        parts = self.content or []
        if any(part.type != "text" for part in parts):
            raise ApiError(400, "the simulated engine reads text only", param="messages")
        return "".join(part.text for part in parts)


class ChatRequest(_Request, frozen=True, kw_only=True):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None


class TokenizeRequest(msgspec.Struct, frozen=True):
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    model: str | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True):
    tokens: list[int]
    model: str | None = None


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What a valid request asks for. A prompt is text or token ids; `max_tokens` None: up to the model's limit."""

    id: str
    chat: bool
    model: str
    created: int
    prompts: list[str | list[int]]
    max_tokens: int | None
    n: int
    seed: int | None  # None: greedy; else the only thing that sampling depends on
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def chat_prompt(messages: Sequence[ChatMessage]) -> str:
    if not messages:
        raise ApiError(400, "messages must not be empty", param="messages")
    return render_chat([(message.role, message.text()) for message in messages])


def generation(request: ChatRequest | CompletionRequest, *, model: str, request_id: str, created: int) -> Generation:
    """Raises ApiError."""
    for name in _NOT_SIMULATED:
        if getattr(request, name) not in _HARMLESS:
            raise ApiError(400, f"the simulated engine does not support {name}", param=name)
    max_tokens = request.max_tokens
    prompts: list[str | list[int]]
    if isinstance(request, ChatRequest):
        max_tokens = request.max_completion_tokens or max_tokens
        prompts = [chat_prompt(request.messages)]
    else:
        max_tokens = 16 if max_tokens is None else max_tokens
        prompts = _prompts(request.prompt)
    n = 1 if request.n is None else request.n
    if not 1 <= n <= MAX_N:
        raise ApiError(400, f"n must be between 1 and {MAX_N}, got {n}", param="n")
    if max_tokens is not None and max_tokens < 1:
        raise ApiError(400, f"max_tokens must be at least 1, got {max_tokens}", param="max_tokens")
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return Generation(
        id=request_id,
        chat=isinstance(request, ChatRequest),
        model=model,
        created=created,
        prompts=prompts,
        max_tokens=max_tokens,
        n=n,
        seed=None if request.temperature == 0 else request.seed or 0,
        stop=tuple(text for text in stop if text),
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
    )


def _prompts(prompt: str | list[int | str | list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    token_ids = [item for item in prompt if isinstance(item, int)]
    prompts = [item for item in prompt if not isinstance(item, int)]
    if token_ids and prompts:
        raise ApiError(400, "a list of prompts must not contain bare token ids", param="prompt")
    prompts = prompts or [token_ids]
    if not all(prompts):
        raise ApiError(400, "Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
    if any(token < 0 for ids in prompts if isinstance(ids, list) for token in ids):
        raise ApiError(400, "token ids must not be negative", param="prompt")
    return prompts


# ---------------------------------------------------------------- answers


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int | None]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def full_answer(of: Generation, choices: Sequence[tuple[str, str, str | None]], counts: dict[str, int | None]) -> bytes:
    """`choices`: text, finish_reason and stop_reason of each."""
    # The same fields in the same order as vLLM's, most of them empty.
    prompt = ("prompt_logprobs", "prompt_token_ids")
    shaped = []
    for index, (text, finish_reason, stop_reason) in enumerate(choices):
        body = {"message": _message(text)} if of.chat else {"text": text}
        ending = {"logprobs": None, "finish_reason": finish_reason, "stop_reason": stop_reason, "token_ids": None}
        empty = _empty("routed_experts") if of.chat else _empty(*prompt, "routed_experts")
        shaped.append({"index": index, **body, **ending, **empty})
    answer = {
        "id": of.id,
        "object": "chat.completion" if of.chat else "text_completion",
        "created": of.created,
        "model": of.model,
        "choices": shaped,
        **_empty("service_tier", "system_fingerprint"),
        "usage": {**counts, **_empty("prompt_tokens_details", "completion_tokens_details")},
        **(_empty(*prompt, "prompt_text") if of.chat else {}),
        **_empty("kv_transfer_params", "ec_transfer_params", "metrics"),
    }
    return encode_json(answer)


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | _empty(
        "refusal", "annotations", "audio", "function_call", "reasoning"
    )


def _empty(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


class Chunks:
    """The stream chunks of one answer: all that is the same in each is encoded once."""

    def __init__(self, of: Generation) -> None:
        self._chat = of.chat
        kind = "chat.completion.chunk" if of.chat else "text_completion"
        head = {"id": of.id, "object": kind, "created": of.created, "model": of.model}
        self._head = b"data: " + encode_json(head)[:-1] + b',"choices":['

    def role(self, index: int) -> bytes:
        delta = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' % index
        return self._head + delta + b'],"prompt_token_ids":null,"prompt_text":null}\n\n'

    def text(self, index: int, text: str, finish_reason: str | None = None, stop_reason: str | None = None) -> bytes:
        content = encode_json(text)
        ending = b',"logprobs":null,"finish_reason":' + encode_json(finish_reason)
        if finish_reason is not None or not self._chat:
            ending += b',"stop_reason":' + encode_json(stop_reason)
        if self._chat:
            body = b'{"index":%d,"delta":{"content":%b}%b,"token_ids":null}]}\n\n' % (index, content, ending)
        else:
            body = b'{"index":%d,"text":%b%b,"prompt_token_ids":null,"token_ids":null}]}\n\n' % (index, content, ending)
        return self._head + body

    def usage(self, counts: dict[str, int | None]) -> bytes:
        return self._head + b'],"usage":' + encode_json(counts) + b"}\n\n"
