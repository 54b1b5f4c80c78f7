"""The bytes of one record in a file of results: length, CRC, which request, how it ended, the line for the output.

Pure. What a crash leaves at the end of such a file is not a record, and is told apart from one by its CRC.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAGIC = b"sluice results 1\n"
KEY_BYTES = 16
DONE, FAILED = 0, 1

_HEAD = struct.Struct("<II")  # bytes behind it, their CRC
_BODY = struct.Struct(f"<QB{KEY_BYTES}s")
MAX_LINE_BYTES = 1 << 30
GUESSED_BYTES = 4096  # of a record that is read alone


class Record(NamedTuple):
    """`at`: where it begins in the file, `end`: where the next one does."""

    ordinal: int
    kind: int
    key: bytes
    line: bytes
    at: int
    end: int


def encode(ordinal: int, kind: int, key: bytes, line: bytes) -> bytes:
    body = _BODY.pack(ordinal, kind, key) + line
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def scan(file: BinaryIO, at: int) -> Iterator[Record]:
    """All whole records from `at` on; ends before the first that is not."""
    file.seek(at)
    while (size := _size(head := file.read(_HEAD.size))) is not None:
        record = _record(head, file.read(size), at)
        if record is None:
            return
        yield record
        at = record.end


def read_at(descriptor: int, at: int) -> Record | None:
    """The one that begins there; None: there is no whole one."""
    data = os.pread(descriptor, GUESSED_BYTES, at)
    size = _size(data)
    if size is None:
        return None
    if len(data) < _HEAD.size + size:
        data += os.pread(descriptor, _HEAD.size + size - len(data), at + len(data))
    return _record(data, data[_HEAD.size : _HEAD.size + size], at)


def _size(head: bytes) -> int | None:
    """Of what follows the head; None: it is none."""
    if len(head) < _HEAD.size:
        return None
    size: int = _HEAD.unpack_from(head)[0]
    return size if _BODY.size <= size <= MAX_LINE_BYTES else None


def _record(head: bytes, body: bytes, at: int) -> Record | None:
    size, crc = _HEAD.unpack_from(head)
    if len(body) < size or zlib.crc32(body) != crc:
        return None
    ordinal, kind, key = _BODY.unpack_from(body)
    return Record(ordinal, kind, key, body[_BODY.size :], at, at + _HEAD.size + size)
