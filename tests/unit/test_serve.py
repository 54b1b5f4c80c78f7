"""The HTTP server over real sockets: framing, order, limits, clients that leave or do not read."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket

import httpx
import openai
import pytest
import uvloop

from proxy.errors import NotFound, Response, Unauthorized, response
from proxy.http.exchange import Exchange
from proxy.http.http_connection import MAX_AHEAD_BYTES, MAX_PIPELINED
from proxy.http.serve import Server
from proxy.spec import Limits
from tests.unit.http_clients import (
    LAST,
    PATIENCE_S,
    Kept,
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


def stream_abc(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    for data in (b"a", b"", b"bc"):
        exchange.write(data)
    exchange.end()


def stream_abc_in_two_writes(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")], data=b"a")
    exchange.end(b"bc")


def answer_in_two_writes(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/plain")], length=3, data=b"a")
    exchange.end(b"bc")


# ---------------------------------------------------------------- framing


def test_a_whole_answer_has_its_length_and_keeps_the_connection() -> None:
    async def test() -> None:
        async with serving() as server:
            answer = await say(server, post(b"one") + post(b"", headers=LAST))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
        kept = head + b"content-length: 3\r\n\r\none"
        assert answer == kept + head + b"content-length: 0\r\nconnection: close\r\n\r\n"

    run(test)


def test_data_travels_with_the_head_and_with_the_end() -> None:
    async def test() -> None:
        async with serving(stream_abc_in_two_writes) as server:
            streamed = await say(server, post(b"one", headers=LAST))
        async with serving(answer_in_two_writes) as server:
            whole = await say(server, post(b"one", headers=LAST))
            mute = await say(server, get(headers=LAST).replace(b"GET", b"HEAD", 1))
        assert streamed.endswith(b"connection: close\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")
        assert whole.endswith(b"content-length: 3\r\nconnection: close\r\n\r\nabc")
        assert mute.endswith(b"content-length: 3\r\nconnection: close\r\n\r\n")

    run(test)


def test_a_stream_is_chunked_and_an_empty_piece_does_not_end_it() -> None:
    async def test() -> None:
        async with serving(stream_abc) as server:
            answer = await say(server, get(headers=LAST))
        assert b"\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n" in answer

    run(test)


def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    async def test() -> None:
        async with serving(stream_abc) as server:
            answer = await say(server, b"GET /x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        assert b"transfer-encoding" not in answer
        assert answer.endswith(b"connection: close\r\n\r\nabc")

    run(test)


@pytest.mark.parametrize("handler", [stream_abc, lambda exchange: exchange.respond(200, [], b"body")])
def test_head_has_the_headers_and_no_body(handler: object) -> None:
    async def test() -> None:
        async with serving(handler) as server:  # type: ignore[arg-type]
            request = get().replace(b"GET", b"HEAD") + get(headers=LAST).replace(b"GET", b"HEAD")
            answer = await say(server, request)
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.endswith(b"connection: close\r\n\r\n")
        assert (b"content-length: 4" in answer) or (b"transfer-encoding: chunked" in answer)

    run(test)


def test_a_body_without_content_has_no_framing() -> None:
    async def test() -> None:
        async with serving(lambda exchange: exchange.respond(204, [], b"")) as server:
            answer = await say(server, get(headers=LAST))
        assert answer == b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"

    run(test)


def test_an_answer_of_announced_length() -> None:
    def handler(exchange: Exchange) -> None:
        exchange.start(200, [], length=4)
        exchange.write(b"ab")
        exchange.write(b"cd")
        exchange.end()

    async def test() -> None:
        async with serving(handler) as server:
            answer = await say(server, get(headers=LAST))
        assert answer.endswith(b"content-length: 4\r\nconnection: close\r\n\r\nabcd")

    run(test)


def test_a_short_or_aborted_answer_never_looks_complete(caplog: pytest.LogCaptureFixture) -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.path == "/short":
            exchange.start(200, [], length=4)
            exchange.write(b"ab")
            exchange.end()
        else:
            exchange.start(200, [])
            exchange.write(b"ab")
            exchange.abort()
            exchange.write(b"more")
            exchange.end()

    async def test() -> None:
        async with serving(handler) as server, httpx.AsyncClient() as client:
            for path in ("/short", "/aborted"):
                with pytest.raises(httpx.TransportError):
                    await client.get(f"http://127.0.0.1:{server.port}{path}")
            with pytest.raises(ConnectionError):  # else the end of the connection would be the end of the answer
                await say(server, b"GET /aborted HTTP/1.0\r\n\r\n")

    run(test)
    assert "2 bytes short" in caplog.text


def test_a_request_arrives_whole_however_it_is_cut() -> None:
    seen: list[tuple[Exchange, bytes]] = []

    def handler(exchange: Exchange) -> None:
        seen.append((exchange, exchange.body))
        exchange.respond(200, [], b"")

    chunked = b"POST /a/b?q=1&r HTTP/1.1\r\nHost: h\r\nX-Two: 2\r\nTransfer-Encoding: chunked\r\n"
    chunked += b"Connection: close\r\n\r\n3;ext=1\r\nabc\r\n4\r\ndefg\r\n0\r\nAuthorization: late\r\n\r\n"

    async def test() -> None:
        async with serving(handler) as server:
            for size in (1, 7, len(chunked)):
                parts = [chunked[i : i + size] for i in range(0, len(chunked), size)]
                async with connected(server) as (reader, writer):
                    for part in parts:
                        writer.write(part)
                        await asyncio.sleep(0)
                    assert status(await reader.read()) == 200
        for exchange, body in seen:
            assert (exchange.method, exchange.path, exchange.query) == ("POST", "/a/b", b"q=1&r")
            assert body == b"abcdefg" and exchange.body == b""  # not kept once it is answered
            # No trailer is among them.
            assert list(exchange.headers) == [
                b"host",
                b"x-two",
                b"transfer-encoding",
                b"connection",
            ]

    run(test)


# ---------------------------------------------------------------- order


def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    kept = Kept()

    async def test() -> None:
        async with serving(kept) as server, connected(server) as (reader, writer):
            writer.write(get("/one") + post(b"2", "/two") + get("/three"))
            for number in (1, 2, 3):
                exchange = await kept.arrived(number)
                await asyncio.sleep(0.02)
                assert len(kept.exchanges) == number
                exchange.respond(200, [], exchange.path.encode())
                answer = await reader.readuntil(exchange.path.encode())
                assert status(answer) == 200

    run(test)


def test_pipelining_is_bounded_and_what_was_taken_is_answered() -> None:
    kept = Kept()

    async def test() -> None:
        async with serving(kept) as server, connected(server) as (reader, writer):
            writer.write(get() * (MAX_PIPELINED + 5))
            for number in range(1, MAX_PIPELINED + 1):
                (await kept.arrived(number)).respond(200, [], b"")
            answer = await reader.read()
        assert answer.count(b" 200 OK") == MAX_PIPELINED
        assert answer.count(b" 400 ") == 1 and b"pipelined" in answer

    run(test)


def test_reading_pauses_while_a_request_is_in_service() -> None:
    kept = Kept()
    body = bytes(8 << 20)

    async def test() -> None:
        async with serving(kept) as server, connected(server) as (reader, writer):
            writer.write(get("/1"))
            await kept.arrived()
            writer.write(post(body, "/2"))
            await asyncio.sleep(0.2)
            unsent = writer.transport.get_write_buffer_size()
            assert unsent > 0, f"the server read {len(body)} bytes ahead, its bound is {MAX_AHEAD_BYTES}"
            kept.exchanges[0].respond(200, [], b"")
            assert (await kept.arrived(2)).body == body
            kept.exchanges[1].respond(200, [], b"end")
            await reader.readuntil(b"end")

    run(test)


def test_100_continue_comes_before_the_body_and_never_inside_another_answer() -> None:
    kept = Kept()
    head = b"POST /2 HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"

    async def test() -> None:
        async with serving(kept) as server, connected(server) as (reader, writer):
            writer.write(get("/1") + head)
            first = await kept.arrived()
            first.start(200, [])
            first.write(b"x")
            await asyncio.sleep(0.02)
            first.end()
            answer = await reader.readuntil(b"100 Continue\r\n\r\n")
            assert answer.endswith(b"0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
            writer.write(b"abc")
            assert (await kept.arrived(2)).body == b"abc"

    run(test)


# ---------------------------------------------------------------- admission


def refuse(exchange: Exchange) -> Response | None:
    if exchange.path == "/closed":
        return response(Unauthorized("no key"))
    return response(NotFound("no route")) if exchange.path == "/nothing" else None


def test_a_refused_request_without_a_body_keeps_its_connection() -> None:
    async def test() -> None:
        async with serving(admit=refuse) as server:
            answer = await say(server, get("/nothing") + get("/x", LAST))
        assert answer.startswith(b"HTTP/1.1 404 ") and b"HTTP/1.1 200 OK" in answer

    run(test)


def test_a_refused_body_is_not_waited_for() -> None:
    async def test() -> None:
        async with serving(admit=refuse) as server:
            head = b"POST /closed HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 100000000\r\n\r\n"
            answer = await say(server, head)
        assert status(answer) == 401 and error(answer)["code"] == "invalid_api_key"
        assert b"www-authenticate: Bearer\r\n" in answer and b"connection: close\r\n" in answer

    run(test)


def test_a_body_over_the_limit_announced_or_growing() -> None:
    limits = Limits(max_body_bytes=1 << 20)
    big = bytes(2 << 20)

    async def test() -> None:
        async with serving(limits=limits) as server:
            assert status(await say(server, post(bytes(1 << 20), headers=LAST))) == 200
            chunk = b"%x\r\n%b\r\n" % (1 << 18, bytes(1 << 18))
            head = b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
            for request in (post(big), head + chunk * 5):
                answer = await say(server, request)
                assert status(answer) == 413 and error(answer)["code"] == "request_too_large"
            # A client that writes all of it before it reads still finds its answer.
            async with httpx.AsyncClient() as client:
                got = await client.post(f"http://127.0.0.1:{server.port}/x", content=big)
                assert got.status_code == 413

    run(test)


def test_an_endless_refused_body_is_cut() -> None:
    async def test() -> None:
        async with serving(limits=Limits(max_body_bytes=1 << 20)) as server, connected(server) as (_, writer):
            writer.write(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000000\r\n\r\n")
            with pytest.raises(ConnectionError):
                while True:
                    writer.write(bytes(1 << 16))
                    await writer.drain()

    run(test)


# ---------------------------------------------------------------- limits


def test_headers_over_the_limit_in_every_shape() -> None:
    many = "".join(f"x-{i}: {i}\r\n" for i in range(500))
    chunked = b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    flood = b"x" * 3000
    shapes = (
        (get(headers=many),),
        (get("/" + "p" * 5000),),
        (b"GET /x HTTP/1.1\r\nhost: h\r\nendless: ", flood, flood, flood),
        (chunked + b"1\r\na\r\n0\r\ntrailer: ", flood, flood, flood),
        (chunked + b"1;ext=", flood, flood, flood),
    )

    async def test() -> None:
        async with serving(limits=Limits(max_header_bytes=4096)) as server:
            for shape in shapes:
                answer = await say(server, *shape)
                assert status(answer) == 431 and error(answer)["code"] == "headers_too_large"

    run(test)


def test_slow_clients_lose_their_turn_by_one_clock() -> None:
    limits = Limits(header_timeout_s=0.3, body_timeout_s=0.3, idle_timeout_s=0.3)
    kept = Kept()

    async def drip(server: Server) -> bytes:
        """A header a byte at a time: each byte must not renew the deadline."""
        async with connected(server) as (reader, writer):
            answer = asyncio.ensure_future(reader.read())
            while not answer.done():
                writer.write(b"G" if writer.transport.get_write_buffer_size() else b"")
                writer.write(next(letters))
                await asyncio.sleep(0.05)
            return await answer

    letters = iter([bytes([c]) for c in b"GET /x HTTP/1.1\r\nhost: h\r\nx: " + b"y" * 10_000])

    async def test() -> None:
        async with serving(kept, limits) as server:
            in_service = asyncio.ensure_future(say(server, get("/slow", LAST)))
            silent, dripping, bodiless = await asyncio.gather(
                say(server),
                drip(server),
                say(server, b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nabc"),
            )
            assert silent == b""
            assert status(dripping) == 408 and status(bodiless) == 408
            assert error(bodiless)["code"] == "request_timeout"
            # The clock stands still while the proxy is the one to act.
            (await kept.arrived()).respond(200, [], b"")
            assert status(await in_service) == 200

    run(test)


def test_an_idle_connection_is_closed() -> None:
    async def test() -> None:
        async with serving(limits=Limits(idle_timeout_s=0.2)) as server:
            assert status(await say(server, get())) == 200

    run(test)


# ---------------------------------------------------------------- clients that leave or do not read


@pytest.mark.parametrize("leave", ["close", "half-close", "reset"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_is_noticed(leave: str, begun: bool) -> None:
    kept = Kept()

    async def test() -> None:
        async with serving(kept) as server, connected(server) as (_, writer):
            writer.write(get("/left"))
            exchange = await kept.arrived()
            if begun:
                exchange.start(200, [])
            if leave == "half-close":
                writer.write_eof()
            elif leave == "reset":
                writer.transport.abort()
            else:
                writer.close()
            await eventually(lambda: kept.gone == ["/left"])
            assert exchange.over
            exchange.write(b"nobody reads this")
            exchange.end()
            assert server.connections == 0

    run(test)


def test_a_finished_answer_is_not_gone() -> None:
    kept = Kept()

    async def test() -> None:
        async with serving(kept) as server:
            answer = asyncio.ensure_future(say(server, get(headers=LAST)))
            (await kept.arrived()).respond(200, [], b"")
            await answer
            await eventually(lambda: server.connections == 0)
            assert kept.gone == []

    run(test)


def test_a_slow_reader_is_cut_off_and_slows_nobody(caplog: pytest.LogCaptureFixture) -> None:
    limit, piece = 1 << 18, bytes(1 << 14)
    kept = Kept()

    async def pour(exchange: Exchange) -> int:
        """Write to one who does not read; the most that was held for it."""
        exchange.start(200, [])
        most = 0
        while not exchange.over:
            exchange.write(piece)
            exchange.write(piece)
            most = max(most, exchange._line.transport.get_write_buffer_size())
            await asyncio.sleep(0)
        exchange.write(piece)
        exchange.end()
        return most

    async def test() -> None:
        async with serving(kept, Limits(stream_buffer_bytes=limit)) as server, connected(server) as (_, writer):
            writer.transport.pause_reading()
            writer.write(get("/slow"))
            slow = await kept.arrived()
            other = asyncio.ensure_future(say(server, get("/quick", LAST)))
            quick = await kept.arrived(2)
            quick.start(200, [])
            most = await pour(slow)
            quick.write(b"still served")
            quick.end()
            assert b"still served" in await other
            assert most <= limit + 3 * len(piece)
            await eventually(lambda: kept.gone == ["/slow"])

    with caplog.at_level(logging.WARNING):
        run(test)
    lines = [record.getMessage() for record in caplog.records if "too slowly" in record.getMessage()]
    assert len(lines) == 1 and "/slow" in lines[0]


def test_one_large_piece_is_no_fault_of_the_reader() -> None:
    body = bytes(range(256)) * (1 << 16)  # 16 MiB

    def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(body)
        exchange.end()

    async def test() -> None:
        async with serving(handler, Limits(stream_buffer_bytes=1 << 16)) as server, httpx.AsyncClient() as client:
            for _ in range(2):
                got = await client.get(f"http://127.0.0.1:{server.port}/x")
                assert got.content == body

    run(test)


def test_the_next_answer_waits_until_the_last_one_is_read() -> None:
    body = bytes(16 << 20)
    served: list[str] = []

    def handler(exchange: Exchange) -> None:
        served.append(exchange.path)
        exchange.respond(200, [], body)

    async def test() -> None:
        async with (
            serving(handler, Limits(stream_buffer_bytes=1 << 16)) as server,
            connected(server) as (reader, writer),
        ):
            writer.transport.pause_reading()
            writer.write(get("/1") + get("/2", LAST))
            await eventually(lambda: served == ["/1"])
            await asyncio.sleep(0.1)
            assert served == ["/1"]
            writer.transport.resume_reading()
            assert (await reader.read()).count(bytes(1 << 20)) == 32
            assert served == ["/1", "/2"]

    run(test)


# ---------------------------------------------------------------- the end


def test_draining_answers_end_their_connections_and_close_waits_for_them() -> None:
    kept = Kept()

    async def test() -> None:
        async with serving(kept) as server, connected(server) as (idle, _), connected(server) as (reader, writer):
            writer.write(get())
            exchange = await kept.arrived()
            closing = asyncio.ensure_future(server.close(20.0))
            assert await idle.read() == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", server.port)
            assert not closing.done() and server.draining
            exchange.respond(200, [], b"last")
            assert b"connection: close" in await reader.read()
            await closing
            assert kept.gone == []

    run(test)


def test_close_cuts_what_outlives_its_grace() -> None:
    kept = Kept()

    async def test() -> None:
        async with serving(kept) as server, connected(server) as (_, writer):
            writer.write(get("/long"))
            await kept.arrived()
            await server.close(0.05)
            assert kept.gone == ["/long"] and server.connections == 0

    run(test)


def test_a_fault_in_the_handler_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.path == "/late":
            exchange.start(200, [])
        raise KeyError("ours")

    async def test() -> None:
        async with serving(handler) as server:
            answer = await say(server, get(headers=LAST))
            assert status(answer) == 500 and error(answer)["type"] == "server_error"
            with pytest.raises(ConnectionError):
                await say(server, get("/late"))

    run(test)
    assert caplog.text.count("KeyError: 'ours'") == 2


def test_one_that_is_retired_answers_who_was_connected_once_more() -> None:
    async def test() -> None:
        kept = Kept()
        async with serving(kept) as server, connected(server) as (idle, idle_writer), connected(server) as busy:
            busy[1].write(get("/busy"))
            exchange = await kept.arrived()
            retiring = asyncio.ensure_future(server.retire(PATIENCE_S))
            await asyncio.sleep(0)
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", server.port)
            idle_writer.write(get("/late"))
            (await kept.arrived(2)).respond(200, [], b"late")
            answer = await idle.read()
            assert b"connection: close" in answer and answer.endswith(b"late")
            assert not retiring.done()
            exchange.respond(200, [], b"done")
            assert (await busy[0].read()).endswith(b"done")
            await retiring
        assert kept.gone == []

    run(test)


# ---------------------------------------------------------------- real clients


def test_real_clients_read_streams_bodies_and_errors() -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.path == "/v1/completions":
            exchange.start(200, [(b"content-type", b"text/event-stream")])
            for text in ("a", "b"):
                exchange.write(b'data: {"id":"1","choices":[{"index":0,"text":"%b"}]}\n\n' % text.encode())
            exchange.write(b"data: [DONE]\n\n")
            exchange.end()
        else:
            exchange.respond(*response(NotFound("nothing here")))

    def talk(port: int) -> None:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client:
            for _ in range(2):  # the second one on the kept connection
                stream = client.completions.create(model="m", prompt="p", stream=True)
                assert [chunk.choices[0].text for chunk in stream] == ["a", "b"]
            with pytest.raises(openai.NotFoundError, match="nothing here"):
                client.models.list()
        plain = http.client.HTTPConnection("127.0.0.1", port)
        plain.request("GET", "/v1/nothing")
        assert plain.getresponse().status == 404
        plain.close()

    async def test() -> None:
        async with serving(handler) as server:
            await asyncio.to_thread(talk, server.port)

    run(test)


def test_the_plain_asyncio_loop_serves_too() -> None:
    async def test() -> None:
        async with serving(stream_abc) as server:
            assert (await say(server, get(headers=LAST))).endswith(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")

    asyncio.run(test())


def test_accepted_sockets_notice_a_node_that_vanished() -> None:
    """Set on the listening socket, inherited by the accepted ones."""
    kept = Kept()

    async def test() -> None:
        async with serving(kept) as server, connected(server) as (_, writer):
            writer.write(get())
            sock = (await kept.arrived())._line.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 0
            assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) <= 1 << 17
            kept.exchanges[0].respond(200, [], b"")

    uvloop.run(test())
