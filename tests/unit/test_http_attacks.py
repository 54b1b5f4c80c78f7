"""Requests that two servers could read in two ways, and other things that are no request: refused, closed."""

from __future__ import annotations

import asyncio
import contextlib

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.http.exchange import Exchange
from proxy.http.request_reader import Bodies, Refused, RequestReader
from proxy.spec import Limits
from tests.unit.http_clients import Sink, admit_all, connected, echo, error, eventually, get, run, say, serving, status

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
    "chunked twice": HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "empty coding": HEAD + b"transfer-encoding: \r\ncontent-length: 3\r\n\r\nabc",
    "coding in quotes": HEAD + b'transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "vertical tab before coding": HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "unknown coding and length": HEAD + b"transfer-encoding: xchunked\r\ncontent-length: 3\r\n\r\nabc",
    "two lengths that differ": HEAD + b"content-length: 0\r\ncontent-length: 3\r\n\r\nabc",
    "length with space": HEAD + b"content-length: 1 2\r\n\r\nabc",
    "length with NUL": HEAD + b"content-length: 3\0\r\n\r\nabc",
    "length with point": HEAD + b"content-length: 3.0\r\n\r\nabc",
    "length with underscore": HEAD + b"content-length: 1_0\r\n\r\nabc",
    "folded length": HEAD + b"content-length:\r\n 3\r\n\r\nabc",
    "body of a GET": get(headers="content-length: 3\r\n") + b"abc",
    "chunks of a GET": get(headers="transfer-encoding: chunked\r\n") + b"0\r\n\r\n",
    "folded header": HEAD + b"a: b\r\n c\r\n\r\n",
    "folded coding": HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "space before colon": HEAD + b"content-length : 3\r\n\r\nabc",
    "space before first header": b"GET /x HTTP/1.1\r\n host: h\r\n\r\n",
    "tab before colon": HEAD + b"content-length\t: 3\r\n\r\nabc",
    "no colon": HEAD + b"content-length 3\r\n\r\n",
    "nameless header": HEAD + b": b\r\n\r\n",
    "bare line feed": b"GET /x HTTP/1.1\nhost: h\n\n",
    "bare line feed in header": b"GET /x HTTP/1.1\r\nhost: h\na: b\r\n\r\n",
    "bare carriage return": b"GET /x HTTP/1.1\r\nhost: h\ra: b\r\n\r\n",
    "carriage return before name": HEAD + b"\rcontent-length: 3\r\n\r\nabc",
    "two carriage returns": HEAD + b"a: b\r\r\n\r\n",
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
    "chunk size with underscore": CHUNKED + b"1_0\r\nabc\r\n0\r\n\r\n",
    "chunk size with NUL": CHUNKED + b"3\0\r\nabc\r\n0\r\n\r\n",
    "chunk size before space": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "chunk size with carriage return only": CHUNKED + b"3\rabc\r\n0\r\n\r\n",
    "negative chunk size": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "chunk that ends in line feed": CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "last chunk with line feed": CHUNKED + b"3\r\nabc\r\n0\r\n\n",
    "trailer with line feed": CHUNKED + b"0\r\na: b\n\r\n",
    "coding in trailer": CHUNKED + b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    "chunk extension with NUL": CHUNKED + b"3;a=\0\r\nabc\r\n0\r\n\r\n",
    "chunk extension with carriage return": CHUNKED + b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "chunk extension with line feed": CHUNKED + b"3;a\nabc\r\n0\r\n\r\n",
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "list of hosts": b"GET /x HTTP/1.1\r\nhost: a, b\r\n\r\n",
    "space in target": b"GET /x /y HTTP/1.1\r\nhost: h\r\n\r\n",
    "tabs in the first line": b"GET\t/x\tHTTP/1.1\r\nhost: h\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nhost: h\r\n\r\n",
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
    "HTTP/1.10": b"GET /x HTTP/1.10\r\nhost: h\r\n\r\n",
    "http/1.1": b"GET /x http/1.1\r\nhost: h\r\n\r\n",
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


Seen = tuple[bytes, bytes, bytes]  # method, target, body


def ours(data: bytes) -> list[Seen]:
    """What this server takes for requests."""
    sink = Sink()
    reader = RequestReader(sink, admit_all, Limits(), Bodies(Limits()))
    with contextlib.suppress(Refused):
        reader.feed(data)
    return [(x.method.encode(), x.path.encode(), x.body) for x in sink.exchanges]


def theirs(data: bytes) -> tuple[list[Seen], bool]:
    """What another server takes for requests, and whether it refuses the rest."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    seen: list[Seen] = []
    try:
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                seen.append((request.method, request.target, body))
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.DONE:
                    connection.start_next_cycle()
    except h11.RemoteProtocolError:
        return seen, True
    return seen, False


def request(method: bytes, headers: list[bytes], end: bytes, body: bytes) -> bytes:
    return method + b" /x HTTP/1.1\r\nhost: h\r\n" + b"".join(headers) + end + body


HEADERS = [
    *(b"content-length: %b\r\n" % length for length in (b"0", b"3", b"03", b"5", b"+3", b"3, 3", b"")),
    *(b"transfer-encoding: %b\r\n" % c for c in (b"chunked", b"Chunked", b"xchunked", b"identity", b"gzip, chunked")),
    b"content-length : 3\r\n",
    b"content-length: 3\n",
    b"a: b\r\n content-length: 3\r\n",
    b"transfer-encoding:\r\n chunked\r\n",
    b"a: b\rcontent-length: 3\r\n",
    b"x-content-length: 3\r\n",
    b"connection: close\r\n",
]
BODIES = [
    b"",
    b"abc",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"3;x=y\r\nabc\r\n0\r\na: b\r\n\r\n",
    b"03\r\nabc\r\n0\r\n\r\n",
]
REQUESTS = st.builds(
    request,
    st.sampled_from([b"GET", b"POST"]),
    st.lists(st.sampled_from(HEADERS), max_size=3),
    st.sampled_from([b"\r\n", b"\r\n", b"\n"]),
    st.sampled_from(BODIES),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=3).map(b"".join))
def test_another_server_reads_the_same_requests_or_refuses_them(data: bytes) -> None:
    taken, (others, refused) = ours(data), theirs(data)
    common = min(len(taken), len(others))
    assert taken[:common] == others[:common]
    assert refused or len(taken) <= len(others)


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
