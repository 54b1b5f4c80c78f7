"""The vocabulary of `reconcile`: what it is told (events) and what it asks for (effects).

Owns the shapes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from launcher.jobs import JobRecord, Row
from launcher.rundir import Desired
from workers.controller_messages import FleetView

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class DesiredRead:
    """`revisions`: by worker, where they are not all of the run's own."""

    desired: Desired
    revisions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueRead:
    """The queue's whole answer to a question asked at `asked_at`. `revisions`: of the plan, by worker and generation,
    of jobs that somebody else has submitted."""

    rows: tuple[Row, ...]
    asked_at: float
    revisions: Mapping[tuple[str, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Submitted:
    worker: str
    generation: int
    job: str


@dataclass(frozen=True, slots=True)
class SubmitRefused:
    worker: str
    generation: int
    reason: str
    transient: bool


@dataclass(frozen=True, slots=True)
class FleetSeen:
    view: FleetView | None  # None: no proxy tells us anything just now


@dataclass(frozen=True, slots=True)
class ProxyDied:
    """It is started again all the same; `deaths` counts those in a row."""

    proxy: str
    reason: str
    deaths: int


@dataclass(frozen=True, slots=True)
class Tick:
    pass


Event = DesiredRead | QueueRead | Submitted | SubmitRefused | FleetSeen | ProxyDied | Tick


# ---------------------------------------------------------------- effects


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run that never served is given up."""

    worker: str
    job: str  # its id, "" where the queue refused it
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Submit:
    worker: str
    generation: int
    revision: int = 0  # of the plan


@dataclass(frozen=True, slots=True)
class Drain:
    worker: str
    generation: int
    reason: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Cancel:
    job: str
    force: bool


@dataclass(frozen=True, slots=True)
class Record:
    """`jobs.json` must say this."""

    records: tuple[JobRecord, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    failure: Failure


@dataclass(frozen=True, slots=True)
class Done:
    """Stopped: the queue holds no job of the run."""


Effect = Submit | Drain | Cancel | Record | GiveUp | Done
