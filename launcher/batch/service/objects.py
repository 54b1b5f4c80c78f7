"""OpenAI's file and batch objects, and the errors of this API.

Pure. `owner`, the name of the API key that an object belongs to, is ours and never shown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.batch.request import URLS

WINDOWS_S = {"24h": 24 * 3600}
ENDED = frozenset({"failed", "completed", "expired", "cancelled"})
MAX_LISTED = 100
_COUNTS = ("total", "completed", "failed")


class ApiError(Exception):
    """An answer in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = msgspec.json.encode(
            {"error": {"message": message, "type": kind, "param": param, "code": code}},
        )


class FileObject(msgspec.Struct, kw_only=True):
    id: str
    owner: str
    object: str = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = "processed"


class BatchObject(msgspec.Struct, kw_only=True):
    """`errors` is of the whole batch: where its input cannot be read at all."""

    id: str
    owner: str
    object: str = "batch"
    endpoint: str
    errors: Any = None
    input_file_id: str
    completion_window: str
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    metadata: dict[str, str] | None = None

    def move(self, status: str, now: float) -> None:
        """Each status but the first has its time."""
        self.status = status
        setattr(self, f"{status}_at", int(now))

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class BatchRequest(msgspec.Struct, kw_only=True):
    """The body of `client.batches.create`."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None

    def check(self) -> None:
        """Raises ApiError."""
        if self.endpoint not in URLS:
            raise ApiError(400, f"endpoint must be one of {', '.join(URLS)}", param="endpoint")
        if self.completion_window not in WINDOWS_S:
            raise ApiError(400, f"completion_window must be {' or '.join(WINDOWS_S)}", param="completion_window")


def shown(found: FileObject | BatchObject) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(found)
    del fields["owner"]
    return fields


def page(found: list[Any], query: dict[str, str]) -> dict[str, Any]:
    """The newest first, after `after`. Raises ApiError."""
    try:
        limit = min(MAX_LISTED, max(1, int(query.get("limit", "20"))))
    except ValueError:
        raise ApiError(400, "limit must be a number", param="limit") from None
    ordered = sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)
    if "after" in query:
        ids = [one.id for one in ordered]
        if query["after"] not in ids:
            raise ApiError(400, f"there is no {query['after']}", param="after")
        ordered = ordered[ids.index(query["after"]) + 1 :]
    data = [shown(one) for one in ordered[:limit]]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": len(ordered) > limit}
