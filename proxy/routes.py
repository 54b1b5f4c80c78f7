"""What is reachable through the proxy: an exact allow-list of (method, path) and of headers, both ways.

Owns the lists and nothing else. Everything that is not named here does not exist for a client: the
engine's administrative, development and stateful routes stay unreachable. A new route is one line
and one test. Paths are compared as sent, without decoding, so there is one spelling of each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum

import msgspec

from proxy.errors import BadRequest, MethodNotAllowed, NotFound


class Access(Enum):
    """Who may use a route."""

    FREE = "free"
    READER = "reader"  # and users
    USER = "user"


class Route(msgspec.Struct, frozen=True):
    """`split`: may run as a prefill and a decode leg; every other inference route runs whole."""

    method: str
    path: str
    access: Access = Access.USER
    inference: bool = False
    split: bool = False


def _engine(path: str, *, split: bool = False) -> Route:
    return Route("POST", path, inference=True, split=split)


WORKER_METRICS = Route("GET", "/workers/{name}/metrics", Access.READER)

ROUTES = (
    _engine("/v1/chat/completions", split=True),
    _engine("/v1/completions", split=True),
    _engine("/v1/responses"),  # stateless use only: the body's rules refuse the rest
    _engine("/v1/messages"),
    _engine("/v1/messages/count_tokens"),
    _engine("/v1/embeddings"),
    _engine("/tokenize"),
    _engine("/detokenize"),
    _engine("/pooling"),
    _engine("/classify"),
    _engine("/score"),
    _engine("/v1/score"),
    _engine("/rerank"),
    _engine("/v1/rerank"),
    _engine("/v2/rerank"),
    Route("GET", "/v1/models"),
    Route("GET", "/", Access.FREE),
    Route("GET", "/health", Access.FREE),
    Route("GET", "/ready", Access.FREE),
    Route("GET", "/fleet", Access.READER),
    Route("GET", "/overview", Access.READER),
    Route("GET", "/metrics", Access.READER),
    Route("GET", "/metrics/targets", Access.READER),
)

_BY_PATH: dict[str, Route] = {route.path: route for route in ROUTES}
_WORKER_METRICS_PATH = re.compile(r"/workers/([A-Za-z0-9][A-Za-z0-9_.-]*)/metrics")

# The engine obeys headers of its own: none but these reach it. The request id is ours.
_FORWARDED_REQUEST_HEADERS = (b"content-type", b"accept")
_FORWARDED_RESPONSE_HEADERS = frozenset({b"content-type", b"cache-control"})
# Would choose a priority, a rank or a session on the engine: refused rather than dropped in silence.
_FORBIDDEN_REQUEST_HEADERS = frozenset({b"x-vllm-priority", b"x-data-parallel-rank", b"x-session-id"})

HeaderList = Iterable[tuple[bytes, bytes]]


def find(method: str, path: str) -> Route:
    """HEAD is GET without a body. Raises NotFound or MethodNotAllowed."""
    route = _BY_PATH.get(path) or (WORKER_METRICS if worker_name(path) else None)
    if route is None:
        raise NotFound(f"unknown route {path}; see GET /v1/models for what is served")
    if method != route.method and (method, route.method) != ("HEAD", "GET"):
        allow = "GET, HEAD" if route.method == "GET" else route.method
        raise MethodNotAllowed(f"{path} takes {allow}, not {method}", allow=allow)
    return route


def worker_name(path: str) -> str | None:
    """The NAME of /workers/NAME/metrics."""
    match = _WORKER_METRICS_PATH.fullmatch(path)
    return match[1] if match else None


def check_headers(headers: Mapping[bytes, bytes]) -> None:
    """Raises BadRequest for a header by which a client would steer the engine."""
    for name in _FORBIDDEN_REQUEST_HEADERS & headers.keys():
        raise BadRequest(f"the header {name.decode()} is not accepted here: remove it", param=name.decode())


def to_engine(headers: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The client's headers that travel with the request; names are lower-case."""
    return tuple([(name, headers[name]) for name in _FORWARDED_REQUEST_HEADERS if name in headers])


def to_client(headers: HeaderList) -> tuple[tuple[bytes, bytes], ...]:
    """The engine's headers that travel with the answer; framing is the connection's own."""
    return tuple(header for header in headers if header[0].lower() in _FORWARDED_RESPONSE_HEADERS)
