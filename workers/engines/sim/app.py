"""The simulated engine's ASGI app: vLLM's routes, from the request's bytes to a checked request.

Owns routing, decoding, error answers and the watch for clients that leave. Knows no scheduler: what
generates is an `Answers`, of which there are two (`sim_answers`, `sim_instant`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import msgspec

from workers.engines import Receive, Scope, Send
from workers.engines.sim.api import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Generation,
    TokenizeRequest,
    chat_prompt,
    encode_json,
    generation,
    status_error,
)
from workers.engines.sim.tokenizer import decode, encode

JSON = b"application/json"
T = TypeVar("T")


class Answers(Protocol):
    """What generates."""

    async def answer(self, generation: Generation, send: Send) -> None:
        """Send the whole answer. Raises ApiError, if nothing has been sent yet."""

    def figures(self) -> dict[str, float]:
        """Of /metrics, by vLLM's names."""


class App:
    def __init__(self, answers: Answers, models: tuple[str, ...], model_path: str, max_model_len: int) -> None:
        self._answers = answers
        self._models = models
        self._model_path = model_path
        self._max_model_len = max_model_len
        self._created = int(time.time())
        self._routes: dict[tuple[str, str], Callable[[Scope, bytes, Send], Awaitable[None]]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("GET", "/v1/models"): self._list_models,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "served without lifespan and websockets"
        body = await _read_body(receive)
        if body is not None:
            await _until_gone(receive, self._serve(scope, body, send))

    async def _serve(self, scope: Scope, body: bytes, send: Send) -> None:
        try:
            await self._route(scope["method"], scope["path"])(scope, body, send)
        except ApiError as error:
            await respond(send, error.body, status=error.status)

    def _route(self, method: str, path: str) -> Callable[[Scope, bytes, Send], Awaitable[None]]:
        if (method, path) in self._routes:
            return self._routes[method, path]
        known = any(path == known for _, known in self._routes)
        raise status_error(HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND)

    # ------------------------------------------------------------ routes

    async def _chat(self, scope: Scope, body: bytes, send: Send) -> None:
        request = _decode(body, ChatRequest)
        await self._answers.answer(self._generation(request, "chatcmpl", scope), send)

    async def _completions(self, scope: Scope, body: bytes, send: Send) -> None:
        request = _decode(body, CompletionRequest)
        await self._answers.answer(self._generation(request, "cmpl", scope), send)

    def _generation(self, request: ChatRequest | CompletionRequest, prefix: str, scope: Scope) -> Generation:
        model = self._model(request.model)
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = f"{prefix}-{given.decode('latin-1') or secrets.token_hex(16)}"
        return generation(request, model=model, request_id=request_id, created=int(time.time()))

    def _model(self, name: str | None) -> str:
        if name is not None and name not in self._models:
            raise ApiError(404, f"The model `{name}` does not exist.", type="NotFoundError", param="model")
        return name or self._models[0]

    async def _tokenize(self, scope: Scope, body: bytes, send: Send) -> None:
        request = _decode(body, TokenizeRequest)
        self._model(request.model)
        if request.prompt is None and request.messages is None:
            raise ApiError(400, "Either prompt or messages must be provided", param="prompt")
        tokens = encode(request.prompt if request.prompt is not None else chat_prompt(request.messages or []))
        answer = {"count": len(tokens), "max_model_len": self._max_model_len, "tokens": tokens, "token_strs": None}
        await respond(send, encode_json(answer))

    async def _detokenize(self, scope: Scope, body: bytes, send: Send) -> None:
        request = _decode(body, DetokenizeRequest)
        self._model(request.model)
        try:
            text = decode(request.tokens)
        except ValueError as error:
            raise ApiError(400, str(error), param="tokens") from error
        await respond(send, encode_json({"prompt": text}))

    async def _list_models(self, scope: Scope, body: bytes, send: Send) -> None:
        cards: list[dict[str, Any]] = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "vllm",
                "root": self._model_path,
                "parent": None,
                "max_model_len": self._max_model_len,
                "permission": [],
            }
            for name in self._models
        ]
        await respond(send, encode_json({"object": "list", "data": cards}))

    async def _health(self, scope: Scope, body: bytes, send: Send) -> None:
        await respond(send, b"")

    async def _metrics(self, scope: Scope, body: bytes, send: Send) -> None:
        labels = f'{{engine="0",model_name="{self._models[0]}"}}'
        lines = []
        for name, value in self._answers.figures().items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.append(f"# TYPE {name} {kind}\n{name}{labels} {float(value)}\n")
        await respond(send, "".join(lines).encode(), content_type=b"text/plain; version=0.0.4; charset=utf-8")


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise status_error(HTTPStatus.BAD_REQUEST, f"1 validation error:\n  {error}") from error


# ---------------------------------------------------------------- ASGI


async def respond(send: Send, body: bytes, *, status: int = 200, content_type: bytes = JSON) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def start_stream(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _read_body(receive: Receive) -> bytes | None:
    """None: the client has left before it had said everything."""
    body = b""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        data: bytes = event.get("body", b"")
        body += data
        if not event.get("more_body", False):
            return body


async def _until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; a client that leaves cancels it at once."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(work)
        watcher = tasks.create_task(watch())
        watcher.add_done_callback(lambda _: worker.cancel())
        worker.add_done_callback(lambda _: watcher.cancel())
