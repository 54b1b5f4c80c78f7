"""Requests that two servers could read in two ways, and other things that are no request: refused, closed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.exchange import Exchange
from tests.unit.http_clients import connected, echo, error, eventually, get, run, say, serving, status

HEAD = b"POST /x HTTP/1.1\r\nhost: h\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"

ATTACKS = {
    "length and coding": HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": HEAD + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "list of lengths": HEAD + b"content-length: 3, 3\r\n\r\nabc",
    "signed length": HEAD + b"content-length: +3\r\n\r\nabc",
    "negative length": HEAD + b"content-length: -3\r\n\r\nabc",
    "hexadecimal length": HEAD + b"content-length: 0x3\r\n\r\nabc",
    "empty length": HEAD + b"content-length: \r\n\r\n",
    "length overflow": HEAD + b"content-length: 99999999999999999999\r\n\r\n",
    "length in trailer": CHUNKED + b"1\r\na\r\n0\r\ncontent-length: 5\r\n\r\n",
    "two codings": HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip, chunked": HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": HEAD + b"transfer-encoding: identity\r\n\r\n",
    "unknown coding": HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding with parameter": HEAD + b"transfer-encoding: chunked;a\r\n\r\n0\r\n\r\n",
    "coding in 1.0": b"POST /x HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "folded header": HEAD + b"a: b\r\n c\r\n\r\n",
    "folded coding": HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "space before colon": HEAD + b"content-length : 3\r\n\r\nabc",
    "space before first header": b"GET /x HTTP/1.1\r\n host: h\r\n\r\n",
    "nameless header": HEAD + b": b\r\n\r\n",
    "bare line feed": b"GET /x HTTP/1.1\nhost: h\n\n",
    "bare line feed in header": b"GET /x HTTP/1.1\r\nhost: h\na: b\r\n\r\n",
    "bare carriage return": b"GET /x HTTP/1.1\r\nhost: h\ra: b\r\n\r\n",
    "NUL in value": HEAD + b"a: b\0c\r\n\r\n",
    "NUL in name": HEAD + b"a\0: b\r\n\r\n",
    "control in value": HEAD + b"a: b\x01\r\n\r\n",
    "chunk size with sign": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "chunk size with prefix": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size with space": CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n",
    "empty chunk size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "chunk size overflow": CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk with bare line feed": CHUNKED + b"3\nabc\n0\n\n",
    "chunk extension with line feed": CHUNKED + b"3;a\nabc\r\n0\r\n\r\n",
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "absolute target": b"GET http://elsewhere/x HTTP/1.1\r\nhost: h\r\n\r\n",
    "asterisk target": b"OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n",
    "fragment": get("/x#y"),
    "raw bytes in target": b"GET /\xc3\xa4 HTTP/1.1\r\nhost: h\r\n\r\n",
    "raw bytes in query": b"GET /x?\xc3\xa4 HTTP/1.1\r\nhost: h\r\n\r\n",
    "NUL in target": b"GET /\0 HTTP/1.1\r\nhost: h\r\n\r\n",
    "unknown method": b"FOO /x HTTP/1.1\r\nhost: h\r\n\r\n",
    "small letters": b"get /x HTTP/1.1\r\nhost: h\r\n\r\n",
    "tunnel": b"CONNECT h:1 HTTP/1.1\r\nhost: h\r\n\r\n",
    "websocket": get(headers="connection: upgrade\r\nupgrade: websocket\r\n"),
    "h2c": get(headers="connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"),
    "HTTP/0.9": b"GET /x\r\n\r\n",
    "HTTP/2": b"GET /x HTTP/2.0\r\nhost: h\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET /x HTTP/1.2\r\nhost: h\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_what_could_be_read_in_two_ways_is_refused(attack: bytes) -> None:
    reached: list[Exchange] = []

    async def test() -> None:
        async with serving(reached.append) as server:
            # Were the connection kept, a request hidden behind the attack would be answered.
            answer = await say(server, attack + get("/hidden"))
        assert answer.count(b"\r\ncontent-length: ") == 1 and status(answer) == 400
        assert b"\r\nconnection: close\r\n" in answer
        assert error(answer)["type"] == "invalid_request_error"
        assert reached == []

    run(test)


def test_garbage_behind_a_good_request_is_refused_in_its_turn() -> None:
    async def test() -> None:
        async with serving() as server:
            answer = await say(server, get() + b"\x00garbage")
        assert answer.startswith(b"HTTP/1.1 200 OK") and answer.count(b"HTTP/1.1 400 ") == 1

    run(test)


def test_nothing_is_read_behind_the_last_request() -> None:
    seen: list[str] = []

    def handler(exchange: Exchange) -> None:
        seen.append(exchange.path)
        echo(exchange)

    async def test() -> None:
        async with serving(handler) as server:
            answer = await say(server, get("/1", "connection: close\r\n") + get("/2"))
        assert answer.count(b"HTTP/1.1 ") == 1 and seen == ["/1"]

    run(test)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=64), st.sampled_from([HEAD, CHUNKED, get(), b"\r\n\r\n"])), max_size=6))
def test_no_bytes_break_the_server(parts: list[bytes]) -> None:
    async def test() -> None:
        async with serving() as server:
            async with connected(server) as (reader, writer):
                for part in parts:
                    writer.write(part)
                    await asyncio.sleep(0)
                writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            await eventually(lambda: server.connections == 0)
            assert status(await say(server, get(headers="connection: close\r\n"))) == 200

    run(test)
