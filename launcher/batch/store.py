"""The results of a batch: one append-only file, on disk before it counts, and where each result lies in it.

Owns the file and its index: 16-byte keys and places in two arrays by ordinal, built when it is opened. A record
that a crash has torn is cut off: its request runs again. Only one process may write: see `owner`.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from launcher.batch.records import DONE, FAILED, KEY_BYTES, MAGIC, Record, encode, read_at, scan

READ_BUFFER_BYTES = 1 << 20


class NotResults(Exception):
    """The file is something else."""


class Store:
    """`append` keeps a result in memory; `take` and `write` bring what was kept to the disk."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or NotResults."""
        self.path = path
        self._keys = bytearray()
        self._places = array("Q")  # of the record, plus one; 0: none
        self.num_done = self.num_failed = 0
        self._unwritten: list[bytes] = []
        self._file = path.open("a+b", buffering=READ_BUFFER_BYTES)
        self.size = self._end = self._open()

    def _open(self) -> int:
        self._file.seek(0)
        magic = self._file.read(len(MAGIC))
        if not MAGIC.startswith(magic):
            self._file.close()
            raise NotResults(f"{self.path} is not a file of results")
        end = len(MAGIC)
        if len(magic) < len(MAGIC):
            self._file.truncate(0)
            self._file.write(MAGIC)
            self._file.flush()
        for record in scan(self._file, end):
            self._index(record.ordinal, record.kind, record.key, record.at)
            end = record.end
        self.num_cut_bytes = max(0, self.path.stat().st_size - end)
        if self.num_cut_bytes:
            self._file.truncate(end)
        os.fsync(self._file.fileno())
        return end

    def _index(self, ordinal: int, kind: int, key: bytes, place: int) -> None:
        if ordinal >= len(self._places):
            missing = ordinal + 1 - len(self._places)
            self._places.frombytes(bytes(8 * missing))
            self._keys += bytes(KEY_BYTES * missing)
        assert not self._places[ordinal], f"request {ordinal} has two results"
        self._places[ordinal] = place + 1
        self._keys[KEY_BYTES * ordinal : KEY_BYTES * (ordinal + 1)] = key
        if kind == DONE:
            self.num_done += 1
        else:
            self.num_failed += 1

    # ------------------------------------------------------------ asking

    def __len__(self) -> int:
        return self.num_done + self.num_failed

    @property
    def last_ordinal(self) -> int:
        """-1: there is none."""
        return len(self._places) - 1

    def key_of(self, ordinal: int) -> bytes | None:
        """None: it has no result yet."""
        if ordinal >= len(self._places) or not self._places[ordinal]:
            return None
        return bytes(self._keys[KEY_BYTES * ordinal : KEY_BYTES * (ordinal + 1)])

    def as_they_came(self, at: int = len(MAGIC)) -> Iterator[Record]:
        """All that is on disk, from this place in the file on."""
        with self.path.open("rb", buffering=READ_BUFFER_BYTES) as file:
            yield from scan(file, max(at, len(MAGIC)))

    def in_order(self, first: int = 0, *, gaps: bool = True) -> Iterator[Record]:
        """All that is on disk, from this ordinal on; without gaps until the first that is missing."""
        for ordinal in range(first, len(self._places)):
            place = self._places[ordinal]
            if not 0 < place <= self._end:
                if not gaps:
                    return
                continue
            record = read_at(self._file.fileno(), place - 1)
            if record is None:
                raise NotResults(f"{self.path} has changed under this process, at byte {place - 1}")
            yield record

    # ------------------------------------------------------------ adding

    def append(self, ordinal: int, key: bytes, line: bytes, *, ok: bool) -> None:
        kind = DONE if ok else FAILED
        record = encode(ordinal, kind, key, line)
        self._index(ordinal, kind, key, self.size)
        self._unwritten.append(record)
        self.size += len(record)

    def take(self) -> bytes:
        """What `write` is to be given."""
        data = b"".join(self._unwritten)
        self._unwritten.clear()
        return data

    def write(self, data: bytes) -> None:
        """Blocks until it is on disk. Raises OSError, and then the file ends as before."""
        descriptor = self._file.fileno()
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, self._end)
            raise
        self._end += len(data)

    def close(self) -> None:
        self._file.close()
