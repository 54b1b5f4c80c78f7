"""Output token ids as they travel beside an answer's bytes: four bytes each, the first of each engine output marked.

Pure. How an engine's tokens were grouped into outputs decides what its OpenAI layer makes of them, so that only a
replay in the same groups gives the same bytes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

_FIRST = 1 << 31
_one = struct.Struct("<I").pack
ID_BYTES = 4


def pack(token_ids: Sequence[int]) -> bytes:
    """One output; most have one token."""
    if len(token_ids) == 1:
        return _one(token_ids[0] | _FIRST)
    if not token_ids:
        return b""
    words = array("I", token_ids)
    words[0] |= _FIRST
    return words.tobytes()


def groups(packed: bytes | bytearray) -> list[list[int]]:
    """The outputs' tokens, in their order."""
    found: list[list[int]] = []
    for word in array("I", bytes(packed)):
        if word & _FIRST:
            found.append([])
        found[-1].append(word & ~_FIRST)
    return found
