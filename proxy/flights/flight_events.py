"""What `flights` is told, and what it wants done: its events and effects, as values.

A worker's own messages about a leg are events as they came: Computed,
Prefilled, Start, End, Failed, Cancelled.
"""

from __future__ import annotations

import msgspec

from proxy.errors import ApiError
from proxy.fleet.worker import Key
from proxy.flights.flight import Flight
from workers.kv_messages import Computed
from workers.message import Message
from workers.protocol import Cancelled, End, Failed, Prefilled, Start

# ---------------------------------------------------------------- events


class Arrived(msgspec.Struct, frozen=True):
    flight: Flight


class ClientGone(msgspec.Struct, frozen=True):
    flight: Flight


class WorkerGone(msgspec.Struct, frozen=True):
    key: Key
    reason: str


class RoomMade(msgspec.Struct, frozen=True):
    """The fleet has changed: something may fit now."""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


_OfALeg = Computed | Prefilled | Start | End | Failed | Cancelled
Event = Arrived | _OfALeg | ClientGone | WorkerGone | RoomMade | Tick

# ---------------------------------------------------------------- effects


class Send(msgspec.Struct, frozen=True):
    worker: Key
    message: Message


class Begin(msgspec.Struct, frozen=True):
    """The answer's head and first bytes go to the client; its chunks follow under the leg's id."""

    flight: Flight
    start: Start


class Suspend(msgspec.Struct, frozen=True):
    """The answer does not come from this leg any more: whatever its worker still sends is void."""

    flight: Flight
    rid: int


class Continue(msgspec.Struct, frozen=True):
    """The answer goes on with these bytes; its chunks follow under the leg's id."""

    flight: Flight
    start: Start


class Finish(msgspec.Struct, frozen=True):
    """The answer is complete with these bytes."""

    flight: Flight
    data: bytes


class Reject(msgspec.Struct, frozen=True):
    """Nothing was sent yet: a real status."""

    flight: Flight
    error: ApiError


class Break(msgspec.Struct, frozen=True):
    """The answer has begun and cannot be completed."""

    flight: Flight
    error: ApiError


class Drop(msgspec.Struct, frozen=True):
    """The client has left; nobody is told anything."""

    flight: Flight


Effect = Send | Begin | Suspend | Continue | Finish | Reject | Break | Drop
