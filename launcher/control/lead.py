"""How long a successor takes from its submission to its first proof: what this run has seen, per pool.

Pure. Medians, so that one odd start does not move the others; until something has been seen, a cautious guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from launcher.jobs import JobRecord, pool_of

QUEUE_PRIOR_S = 300.0
START_PRIOR_S = 600.0
SPREAD = 1.25  # the next one may take longer than the median
NUM_SEEN = 9  # the newest ones: queues change within a day


class Lead(msgspec.Struct, frozen=True, kw_only=True):
    """Of one pool."""

    pool: str
    queue_s: float
    start_s: float  # from the job's start to the proof
    num_seen: int = 0  # starts that the medians are of

    @property
    def seconds(self) -> float:
        return SPREAD * (self.queue_s + self.start_s)


def lead_of(pool: str, records: Iterable[JobRecord], waiting_s: float = 0.0) -> Lead:
    """`waiting_s`: how long one of the pool's jobs waits already; that counts where it is longer than usual."""
    own = sorted((record for record in records if pool_of(record.worker) == pool), key=lambda one: one.submitted_at)
    waits = [one.started_at - one.submitted_at for one in own if one.started_at is not None]
    starts = [one.proven_at - one.started_at for one in own if one.started_at is not None and one.proven_at is not None]
    return Lead(
        pool=pool,
        queue_s=max(_typical(waits, QUEUE_PRIOR_S), waiting_s),
        start_s=_typical(starts, START_PRIOR_S),
        num_seen=len(starts),
    )


def _typical(seen: Sequence[float], prior: float) -> float:
    return max(0.0, median(seen[-NUM_SEEN:])) if seen else prior
