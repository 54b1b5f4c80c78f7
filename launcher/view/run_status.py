"""What a run looks like to people: the shapes of `status.json` and their words.

Owns no merge (launcher.view.status) and no file: the controller writes it, `watch` and `actions` show it.
"""

from __future__ import annotations

import msgspec

from launcher.control.effects import Failure
from workers.stages import StageTimes

LAUNCHING = "launching"
SERVING = "serving"
STOPPING = "stopping"
STOPPED = "stopped"
FAILED = "failed"  # it never served
LOST = "lost"  # nobody keeps it: its controller is gone

# Before a worker has said anything itself; after that, its own phases (workers.agent.lifecycle).
WAITING = "waiting"  # no job yet, or not again yet
QUEUED = "queued"
ENDING = "ending"  # told to go, and silent: its job is about to end

STALE_S = 30.0  # a live controller writes at least every 10 s


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. Times are unix seconds."""

    worker: str
    pool: str
    role: str
    generation: int = -1
    phase: str = WAITING
    detail: str = ""
    job: str = ""
    state: str = ""  # the queue's word
    reason: str = ""
    estimated_start: str = ""
    end_time: float | None = None
    node: str = ""
    running: int = 0
    waiting: int = 0
    stages: StageTimes = ()  # of its start, from the queue on
    turn: str = ""  # to read its model, in words
    beside: bool = False  # another life of the worker than the one that serves: its successor, or one that leaves

    @property
    def name(self) -> str:
        return f"{self.worker}.g{self.generation}" if self.beside else self.worker


class HandOver(msgspec.Struct, frozen=True, kw_only=True):
    """Of one worker that serves: who follows it, why and when. Times are unix seconds."""

    worker: str
    generation: int
    why: str
    successor: int | None = None  # its generation, once it has been submitted
    submit_at: float | None = None  # when it will be
    queue_s: float = 0.0
    start_s: float = 0.0
    drains_at: float | None = None  # what is left of it by then
    drains_first: str = ""  # why it has to go before its successor can start


class ControllerEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Of the controller's job, and with it of its proxy: the job that follows, as far as there is one."""

    at: float
    follower: str = ""
    state: str = ""
    reason: str = ""


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the proxy, as it shows itself; a run's proxy may be older than this launcher."""

    process: str
    pid: int
    takes_connections: bool
    connections: int
    open_requests: int
    open_streams: int = 0  # answers under way
    workers: int = 0  # that it can send requests to
    memory_mib: float = 0.0


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The controller's last view of a run."""

    run: str
    phase: str
    written_at: float
    controller: str  # id of the one that wrote this
    url: str = ""  # of the API, once a proxy is up
    ready: bool = False
    served: bool = False
    workers: tuple[WorkerStatus, ...] = ()
    failure: Failure | None = None
    missing_pairs: tuple[tuple[str, str], ...] = ()
    faults: tuple[str, ...] = ()  # why their last proofs failed: "prefill-0 -> decode-0: ..."
    refusals: tuple[str, ...] = ()
    hand_overs: tuple[HandOver, ...] = ()  # under way or planned
    controller_job: WorkerStatus | None = None  # where Slurm was asked about it
    controller_end: ControllerEnd | None = None  # where Slurm sets one
    further_jobs: int | None = None  # in the queue, of the worker that has fewest, where no more can be submitted
    queue_fault: str = ""  # why the queue cannot be asked just now
    processes: tuple[ProcessStatus, ...] = ()  # of the proxy, where it was asked
    controller_silent_s: float | None = None  # where a proxy answers and nobody has written for long

    @property
    def ended(self) -> bool:
        return self.phase in (STOPPED, FAILED)

    @property
    def unproven(self) -> list[str]:
        """The missing pairs, each with what its last proof failed of."""
        names = [f"{prefill or 'whole'} -> {decode}" for prefill, decode in self.missing_pairs]
        reasons = {name: reason for name, _, reason in (fault.partition(": ") for fault in self.faults)}
        return [f"{name}: last attempt: {reasons[name]}" if name in reasons else name for name in names]
