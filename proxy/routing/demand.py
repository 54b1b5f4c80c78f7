"""What the router is asked, and what it answers with its reasons: values.

Owns no decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from proxy.fleet.worker import Pair, Worker
from proxy.prefixes.prefix_index import NO_MARKS, Marks
from proxy.spec import RoutingSpec


class Demand(msgspec.Struct, frozen=True):
    """What the router knows of a request. `whole_because` is None where prefill and decode may be split."""

    num_tokens: int  # estimated from the prompt's bytes
    whole_because: str | None
    avoid: frozenset[tuple[str, int]] = frozenset()  # workers that failed it
    forced: Pair | None = None  # a proof or a scrape goes where it must, proven or not
    scrape: bool = False  # of an engine's metrics: no work, it takes nobody's place
    chain: Sequence[int] = ()  # hashes of the prompt's leading blocks, as far as they are known
    marks: Marks = NO_MARKS  # what it is promised by, wherever it goes
    policy: str | None = None  # instead of the run's
    yields: bool = False  # of a batch: it leaves room for those that are not
    explain: bool = False  # its client asks for the decision's numbers


class Reason(msgspec.Struct, frozen=True):
    """A decision's numbers. Seconds are predictions; where a policy does not predict, they are None."""

    policy: str
    why: str  # whole or split
    cached_tokens: int = 0  # of the prompt, where it is computed
    compute_tokens: int = 0  # the rest
    transfer_tokens: int = 0  # whose KV goes from the one worker to the other
    queue_s: float | None = None
    compute_s: float | None = None
    transfer_s: float | None = None
    ttft_s: float | None = None
    itl_s: float | None = None  # its own, once it decodes
    stall_s: float | None = None  # by which those that decode there wait longer, all together


class Route(msgspec.Struct, frozen=True):
    """`prefill` is None where the decode worker does all of it."""

    prefill: Worker | None
    decode: Worker
    reason: Reason


def estimated_tokens(body: bytes, spec: RoutingSpec) -> int:
    """A prompt's bytes stand for its tokens until an engine has counted them."""
    return int(len(body) / spec.bytes_per_token)
