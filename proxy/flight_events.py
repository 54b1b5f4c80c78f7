"""What `flights` is told, and what it wants done: its events and effects, as values."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.errors import ApiError
from proxy.fleet import Key
from proxy.flight import Flight
from workers.protocol import Message, Ticket

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Arrived:
    flight: Flight


@dataclass(frozen=True, slots=True)
class PrefillDone:
    rid: int
    ticket: Ticket | None


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    rid: int
    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    rid: int


@dataclass(frozen=True, slots=True)
class LegFailed:
    rid: int
    reason: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class LegCancelled:
    rid: int


@dataclass(frozen=True, slots=True)
class ClientGone:
    flight: Flight


@dataclass(frozen=True, slots=True)
class WorkerGone:
    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class RoomMade:
    """The fleet has changed: something may fit now."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Arrived
    | PrefillDone
    | AnswerStarted
    | AnswerEnded
    | LegFailed
    | LegCancelled
    | ClientGone
    | WorkerGone
    | RoomMade
    | Tick
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Send:
    worker: Key
    message: Message


@dataclass(frozen=True, slots=True)
class Begin:
    """The answer's head goes to the client; its chunks follow under `rid`."""

    flight: Flight
    rid: int
    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Finish:
    flight: Flight


@dataclass(frozen=True, slots=True)
class Reject:
    """Nothing was sent yet: a real status."""

    flight: Flight
    error: ApiError


@dataclass(frozen=True, slots=True)
class Break:
    """The answer has begun and cannot be completed."""

    flight: Flight
    error: ApiError


@dataclass(frozen=True, slots=True)
class Drop:
    """The client has left; nobody is told anything."""

    flight: Flight


Effect = Send | Begin | Finish | Reject | Break | Drop
