"""What users get: the results and the errors as JSON lines, made from the store.

Owns these two files. They hold nothing of their own: they are written anew from the store, so that each request is
in them exactly once whatever was killed when. In the input's order they are hidden until the end, but written all the
time, as far as no earlier request is missing: nobody is to wait at the end until millions of lines are put in order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO

from launcher.batch.records import DONE, Record
from launcher.batch.store import Store

AT_ONCE = 50_000  # records: who follows waits for no more of them
BUFFER_BYTES = 1 << 20


class Outputs:
    """`in_order`: as the input is. Otherwise as they finish."""

    def __init__(self, results: Path, errors: Path, *, in_order: bool) -> None:
        self._paths = (results, errors)
        self._partial = [path.with_name(f".{path.name}.partial") for path in self._paths]
        self._in_order = in_order
        self._opened = ExitStack()
        self._files: list[IO[bytes]] = []

    def begin(self, store: Store) -> None:
        """Raises OSError. Not into files that somebody else may still hold, who has lost the batch."""
        for path in self._partial:
            path.unlink(missing_ok=True)
            self._files.append(self._opened.enter_context(path.open("wb", buffering=BUFFER_BYTES)))
        self._next = 0  # of the input, or a place in the store
        if not self._in_order:
            self._write(store.as_they_came())
            self._show()

    def follow(self, store: Store) -> None:
        """Some of what has come to the disk, where its turn has come. Raises OSError."""
        new = store.in_order(self._next, gaps=False) if self._in_order else store.as_they_came(self._next)
        self._write(islice(new, AT_ONCE))

    def end(self, store: Store) -> None:
        """All that is missing yet. Raises OSError."""
        self._write(store.in_order(self._next) if self._in_order else store.as_they_came(self._next))
        if self._in_order:
            self._show()
        self.close()

    def close(self) -> None:
        self._opened.close()

    def _write(self, records: Iterable[Record]) -> None:
        results, errors = self._files
        for record in records:
            (results if record.kind == DONE else errors).write(record.line)
            self._next = record.ordinal + 1 if self._in_order else record.end
        for file in self._files:
            file.flush()

    def _show(self) -> None:
        for file, partial, path in zip(self._files, self._partial, self._paths, strict=True):
            os.fsync(file.fileno())
            partial.rename(path)
