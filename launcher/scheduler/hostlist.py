"""Slurm's short form of several node names, written out: `gpu[01-03,7]-ib` is four names. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

# A name may have several brackets; a comma inside of one does not end it.
_NAME = re.compile(r"(?:[^,\[\]]|\[[^\]]*\])+")
_PART = re.compile(r"\[([^\]]*)\]|([^\[\]]+)")


def expand_hostlist(text: str) -> tuple[str, ...]:
    return tuple(name for short in _NAME.findall(text) for name in _written_out(short))


def _written_out(short: str) -> Iterator[str]:
    parts = [list(_numbers(ranges)) if ranges else [plain] for ranges, plain in _PART.findall(short)]
    return ("".join(chosen) for chosen in product(*parts))


def _numbers(ranges: str) -> Iterator[str]:
    """`01-03,7`: leading zeros stay."""
    for each in ranges.split(","):
        first, _, last = each.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield f"{number:0{len(first)}d}"
