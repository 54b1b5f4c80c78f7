"""Every planned and unplanned event of a run, with what it meant for requests: from job records, the proxy's books and
the controllers' diaries.

Pure. What several processes of the proxy saw of one event adds up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import msgspec

from launcher.control.diary import Life
from launcher.jobs import JobRecord
from proxy.monitoring.accounts import Book, Incident, life_name
from workers.agent.lifecycle import DRAINING
from workers.agent.walltime import WALLTIME

SAME_EVENT_S = 15.0  # so far apart are the processes' words on one event at most
NAMES = {"PREEMPTED": "preemption", "NODE_FAIL": "node lost", "BOOT_FAIL": "node lost", "TIMEOUT": "walltime ran out"}
# How the reasons begin that the controller gives for a drain, and what they are called.
PLANNED = {"the run stops": "stop", "the run no longer wants": "scale-down", WALLTIME: "drained before its walltime"}


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """On requests. None where nobody who could tell has survived."""

    open: int = 0
    moved: int = 0  # tried again elsewhere; nothing had been sent
    resumed: int = 0  # continued elsewhere
    failed: int = 0
    broken: int = 0


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    planned: bool
    what: str
    who: str
    why: str
    effect: Effect | None = None


def happenings(
    records: Sequence[JobRecord], books: Sequence[Book], lives: Sequence[Life], alive: Collection[str]
) -> list[Happening]:
    """`alive`: the lives of proxy processes and the ids of controllers that still run."""
    groups = list(_groups(incident for book in books for incident in book.incidents))
    drains = [group for group in groups if group[0].what == DRAINING]
    ends = [group for group in groups if group[0].what != DRAINING]
    told = [_drain(group) for group in drains]
    for record in records:
        if record.ended_at is not None:
            last = _last_of(record, ends)
            if last is not None:
                ends.remove(last)
            told.append(_job_end(record, last, lives))
    told += [_lost(group) for group in ends]
    told += _requeued(records)
    told += _proxy_ends(books, alive)
    told += _controller_ends(lives, alive)
    told += [_note for life in lives for _note in _notes(life)]
    return sorted(told, key=lambda one: one.at)


def _groups(incidents: Iterable[Incident]) -> Iterator[list[Incident]]:
    """What several processes saw of one event."""
    ordered = sorted(incidents, key=lambda one: (one.worker, one.generation, one.what, one.at))
    group: list[Incident] = []
    for incident in ordered:
        if group and _kind(group[0]) == _kind(incident) and incident.at - group[0].at <= SAME_EVENT_S:
            group.append(incident)
            continue
        if group:
            yield group
        group = [incident]
    if group:
        yield group


def _kind(incident: Incident) -> tuple[str, int, str]:
    return incident.worker, incident.generation, incident.what


def _effect(group: Sequence[Incident]) -> Effect:
    return Effect(
        open=sum(one.open for one in group),
        moved=sum(one.moved for one in group),
        resumed=sum(one.resumed for one in group),
        failed=sum(one.failed for one in group),
        broken=sum(one.broken for one in group),
    )


def _last_of(record: JobRecord, ends: Sequence[list[Incident]]) -> list[Incident] | None:
    """The last time that the proxy lost this life: what was before was a link, not the job."""
    own = [group for group in ends if (group[0].worker, group[0].generation) == (record.worker, record.generation)]
    return max(own, key=lambda group: group[0].at, default=None)


def _drain(group: Sequence[Incident]) -> Happening:
    first = group[0]
    who = life_name(first.worker, first.generation)
    return Happening(
        at=first.at, planned=True, what="drain begun", who=who, why=first.why, effect=Effect(open=_effect(group).open)
    )


def _lost(group: Sequence[Incident]) -> Happening:
    first = group[0]
    who = life_name(first.worker, first.generation)
    planned = first.why.startswith("gone")
    return Happening(at=first.at, planned=planned, what="worker lost", who=who, why=first.why, effect=_effect(group))


def _job_end(record: JobRecord, seen: Sequence[Incident] | None, lives: Sequence[Life]) -> Happening:
    planned, what = _classified(record, lives)
    assert record.ended_at is not None
    why = "; ".join(part for part in (record.state, record.reason, seen[0].why if seen else "") if part)
    return Happening(
        at=record.ended_at if not seen else min(seen[0].at, record.ended_at),
        planned=planned,
        what=what,
        who=life_name(record.worker, record.generation),
        why=why,
        effect=_effect(seen) if seen else None,
    )


def _classified(record: JobRecord, lives: Sequence[Life]) -> tuple[bool, str]:
    """Whether it ended because somebody of ours wanted it to, and how that is called."""
    if record.state in NAMES:
        return False, NAMES[record.state]
    who = life_name(record.worker, record.generation)
    asked = [note.why for life in lives for note in life.notes if note.what == "drain asked" and note.who == who]
    for reason in (*asked, record.reason):
        if "has taken over" in reason:
            return True, "hand-over"
        for beginning, name in PLANNED.items():
            if beginning in reason:
                return True, name
    if asked:
        return True, "drained"
    if record.proven_at is None:
        return False, "never served"
    return False, "worker lost"


def _requeued(records: Iterable[JobRecord]) -> list[Happening]:
    return [
        Happening(
            at=record.started_at or record.submitted_at,
            planned=False,
            what="queued again",
            who=life_name(record.worker, record.generation),
            why=f"it had run for {record.earlier_s:.0f} s",
        )
        for record in records
        if record.earlier_s
    ]


def _proxy_ends(books: Iterable[Book], alive: Collection[str]) -> Iterator[Happening]:
    last: dict[str, Book] = {}
    for book in sorted(books, key=lambda one: one.written_at):
        last[book.life] = book
    for book in last.values():
        if book.ended:
            yield Happening(at=book.written_at, planned=True, what="proxy process ended", who=book.process, why="")
        elif book.life not in alive:
            died = Effect(open=book.open_requests, broken=book.open_requests)
            why = "it did not say goodbye; open requests are those of its last word"
            yield Happening(
                at=book.written_at, planned=False, what="proxy process died", who=book.process, why=why, effect=died
            )


def _controller_ends(lives: Iterable[Life], alive: Collection[str]) -> Iterator[Happening]:
    for life in lives:
        who = f"controller {life.owner.id}"
        if life.ended_at is not None:
            yield Happening(at=life.ended_at, planned=True, what="controller ended", who=who, why=life.ended)
        elif life.owner.id not in alive:
            at = max([life.owner.started_at, *(note.at for note in life.notes)])
            yield Happening(at=at, planned=False, what="controller died", who=who, why="after this, without a word")


def _notes(life: Life) -> Iterator[Happening]:
    """Drains that were asked for are told by the proxy, with what they met."""
    for note in life.notes:
        if note.what != "drain asked":
            yield Happening(at=note.at, planned=False, what=note.what, who=note.who, why=note.why)
