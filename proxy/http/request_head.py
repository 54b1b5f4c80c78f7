"""What a request's head means for the connection, as a pure function of what the parser has read.

Owns the rules that llhttp's strict mode leaves open: which versions and targets are taken, one Host,
one plain `chunked`, no upgrade. Two servers that read one request differently are how requests are
smuggled, so whatever could be read in two ways is refused. Decides nothing about routes or keys.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from proxy.errors import BadRequest

VERSIONS = ("1.0", "1.1")


class RequestHead(msgspec.Struct, frozen=True):
    path: str
    query: bytes
    has_body: bool
    content_length: int  # 0 where the body is chunked
    expects_continue: bool


def read_head(version: str, target: bytes, headers: Mapping[bytes, bytes], upgrade: bool) -> RequestHead:
    """Names are lower-case, the values of repeated ones joined by commas. Raises BadRequest."""
    if version not in VERSIONS:
        raise BadRequest(f"HTTP/{version} is not spoken here: use HTTP/1.1")
    if upgrade:
        raise BadRequest("this server does not upgrade or tunnel connections: send a plain HTTP/1.1 request")
    path, query = _split_target(target)
    host, coding = headers.get(b"host"), headers.get(b"transfer-encoding")
    _check_framing(version, host, coding)
    length = int(headers.get(b"content-length", 0))  # llhttp has checked it, and that there is only one
    has_body = coding is not None or length > 0
    expects = has_body and version == "1.1" and headers.get(b"expect", b"").lower() == b"100-continue"
    return RequestHead(path, query, has_body, length, expects)


def _split_target(target: bytes) -> tuple[str, bytes]:
    if not target.startswith(b"/"):
        raise BadRequest("the request target must be a path: this server is not a forward proxy")
    path, _, query = target.partition(b"?")
    if not target.isascii() or b"#" in target:
        raise BadRequest("the request target must be ASCII without a fragment: percent-encode it")
    return path.decode(), query


def _check_framing(version: str, host: bytes | None, coding: bytes | None) -> None:
    if host is None and version == "1.1":
        raise BadRequest("a request needs a Host header")
    if host is not None and b"," in host:
        raise BadRequest("a request needs exactly one Host header")
    if coding is not None and (version == "1.0" or coding.strip().lower() != b"chunked"):
        raise BadRequest("the only transfer coding taken is `chunked`, and only in HTTP/1.1")
