"""What can go wrong with a request, as a tree; translated once, at the edge, into OpenAI's error shape.

Owns status, `type` and `code` of every error that the proxy itself gives. An engine's own errors pass
through as they are and never come here. A message says whose fault it is and what to do next.

    ApiError
    ├── BadRequest 400           the client's: malformed, or a field or header that is refused
    ├── Unauthorized 401         no key, or not one of ours
    ├── Forbidden 403            a known key, but not for this
    ├── NotFound 404             no such route
    │   └── UnknownModel 404     no such model
    ├── MethodNotAllowed 405     the route exists, not for this method
    ├── Timeout 408              the client was too slow to send its request
    ├── TooLarge 413             the body is over the limit
    ├── QueueFull 429            more waits here than may
    │   └── TooBusy 429          so much waits that its turn would come too late
    ├── HeadersTooLarge 431      the headers are over the limit
    ├── Internal 500             a fault of the proxy
    ├── WorkerFailed 502         a worker or its engine broke while it served this
    ├── NoWorker 503             nobody is there to serve this now
    │   ├── TooManyConnections   this proxy holds as many as it may
    │   └── TooManyBytes         so does it of requests' bodies
    └── Deadline 504             the fleet was too slow
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]
Response = tuple[int, Headers, bytes]

JSON_TYPE = (b"content-type", b"application/json")


class ApiError(Exception):
    """`param` is the body's field at fault."""

    status: ClassVar[int]
    type: ClassVar[str] = "invalid_request_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, headers: Headers = ()) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers


class BadRequest(ApiError):
    status = 400


class Unauthorized(ApiError):
    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers=((b"www-authenticate", b"Bearer"),))


class Forbidden(ApiError):
    status = 403
    type = "permission_error"
    code = "insufficient_permissions"


class NotFound(ApiError):
    status = 404
    code = "unknown_url"


class UnknownModel(NotFound):
    code = "model_not_found"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class MethodNotAllowed(ApiError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message, headers=((b"allow", allow.encode()),))


class Timeout(ApiError):
    status = 408
    code = "request_timeout"


class TooLarge(ApiError):
    status = 413
    code = "request_too_large"


class QueueFull(ApiError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, headers=_retry_after(retry_after_s))


class TooBusy(QueueFull):
    code = "too_busy"


class HeadersTooLarge(ApiError):
    status = 431
    code = "headers_too_large"


class Internal(ApiError):
    status = 500
    type = "server_error"
    code = "internal_error"


class WorkerFailed(ApiError):
    status = 502
    type = "server_error"
    code = "worker_failed"


class NoWorker(ApiError):
    status = 503
    type = "server_error"
    code = "no_worker"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, headers=_retry_after(retry_after_s))


class TooManyConnections(NoWorker):
    code = "too_many_connections"


class TooManyBytes(NoWorker):
    code = "too_many_bytes"


class Deadline(ApiError):
    status = 504
    type = "server_error"
    code = "deadline_exceeded"


def _retry_after(seconds: int) -> Headers:
    return ((b"retry-after", b"%d" % seconds),)


def body(error: ApiError) -> bytes:
    detail = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": detail})


def response(error: ApiError) -> Response:
    """The whole answer."""
    return error.status, (JSON_TYPE, *error.headers), body(error)


def sse_event(error: ApiError) -> bytes:
    """The error as an event of a stream that has already begun with status 200."""
    return b"data: " + body(error) + b"\n\n"
