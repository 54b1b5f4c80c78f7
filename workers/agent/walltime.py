"""When a worker begins to drain because its job will end, and how long it may take. Pure.

Slurm's SIGTERM at the walltime leaves as long as the site's KillWait, often less than an answer takes.
So the agent does not wait for it.
"""

from __future__ import annotations

from typing import NamedTuple

WALLTIME = "walltime"  # why a worker drains, in its own words
# Between the end of the drain and Slurm's: for closing the engine, and for Slurm's clock.
MARGIN_S = 15.0


class WalltimeDrain(NamedTuple):
    at: float
    timeout_s: float


def walltime_drain(started_at: float, end_time: float, drain_timeout_s: float) -> WalltimeDrain:
    """Times are unix seconds. A short job serves for half of its life, and what is left bounds its drain."""
    life_s = max(end_time - started_at, 0.0)
    last_s = life_s - min(MARGIN_S, life_s / 4)  # by when all is done
    begin_s = max(last_s - drain_timeout_s, life_s / 2)
    return WalltimeDrain(started_at + begin_s, last_s - begin_s)
