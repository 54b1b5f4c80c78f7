"""What a virtual engine is given, what it tells, and its record of one request: values and a record.

Owns no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec


class Work(msgspec.Struct, frozen=True):
    """`hold`: a prefill leg, its blocks stay until released. `remote`: a decode leg, its KV is fetched first."""

    id: int
    chain: Sequence[int]  # of the prompt's full blocks
    num_prompt: int
    num_output: int
    hold: bool = False
    remote: bool = False


class First(msgspec.Struct, frozen=True):
    id: int
    num_cached: int


class Ended(msgspec.Struct, frozen=True):
    id: int


class Fetch(msgspec.Struct, frozen=True):
    """The driver answers with `arrive` when so many tokens have come from the holder."""

    id: int
    num_tokens: int


Effect = First | Ended | Fetch


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
