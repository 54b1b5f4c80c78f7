"""What an answer, or its absence, means for a request; and the lines it becomes in the output or the errors.

Pure. Owns OpenAI's shape of a line of output, and which errors are final, which are worth another try, and which say
that the service is not there just now.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from launcher.batch.request import BadLine, Request

OK = 200


class Kind(StrEnum):
    """How a try ended. All but the first three have a budget of tries."""

    DONE = "done"
    REFUSED = "refused"  # the request itself is wrong
    BUSY = "busy"  # the service has no room or no worker now: the request is not at fault
    BROKEN = "connection lost"
    SLOW = "deadline exceeded"
    FAULT = "server error"
    CRASHED = "worker failed"  # workers were lost while they served it


class Answer(msgspec.Struct, frozen=True):
    """`body` is JSON, or what came instead. The last three are the proxy's words."""

    kind: Kind
    status: int = 0
    body: bytes = b""
    request_id: str = ""
    waited_s: float = 0.0
    retry_after_s: float = 0.0
    cached_tokens: int = 0  # of its prompt, where it was computed


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class _Completion(msgspec.Struct):
    usage: Usage | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: Any = None


class _ErrorBody(msgspec.Struct):
    error: _Error


_BY_STATUS = {408: Kind.SLOW, 429: Kind.BUSY, 502: Kind.CRASHED, 503: Kind.BUSY, 504: Kind.SLOW}


def kind_of(status: int) -> Kind:
    if status == OK:
        return Kind.DONE
    return _BY_STATUS.get(status, Kind.REFUSED if status < 500 else Kind.FAULT)


def usage_of(body: bytes) -> Usage:
    try:
        return msgspec.json.decode(body, type=_Completion).usage or Usage()
    except msgspec.DecodeError:
        return Usage()


def result_line(request: Request, answer: Answer) -> bytes:
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": _json(answer.body)}
    return _line(request, response, None)


def error_line(request: Request, answer: Answer, *, why: str = "", code: str = "") -> bytes:
    """Beside the answer's own words."""
    own_code, message = _words(answer)
    told = {"code": code or own_code, "message": f"{message} ({why})" if why else message}
    body = _json(answer.body) if answer.status else None
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": body} if answer.status else None
    return _line(request, response, told)


def bad_line_line(bad: BadLine) -> bytes:
    return _line(bad, None, {"code": bad.code, "message": bad.message})


def _line(item: Request | BadLine, response: Any, error: Any) -> bytes:
    """Its id follows from its key: the same however often it was begun."""
    shape = {"id": f"batch_req_{item.key.hex()}", "custom_id": item.custom_id, "response": response, "error": error}
    return msgspec.json.encode(shape) + b"\n"


def _words(answer: Answer) -> tuple[str, str]:
    try:
        error = msgspec.json.decode(answer.body, type=_ErrorBody).error
    except msgspec.DecodeError:
        return str(answer.kind).replace(" ", "_"), str(answer.kind)
    return str(error.code or answer.kind).replace(" ", "_"), error.message


def _json(body: bytes) -> Any:
    """As it came, on one line; what is not JSON becomes a string."""
    try:
        raw = msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError:
        return body.decode(errors="replace")
    return msgspec.json.decode(raw) if b"\n" in body else raw
