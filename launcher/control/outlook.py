"""Which workers need a successor now, and which must drain before theirs can start. A snapshot, made for one decision.

Pure; changes nothing. Owns the pace: a part of a pool at once where there is room for two lives of a worker, one
worker of the whole run at a time where there is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.control.job_book import Job, JobBook
from launcher.control.lead import Lead, lead_of
from launcher.control.succession import (
    CROWD,
    RENEWAL,
    Policy,
    Standing,
    is_limited,
    last_safe,
    slot_s,
    standing,
    submit_at,
    turns,
)
from launcher.jobs import pool_of
from workers.agent.walltime import WALLTIME
from workers.controller_messages import FleetView

RENEWED_AT_ONCE = 0.25  # of a pool's workers; at least one
CROWDED_S = 30.0  # Slurm may have more nodes than the plan knows of, and takes a moment to find them


@dataclass(slots=True)
class Outlook:
    """By worker. `limits`: in whose words a successor has to wait for its predecessor's end."""

    policy: Policy
    revisions: Mapping[str, int]  # that are wanted
    now: float
    places: dict[str, Standing]
    leads: dict[str, Lead]  # by pool
    limits: dict[str, str]
    turns: dict[str, float]  # when a worker stops taking requests: as late as is safe
    busy: Counter[str]  # by pool: workers in whose place something happens

    def place(self, worker: str) -> Standing:
        return self.places[worker]

    def is_outdated(self, job: Job) -> bool:
        return job.record.revision < self.revisions[job.record.worker]

    def why(self, job: Job) -> str:
        """For what its successor comes."""
        return RENEWAL if self.is_outdated(job) else WALLTIME

    def submit_at(self, worker: str) -> float | None:
        """None: no clock ends it, or it has not served yet."""
        keep, turn = self.places[worker].keep, self.turns.get(worker)
        if keep is None or turn is None or keep.record.proven_at is None:
            return None
        return submit_at(keep, turn, self.leads[pool_of(worker)])

    def needs_successor(self, worker: str) -> bool:
        """It has none yet."""
        keep = self.places[worker].keep
        if keep is None or keep.record.proven_at is None or not self.policy.overlap:
            return False
        if self.is_outdated(keep) and self._may_renew(worker):
            return True
        at = self.submit_at(worker)
        return at is not None and self.now >= at

    def drains_first(self, worker: str) -> str | None:
        """Why it has to go before its successor can start, if it should do so now."""
        place = self.places[worker]
        limit = self.limits.get(worker)
        if limit is None or not place.proven or place.keep is None or not self._rest_serves(worker):
            return None
        turn = self.turns.get(worker)
        if self.is_outdated(place.keep) or (turn is not None and self.now >= turn):
            return f"{self.why(place.keep)}; it drains first: {limit}"
        return None

    def begin(self, worker: str, *, drains: bool) -> None:
        """Something happens in its place from now on: the next worker sees it."""
        self.busy[pool_of(worker)] += 1
        if drains:
            self.places[worker].proven = False

    def _may_renew(self, worker: str) -> bool:
        if worker in self.limits:
            return self._rest_serves(worker)
        pool = pool_of(worker)
        size = sum(pool_of(other) == pool for other in self.places)
        return self.places[worker].proven and self.busy[pool] < max(1, int(size * RENEWED_AT_ONCE))

    def _rest_serves(self, worker: str) -> bool:
        return all(place.proven for other, place in self.places.items() if other != worker)


def outlook(
    book: JobBook,
    fleet: FleetView | None,
    revisions: Mapping[str, int],
    refusals: Mapping[str, str],
    occupied: frozenset[str],
    policy: Policy,
    now: float,
) -> Outlook:
    """`revisions`: of all workers that are wanted. `refusals`: what sbatch said of limits, by worker. `occupied`:
    workers with a submission under way, or whose back-off lasts."""
    wanted = tuple(revisions)
    places = {worker: standing(book.jobs_of(worker), fleet) for worker in wanted}
    leads = {pool: lead_of(pool, book.records(), _waiting_s(book, pool, now)) for pool in set(map(pool_of, wanted))}
    limits = {
        worker: limit for worker in wanted if (limit := _limit(places[worker], refusals.get(worker), policy, now))
    }
    ends = {worker: end for worker in wanted if (keep := places[worker].keep) and (end := last_safe(keep, policy))}
    first = {worker: end for worker, end in ends.items() if worker in limits}
    slots = {worker: slot_s(leads[pool_of(worker)], policy) for worker in first}
    busy = Counter(
        pool_of(worker)
        for worker, place in places.items()
        if not place.proven or place.successor is not None or worker in occupied
    )
    return Outlook(policy, revisions, now, places, leads, limits, ends | turns(first, slots), busy)


def _limit(place: Standing, refusal: str | None, policy: Policy, now: float) -> str | None:
    successor = place.successor
    waits = successor is not None and successor.record.started_at is None  # it may be further than the queue's answer
    if successor is not None and waits and successor.row is not None:
        reason, waited_s = successor.row.reason, now - successor.record.submitted_at
        if is_limited(reason):
            return f"its successor waits for {reason}"
        if policy.crowded and reason in CROWD and waited_s >= CROWDED_S:
            return f"its successor waits for {reason}, and the run takes all of the cluster's GPUs"
    if refusal is not None:
        return refusal
    if policy.chained and successor is None:
        return None  # nobody comes after it
    return "there is no room for both" if policy.drain_first or not policy.overlap else None


def _waiting_s(book: JobBook, pool: str, now: float) -> float:
    """The longest wait in the queue just now that is not for one of our own jobs to end."""
    waits = [
        now - job.record.submitted_at
        for job in book.live.values()
        if pool_of(job.record.worker) == pool
        and job.row is not None
        and job.row.state == "PENDING"
        and not job.row.held
        and not is_limited(job.row.reason)
    ]
    return max(waits, default=0.0)
