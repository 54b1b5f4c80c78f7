"""What users get: the results and the errors as JSON lines, made from the store.

Owns these two files. They hold nothing of their own: they are written anew from the store, so that each request is
in them exactly once whatever was killed when.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from launcher.batch.records import DONE
from launcher.batch.store import Store


class Outputs:
    """`in_order`: as the input is, written at the end. Otherwise as they finish, while it runs."""

    def __init__(self, results: Path, errors: Path, *, in_order: bool) -> None:
        self._paths = (results, errors)
        self._in_order = in_order
        self._files: list[IO[bytes]] = []

    def begin(self, store: Store) -> None:
        """Raises OSError."""
        if not self._in_order:
            self._write(store)
            self._files = [path.open("ab", buffering=0) for path in self._paths]

    def add(self, lines: Iterable[tuple[bytes, bool]]) -> None:
        """Lines that are on disk in the store, and whether they are results. Raises OSError."""
        if self._files:
            both: tuple[list[bytes], list[bytes]] = ([], [])
            for line, ok in lines:
                both[not ok].append(line)
            for file, own in zip(self._files, both, strict=True):
                if own:
                    file.write(b"".join(own))

    def end(self, store: Store) -> None:
        """Raises OSError."""
        self.close()
        if self._in_order:
            self._write(store)

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []

    def _write(self, store: Store) -> None:
        partial = [path.with_name(f".{path.name}.partial") for path in self._paths]
        with ExitStack() as stack:
            results, errors = (stack.enter_context(path.open("wb", buffering=1 << 20)) for path in partial)
            for record in store.records(in_order=self._in_order):
                (results if record.kind == DONE else errors).write(record.line)
            for file in (results, errors):
                file.flush()
                os.fsync(file.fileno())
        for path, target in zip(partial, self._paths, strict=True):
            path.rename(target)
