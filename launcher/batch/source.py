"""The lines of a batch's input, streamed from disk: several files, globs, .gz and .zst.

Owns reading. A line beyond the limit is passed over without being held in memory. Blank lines do not count.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from zstandard import ZstdDecompressor, ZstdError

CHUNK_BYTES = 1 << 20
PACKED_BYTES = 1 << 10  # of .zst at once: four of them may stand for 128 KiB


class BadInput(Exception):
    """A whole file is at fault; nothing of the batch has run for it."""


class Line(NamedTuple):
    """`number` counts from 1 within its file. `text` None: longer than a line may be."""

    path: Path
    number: int
    text: bytes | None


def expand(patterns: Sequence[str]) -> list[Path]:
    """Raises BadInput."""
    found: list[Path] = []
    for pattern in patterns:
        paths = [Path(pattern)] if Path(pattern).exists() else _matching(Path(pattern))
        if not paths:
            raise BadInput(f"batch.input: there is no file {pattern}")
        found += [path for path in paths if path.is_file()]
    if not found:
        raise BadInput(f"batch.input: no file among {', '.join(patterns)}")
    return list(dict.fromkeys(found))


def _matching(pattern: Path) -> list[Path]:
    return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def read_lines(paths: Sequence[Path], max_line_bytes: int) -> Iterator[Line]:
    """Raises BadInput."""
    for path in paths:
        try:
            with _opened(path) as read:
                for number, text in _split(read, max_line_bytes):
                    if text is None or text.strip():
                        yield Line(path, number, text)
        except (OSError, EOFError, zlib.error, ZstdError) as fault:
            raise BadInput(f"{path}: cannot be read to its end: {fault}") from fault


def _split(read: Callable[[int], bytes], max_line_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    number, rest, too_long = 1, b"", False
    while chunk := read(CHUNK_BYTES):
        *whole, tail = chunk.split(b"\n")
        for piece in whole:
            text = rest + piece
            yield number, None if too_long or len(text) > max_line_bytes else text
            number, rest, too_long = number + 1, b"", False
        rest += tail
        if len(rest) > max_line_bytes:
            rest, too_long = b"", True
    if rest or too_long:
        yield number, None if too_long else rest


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[int], bytes]]:
    if path.suffix == ".zst":
        with _zstd(path) as read:
            yield read
    elif path.suffix == ".gz":
        with gzip.open(path) as unpacked:
            yield unpacked.read
    else:
        with path.open("rb", buffering=0) as file:
            yield file.read


@contextmanager
def _zstd(path: Path) -> Iterator[Callable[[int], bytes]]:
    with path.open("rb") as file:
        pieces = _unpacked(file)

        def read(num_bytes: int) -> bytes:
            taken = bytearray()
            while len(taken) < num_bytes and (piece := next(pieces, None)) is not None:
                taken += piece
            return bytes(taken)

        yield read


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """Frame by frame: the library's own reader takes a file that was cut off for a whole one."""
    frame, begun = ZstdDecompressor().decompressobj(), False
    data = b""
    while data := data or file.read(PACKED_BYTES):
        yield frame.decompress(data)
        data, begun = frame.unused_data, not frame.eof
        if frame.eof:
            frame = ZstdDecompressor().decompressobj()
    if begun:
        raise EOFError("it ends in the middle of a frame")
