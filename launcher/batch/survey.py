"""The first look at a batch's input: what is in it, which lines are wrong, and whether it is still what results are of.

Owns the comparison with the results there are, and the marks by which the second reading notices that a file has
changed meanwhile. Keeps 8 bytes per line while it looks, and next to nothing afterwards.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from launcher.batch.request import BadLine, Defaults, Request, bad_line, read_line
from launcher.batch.source import BadInput, read_lines
from launcher.batch.store import Store

BLOCK_LINES = 256
DUPLICATE = "duplicate_custom_id"
PART = 1 << 20


class Changed(Exception):
    """The input is no longer what there are results of."""


class Input(msgspec.Struct, frozen=True):
    """Where requests come from."""

    paths: tuple[Path, ...]
    defaults: Defaults
    max_line_bytes: int


class Survey(msgspec.Struct, frozen=True):
    """`marks`: one per block of lines. `duplicates`: ordinals whose custom_id an earlier line has."""

    num_lines: int
    num_bad: int
    marks: tuple[bytes, ...]
    duplicates: frozenset[int]


def look(given: Input, store: Store) -> Survey:
    """Reads all of the input once. Raises BadInput or Changed."""
    ids = array("q")
    marks: list[bytes] = []
    num_lines = num_bad = 0
    for block in _blocks(given):
        marks.append(_mark(block))
        for item in block:
            _compare(item, store)
            num_bad += isinstance(item, BadLine)
            ids.append(hash(item.custom_id) if item.custom_id is not None else -1 - item.ordinal)
        num_lines += len(block)
    if not num_lines:
        raise BadInput(f"batch.input: {', '.join(map(str, given.paths))}: there is no request in it")
    if store.last_ordinal >= num_lines:
        raise Changed(
            f"the input has {num_lines} requests, but there are results up to number {store.last_ordinal + 1}: "
            "lines or files are missing since the batch began"
        )
    duplicates = _repeated(ids)
    return Survey(num_lines, num_bad + len(duplicates), tuple(marks), duplicates)


def read_again(given: Input, survey: Survey) -> Iterator[list[Request | BadLine]]:
    """Block by block. Raises Changed, or BadInput, before a request of a changed block is given out."""
    number = 0
    for block in _blocks(given):
        if number >= len(survey.marks) or _mark(block) != survey.marks[number]:
            raise Changed(f"the input changed while it was read, at or after request {number * BLOCK_LINES + 1}")
        number += 1
        yield [_as_duplicate(item) if item.ordinal in survey.duplicates else item for item in block]
    if number < len(survey.marks):
        raise Changed(f"the input became shorter while it was read: it ends with request {number * BLOCK_LINES}")


def _as_duplicate(item: Request | BadLine) -> BadLine:
    message = f"custom_id {item.custom_id!r} stands on an earlier line too"
    return BadLine(item.ordinal, item.key, DUPLICATE, message, item.custom_id)


def _blocks(given: Input) -> Iterator[list[Request | BadLine]]:
    block: list[Request | BadLine] = []
    for ordinal, line in enumerate(read_lines(given.paths, given.max_line_bytes)):
        if line.text is None:
            told = f"the line is longer than {given.max_line_bytes} bytes"
            item: Request | BadLine = bad_line(ordinal, b"", "line_too_long", told)
        else:
            item = read_line(line.text, ordinal, given.defaults)
        if isinstance(item, BadLine):
            item = msgspec.structs.replace(item, message=f"{line.path.name}, line {line.number}: {item.message}")
        block.append(item)
        if len(block) == BLOCK_LINES:
            yield block
            block = []
    if block:
        yield block


def _mark(block: Sequence[Request | BadLine]) -> bytes:
    return hashlib.blake2b(b"".join(item.key for item in block), digest_size=8).digest()


def _compare(item: Request | BadLine, store: Store) -> None:
    key = store.key_of(item.ordinal)
    if key is not None and key != item.key:
        raise Changed(
            f"request {item.ordinal + 1}{f' ({item.custom_id})' if item.custom_id else ''} is not the one there is a "
            "result of: its line was edited, or lines were added or taken out before it"
        )


def _repeated(ids: array[int]) -> frozenset[int]:
    """Where a value stands that stood before. Sorted in place and looked at in parts: there may be millions."""
    values = np.frombuffer(ids, dtype=np.int64)
    ordered = np.sort(values)
    parts = range(0, len(ids), PART)
    twice = [ordered[at + 1 : at + PART + 1] for at in parts]
    again = np.concatenate([part[part == ordered[at : at + len(part)]] for at, part in zip(parts, twice, strict=True)])
    seen: set[int] = set()
    found: list[int] = []
    for at in parts if len(again) else ():
        for ordinal in (at + np.flatnonzero(np.isin(values[at : at + PART], again))).tolist():
            if ids[ordinal] in seen:
                found.append(ordinal)
            seen.add(ids[ordinal])
    return frozenset(found)
