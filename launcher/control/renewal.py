"""When the controller's own job needs another one to follow it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.jobs import Row
from launcher.view.run_status import ControllerEnd

LEAD_S = 3600.0
LEAD_PART = 0.5  # of a shorter job's life


def followers(rows: Iterable[Row], name: str, job: str) -> tuple[Row, ...]:
    """The other controllers' jobs that there are already, the next one first."""
    others = [row for row in rows if row.name == name and row.job != job and not row.ended]
    return tuple(sorted(others, key=lambda row: int(row.job)))


def is_due(rows: Iterable[Row], job: str, now: float) -> bool:
    own = next((row for row in rows if row.job == job), None)
    if own is None or own.end_time is None or own.start_time is None:
        return False
    return now >= own.end_time - min(LEAD_S, LEAD_PART * (own.end_time - own.start_time))


def end_of(rows: Iterable[Row], others: Sequence[Row], job: str) -> ControllerEnd | None:
    """What comes after the controller's own job."""
    own = next((row for row in rows if row.job == job), None)
    if own is None or own.end_time is None:
        return None
    heir = next((row for row in others if int(row.job) > int(job)), None)
    if heir is None:
        return ControllerEnd(at=own.end_time)
    return ControllerEnd(at=own.end_time, follower=heir.job, state=heir.state, reason=heir.reason)
