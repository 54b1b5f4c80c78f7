"""The hashes that stand for blocks of a prompt: one function for what an engine holds and for what a prompt needs.

A block's hash is 64 bits over its parent's hash, its token ids and whatever else its KV depends on, so that equal
hashes mean equal prefixes. Never a claim that KV is right: the engine matches blocks by its own hashes. Pure.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

NO_PARENT = 0
HASH_BYTES = 8
TOKEN_BYTES = 4
_NOTHING: Mapping[int, bytes] = {}
_encode = msgspec.msgpack.Encoder().encode


class Media(NamedTuple):
    """An image or the like: the engine's identifier of its content, and the tokens of the prompt that stand for it."""

    identifier: str
    offset: int
    length: int


def block_hash(parent: int, token_ids: Sequence[int], extra: bytes = b"") -> int:
    """`parent` is NO_PARENT for a prompt's first block."""
    tokens = _packed(token_ids)
    digest = blake2b(parent.to_bytes(HASH_BYTES, "little") + tokens + extra, digest_size=HASH_BYTES).digest()
    return int.from_bytes(digest, "little")


def chain(
    token_ids: Sequence[int], block_size: int, extras: Mapping[int, bytes] = _NOTHING, parent: int = NO_PARENT
) -> array[int]:
    """The hashes of the full blocks. `extras`: by number of the block, what else its KV depends on."""
    tokens = _packed(token_ids)
    step = block_size * TOKEN_BYTES
    digest = parent.to_bytes(HASH_BYTES, "little")
    digests = bytearray()
    for number, start in enumerate(range(0, len(tokens) - step + 1, step)):
        data = digest + tokens[start : start + step]
        if extras:
            data += extras.get(number, b"")
        digest = blake2b(data, digest_size=HASH_BYTES).digest()
        digests += digest
    return unpack(digests)


def _packed(token_ids: Sequence[int]) -> bytes:
    """Of larger ids than any model's (the simulator's are) the lower half says which token it is."""
    try:
        return array("I", token_ids).tobytes()
    except OverflowError:
        return array("I", [token & 0xFFFFFFFF for token in token_ids]).tobytes()


def pack(hashes: array[int]) -> bytes:
    """As they travel: little-endian, as every machine that serves models counts."""
    return hashes.tobytes()


def unpack(data: bytes | bytearray) -> array[int]:
    """Raises ValueError where this is no whole number of hashes."""
    hashes = array("Q")
    hashes.frombytes(data)
    return hashes


def extra(lora: str | None, others: Sequence[Any]) -> bytes:
    """What a block's KV depends on besides tokens: its adapter; media as (identifier, offset in the block), a salt."""
    return _encode((lora, others)) if lora or others else b""


def extras(
    num_blocks: int, block_size: int, lora: str | None, salt: str | None, media: Sequence[Media]
) -> dict[int, bytes]:
    """Of a prompt's blocks, for `chain`. `media` in the order of their offsets."""
    others: dict[int, list[Any]] = {}
    for item in media:
        last = min(num_blocks, -(-(item.offset + item.length) // block_size))
        for number in range(item.offset // block_size, last):
            others.setdefault(number, []).append((item.identifier, item.offset - number * block_size))
    if salt and num_blocks:
        others.setdefault(0, []).append(salt)
    numbers = range(num_blocks) if lora else others
    return {number: extra(lora, others.get(number, ())) for number in numbers}
