"""The lines of a batch's input, streamed from disk: several files, globs, .gz and .zst.

Owns reading. A line beyond the limit is passed over without being held in memory. Blank lines do not count.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CHUNK_BYTES = 1 << 20


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
        except (OSError, EOFError, zlib.error) as fault:
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
    """By the command: Python has a module for it from 3.14 on."""
    command = shutil.which("zstd")
    if command is None:
        raise BadInput(f"{path}: the command zstd is not here; install it or unpack the file")
    process = subprocess.Popen([command, "-dcq", "--", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    try:
        yield process.stdout.read
        told = process.stderr.read()
        if process.wait():
            raise BadInput(f"{path}: {told.decode(errors='replace').strip()}")
    finally:
        process.stdout.close()
        process.stderr.close()
        if process.poll() is None:
            process.kill()
        process.wait()
