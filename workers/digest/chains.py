"""The hashes that stand for blocks of a prompt: one function for what an engine holds and for what a prompt needs.

A block's hash is 64 bits over its parent's hash, its token ids and whatever else its KV depends on, so that equal
hashes mean equal prefixes. Never a claim that KV is right: the engine matches blocks by its own hashes. Made for
speed and keyed by a secret of the run, so that no client can aim at the hashes of others' prompts. Pure.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b, shake_128
from typing import Any, NamedTuple

import msgspec

NO_PARENT = 0
HASH_BYTES = 8
_RANGE = 1 << 64
_HALF = 32  # of a hash's bits
_NOTHING: Mapping[int, bytes] = {}
_encode = msgspec.msgpack.Encoder().encode


class Media(NamedTuple):
    """An image or the like: the engine's identifier of its content, and the tokens of the prompt that stand for it."""

    identifier: str
    offset: int
    length: int


class Hasher:
    """Of one run, the same in all of its processes: only secrets, and arithmetic modulo 2^64.

    Before its halves are mixed, a block's hash is its parent's times a secret, and its content: so those of a whole
    prompt are a few operations on arrays.
    """

    def __init__(self, secret: bytes) -> None:
        import numpy  # here: agents and controllers hash nothing, and have no time for it

        self._numpy = numpy
        self._secret = blake2b(secret).digest()
        self._weights: dict[int, Any] = {}
        first, factor = (int.from_bytes(self._secret[at : at + HASH_BYTES], "little") for at in (0, HASH_BYTES))
        self._first = first | 1  # stands for the parent of a prompt's first block
        self._factor = factor & ~7 | 5  # of these the powers come back after 2^62
        self._inverse = pow(self._factor, -1, _RANGE)
        self._id, self._word = numpy.dtype("<u4"), numpy.dtype("<u8")
        self._powers = self._inverses = numpy.empty(0, self._word)
        self._half = numpy.uint64(_HALF)

    def chain(
        self,
        token_ids: Sequence[int],
        block_size: int,
        extras: Mapping[int, bytes] = _NOTHING,
        parent: int = NO_PARENT,
    ) -> array[int]:
        """The hashes of the full blocks. `extras`: by number of the block, what else its KV depends on. `parent` is
        NO_PARENT for a prompt's first block."""
        return unpack(self.packed_chain(token_ids, block_size, extras, parent))

    def packed_chain(
        self,
        token_ids: Sequence[int],
        block_size: int,
        extras: Mapping[int, bytes] = _NOTHING,
        parent: int = NO_PARENT,
    ) -> bytes:
        """As it travels. In place where that can be: what runs once per prompt is never in the CPU's caches."""
        nodes = self._contents(token_ids, block_size)
        for number, more in extras.items():
            if number < len(nodes):
                nodes[number] = hash((int(nodes[number]), self._of_bytes(more))) % _RANGE
        size = len(nodes)
        if size > len(self._powers):
            self._powers, self._inverses = self._powers_of(self._factor, size), self._powers_of(self._inverse, size)
        nodes *= self._inverses[:size]
        nodes = nodes.cumsum()
        nodes += self._numpy.uint64(self._first if parent == NO_PARENT else parent ^ parent >> _HALF)
        nodes *= self._powers[:size]
        nodes ^= nodes >> self._half
        packed: bytes = nodes.tobytes()
        return packed

    def _powers_of(self, factor: int, size: int) -> Any:
        """The first ones, to twice as many as are needed."""
        return self._numpy.full(2 * size, factor, self._word).cumprod()

    def _contents(self, token_ids: Sequence[int], block_size: int) -> Any:
        """Per block the sum of its tokens, each times a secret of its place: equal for two blocks with luck alone."""
        weights = self._weights.get(block_size)
        if weights is None:
            data = shake_128(self._secret).digest(HASH_BYTES * block_size)
            weights = self._weights[block_size] = self._numpy.frombuffer(data, self._word) | self._numpy.uint64(1)
        num_blocks = len(token_ids) // block_size
        tokens = self._numpy.frombuffer(_packed(token_ids), self._id, num_blocks * block_size)
        return tokens.reshape(num_blocks, block_size) @ weights

    def _of_bytes(self, extra: bytes) -> int:
        return int.from_bytes(blake2b(extra, digest_size=HASH_BYTES, key=self._secret).digest(), "little")


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
