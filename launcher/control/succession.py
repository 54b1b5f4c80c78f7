"""Who serves as a worker, who is to follow, and when: the jobs of one worker put in order.

Pure, and it decides nothing: `reconcile` does. A hand-over overlaps: the successor is submitted early, proves itself,
and takes the place; then the predecessor drains. Where a limit that the run itself fills keeps the successor waiting,
the predecessor has to drain first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.control.job_book import Job, view_of
from launcher.control.lead import SPREAD, Lead
from workers.agent import lifecycle
from workers.agent.walltime import walltime_drain
from workers.controller_messages import FleetView

# Slurm's reasons for a job that waits until others of the same user, account or QOS have ended; sbatch's words too.
LIMIT = re.compile(r"^(QOS(Grp|Max)|Assoc(Grp|Max)|MaxJobs|MaxSubmit|QOSJobLimit|AssociationJobLimit)\w*|submit limit")
# For a job that Slurm has tried and found no place for, or that stands behind such a one.
CROWD = ("Resources", "Priority")
RENEWAL = "restart"
FIRST_PART = 0.25  # of its life that a worker serves at least before its successor is submitted


@dataclass(frozen=True, slots=True)
class Policy:
    """What kind of run this is. `overlap`: two lives of a worker have room side by side."""

    drain_s: float
    by_clock: bool = True  # jobs end one by one, each at its own walltime
    overlap: bool = True
    drain_first: bool = False
    crowded: bool = False  # the run takes all nodes that there are, as far as its plan knows
    chained: bool = False  # every job that there will be is in the queue from the beginning


@dataclass(slots=True)
class Standing:
    """The jobs of one worker."""

    keep: Job | None = None
    proven: bool = False  # `keep` takes requests now, so that elder ones may go
    successor: Job | None = None
    superseded: list[Job] = field(default_factory=list)
    surplus: list[Job] = field(default_factory=list)  # more than one successor; in a chain those that come later
    leaving: list[Job] = field(default_factory=list)


def standing(jobs: Iterable[Job], fleet: FleetView | None) -> Standing:
    found = Standing()
    staying: list[Job] = []
    for job in sorted(jobs, key=lambda job: job.record.generation):
        (found.leaving if is_leaving(job, fleet) else staying).append(job)
    serving = [job for job in staying if is_proven(job, fleet)]
    found.proven = bool(serving)
    keep = found.keep = serving[-1] if serving else _furthest(staying)
    if keep is None:
        return found
    others = [job for job in staying if job is not keep]
    if found.proven:
        found.superseded = [job for job in others if job.record.generation < keep.record.generation]
        others = others[len(found.superseded) :]
    found.successor, found.surplus = (others[0], others[1:]) if others else (None, [])
    return found


def _furthest(jobs: Sequence[Job]) -> Job | None:
    """Where none serves just now: one that has served, else one that was ready, else the first."""
    return min(
        jobs,
        key=lambda job: (job.record.proven_at is None, job.ready_at is None, job.record.generation),
        default=None,
    )


def is_leaving(job: Job, fleet: FleetView | None) -> bool:
    if job.drained_at is not None or job.cancelled_at is not None:
        return True
    seen = None if fleet is None else view_of(job, fleet)
    return seen is not None and seen.phase in (lifecycle.DRAINING, lifecycle.STOPPED, lifecycle.FAILED)


def is_proven(job: Job, fleet: FleetView | None) -> bool:
    seen = None if fleet is None else view_of(job, fleet)
    return seen is not None and seen.phase == lifecycle.READY and seen.proven


def last_safe(job: Job, policy: Policy) -> float | None:
    """When its agent begins to drain by itself; None: no clock ends it."""
    started_at = job.record.started_at
    if not policy.by_clock or job.end_time is None or started_at is None:
        return None
    return walltime_drain(started_at, job.end_time, policy.drain_s).at


def submit_at(job: Job, turn: float, lead: Lead) -> float:
    """When its successor should be submitted to be there at `turn`."""
    assert job.record.started_at is not None
    return max(turn - lead.seconds, job.record.started_at + FIRST_PART * (turn - job.record.started_at))


def is_limited(reason: str) -> bool:
    return LIMIT.search(reason) is not None


def turns(ends: Mapping[str, float], slots_s: Mapping[str, float]) -> dict[str, float]:
    """When each of the workers that must drain first does: one after the other, and as late as that allows, so that
    the rest serve meanwhile. `ends`: their last safe moments; `slots_s`: how long each one's place stays empty."""
    found: dict[str, float] = {}
    free_until = float("inf")
    for name in sorted(ends, key=lambda name: (ends[name], name), reverse=True):
        found[name] = min(ends[name], free_until - slots_s[name])
        free_until = found[name]
    return found


def slot_s(lead: Lead, policy: Policy) -> float:
    return policy.drain_s + SPREAD * lead.start_s
