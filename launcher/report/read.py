"""Reads what a run folder knows of its own past. A file that cannot be read is named, and the rest still counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from launcher.control.diary import Life
from launcher.control.ownership import living_owner
from launcher.report.report import Sources
from launcher.rundir import STOP, RunDir
from proxy.monitoring.accounts import Book
from workers.links.proxy_file import read_proxies
from workers.spec import WorkerSpec, read_spec

T = TypeVar("T", bound=msgspec.Struct)


def read_sources(run: RunDir, name: str) -> Sources:
    unread: list[str] = []
    specs = dict(_read(sorted(run.specs.glob("*.g*.json")), WorkerSpec, unread))
    lives = [life for _, life in _read(sorted(run.accounting.glob("controller.*.json")), Life, unread)]
    files = sorted(set(run.accounting.glob("*.json")) - set(run.accounting.glob("controller.*.json")))
    books = [book for _, book in _read(files, Book, unread)]
    owner = living_owner(run)
    return Sources(
        run=name,
        records=run.read_jobs(),
        gpus={life: spec.num_nodes * spec.gpus_per_node for life, spec in specs.items()},
        books=books,
        lives=lives,
        alive={*([] if owner is None else [owner.id]), *_living_processes(run, books, kept=owner is not None)},
        unread=unread,
    )


def _read(paths: list[Path], kind: type[T], unread: list[str]) -> Iterator[tuple[str, T]]:
    """By the names that the files bear."""
    for path in paths:
        try:
            yield path.stem, read_spec(path, kind)
        except (OSError, msgspec.DecodeError) as fault:
            unread.append(f"{path.name}: {fault}")


def _living_processes(run: RunDir, books: list[Book], *, kept: bool) -> Iterator[str]:
    """A process that lives has its file in `proxies/`; one whose machine died has left it, so someone must keep it."""
    if not kept and run.read_desired().target == STOP:
        return
    there = {(file.id, file.pid) for file in read_proxies(run.proxies)}
    newest: dict[tuple[str, int], Book] = {}
    for book in books:
        key = (book.process, book.pid)
        if key not in newest or newest[key].began_at < book.began_at:
            newest[key] = book
    yield from (book.life for key, book in newest.items() if key in there)
