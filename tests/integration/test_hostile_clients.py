"""Slow and greedy clients before a real proxy and an engine: the others are served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from proxy.spec import Limits
from tests.live import API_KEY, Live, live, sim_engine, wait_for

LIMITS = Limits(max_connections=60, stream_buffer_bytes=1 << 18, header_timeout_s=60.0)
NUM_TOKENS = 500
# A chunk of 2 kB every 5 ms: 1 MB in all, well over what the kernel's buffers and the limit hold.
ENGINE = {"mode": "instant", "step_ms": 5.0, "token_chars": 2000, "num_blocks": 2048}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = tmp_path_factory.mktemp("hostile") / "run"
    with live(path, {"decode-0": sim_engine(args=ENGINE)}, pairs=(), limits=LIMITS) as started:
        yield started


def completion(num_tokens: int) -> bytes:
    body = msgspec.json.encode({"model": "tiny", "prompt": "once", "max_tokens": num_tokens, "stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {API_KEY}\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


@contextlib.asynccontextmanager
async def connected(run: Live, *, window_bytes: int | None = None) -> AsyncIterator[Streams]:
    url = httpx.URL(run.url)
    sock = socket.socket()
    if window_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (url.host, url.port))
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def whole_answer(run: Live) -> bytes:
    async with connected(run) as (reader, writer):
        writer.write(completion(NUM_TOKENS))
        return await reader.read()


def is_whole(answer: bytes) -> bool:
    whole = answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert not whole or answer.count(b'"choices":[{') == NUM_TOKENS
    return whole


def proxy_pid(run: Live) -> int:
    (process,) = run.proxy_files()
    return process.pid


def quiet(run: Live) -> bool:
    fleet = run.fleet()
    return not (fleet["open_requests"] or any(w["running"] or w["waiting"] or w["decodes"] for w in fleet["workers"]))


def test_slow_readers_are_cut_off_their_work_ends_and_the_others_get_all(run: Live) -> None:
    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            slow = []
            for _ in range(3):
                reader, writer = await stack.enter_async_context(connected(run, window_bytes=4096))
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(completion(4000))
                slow.append((reader, writer))
            answers = await asyncio.gather(*(whole_answer(run) for _ in range(6)))
            assert all(map(is_whole, answers))
            await asyncio.to_thread(wait_for, lambda: quiet(run), "the slow readers' work to end")
            for reader, writer in slow:
                writer.transport.resume_reading()  # type: ignore[attr-defined]
                with pytest.raises(ConnectionError):
                    await reader.read()

    asyncio.run(test())
    assert run.log("proxy").count("reads too slowly") == 3


def test_a_flood_of_connections_disturbs_no_stream(run: Live) -> None:
    """More than `max_connections`, and more than there may be open files."""
    pid = proxy_pid(run)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    num_open = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208

    async def flood(number: int) -> None:
        streams = [asyncio.create_task(whole_answer(run)) for _ in range(3)]
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(number):
                _, writer = await stack.enter_async_context(connected(run))
                writer.write(b"GET /health HTTP/1.1\r\n")
            assert all(map(is_whole, await asyncio.gather(*streams)))

    asyncio.run(flood(150))
    assert "waiting connections closed for new ones" in run.log("proxy")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_open + 20, hard))
    try:
        asyncio.run(flood(100))
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    with run.client() as client:
        assert client.get("/v1/models").status_code == 200


def test_many_large_bodies_do_not_grow_the_proxy(run: Live) -> None:
    """Refused by their lengths, or where they pass the limit; nothing of them stays."""
    pid = proxy_pid(run)

    def rss_bytes() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1 << 20)

    before = rss_bytes()
    with run.client() as client:
        for body in (bytes(100_000_000), endless()):
            assert client.post("/v1/completions", content=body).status_code == 413
    deadline = time.monotonic() + 30.0
    while rss_bytes() - before > LIMITS.max_body_bytes:
        assert time.monotonic() < deadline, f"{(rss_bytes() - before) >> 20} MiB stay"
        time.sleep(0.1)
