"""A stream that goes on: the bytes of its answer, made anew from its first token on, become what its client lacks.

Pure; owns how far the replay has come. It knows of the answer's form only what every stream of OpenAI's has: events
that end with a blank line, a `created` that the engine takes from its clock, an end of `[DONE]`.
"""

from __future__ import annotations

import re

from workers.protocol import Resume

_CREATED = re.compile(rb'"created":(\d+)')
_END = b"}\n\ndata: [DONE]\n\n"
_EVENT_END = b"\n\n"


def created_of(data: bytes) -> int:
    """When the answer that begins so was created, by its engine's clock; 0: it does not say."""
    found = _CREATED.search(data)
    return 0 if found is None else int(found[1])


class NotTheSame(Exception):
    """What was replayed is not what the client has."""


class Continuation:
    def __init__(self, resume: Resume) -> None:
        self._left = resume.num_bytes
        self._theirs = b'"created":%d' % resume.created
        self._ours = b""
        self._num_resumed = resume.num_resumed

    @property
    def caught_up(self) -> bool:
        return not self._left

    def rest(self, data: bytes) -> bytes:
        """The part of the next bytes that the client lacks. Raises NotTheSame."""
        if data and not self._ours:
            self._ours = b'"created":%d' % created_of(data)
        old, new = data[: self._left], data[self._left :]
        self._left -= len(old)
        if old and not self._left and not old.endswith(_EVENT_END):
            raise NotTheSame
        return new if self._ours == self._theirs else new.replace(self._ours, self._theirs)

    def last(self, data: bytes, *, resampled: bool) -> bytes:
        """The end of the body, whose last event says what has happened."""
        told = b',"sluice":{"resumed":%d,"resampled":%b}' % (self._num_resumed, b"true" if resampled else b"false")
        head, end, tail = data.rpartition(_END)
        return head + told + end + tail if end else data
