"""What goes into the simulated engine's core and what comes out of it: its configuration, events and effects.

Pure data. Requests have integer ids that are never used twice; a ticket has the id of the request that
held it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

Polynomial = tuple[float, float, float]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a pass takes: of computing new prompt tokens and of reading KV, as far as there is something to do.

    A polynomial (a, b, c) is a*x^2 + b*x + c milliseconds. Defaults: those of Dynamo's mocker.
    """

    model: Literal["additive", "mixed"] = "additive"  # one after the other, or the longer of both
    prefill_ms: Polynomial = (4.209989e-7, 1.518344e-2, 16.50142)  # of the new tokens in the pass
    decode_ms: Polynomial = (-25.74, 54.01, 5.74)  # of the fraction of blocks in use
    kv_bytes_per_token: int = 131_072
    handoff_bytes_per_s: Annotated[float, msgspec.Meta(gt=0)] = 50e9

    def pass_s(self, prefill_tokens: int, num_decodes: int, usage: float) -> float:
        prefill_ms = _value(self.prefill_ms, prefill_tokens) if prefill_tokens else 0.0
        decode_ms = _value(self.decode_ms, usage) if num_decodes else 0.0
        both_ms = max(prefill_ms, decode_ms) if self.model == "mixed" else prefill_ms + decode_ms
        return max(0.0, both_ms) / 1000

    def handoff_s(self, num_tokens: int) -> float:
        return self.kv_bytes(num_tokens) / self.handoff_bytes_per_s

    def kv_bytes(self, num_tokens: int) -> int:
        return num_tokens * self.kv_bytes_per_token


def _value(polynomial: Polynomial, x: float) -> float:
    a, b, c = polynomial
    return (a * x + b) * x + c


class CoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's limits, named as in vLLM."""

    block_size: Positive
    num_blocks: Positive
    max_num_seqs: Positive
    max_num_batched_tokens: Positive
    lease_s: float  # how long a ticket's blocks are kept
    timing: Timing


@dataclass(slots=True)
class Counters:
    """Totals since start, as vLLM counts them."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    remote_tokens: int = 0
    preemptions: int = 0
    expired_tickets: int = 0


# ---------------------------------------------------------------- events


class Submit(msgspec.Struct, frozen=True):
    """`hold`: a prefill leg, its blocks become a ticket. `remote`: a decode leg, its KV is fetched."""

    id: int
    prompt: list[int]
    max_tokens: int
    salt: int = 0  # 0 is greedy; anything else stands for sampling
    hold: bool = False
    remote: bool = False


class Arrived(msgspec.Struct, frozen=True):
    """The answer to `Fetch`: what the holder's blocks contained at the time of the read."""

    id: int
    contents: list[int]


class Lost(msgspec.Struct, frozen=True):
    """The answer to `Fetch` when the holder cannot be read."""

    id: int


class Abort(msgspec.Struct, frozen=True):
    """Nobody waits for this request. An unknown id is ignored: its end may cross it."""

    id: int


class Release(msgspec.Struct, frozen=True):
    """A ticket was read or is not wanted. An unknown one is ignored: its lease's end may cross it."""

    ticket: int


class Extend(msgspec.Struct, frozen=True):
    """A ticket's reader still waits: as in vLLM it then has two thirds of a lease from now. Unknown: see `Release`."""

    ticket: int


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


Event = Submit | Arrived | Lost | Abort | Release | Extend | Tick

# ---------------------------------------------------------------- effects


class Scheduled(msgspec.Struct, frozen=True):
    """Once per request: it left the queue for the first time."""

    id: int
    num_cached_tokens: int


class Tokens(msgspec.Struct, frozen=True):
    """What one pass has produced: request `ids[i]` got `tokens[i]`."""

    ids: list[int]
    tokens: list[int]


class Ended(msgspec.Struct, frozen=True):
    """Exactly once per request, after its last token. `held_blocks`: of its ticket, numbered there."""

    id: int
    reason: str  # length | abort | error
    held_blocks: list[int]


class Fetch(msgspec.Struct, frozen=True):
    """Read the ticket's blocks from `first_block` on (the rest is cached here): `num_tokens` in all."""

    id: int
    first_block: int
    num_tokens: int


class Stored(msgspec.Struct, frozen=True):
    """KV event: these blocks, one behind the other and all behind `parent`, are in the cache."""

    keys: list[int]
    parent: int
    token_ids: list[int]


class Removed(msgspec.Struct, frozen=True):
    """KV event: these blocks have left the cache."""

    keys: list[int]


class Expired(msgspec.Struct, frozen=True):
    """A ticket's lease is over; its blocks are free and will be overwritten."""

    ticket: int


KvEvent = Stored | Removed
Effect = Scheduled | Tokens | Ended | Fetch | KvEvent | Expired
