"""The allow-lists: what is reachable, what never is, and which headers travel."""

from __future__ import annotations

import pytest

from proxy.errors import BadRequest, MethodNotAllowed, NotFound
from proxy.routes import ROUTES, Access, check_headers, find, to_client, to_engine, worker_name

ENGINE = {
    "/v1/chat/completions": True,
    "/v1/completions": True,
    "/v1/responses": False,
    "/v1/messages": False,
    "/v1/messages/count_tokens": False,
    "/v1/embeddings": False,
    "/tokenize": False,
    "/detokenize": False,
    "/pooling": False,
    "/classify": False,
    "/score": False,
    "/v1/score": False,
    "/rerank": False,
    "/v1/rerank": False,
    "/v2/rerank": False,
}
OWN = {
    "/v1/models": Access.USER,
    "/": Access.FREE,
    "/health": Access.FREE,
    "/ready": Access.FREE,
    "/fleet": Access.READER,
    "/overview": Access.READER,
    "/metrics": Access.READER,
    "/metrics/targets": Access.READER,
}


BATCHES = {
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{id}"),
    ("DELETE", "/v1/files/{id}"),
    ("GET", "/v1/files/{id}/content"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches"),
    ("GET", "/v1/batches/{id}"),
    ("POST", "/v1/batches/{id}/cancel"),
}


def test_these_routes_and_no_others() -> None:
    assert {route.path for route in ROUTES} == set(ENGINE) | set(OWN) | {path for _, path in BATCHES}
    assert len(ROUTES) == len(ENGINE) + len(OWN) + len(BATCHES)


@pytest.mark.parametrize(("method", "path"), sorted(BATCHES))
def test_a_route_of_the_batches_process(method: str, path: str) -> None:
    route = find(method, path.replace("{id}", "file-1_a"))
    assert (route.path, route.forwarded, route.access) == (path, True, Access.USER)
    with pytest.raises(MethodNotAllowed):
        find("PATCH", path.replace("{id}", "x"))


@pytest.mark.parametrize(("path", "split"), ENGINE.items())
def test_an_inference_route(path: str, split: bool) -> None:
    route = find("POST", path)
    assert (route.inference, route.split, route.access) == (True, split, Access.USER)
    with pytest.raises(MethodNotAllowed, match="takes POST, not GET"):
        find("GET", path)


@pytest.mark.parametrize(("path", "access"), OWN.items())
def test_a_route_of_our_own(path: str, access: Access) -> None:
    route = find("GET", path)
    assert (route.inference, route.access) == (False, access)
    assert find("HEAD", path) is route
    with pytest.raises(MethodNotAllowed) as caught:
        find("POST", path)
    assert caught.value.headers == ((b"allow", b"GET, HEAD"),)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/",
        "/v1/files/{id}",
        "/v1/files/a/b",
        "/v1/files/../keys",
        "/v1/files/a%2Fb",
        "/v1/files/a/content/",
        "/v1/batches/a/content",
        "/v1/batches/" + "a" * 65,
        "/index.html",
        "/page",
        "/v1",
        "/v1/completions/",
        "//v1/completions",
        "/V1/completions",
        "/v1/%63ompletions",
        "/v1/../v1/completions",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/realtime",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/invocations",
        "/inference/v1/generate",
        "/abort_requests",
        "/collective_rpc",
        "/sleep",
        "/wake_up",
        "/reset_prefix_cache",
        "/server_info",
        "/pause",
        "/update_weights",
        "/scale_elastic_ep",
        "/start_profile",
        "/kv_event_sources",
        "/docs",
        "/openapi.json",
        "/workers//metrics",
        "/workers/a/b/metrics",
        "/workers/../metrics",
        "/workers/a/metrics/",
        "/workers/a",
        "/workers/a\n/metrics",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_everything_else_does_not_exist(method: str, path: str) -> None:
    with pytest.raises(NotFound):
        find(method, path)


def test_a_worker_s_metrics() -> None:
    route = find("GET", "/workers/decode-0/metrics")
    assert route.access is Access.READER and not route.inference
    assert worker_name("/workers/decode-0/metrics") == "decode-0"
    assert worker_name("/metrics") is None


def test_only_listed_headers_travel() -> None:
    sent = {
        b"host": b"h",
        b"content-type": b"application/json",
        b"accept": b"*/*",
        b"authorization": b"Bearer secret",
        b"x-request-id": b"mine",
        b"x-forwarded-for": b"1.2.3.4",
        b"transfer-encoding": b"chunked",
        b"x-vllm-priority": b"-1",
    }
    assert to_engine(sent) == ((b"content-type", b"application/json"), (b"accept", b"*/*"))
    answered = {
        b"content-type": b"text/event-stream",
        b"connection": b"keep-alive",
        b"content-length": b"5",
        b"server": b"uvicorn",
    }
    assert to_client(answered) == [(b"content-type", b"text/event-stream")]


@pytest.mark.parametrize("name", [b"x-vllm-priority", b"x-data-parallel-rank", b"x-session-id", b"content-encoding"])
def test_headers_that_cannot_be_obeyed_are_refused(name: bytes) -> None:
    with pytest.raises(BadRequest, match=r"not accepted here: (remove it|send the body as it is, .*)$"):
        check_headers({b"host": b"h", name: b"1"})
    check_headers({b"host": b"h", b"x-request-id": b"mine"})
