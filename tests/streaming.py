"""A client's stream, read in a thread while a test breaks what serves it, and what the client makes of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.live import Live


@dataclass
class Answer:
    """What a client makes of its stream. `pause_s` is the longest wait between two events."""

    text: str = ""
    reasoning: str = ""
    tools: list[list[str]] = field(default_factory=list)  # of each call: its name, its arguments
    ids: set[str] = field(default_factory=set)
    created: set[int] = field(default_factory=set)
    roles: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    last: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    done: bool = False
    num_events: int = 0
    pause_s: float = 0.0

    def take(self, event: bytes) -> None:
        if event == b"[DONE]":
            self.done = True
            return
        data = msgspec.json.decode(event)
        if "error" in data:
            self.error = data["error"]
            return
        self.num_events += 1
        self.last = data
        self.ids.add(data["id"])
        self.created.add(data["created"])
        self.usage = data.get("usage") or self.usage
        for choice in data["choices"]:
            delta = choice.get("delta", {})
            self.text += choice.get("text") or delta.get("content") or ""
            self.reasoning += delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or ():
                self._take_call(call["index"], call["function"])
            self.roles += [delta["role"]] if delta.get("role") else []
            self.finish_reasons += [choice["finish_reason"]] if choice["finish_reason"] else []

    def _take_call(self, index: int, function: dict[str, str]) -> None:
        if index == len(self.tools):
            self.tools.append(["", ""])
        for place, part in enumerate(("name", "arguments")):
            self.tools[index][place] += function.get(part, "")

    @property
    def as_in_one_piece(self) -> tuple[Any, ...]:
        """All of it that must not show how it came about."""
        return self.text, self.reasoning, self.tools, self.roles, self.finish_reasons, self.usage, self.error, self.done


class Streaming:
    """`begun` once some events are there."""

    def __init__(self, run: Live, path: str = "/v1/completions", *, after: int = 3, **body: Any) -> None:
        self.answer = Answer()
        self.headers: dict[str, str] = {}
        self.begun = threading.Event()
        self._run = run
        self._after = after
        self._request = (path, {"model": "tiny", "stream": True, **body})
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        path, body = self._request
        heard_at = time.monotonic()
        with self._run.client() as client, client.stream("POST", path, json=body) as response:
            self.headers = dict(response.headers)
            if response.status_code != 200:
                self.answer.error = msgspec.json.decode(response.read())["error"]
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.answer.take(line.removeprefix("data: ").encode())
                    now = time.monotonic()
                    self.answer.pause_s, heard_at = max(self.answer.pause_s, now - heard_at), now
                    if self.answer.num_events >= self._after:
                        self.begun.set()
        self.begun.set()

    @property
    def decode(self) -> str:
        """The worker that began it."""
        assert self.begun.wait(60)
        return self.headers["x-sluice-decode"]

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> Answer:
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.answer
