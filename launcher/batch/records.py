"""The bytes of one record in a file of results: length, CRC, which request, how it ended, the line for the output.

Pure. What a crash leaves at the end of such a file is not a record, and is told apart from one by its CRC.
"""

from __future__ import annotations

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
    while True:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        size, crc = _HEAD.unpack(head)
        if not _BODY.size <= size <= MAX_LINE_BYTES:
            return
        body = file.read(size)
        if len(body) < size or zlib.crc32(body) != crc:
            return
        ordinal, kind, key = _BODY.unpack_from(body)
        end = at + _HEAD.size + size
        yield Record(ordinal, kind, key, body[_BODY.size :], at, end)
        at = end
