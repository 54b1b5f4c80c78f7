"""How a job of a worker is brought to its end: drain what serves, then cancel; cancel what does not serve at once.

Pure: moves the job's record, returns what must be done. Which jobs must end is `reconcile`'s to say.
"""

from __future__ import annotations

from launcher.control.effects import Cancel, Drain, Effect
from launcher.control.job_book import Job
from workers.agent import lifecycle
from workers.agent.walltime import MARGIN_S
from workers.controller_messages import WorkerView

CANCEL_AGAIN_S = 30.0
DRAIN_GRACE_S = 10.0
DRAIN_AGAIN_S = 10.0  # the word may have been lost with a proxy
# A predecessor whose successor serves may take its time over long answers; its own walltime bounds it too.
LONG_DRAIN_S = 1800.0


def long_drain_s(job: Job, drain_s: float, now: float) -> float:
    left_s = LONG_DRAIN_S if job.end_time is None else job.end_time - MARGIN_S - now
    return max(drain_s, min(LONG_DRAIN_S, left_s))


def finish(
    job: Job, seen: WorkerView | None, reason: str, drain_s: float, *, stopping: bool, failed: bool, now: float
) -> list[Effect]:
    """`failed`: nobody waits for answers. One that has drained ends by itself, in a run that goes on."""
    serves = seen is not None and seen.phase in (lifecycle.READY, lifecycle.DRAINING)
    if not failed and job.cancelled_at is None:
        if job.drained_at is None and serves:
            job.drained_at, job.drain_s, job.drain_reason = now, drain_s, reason
        elif job.drained_at is not None and drain_s < job.drain_s:
            job.drained_at, job.drain_s = now, drain_s  # there is less time than there was
        if job.drained_at is not None and (serves or not stopping) and now < _patience_ends(job, job.drained_at):
            return _drain(job, now) if seen is not None and seen.phase == lifecycle.READY else []
    if job.cancelled_at is not None and now < job.cancelled_at + CANCEL_AGAIN_S:
        return []
    again = job.cancelled_at is not None
    job.cancelled_at = now
    return [Cancel(job.record.job, force=again)]


def _patience_ends(job: Job, drained_at: float) -> float:
    return drained_at + job.drain_s + DRAIN_GRACE_S


def _drain(job: Job, now: float) -> list[Effect]:
    if job.told_at is not None and now < job.told_at + DRAIN_AGAIN_S:
        return []
    job.told_at = now
    return [Drain(job.record.worker, job.record.generation, job.drain_reason, job.drain_s)]
