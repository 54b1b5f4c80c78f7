"""A replay whose workers come and go: Slurm's jobs in virtual time, the controller's core that submits and drains them.

Owns what lies between these cores and the fleet, as the controller and the agents do in a live run.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from launcher.control.effects import Cancel as CancelJob
from launcher.control.effects import DesiredRead, Drain, Event, FleetSeen, QueueRead, Submit, Submitted, Tick
from launcher.control.reconcile import Reconciler
from launcher.control.restoring import policy_of
from launcher.job import Plan
from launcher.jobs import JobRecord, job_name
from launcher.planner.word import OFF
from launcher.rundir import SERVE, Desired
from launcher.twin.planner import VirtualPlanner
from launcher.twin.replay import Replay
from launcher.twin.setup import Setup, peer_of, prove
from launcher.twin.slurm import RUN, Site, VirtualJob, VirtualSlurm
from launcher.twin.traces import Request
from proxy.fleet.fleet_events import Leaving, PeerLost, PhaseTold, RunTold
from proxy.fleet.turns import Turns
from proxy.fleet.worker import Key
from proxy.flights import flight_events as fe
from proxy.flights.flight import Flight, State
from proxy.monitoring.view import fleet_view
from proxy.spec import Deadlines
from workers.agent import lifecycle
from workers.agent.walltime import WALLTIME, walltime_drain
from workers.engines.sim import work
from workers.message import Message
from workers.output_ids import ID_BYTES
from workers.protocol import Cancel, Cancelled, End, Leg, Part, Release

TICK_S = 1.0
# Where nobody may ever serve again, nobody waits for ever.
IMPATIENT = Deadlines(**dict.fromkeys(Deadlines.__struct_fields__, float("inf")))


@dataclass(slots=True)
class Operated:
    """What was done about the workers."""

    gpu_hours: float = 0.0
    submitted: int = 0
    drained: int = 0
    drained_young: Counter[str] = field(
        default_factory=Counter
    )  # by worker: drained within its own start-up of being submitted
    lost: int = 0
    failed_requests: int = 0
    most_workers: int = 0


class Elastic(Replay):
    """`run` as ever; `operated` afterwards."""

    def __init__(self, plan: Plan, setup: Setup, requests: Sequence[Request], site: Site) -> None:
        self._planner = VirtualPlanner(plan) if plan.planner != OFF else None
        names = list(setup.workers)
        if plan.scaling is not None:
            names = [name for name, pool in setup.workers.items() if _number(name) < plan.scaling.initial[pool]]
        look = None if self._planner is None else self._planner.look
        deadlines = msgspec.structs.replace(IMPATIENT, queue_s=plan.proxy.deadlines.queue_s)
        super().__init__(setup, requests, look=look, names=names, deadlines=deadlines)
        self._plan, self._site = plan, site
        self._slurm = VirtualSlurm(site)
        self._core = self._begin_run(names)
        self._drains: dict[Key, float] = {}  # until when they may take
        self._asked_at = float("-inf")
        self.operated = Operated()
        self._fleet.apply(RunTold(tuple(names), serves=True), 0.0)
        self._at(TICK_S, self._operate)

    def _begin_run(self, names: list[str]) -> Reconciler:
        """The first workers have come as all do, and serve at time 0."""
        records = []
        for name in names:
            job = self._slurm.submit(name, 0, 0.0)
            queue_s, start_s = job.starts_at, job.serves_at - job.starts_at
            job.starts_at, job.serves_at, job.ends_at = -start_s, 0.0, self._site.walltime_s - start_s
            job.state, job.up = "RUNNING", True
            records.append(
                JobRecord(
                    job=job.id,
                    name=job_name(RUN, name, 0),
                    worker=name,
                    generation=0,
                    submitted_at=-start_s - queue_s,
                    started_at=job.starts_at,
                    proven_at=0.0,
                )
            )
        generations = dict.fromkeys(self._setup.workers, -1) | dict.fromkeys(names, 0)
        return Reconciler.restore(RUN, records, generations, served=True, policy=policy_of(self._plan))

    # ------------------------------------------------------------ every second

    def _operate(self, now: float) -> None:
        come, lost = self._slurm.pass_to(now)
        for job in come:
            self._come(job, now)
        for job in lost:
            self.operated.lost += job.up
            self._lose(job, now)
        self._leave(now)
        self._reconcile(now)
        self._tell(fe.Tick(), now)
        held = [job for job in self._slurm.live() if job.state == "RUNNING"]
        gpus = {
            planned.spec.worker: planned.spec.num_nodes * planned.spec.gpus_per_node for planned in self._plan.workers
        }
        self.operated.gpu_hours += sum(gpus[job.worker] for job in held) * TICK_S / 3600
        self.operated.most_workers = max(self.operated.most_workers, len(held))
        self._at(now + TICK_S, self._operate)

    def _reconcile(self, now: float) -> None:
        records = self._core.book.records()
        wanted = set(self._setup.workers) if self._planner is None else self._planner.wanted(records, now)
        workers = tuple(name for name in self._setup.workers if name in wanted)
        self._fleet.apply(RunTold(workers, serves=True), now)
        events: deque[Event] = deque([FleetSeen(fleet_view(self._fleet, Turns(0)))])
        events.append(DesiredRead(Desired(target=SERVE, workers=workers, since=float("-inf"))))
        if now - self._asked_at >= self._plan.poll_interval_s:
            self._asked_at = now
            events.append(QueueRead(self._slurm.rows(), now))
        events.append(Tick())
        while events:
            for effect in self._core.apply(events.popleft(), now):
                if isinstance(effect, Submit):
                    job = self._slurm.submit(effect.worker, effect.generation, now)
                    self.operated.submitted += 1
                    events.append(Submitted(effect.worker, effect.generation, job.id))
                elif isinstance(effect, Drain):
                    self._drain((effect.worker, effect.generation), now + effect.timeout_s, now)
                elif isinstance(effect, CancelJob):
                    self._cancel_job(self._slurm.jobs[effect.job], now)

    # ------------------------------------------------------------ workers come and go

    def _come(self, job: VirtualJob, now: float) -> None:
        self._engines[job.key] = self._setup.card(job.key).engine()
        self._received[job.key] = 0
        self._setup.bring(self._fleet, job.key, job.ends_at, now)
        self._beat(job.key, now)

    def _drain(self, key: Key, until: float, now: float) -> None:
        if key in self._drains or key not in self._fleet.workers:
            return
        self._drains[key] = until
        self._note_end(next(job for job in self._slurm.live() if job.key == key), now)
        self._fleet.apply(Leaving(key), now)

    def _note_end(self, job: VirtualJob, now: float) -> None:
        record = self._core.book.live[job.id].record
        young = job.state == "RUNNING" and now - record.submitted_at < job.serves_at - record.submitted_at
        self.operated.drained += job.up
        self.operated.drained_young[job.worker] += young

    def _leave(self, now: float) -> None:
        """By the walltime's clock, and those that have nothing to do any more."""
        for job in self._slurm.live():
            if job.up and job.key not in self._drains:
                by_clock = walltime_drain(job.starts_at, job.ends_at, self._core.policy.drain_s)
                if now >= by_clock.at:
                    self._drains[job.key] = now + by_clock.timeout_s
                    peer = peer_of(job.key, Part.AGENT)
                    self._fleet.apply(PhaseTold(peer, lifecycle.DRAINING, WALLTIME), now)
            if job.key in self._drains and (now >= self._drains[job.key] or self._is_idle(job.key)):
                self._slurm.end(job.id, "COMPLETED")
                self._lose(job, now)

    def _is_idle(self, key: Key) -> bool:
        if self._flights.promised(key) or any(leg.worker.key == key for leg in self._flights.legs.values()):
            return False
        return not any((ticket.worker, ticket.generation) == key for ticket in self._flights.tickets)

    def _cancel_job(self, job: VirtualJob, now: float) -> None:
        if job.state in ("PENDING", "RUNNING"):
            self._note_end(job, now)
            self._slurm.end(job.id, "CANCELLED")
            self._lose(job, now)

    def _lose(self, job: VirtualJob, now: float) -> None:
        """Whatever it was doing is lost; the flights find others for it."""
        key = job.key
        self._drains.pop(key, None)
        engine = self._engines.pop(key, None)
        if engine is None:
            return
        for rid, (at, submit, _) in list(self._legs.items()):
            leg = self._flights.legs.get(rid)
            if at != key:
                continue
            if leg is not None and leg.flight.state is State.STREAMING:
                self._keep_tokens(leg.flight, engine.made(rid, now), self._requests[leg.flight.id].num_output)
            if submit.leg == Leg.DECODE:
                self._links.stop(rid, now)
            del self._legs[rid]
        self._index.clear((key, 0))
        self._fleet.apply(PeerLost(peer_of(key, Part.AGENT), job.state), now)
        prove(self._fleet, now)
        self._tell(fe.WorkerGone(key, job.state), now)

    @staticmethod
    def _keep_tokens(flight: Flight, num_made: int, num_output: int) -> None:
        """What the client has; the first of them has been told with the answer's start."""
        room = num_output - 1 - len(flight.output_ids) // ID_BYTES
        flight.output_ids += bytes(ID_BYTES * max(0, min(num_made - 1, room)))

    # ------------------------------------------------------------ what only losses bring

    def _break(self, effect: fe.Effect, now: float) -> None:
        if isinstance(effect, (fe.Reject, fe.Break)):
            record = self._records[effect.flight.id]
            record.first_s = record.end_s = float("inf")
            self._num_open -= 1
            self.operated.failed_requests += 1

    def _take_back(self, key: Key, message: Message, now: float) -> None:
        if key not in self._engines:
            return
        if isinstance(message, Release):
            rid = int(message.ticket.id)
            if self._legs.pop(rid, None) is not None:
                self._took(key, self._engines[key].apply(work.Release(rid), now), now)
        elif isinstance(message, Cancel):
            if self._legs.pop(message.rid, None) is not None:
                self._links.stop(message.rid, now)
                self._took(key, self._engines[key].apply(work.Abort(message.rid), now), now)
            self._tell(Cancelled(message.rid), now)

    def _tell(self, event: fe.Event, now: float) -> None:
        if isinstance(event, End) and self._planner is not None:
            cached = event.num_cached_tokens
            self._planner.ended(event.num_prompt_tokens - cached, cached, event.num_output_tokens)
        super()._tell(event, now)


def _number(worker: str) -> int:
    return int(worker.rpartition("-")[2])
