"""What each job of a run took: its GPU time, divided into what it did with it.

Pure. A job that lives is counted until now. Times are unix seconds, spans seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from launcher.jobs import JobRecord, pool_of
from proxy.monitoring.accounts import Work, life_name

HOUR_S = 3600.0


class GenerationUse(msgspec.Struct, frozen=True, kw_only=True):
    """One job of one worker. `start_s`, `serve_s` and `drain_s` make up the time that it held its GPUs."""

    worker: str
    generation: int
    pool: str
    job: str
    gpus: int
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    state: str  # how it ended, by the queue
    reason: str
    queue_s: float
    start_s: float  # from the job's start to the first proof
    serve_s: float
    drain_s: float
    earlier_s: float  # before Slurm put it back into the queue
    answers: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def held_s(self) -> float:
        return self.start_s + self.serve_s + self.drain_s + self.earlier_s

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.held_s / HOUR_S


class PoolUse(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's jobs, added up. What was lost to the queue costs no GPU: it is hours in which a worker was missing."""

    pool: str
    generations: int
    worker_hours: float
    gpu_hours: float
    queue_hours: float
    start_gpu_hours: float
    drain_gpu_hours: float
    answers: int
    prompt_tokens: int
    output_tokens: int

    @property
    def tokens_per_gpu_hour(self) -> float | None:
        return (self.prompt_tokens + self.output_tokens) / self.gpu_hours if self.gpu_hours else None


def generation_use(record: JobRecord, gpus: int, work: Work, now: float) -> GenerationUse:
    """Clocks of several machines were asked: no span is less than nothing."""
    start, end = record.started_at, now if record.ended_at is None else record.ended_at
    until = end if start is None else start
    begun = end if start is None else min(start, end)
    proven = min(max(begun, end if record.proven_at is None else record.proven_at), end)
    drains = min(max(proven, end if record.draining_at is None else record.draining_at), end)
    return GenerationUse(
        worker=record.worker,
        generation=record.generation,
        pool=pool_of(record.worker),
        job=record.job,
        gpus=gpus,
        submitted_at=record.submitted_at,
        started_at=start,
        ended_at=record.ended_at,
        state=record.state,
        reason=record.reason,
        queue_s=max(0.0, until - record.submitted_at - record.earlier_s),
        start_s=proven - begun,
        serve_s=drains - proven,
        drain_s=end - drains,
        earlier_s=record.earlier_s,
        answers=work.answers,
        prompt_tokens=work.prompt_tokens,
        output_tokens=work.output_tokens,
    )


def generation_uses(
    records: Iterable[JobRecord], gpus: Mapping[str, int], works: Mapping[str, Work], now: float
) -> list[GenerationUse]:
    """`gpus` and `works` by worker.gGENERATION. In the order in which they were submitted."""
    uses = []
    for record in sorted(records, key=lambda one: one.submitted_at):
        life = life_name(record.worker, record.generation)
        uses.append(generation_use(record, gpus.get(life, 0), works.get(life, Work()), now))
    return uses


def pool_uses(uses: Iterable[GenerationUse]) -> list[PoolUse]:
    by_pool: dict[str, list[GenerationUse]] = {}
    for use in uses:
        by_pool.setdefault(use.pool, []).append(use)
    return [_added_up(pool, by_pool[pool]) for pool in sorted(by_pool)]


def _added_up(pool: str, uses: list[GenerationUse]) -> PoolUse:
    return PoolUse(
        pool=pool,
        generations=len(uses),
        worker_hours=sum(use.held_s for use in uses) / HOUR_S,
        gpu_hours=sum(use.gpu_hours for use in uses),
        queue_hours=sum(use.queue_s for use in uses) / HOUR_S,
        start_gpu_hours=sum(use.gpus * use.start_s for use in uses) / HOUR_S,
        drain_gpu_hours=sum(use.gpus * use.drain_s for use in uses) / HOUR_S,
        answers=sum(use.answers for use in uses),
        prompt_tokens=sum(use.prompt_tokens for use in uses),
        output_tokens=sum(use.output_tokens for use in uses),
    )
