"""What a request's head means for the connection, as a pure function of what the parser has read.

Owns the rules that llhttp's strict mode leaves open: which versions and targets are taken, one Host,
one plain `chunked`, no upgrade. Two servers that read one request differently are how requests are
smuggled, so whatever could be read in two ways is refused. Decides nothing about routes or keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proxy.errors import BadRequest

VERSIONS = ("1.0", "1.1")


class RequestHead(NamedTuple):
    path: str
    query: bytes
    has_body: bool
    content_length: int  # 0 where the body is chunked
    expects_continue: bool


class _Framing(NamedTuple):
    hosts: int
    length: int
    coding: bytes | None
    expects_continue: bool


def read_head(version: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], upgrade: bool) -> RequestHead:
    """Names are lower-case. Raises BadRequest."""
    if version not in VERSIONS:
        raise BadRequest(f"HTTP/{version} is not spoken here: use HTTP/1.1")
    if upgrade:
        raise BadRequest("this server does not upgrade or tunnel connections: send a plain HTTP/1.1 request")
    path, query = _split_target(target)
    framing = _framing(headers)
    _check_framing(version, framing)
    has_body = framing.coding is not None or framing.length > 0
    expects = framing.expects_continue and has_body and version == "1.1"
    return RequestHead(path, query, has_body, framing.length, expects)


def _split_target(target: bytes) -> tuple[str, bytes]:
    if not target.startswith(b"/"):
        raise BadRequest("the request target must be a path: this server is not a forward proxy")
    path, _, query = target.partition(b"?")
    if not target.isascii() or b"#" in target:
        raise BadRequest("the request target must be ASCII without a fragment: percent-encode it")
    return path.decode(), query


def _framing(headers: Sequence[tuple[bytes, bytes]]) -> _Framing:
    hosts = length = 0
    coding = None
    expects = False
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            length = int(value)  # llhttp has checked it, and that there is only one
        elif name == b"transfer-encoding":
            coding = value
        elif name == b"expect":
            expects = value.lower() == b"100-continue"
    return _Framing(hosts, length, coding, expects)


def _check_framing(version: str, framing: _Framing) -> None:
    if framing.hosts > 1 or (framing.hosts == 0 and version == "1.1"):
        raise BadRequest(f"a request needs exactly one Host header, this one has {framing.hosts}")
    if framing.coding is not None and (version == "1.0" or framing.coding.strip().lower() != b"chunked"):
        raise BadRequest("the only transfer coding taken is `chunked`, and only in HTTP/1.1")
