"""Which of the requests at hand goes next: so that shared beginnings meet, and no long answer is left for the end.

Pure. Requests go in the order of their prompts' leading bytes, in sweeps over what is at hand: one that comes too
late for this sweep waits for the next, so none waits for ever. Once the input has ended, the longest goes first as
soon as it would otherwise outlast the rest.
"""

from __future__ import annotations

import heapq

from launcher.batch.request import Request

MAX_REQUESTS = 8192
MAX_BYTES = 64 << 20

_Entry = tuple[int, bytes, int]  # sweep, lead, ordinal


class Window:
    """Requests that have been read and not yet sent."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._by_lead: list[_Entry] = []
        self._by_length: list[tuple[int, bytes, int]] = []  # longest first
        self._sweep, self._lead = 0, b""
        self._num_bytes = self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def full(self) -> bool:
        return len(self._requests) >= MAX_REQUESTS or self._num_bytes >= MAX_BYTES

    def add(self, request: Request) -> None:
        self._requests[request.ordinal] = request
        sweep = self._sweep + (request.lead < self._lead)
        heapq.heappush(self._by_lead, (sweep, request.lead, request.ordinal))
        heapq.heappush(self._by_length, (-request.max_tokens, request.lead, request.ordinal))
        self._num_bytes += len(request.body)
        self._num_tokens += request.max_tokens

    def take(self, *, ending: bool, num_places: int) -> Request | None:
        """`ending`: nothing comes after what is here. `num_places`: how many run at once."""
        if not self._requests:
            return None
        request = self._longest() if ending else None
        if request is None or request.max_tokens * num_places < self._num_tokens:
            request = self._next_by_lead()
        del self._requests[request.ordinal]
        self._num_bytes -= len(request.body)
        self._num_tokens -= request.max_tokens
        return request

    def _longest(self) -> Request:
        while self._by_length[0][2] not in self._requests:
            heapq.heappop(self._by_length)
        return self._requests[self._by_length[0][2]]

    def _next_by_lead(self) -> Request:
        while True:
            sweep, lead, ordinal = heapq.heappop(self._by_lead)
            if ordinal in self._requests:
                self._sweep, self._lead = sweep, lead
                return self._requests[ordinal]
