"""When the controller's own job needs another one to follow it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.jobs import Row

LEAD_S = 3600.0
LEAD_PART = 0.5  # of a shorter job's life


def follower(rows: Iterable[Row], name: str, job: str) -> str | None:
    """The other controller's job that there is already."""
    return next((row.job for row in rows if row.name == name and row.job != job and not row.ended), None)


def is_due(rows: Iterable[Row], job: str, now: float) -> bool:
    own = next((row for row in rows if row.job == job), None)
    if own is None or own.end_time is None or own.start_time is None:
        return False
    return now >= own.end_time - min(LEAD_S, LEAD_PART * (own.end_time - own.start_time))
