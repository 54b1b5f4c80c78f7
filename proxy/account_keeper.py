"""Writes a process's accounts into the run folder: one small file per life and day, replaced whole.

Owns the files' names and when they are written. A file holds sums since its beginning, so a write that fails or hangs
loses nothing: the next one says it all. Writes in threads, one at a time; a process that is killed loses what it has
counted in the last few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from proxy.monitoring.accounts import Accounts, Book
from workers.spec import write_json

log = logging.getLogger("sluice.accounts")

WRITE_EVERY_S = 5.0


class AccountKeeper:
    """`open_requests()`: how many there are now, which a process that dies takes along."""

    def __init__(self, folder: Path, accounts: Accounts, open_requests: Callable[[], int]) -> None:
        self._folder = folder
        self._accounts = accounts
        self._open_requests = open_requests
        self._unwritten: list[Book] = []  # of days that are over
        self._last = b""
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Until closed; then with the last word."""
        while not self._closing.is_set():
            await self._write()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), WRITE_EVERY_S)
        self._accounts.book.ended = True
        await self._write()

    def close(self) -> None:
        self._closing.set()

    async def _write(self) -> None:
        """What is new since the last time, if anything."""
        over = self._accounts.turn_page(time.time())
        if over is not None:
            self._unwritten.append(over)
        try:
            while self._unwritten:
                await asyncio.to_thread(self._put, self._unwritten[0], msgspec.json.encode(self._unwritten[0]))
                del self._unwritten[0]
            await self._write_today(self._accounts.book)
        except OSError as fault:
            log.error("accounts not written, the next time says it all: %s", fault)

    async def _write_today(self, book: Book) -> None:
        """As it is now: counting goes on meanwhile."""
        book.open_requests = self._open_requests()
        if msgspec.json.encode(book) != self._last:
            book.written_at = time.time()
            content = msgspec.json.encode(book)
            await asyncio.to_thread(self._put, book, content)
            self._last = content

    def _put(self, book: Book, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_json(self._folder / f"{book.process}.{book.life}.{book.day}.json", msgspec.Raw(content))
