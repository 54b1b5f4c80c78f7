"""What a run took and gave, as one value: GPU time by pool and generation, requests by key, events.

Pure: sums of what lies in the run folder. Owns the shape of `report.json`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from launcher.control.diary import Life
from launcher.jobs import JobRecord
from launcher.report.happenings import Happening, happenings
from launcher.report.lives import GenerationUse, PoolUse, generation_uses, pool_uses
from proxy.monitoring.accounts import Book, Sums, Work


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known. `unread`: files that could not be read, with why."""

    run: str
    records: Sequence[JobRecord]
    gpus: Mapping[str, int]  # by worker.gGENERATION
    books: Sequence[Book]
    lives: Sequence[Life]
    alive: Collection[str]  # lives of proxy processes and ids of controllers
    unread: Sequence[str] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    run: str
    made_at: float
    since: float | None  # the first submission
    gpu_hours: float
    queue_hours: float
    start_gpu_hours: float
    drain_gpu_hours: float
    totals: Sums
    tokens_per_gpu_hour: float | None
    pools: list[PoolUse]
    generations: list[GenerationUse]
    keys: dict[str, Sums]
    days: dict[str, Sums]
    events: list[Happening]
    unread: list[str]


def make_report(known: Sources, now: float) -> Report:
    works: dict[str, Work] = {}
    for book in known.books:
        for life, work in book.workers.items():
            _add(works.setdefault(life, Work()), work)
    uses = generation_uses(known.records, known.gpus, works, now)
    pools = pool_uses(uses)
    totals = _sums(sums for book in known.books for sums in book.keys.values())
    gpu_hours = sum(pool.gpu_hours for pool in pools)
    return Report(
        run=known.run,
        made_at=now,
        since=min((record.submitted_at for record in known.records), default=None),
        gpu_hours=gpu_hours,
        queue_hours=sum(pool.queue_hours for pool in pools),
        start_gpu_hours=sum(pool.start_gpu_hours for pool in pools),
        drain_gpu_hours=sum(pool.drain_gpu_hours for pool in pools),
        totals=totals,
        tokens_per_gpu_hour=(totals.prompt_tokens + totals.output_tokens) / gpu_hours if gpu_hours else None,
        pools=pools,
        generations=uses,
        keys=_by((name, sums) for book in known.books for name, sums in book.keys.items()),
        days=_by((book.day, sums) for book in known.books for sums in book.keys.values()),
        events=happenings(known.records, known.books, known.lives, known.alive),
        unread=list(known.unread),
    )


def _by(pairs: Iterable[tuple[str, Sums]]) -> dict[str, Sums]:
    found: dict[str, Sums] = {}
    for name, sums in pairs:
        _add(found.setdefault(name, Sums()), sums)
    return dict(sorted(found.items()))


def _sums(every: Iterable[Sums]) -> Sums:
    total = Sums()
    for sums in every:
        _add(total, sums)
    return total


def _add(ours: Sums | Work, theirs: Sums | Work) -> None:
    for name in ours.__struct_fields__:
        setattr(ours, name, getattr(ours, name) + getattr(theirs, name))


def report_json(report: Report) -> dict[str, Any]:
    """With what the rows derive from themselves."""
    value: dict[str, Any] = msgspec.to_builtins(report)
    for shown, pool in zip(value["pools"], report.pools, strict=True):
        shown["tokens_per_gpu_hour"] = pool.tokens_per_gpu_hour
    for shown, use in zip(value["generations"], report.generations, strict=True):
        shown["gpu_hours"] = use.gpu_hours
    return value
