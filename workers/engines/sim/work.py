"""What the simulated scheduler is told and tells, and its record of one request: values and a record.

Owns no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

# ---------------------------------------------------------------- events


class Work(msgspec.Struct, frozen=True):
    """`hold`: a prefill leg, its blocks stay until released. `remote`: a decode leg, its KV is fetched first."""

    id: int
    chain: Sequence[int]  # hashes of the full blocks: of the prompt, and of what has been answered where that is known
    num_prompt: int
    num_output: int
    hold: bool = False
    remote: bool = False


class Arrive(msgspec.Struct, frozen=True):
    """What was to be fetched is here. Of an unknown id nothing happens, here and below: its end may cross it."""

    id: int


class Release(msgspec.Struct, frozen=True):
    id: int


class Abort(msgspec.Struct, frozen=True):
    id: int


class Tick(msgspec.Struct, frozen=True):
    """Due at `next_at`."""


Event = Work | Arrive | Release | Abort | Tick

# ---------------------------------------------------------------- effects


class Placed(msgspec.Struct, frozen=True):
    """It has left the queue, perhaps not for the first time."""

    id: int
    num_cached: int


class Fetch(msgspec.Struct, frozen=True):
    """The driver answers with `Arrive` when so many tokens have come from the holder."""

    id: int
    num_tokens: int


class Stored(msgspec.Struct, frozen=True):
    """These blocks of it are in the cache since now."""

    id: int
    keys: list[int]


class Read(msgspec.Struct, frozen=True):
    """All that is known of it is computed: its next token. `again`: it had been preempted."""

    id: int
    num_cached: int
    again: bool


class Ended(msgspec.Struct, frozen=True):
    id: int


Effect = Placed | Fetch | Stored | Read | Ended


@dataclass(slots=True, eq=False)
class Job:
    work: Work
    chain: Sequence[int]
    total: int  # tokens known when it was last queued
    remote: bool
    num_computed: int = 0
    num_blocks: int = 0
    named: list[int] = field(default_factory=list)  # of its blocks, those known by their hash
    num_cached: int | None = None  # when it was first scheduled
    told: bool = False  # its first token
    base: int = 0  # while it decodes: tokens computed less passes begun
    last_pass: int = 0

    @property
    def id(self) -> int:
        return self.work.id

    @property
    def end(self) -> int:
        return self.work.num_prompt + self.work.num_output
