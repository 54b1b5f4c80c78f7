"""OpenAI's /v1/files and /v1/batches, as the proxy passes them on.

Owns the routes and who may see what: an object belongs to the API key that made it, and for others it does not
exist. Only the proxy may ask, by the secret that both read in `keys/`; it names the client's key.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from launcher.batch.service.multipart import read_form
from launcher.batch.service.objects import (
    WINDOWS_S,
    ApiError,
    BatchObject,
    BatchRequest,
    FileObject,
    page,
    shown,
)
from launcher.batch.service.shelf import Shelf
from launcher.batch.service.working import Working
from proxy import errors
from proxy.header_names import CLIENT, SECRET
from proxy.http.exchange import Exchange

JSON = ((b"content-type", b"application/json"),)
T = TypeVar("T", FileObject, BatchObject)
BYTES = ((b"content-type", b"application/octet-stream"),)


class Asked(msgspec.Struct, frozen=True):
    """One request, and of whom."""

    owner: str
    id: str
    query: dict[str, str]
    content_type: bytes
    body: bytes


class Api:
    """`handle` and `admit` are what the HTTP server calls."""

    def __init__(self, shelf: Shelf, working: Working, secret: str) -> None:
        self._shelf = shelf
        self._working = working
        self._secret = secret.encode()
        self._files = {found.id: found for found in shelf.files()}
        self._batches = {found.id: found for found in shelf.batches()}
        self._tasks: set[asyncio.Task[None]] = set()
        for batch in sorted(self._batches.values(), key=lambda one: one.created_at):
            if not batch.ended:
                working.begin(batch)

    def admit(self, exchange: Exchange) -> errors.Response | None:
        if hmac.compare_digest(exchange.headers.get(SECRET, b""), self._secret):
            return None
        return errors.response(errors.Unauthorized("only the run's proxy may ask here"))

    def handle(self, exchange: Exchange) -> None:
        task = asyncio.ensure_future(self._serve(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, exchange: Exchange) -> None:
        try:
            found = await self._route(exchange)
        except ApiError as error:
            exchange.respond(error.status, JSON, error.body)
            return
        if isinstance(found, bytes):
            exchange.respond(200, BYTES, found)
        else:
            exchange.respond(200, JSON, msgspec.json.encode(found))

    async def _route(self, exchange: Exchange) -> Any:
        for method, pattern, answer in _ROUTES:
            match = pattern.fullmatch(exchange.path)
            if match is not None and method == exchange.method:
                asked = Asked(
                    exchange.headers.get(CLIENT, b"").decode(),
                    match["id"] if "id" in match.groupdict() else "",
                    dict(parse_qsl(exchange.query.decode(errors="replace"))),
                    exchange.headers.get(b"content-type", b""),
                    exchange.body,
                )
                return await answer(self, asked)
        raise ApiError(404, f"unknown route {exchange.method} {exchange.path}")

    # ------------------------------------------------------------ files

    async def _upload(self, asked: Asked) -> Any:
        form = read_form(asked.content_type, asked.body)
        if form is None or form.filename is None:
            raise ApiError(400, "send multipart/form-data with a file", param="file")
        if form.fields.get("purpose") != "batch":
            raise ApiError(400, "purpose must be batch", param="purpose")
        if not form.content.strip():
            raise ApiError(400, "the file is empty", param="file")
        add = self._shelf.add_file
        found = await asyncio.to_thread(add, form.content, asked.owner, form.filename, "batch", time.time())
        self._files[found.id] = found
        return shown(found)

    async def _list_files(self, asked: Asked) -> Any:
        await self._find_new()
        wanted = asked.query.get("purpose")
        own = [found for found in self._files.values() if found.owner == asked.owner]
        return page([found for found in own if wanted in (None, found.purpose)], asked.query)

    async def _get_file(self, asked: Asked) -> Any:
        return shown(await self._file(asked))

    async def _content(self, asked: Asked) -> Any:
        found = await self._file(asked)
        return await asyncio.to_thread(self._shelf.content(found.id).read_bytes)

    async def _delete_file(self, asked: Asked) -> Any:
        found = await self._file(asked)
        if any(batch.input_file_id == found.id and not batch.ended for batch in self._batches.values()):
            raise ApiError(409, f"a batch that has not ended reads {found.id}", param="file_id")
        await asyncio.to_thread(self._shelf.delete_file, found.id)
        del self._files[found.id]
        return {"id": found.id, "object": "file", "deleted": True}

    async def _file(self, asked: Asked) -> FileObject:
        if asked.id not in self._files:
            await self._find_new()
        return _own(self._files.get(asked.id), asked.owner, f"there is no file {asked.id}")

    async def _find_new(self) -> None:
        """Files that batches have handed out."""
        self._files = {found.id: found for found in await asyncio.to_thread(self._shelf.files)}

    # ------------------------------------------------------------ batches

    async def _create(self, asked: Asked) -> Any:
        try:
            request = msgspec.json.decode(asked.body, type=BatchRequest)
        except msgspec.DecodeError as error:
            raise ApiError(400, f"the body is wrong: {error}") from None
        request.check()
        told = f"there is no file {request.input_file_id}"
        _own(self._files.get(request.input_file_id), asked.owner, told)
        now = time.time()
        batch = BatchObject(
            id=f"batch_{secrets.token_hex(12)}",
            owner=asked.owner,
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            completion_window=request.completion_window,
            created_at=int(now),
            expires_at=int(now) + WINDOWS_S[request.completion_window],
            metadata=request.metadata,
        )
        await asyncio.to_thread(self._shelf.save, batch)
        self._batches[batch.id] = batch
        self._working.begin(batch)
        return shown(batch)

    async def _list_batches(self, asked: Asked) -> Any:
        return page([batch for batch in self._batches.values() if batch.owner == asked.owner], asked.query)

    async def _get_batch(self, asked: Asked) -> Any:
        return shown(self._batch(asked))

    async def _cancel(self, asked: Asked) -> Any:
        batch = self._batch(asked)
        if batch.ended:
            raise ApiError(409, f"{batch.id} has ended already: {batch.status}")
        if batch.status != "cancelling":
            batch.move("cancelling", time.time())
            await asyncio.to_thread(self._shelf.save, batch)
        return shown(batch)

    def _batch(self, asked: Asked) -> BatchObject:
        return _own(self._batches.get(asked.id), asked.owner, f"there is no batch {asked.id}")


def _own(found: T | None, owner: str, told: str) -> T:
    if found is None or found.owner != owner:
        raise ApiError(404, told, code="not_found")
    return found


_ID = r"(?P<id>[A-Za-z0-9_-]+)"
_ROUTES: tuple[tuple[str, re.Pattern[str], Callable[[Api, Asked], Any]], ...] = (
    ("POST", re.compile("/v1/files"), Api._upload),
    ("GET", re.compile("/v1/files"), Api._list_files),
    ("GET", re.compile(f"/v1/files/{_ID}"), Api._get_file),
    ("DELETE", re.compile(f"/v1/files/{_ID}"), Api._delete_file),
    ("GET", re.compile(f"/v1/files/{_ID}/content"), Api._content),
    ("POST", re.compile("/v1/batches"), Api._create),
    ("GET", re.compile("/v1/batches"), Api._list_batches),
    ("GET", re.compile(f"/v1/batches/{_ID}"), Api._get_batch),
    ("POST", re.compile(f"/v1/batches/{_ID}/cancel"), Api._cancel),
)
