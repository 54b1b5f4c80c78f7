"""What is reachable through the proxy: an exact allow-list of (method, path) and of headers, both ways.

Owns the lists and nothing else. Everything that is not named here does not exist for a client: the
engine's administrative, development and stateful routes stay unreachable. A new route is one line
and one test. Paths are compared as sent, without decoding, so there is one spelling of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

import msgspec

from proxy.errors import BadRequest, MethodNotAllowed, NotFound


class Access(Enum):
    """Who may use a route."""

    FREE = "free"
    READER = "reader"  # and users
    USER = "user"


class Route(msgspec.Struct, frozen=True):
    """`split`: may run as a prefill and a decode leg; every other inference route runs whole. `forwarded`: answered by
    the batches' process. `generates`: what an engine must do that answers it, None: either. {id} and {name} stand for
    a name in a path."""

    method: str
    path: str
    access: Access = Access.USER
    inference: bool = False
    split: bool = False
    forwarded: bool = False
    generates: bool | None = None


def _batch(method: str, path: str) -> Route:
    return Route(method, path, forwarded=True)


def _engine(path: str, *, split: bool = False, generates: bool | None = True) -> Route:
    return Route("POST", path, inference=True, split=split, generates=generates)


def _pooling(path: str) -> Route:
    return _engine(path, generates=False)


WORKER_METRICS = Route("GET", "/workers/{name}/metrics", Access.READER)

ROUTES = (
    _engine("/v1/chat/completions", split=True),
    _engine("/v1/completions", split=True),
    _engine("/v1/responses"),  # stateless use only: the body's rules refuse the rest
    _engine("/v1/messages"),
    _engine("/v1/messages/count_tokens"),
    _pooling("/v1/embeddings"),
    _engine("/tokenize", generates=None),
    _engine("/detokenize", generates=None),
    _pooling("/pooling"),
    _pooling("/classify"),
    _pooling("/score"),
    _pooling("/v1/score"),
    _pooling("/rerank"),
    _pooling("/v1/rerank"),
    _pooling("/v2/rerank"),
    _batch("POST", "/v1/files"),
    _batch("GET", "/v1/files"),
    _batch("GET", "/v1/files/{id}"),
    _batch("DELETE", "/v1/files/{id}"),
    _batch("GET", "/v1/files/{id}/content"),
    _batch("POST", "/v1/batches"),
    _batch("GET", "/v1/batches"),
    _batch("GET", "/v1/batches/{id}"),
    _batch("POST", "/v1/batches/{id}/cancel"),
    Route("GET", "/v1/models"),
    Route("GET", "/", Access.FREE),
    Route("GET", "/health", Access.FREE),
    Route("GET", "/ready", Access.FREE),
    Route("GET", "/fleet", Access.READER),
    Route("GET", "/overview", Access.READER),
    Route("GET", "/metrics", Access.READER),
    Route("GET", "/metrics/targets", Access.READER),
)

_BY_PATH: dict[str, list[Route]] = {}
for _route in ROUTES:
    _BY_PATH.setdefault(_route.path, []).append(_route)
_OF_AN_ID = re.compile(r"(/v1/(?:files|batches)/)[A-Za-z0-9_-]{1,64}(/[a-z]+)?")
_WORKER_METRICS_PATH = re.compile(r"/workers/([A-Za-z0-9][A-Za-z0-9_.-]*)/metrics")

# The engine obeys headers of its own: none but these reach it. The request id is ours.
_FORWARDED_REQUEST_HEADERS = (b"content-type", b"accept")
_FORWARDED_RESPONSE_HEADERS = (b"content-type", b"cache-control")
# Would choose a priority, a rank or a session on the engine, or is of a body that nobody here unpacks: refused rather
# than dropped in silence.
_FORBIDDEN_REQUEST_HEADERS = {
    b"x-vllm-priority": "remove it",
    b"x-data-parallel-rank": "remove it",
    b"x-session-id": "remove it",
    b"content-encoding": "send the body as it is, and not this header",
}


def find(method: str, path: str) -> Route:
    """HEAD is GET without a body. Raises NotFound or MethodNotAllowed."""
    there = _of_a_name(path) if "{" in path or path not in _BY_PATH else _BY_PATH[path]
    if not there:
        raise NotFound(f"unknown route {path}; see GET /v1/models for what is served")
    for route in there:
        if method == route.method or (method, route.method) == ("HEAD", "GET"):
            return route
    allow = ", ".join("GET, HEAD" if route.method == "GET" else route.method for route in there)
    raise MethodNotAllowed(f"{path} takes {allow}, not {method}", allow=allow)


def _of_a_name(path: str) -> list[Route]:
    if worker_name(path):
        return [WORKER_METRICS]
    match = _OF_AN_ID.fullmatch(path)
    return _BY_PATH.get(f"{match[1]}{{id}}{match[2] or ''}", []) if match else []


def worker_name(path: str) -> str | None:
    """The NAME of /workers/NAME/metrics."""
    match = _WORKER_METRICS_PATH.fullmatch(path)
    return match[1] if match else None


def check_headers(headers: Mapping[bytes, bytes]) -> None:
    """Raises BadRequest for a header that cannot be obeyed."""
    for name in _FORBIDDEN_REQUEST_HEADERS.keys() & headers.keys():
        advice = _FORBIDDEN_REQUEST_HEADERS[name]
        raise BadRequest(f"the header {name.decode()} is not accepted here: {advice}", param=name.decode())


def to_engine(headers: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The client's headers that travel with the request; names are lower-case."""
    return tuple([(name, headers[name]) for name in _FORWARDED_REQUEST_HEADERS if name in headers])


def to_client(headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """The engine's headers that travel with the answer; names are lower-case. Framing is the connection's own."""
    return [(name, headers[name]) for name in _FORWARDED_RESPONSE_HEADERS if name in headers]
