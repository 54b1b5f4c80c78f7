"""Requests that wait for a place: those of batches come after all others, each class in order of arrival.

Pure. Owns the order and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain

from proxy.flights.flight import Flight


class Lanes:
    """A queue of two classes."""

    def __init__(self) -> None:
        self._online: deque[Flight] = deque()
        self._batch: deque[Flight] = deque()

    def of(self, flight: Flight) -> deque[Flight]:
        return self._batch if flight.of_batch else self._online

    def __len__(self) -> int:
        return len(self._online) + len(self._batch)

    def __iter__(self) -> Iterator[Flight]:
        return chain(self._online, self._batch)

    @property
    def head(self) -> Flight:
        """Who is next. There has to be one."""
        return (self._online or self._batch)[0]

    def take_head(self) -> Flight:
        return (self._online or self._batch).popleft()
