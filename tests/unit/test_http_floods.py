"""Many clients at once, and slow or greedy ones: what they may take from others, which is nothing.

Limits are scaled down so that each is reached at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import trustme

from proxy.http.exchange import Exchange
from proxy.http.http_connection import MAX_PIPELINED
from proxy.http.request_reader import MAX_HEADERS, Bodies, Refused, RequestReader
from proxy.http.serve import Server
from proxy.spec import Limits
from tests.unit.http_clients import (
    LAST,
    Kept,
    Sink,
    admit_all,
    connected,
    error,
    eventually,
    get,
    post,
    run,
    say,
    serving,
    status,
)

CHUNKED = b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"


def held_bytes(server: Server) -> int:
    return server._running.bodies.held_bytes


# ---------------------------------------------------------------- connections


@contextlib.asynccontextmanager
async def opened(server: Server, number: int, *first: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Many connections that say the same and then nothing more."""
    async with contextlib.AsyncExitStack() as stack:
        readers = []
        for _ in range(number):
            reader, writer = await stack.enter_async_context(connected(server))
            for part in first:
                writer.write(part)
            readers.append(reader)
        yield readers


@pytest.mark.parametrize("first", [b"", b"GET /x HTTP/1.1\r\nhost: h\r\nx: ", b"\0", get()])
def test_a_flood_of_connections_that_ask_nothing_keeps_nobody_out(
    first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept, limits = Kept(), Limits(max_connections=8)

    def handler(exchange: Exchange) -> None:
        if exchange.path == "/stream":
            kept(exchange)
        else:
            exchange.respond(200, [], b"")

    async def test() -> None:
        async with serving(handler, limits) as server, connected(server) as (reader, writer):
            writer.write(get("/stream"))
            stream = await kept.arrived()
            stream.start(200, [])
            async with opened(server, 50, first):
                assert status(await say(server, get(headers=LAST))) == 200
                await eventually(lambda: 0 < server.connections <= limits.max_connections)
                stream.write(b"undisturbed")
                await reader.readuntil(b"undisturbed")
                await eventually(lambda: "closed for new ones" in caplog.text)

    with caplog.at_level(logging.WARNING):
        run(test)
    assert kept.gone == ["/stream"]


def test_requests_in_service_and_bodies_on_their_way_are_not_given_up_for_new_connections() -> None:
    kept, limits = Kept(), Limits(max_connections=2)

    async def test() -> None:
        async with serving(kept, limits) as server:
            async with connected(server) as (served, asking), connected(server) as (_, sending):
                asking.write(get("/asked"))
                sending.write(post(b"abc", "/sent")[:-1])
                await kept.arrived()
                await eventually(lambda: held_bytes(server) == 2)
                for _ in range(5):
                    answer = await say(server)
                    assert status(answer) == 503 and error(answer)["code"] == "too_many_connections"
                    assert b"retry-after: 1\r\n" in answer
                assert server.connections == 2
                sending.write(b"c")
                assert (await kept.arrived(2)).body == b"abc"
                for exchange in kept.exchanges:
                    exchange.respond(200, [], b"done")
                await served.readuntil(b"done")
            await eventually(lambda: server.connections == 0)
            assert kept.gone == []

    run(test)


def test_whoever_has_waited_longest_goes_first() -> None:
    async def test() -> None:
        async with (
            serving(limits=Limits(max_connections=2)) as server,
            connected(server) as (first, talking),
            connected(server) as (second, _),
        ):
            await eventually(lambda: server.connections == 2)
            talking.write(get())
            await first.readuntil(b"content-length: 0\r\n\r\n")
            async with connected(server):
                assert await second.read() == b""
                talking.write(get(headers=LAST))
                assert status(await first.read()) == 200

    run(test)


# ---------------------------------------------------------------- slow senders


def test_a_body_a_byte_at_a_time_does_not_buy_time() -> None:
    async def test() -> None:
        async with serving(limits=Limits(body_timeout_s=0.3)) as server, connected(server) as (reader, writer):
            writer.write(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\n")
            answer = asyncio.ensure_future(reader.read())
            while not answer.done():
                writer.write(b"a")
                await asyncio.sleep(0.01)
            assert status(await answer) == 408
            assert held_bytes(server) == 0

    run(test)


@pytest.mark.parametrize("begun", [b"", b"GET /x HT", b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nabc"])
def test_a_client_that_half_closes_before_it_has_asked_is_gone(begun: bytes) -> None:
    kept = Kept()

    async def test() -> None:
        async with serving(kept) as server, connected(server) as (reader, writer):
            writer.write(begun)
            writer.write_eof()
            assert await reader.read() == b""
            await eventually(lambda: server.connections == 0)
            assert held_bytes(server) == 0 and kept.exchanges == []

    run(test)


# ---------------------------------------------------------------- large bodies


def test_a_hundred_megabytes_are_refused_before_they_are_read() -> None:
    kept = Kept()
    head = b"POST /x HTTP/1.1\r\nhost: h\r\n%bcontent-length: 100000000\r\n\r\n"

    async def test() -> None:
        async with serving(kept) as server:
            for expect in (b"", b"expect: 100-continue\r\n"):
                answer = await say(server, head % expect)
                assert status(answer) == 413 and error(answer)["code"] == "request_too_large"
            async with httpx.AsyncClient() as client:
                got = await client.post(f"http://127.0.0.1:{server.port}/x", content=bytes(100_000_000))
            assert got.status_code == 413
        assert kept.exchanges == []

    run(test)


def test_an_endless_body_is_refused_where_it_passes_the_limit() -> None:
    limits = Limits(max_body_bytes=1 << 20)
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while num_sent < 100:
            num_sent += 1
            yield bytes(1 << 16)

    async def test() -> None:
        async with serving(limits=limits) as server, httpx.AsyncClient() as client:
            got = await client.post(f"http://127.0.0.1:{server.port}/x", content=endless())
            assert got.status_code == 413 and held_bytes(server) == 0

    run(test)
    assert num_sent > 16


def test_many_bodies_at_once_are_bounded_together() -> None:
    size, num_clients = 1 << 20, 12
    limits = Limits(max_body_bytes=size, max_total_body_bytes=4 * size)
    kept = Kept()
    head = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size

    async def test() -> None:
        async with serving(kept, limits) as server:
            last = asyncio.Event()
            clients = [asyncio.ensure_future(talk(server, head, size, last)) for _ in range(num_clients)]
            await eventually(lambda: sum(client.done() for client in clients) == num_clients - 4)
            assert 3 * size < held_bytes(server) <= 4 * size
            last.set()
            await kept.arrived(4)
            assert held_bytes(server) == 4 * size
            # Nobody's body is begun while there is no room for it.
            refused = await say(server, head)
            assert status(refused) == 503 and error(refused)["code"] == "too_many_bytes"
            for exchange in kept.exchanges:
                exchange.respond(200, [], b"ok")
            assert held_bytes(server) == 0
            answers = [status(await client) for client in clients]
            assert sorted(answers) == [200] * 4 + [503] * (num_clients - 4)

    async def talk(server: Server, head: bytes, size: int, last: asyncio.Event) -> bytes:
        async with connected(server) as (reader, writer):
            with contextlib.suppress(ConnectionError):
                writer.write(head + bytes(size - 1))
                await writer.drain()
            answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
            done, _ = await asyncio.wait({answer, asyncio.ensure_future(last.wait())}, return_when="FIRST_COMPLETED")
            if answer not in done:
                writer.write(b"\0")
            return await answer

    run(test)


def test_bodies_are_given_back_however_they_end() -> None:
    kept = Kept()
    limits = Limits(max_body_bytes=100, body_timeout_s=0.2)

    async def test() -> None:
        async with serving(kept, limits) as server:
            assert status(await say(server, post(bytes(60))[:-1])) == 408
            assert status(await say(server, CHUNKED, *[b"28\r\n" + bytes(40) + b"\r\n"] * 3)) == 413
            assert status(await say(server, CHUNKED, b"28\r\n" + bytes(40) + b"\r\n", b"oops")) == 400
            assert held_bytes(server) == 0
            async with connected(server) as (_, writer):
                writer.write(post(bytes(50), "/left") + post(bytes(40), "/queued") + post(bytes(30))[:-1])
                await kept.arrived()
                await eventually(lambda: held_bytes(server) == 119)
            await eventually(lambda: held_bytes(server) == 0)
            assert kept.gone == ["/left"]

    run(test)


# ---------------------------------------------------------------- what a request takes in memory


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def new_reader(sink: Sink, limits: Limits) -> RequestReader:
    return RequestReader(sink, admit_all, limits, Bodies(limits))


@pytest.mark.usefixtures("traced")
def test_a_body_of_tiny_chunks_takes_no_more_memory_than_one_of_large_ones() -> None:
    sink, size = Sink(), 1 << 18
    reader = new_reader(sink, Limits())
    reader.feed(CHUNKED)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(size // 512):
        reader.feed(b"2\r\nab\r\n" * 256)
    reader.feed(b"0\r\n\r\n")
    assert [exchange.body for exchange in sink.exchanges] == [b"ab" * (size // 2)]
    assert tracemalloc.get_traced_memory()[1] - before < 4 * size


@pytest.mark.usefixtures("traced")
def test_tiny_headers_are_counted() -> None:
    reader = new_reader(Sink(), Limits())
    reader.feed(b"GET / HTTP/1.1\r\n")
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(Refused) as refused:
        for number in range(10_000):
            reader.feed(b"%x:\r\n" % number)
    assert number <= MAX_HEADERS + 1
    assert refused.value.answer[0] == 431
    assert tracemalloc.get_traced_memory()[0] - before < 64 << 10


def test_trailers_are_counted_with_the_headers() -> None:
    reader = new_reader(Sink(), Limits())
    reader.feed(CHUNKED + b"0\r\n")
    with pytest.raises(Refused) as refused:
        reader.feed(b"".join(b"%x: \r\n" % number for number in range(MAX_HEADERS)) + b"\r\n")
    assert refused.value.answer[0] == 431


def test_a_flood_of_pipelined_bodies_is_answered_in_turn_and_then_refused() -> None:
    kept = Kept()

    def handler(exchange: Exchange) -> None:
        if exchange.path == "/first":
            kept(exchange)
        else:
            exchange.respond(200, [], b"")

    async def pour(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(post(bytes(1000)) * 100)
                await writer.drain()

    async def test() -> None:
        async with serving(handler) as server, connected(server) as (reader, writer):
            writer.write(get("/first"))
            first = await kept.arrived()
            flood = asyncio.ensure_future(pour(writer))
            await asyncio.sleep(0.1)
            assert held_bytes(server) == MAX_PIPELINED * 1000
            assert writer.transport.get_write_buffer_size() > 0, "it reads on while a request is in service"
            first.respond(200, [], b"")
            for _ in range(1 + MAX_PIPELINED):
                assert status(await reader.readuntil(b"\r\n\r\n")) == 200
            assert status(await reader.readuntil(b"\r\n\r\n")) == 400
            assert held_bytes(server) == 0
            flood.cancel()

    run(test)


# ---------------------------------------------------------------- slow readers


def test_slow_readers_among_many_are_cut_off_and_the_others_get_all() -> None:
    kept = Kept()
    num_clients, num_slow, piece, num_pieces = 24, 4, bytes(4096), 400
    limits = Limits(stream_buffer_bytes=1 << 17)

    async def test() -> None:
        async with serving(kept, limits) as server, contextlib.AsyncExitStack() as stack:
            answers = []
            for number in range(num_clients):
                reader, writer = await stack.enter_async_context(connected(server))
                writer.write(get(f"/{number}", LAST))
                if number < num_slow:
                    writer.transport.pause_reading()
                else:
                    answers.append(asyncio.ensure_future(reader.read()))
            await kept.arrived(num_clients)
            for exchange in kept.exchanges:
                exchange.start(200, [])
            for _ in range(num_pieces):
                for exchange in kept.exchanges:
                    exchange.write(piece)
                await asyncio.sleep(0)
            for exchange in kept.exchanges:
                exchange.end()
            for answer in await asyncio.gather(*answers):
                assert answer.endswith(b"\r\n0\r\n\r\n") and answer.count(piece) == num_pieces
            await eventually(lambda: len(kept.gone) == num_slow)
            assert sorted(kept.gone) == [f"/{number}" for number in range(num_slow)]

    run(test)


def test_what_all_slow_readers_leave_unread_is_bounded_the_slowest_go_first() -> None:
    kept = Kept()
    limits = Limits(stream_buffer_bytes=1 << 20, max_total_unsent_bytes=1 << 20)

    async def test() -> None:
        async with serving(kept, limits) as server, contextlib.AsyncExitStack() as stack:
            for number in range(4):
                _, writer = await stack.enter_async_context(connected(server))
                writer.transport.pause_reading()
                writer.write(get(f"/{number}"))
                (await kept.arrived(number + 1)).start(200, [])
            for number, exchange in enumerate(kept.exchanges):
                while exchange._line.transport.get_write_buffer_size() < (number + 1) << 17:
                    exchange.write(bytes(1 << 14))
            # 128, 256, 384 and 512 KiB: without the last one the rest is below the limit.
            await eventually(lambda: bool(kept.gone))
            await asyncio.sleep(0.05)
            assert kept.gone == ["/3"]

    run(test)


# ---------------------------------------------------------------- TLS


def test_a_handshake_that_never_ends_is_cut_and_holds_up_nobody() -> None:
    authority = trustme.CA()
    context, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(trusted)

    async def test() -> None:
        async with (
            serving(limits=Limits(header_timeout_s=0.4), ssl=context) as server,
            opened(server, 20) as silent,
            opened(server, 20, b"\x16\x03\x01\x02\x00\x01") as begun,
        ):
            client = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusted, server_hostname="localhost")
            reader, writer = client
            writer.write(get(headers=LAST))
            assert status(await reader.read()) == 200
            writer.close()
            assert [await reader.read() for reader in silent + begun] == [b""] * 40
            assert b"HTTP/1.1" not in await say(server, get())

    run(test)
