"""When things happen that happen regularly: at common marks of the clock, so that a process wakes up once for all.

A process that has slept pays more for waking up than for what it then does. Each has marks of its own: those of one
node should not wake up all at once. Owns no timer.
"""

from __future__ import annotations

import asyncio
import time

_PHASE_S = round(time.monotonic() % 1.0, 3)


def next_mark(now: float, interval_s: float) -> float:
    """The next one of this interval, of the event loop's clock."""
    return ((now - _PHASE_S) // interval_s + 1) * interval_s + _PHASE_S


async def until_next_mark(interval_s: float) -> None:
    now = asyncio.get_running_loop().time()
    await asyncio.sleep(next_mark(now, interval_s) - now)
