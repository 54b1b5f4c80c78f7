"""What a controller has seen and done that no job record tells: a file per life of a controller, for `action=report`.

Owns the file and its bounds. The file is replaced whole, with all that this life has noted: a write that fails loses
nothing. What becomes of requests is the proxy's to say.
"""

from __future__ import annotations

import time

import msgspec

from launcher.control.effects import Drain, Effect, Event, GiveUp, ProxyDied, SubmitRefused
from launcher.rundir import Owner, RunDir
from workers.spec import write_json

MAX_NOTES = 2000
MAX_TEXT = 200


class Note(msgspec.Struct, frozen=True):
    at: float
    what: str  # "proxy died", "drain asked", "submission refused", "given up"
    who: str
    why: str


class Life(msgspec.Struct):
    """`ended`: why it ended, where it could say so."""

    owner: Owner
    ended_at: float | None = None
    ended: str = ""
    notes: list[Note] = msgspec.field(default_factory=list)


class Diary:
    """`see` and `end` are called by the controller, `write` in a thread."""

    def __init__(self, run: RunDir, owner: Owner) -> None:
        self._path = run.accounting / f"controller.{owner.id}.json"
        self._life = Life(owner)
        self._written = b""

    def see(self, event: Event | Effect, now: float) -> None:
        match event:
            case ProxyDied(proxy, reason, _):
                self._note(Note(now, "proxy died", proxy, reason))
            case Drain(worker, generation, reason, _):
                self._note(Note(now, "drain asked", f"{worker}.g{generation}", reason))
            case SubmitRefused(worker, generation, reason, _):
                self._note(Note(now, "submission refused", f"{worker}.g{generation}", reason))
            case GiveUp(failure):
                self._note(Note(now, "given up", failure.worker, failure.reason))

    def end(self, why: str) -> None:
        self._life.ended_at, self._life.ended = time.time(), why

    def content(self) -> bytes:
        return msgspec.json.encode(self._life)

    def write(self, content: bytes) -> None:
        """Only what is new. Raises OSError."""
        if content != self._written:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            write_json(self._path, msgspec.Raw(content))
            self._written = content

    def _note(self, note: Note) -> None:
        """A drain is asked for again and again until it is heard: once is enough."""
        short = msgspec.structs.replace(note, why=note.why.split("\n")[0][:MAX_TEXT])
        same = any((one.what, one.who, one.why) == (short.what, short.who, short.why) for one in self._life.notes[-8:])
        if len(self._life.notes) < MAX_NOTES and not (same and note.what != "proxy died"):
            self._life.notes.append(short)
