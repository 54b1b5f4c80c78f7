"""Every error of the proxy's own: status, OpenAI's shape, the headers that go with it."""

from __future__ import annotations

import msgspec
import pytest

from proxy import errors
from proxy.errors import ApiError, response, sse_event

CASES = [
    (errors.BadRequest("m", param="p"), 400, "invalid_request_error", None),
    (errors.Unauthorized("m"), 401, "invalid_request_error", "invalid_api_key"),
    (errors.Forbidden("m"), 403, "permission_error", "insufficient_permissions"),
    (errors.NotFound("m"), 404, "invalid_request_error", "unknown_url"),
    (errors.UnknownModel("m"), 404, "invalid_request_error", "model_not_found"),
    (errors.MethodNotAllowed("m", allow="POST"), 405, "invalid_request_error", "method_not_allowed"),
    (errors.Timeout("m"), 408, "invalid_request_error", "request_timeout"),
    (errors.TooLarge("m"), 413, "invalid_request_error", "request_too_large"),
    (errors.QueueFull("m", retry_after_s=2), 429, "rate_limit_error", "queue_full"),
    (errors.TooBusy("m", retry_after_s=2), 429, "rate_limit_error", "too_busy"),
    (errors.HeadersTooLarge("m"), 431, "invalid_request_error", "headers_too_large"),
    (errors.Internal("m"), 500, "server_error", "internal_error"),
    (errors.WorkerFailed("m"), 502, "server_error", "worker_failed"),
    (errors.NoWorker("m", retry_after_s=5), 503, "server_error", "no_worker"),
    (errors.TooManyConnections("m", retry_after_s=1), 503, "server_error", "too_many_connections"),
    (errors.TooManyBytes("m", retry_after_s=1), 503, "server_error", "too_many_bytes"),
    (errors.Deadline("m"), 504, "server_error", "deadline_exceeded"),
]


@pytest.mark.parametrize(("error", "status", "kind", "code"), CASES, ids=lambda value: type(value).__name__)
def test_the_answer_has_openai_s_shape(error: ApiError, status: int, kind: str, code: str | None) -> None:
    got, headers, body = response(error)
    assert got == status
    assert (b"content-type", b"application/json") in headers
    detail = msgspec.json.decode(body)["error"]
    assert detail == {"message": "m", "type": kind, "param": error.param, "code": code}


def test_every_error_is_in_the_table() -> None:
    def tree(kind: type[ApiError]) -> set[type[ApiError]]:
        return {kind}.union(*(tree(child) for child in kind.__subclasses__()))

    assert {type(case[0]) for case in CASES} == tree(ApiError) - {ApiError}


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.Unauthorized("m"), (b"www-authenticate", b"Bearer")),
        (errors.MethodNotAllowed("m", allow="GET, HEAD"), (b"allow", b"GET, HEAD")),
        (errors.QueueFull("m", retry_after_s=2), (b"retry-after", b"2")),
        (errors.NoWorker("m", retry_after_s=5), (b"retry-after", b"5")),
    ],
)
def test_headers_tell_the_client_what_to_do_next(error: ApiError, header: tuple[bytes, bytes]) -> None:
    assert header in response(error)[1]


def test_an_error_inside_a_stream_is_one_event() -> None:
    event = sse_event(errors.WorkerFailed("two\nlines"))
    assert event.startswith(b"data: {") and event.endswith(b"}\n\n") and event.count(b"\n") == 2
    assert msgspec.json.decode(event[6:])["error"]["message"] == "two\nlines"
