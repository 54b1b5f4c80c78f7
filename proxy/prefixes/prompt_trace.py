"""What the proxy has learnt of prompts: from the bytes they begin with to the blocks their KV lies in.

Pure. Owns the memory, bounded in bytes; the longest unused is forgotten first. What it says is a guess that costs a
little balance where it is wrong: it never decides what is answered.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from proxy.prefixes.prefix_index import Marks
from proxy.prefixes.prompt_key import PromptKey
from workers.digest.chains import HASH_BYTES, unpack

NODE_BYTES = 140  # of a part with its place in the dictionary, measured
TRACE_BYTES = 360  # of a chain's, besides the chain
PRIOR_TOKENS = 4096  # the weight of the ratio that was configured
MEMORY_TOKENS = 1 << 20  # about so many tokens make up the ratio that was learnt
MAX_BYTES_PER_TOKEN = 16  # more, and what the bytes are is no text: an image's do not tell how long texts are


class Known(msgspec.Struct, frozen=True):
    """What is known of a prompt before an engine has seen it.

    `chain` is the blocks of its known part. By `marks` it is kept together with others that share bytes with it, while
    it is new to all.
    """

    num_tokens: int  # of the whole prompt: the known part's, and an estimate for the rest
    chain: array[int]
    marks: Marks


class _Trace:
    """One prompt's blocks, as long as some leading part of it is remembered. Its first `start` bytes are as many tokens
    as was found out; behind them bytes tell."""

    __slots__ = ("block_size", "chain", "num_nodes", "num_tokens", "parts", "rest_bytes", "start", "start_tokens")

    def __init__(self, chain: bytes, num_tokens: int, block_size: int) -> None:
        self.chain = chain
        self.num_tokens = num_tokens
        self.block_size = block_size
        self.parts: Sequence[int] = ()  # that were last met in it, some by others since
        self.num_nodes = 0  # of these that were not
        self.start = self.start_tokens = self.rest_bytes = 0

    def tokens_of(self, end: int) -> int:
        """Of a part of so many bytes."""
        return self.start_tokens + (end - self.start) * (self.num_tokens - self.start_tokens) // self.rest_bytes


class PromptBook:
    def __init__(self, max_bytes: int, bytes_per_token: float) -> None:
        self._max_bytes = max_bytes
        self._nodes: dict[int, _Trace] = {}  # by leading parts: the last prompt that had it
        self._traces: OrderedDict[_Trace, None] = OrderedDict()  # the longest unused first
        self._num_bytes = 0
        self._seen_tokens = float(PRIOR_TOKENS)
        self._seen_bytes = PRIOR_TOKENS * bytes_per_token

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def bytes_per_token(self) -> float:
        return self._seen_bytes / self._seen_tokens

    def find(self, key: PromptKey, block_size: int) -> Known:
        """By the longest part of this prompt that another one began with."""
        place = self._place(key)
        chain, num_tokens, num_bytes = array("Q"), 0, -key.context_bytes
        if place >= 0:
            trace, num_bytes = self._nodes[key.hashes[place]], key.ends[place]
            self._traces.move_to_end(trace)
            num_tokens = trace.tokens_of(num_bytes)
            chain = unpack(trace.chain[: num_tokens // trace.block_size * HASH_BYTES])
        num_tokens += int((key.num_bytes - num_bytes) / self.bytes_per_token)
        blocks_each = num_tokens / block_size / max(1, key.context_bytes + key.num_bytes)  # as if all were alike
        return Known(num_tokens, chain, Marks(key.hashes, key.ends, key.context_bytes, blocks_each))

    def learn(self, key: PromptKey, chain: bytes, num_tokens: int, block_size: int) -> None:
        """An engine has told which blocks this prompt is."""
        if not key.hashes or not num_tokens:
            return
        self._learn_ratio(key.context_bytes + key.num_bytes, num_tokens)
        nodes, trace = self._nodes, _Trace(chain, num_tokens, block_size)
        place = self._place(key)
        trace.start = -key.context_bytes
        if place >= 0:
            before = nodes[key.hashes[place]]
            trace.start = key.ends[place]
            trace.start_tokens = _agreed(before, before.tokens_of(trace.start), trace)
            self._drop(before, 1)
        trace.rest_bytes = max(1, key.num_bytes - trace.start)
        trace.parts = key.hashes[max(0, place) :]
        trace.num_nodes = len(trace.parts)
        nodes.update(dict.fromkeys(trace.parts, trace))
        self._traces[trace] = None
        self._num_bytes += TRACE_BYTES + len(chain) + trace.num_nodes * NODE_BYTES
        while self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._traces)))

    def _place(self, key: PromptKey) -> int:
        """The number of the longest part that is known; -1: none is. Sought from the end: each look is slow memory."""
        nodes, hashes = self._nodes, key.hashes
        for place in range(len(hashes) - 1, -1, -1):
            if hashes[place] in nodes:
                return place
        return -1

    def _forget(self, trace: _Trace) -> None:
        for part in trace.parts:
            if self._nodes.get(part) is trace:
                del self._nodes[part]
        self._drop(trace, trace.num_nodes)

    def _drop(self, trace: _Trace, num_nodes: int) -> None:
        trace.num_nodes -= num_nodes
        self._num_bytes -= num_nodes * NODE_BYTES
        if not trace.num_nodes:
            self._num_bytes -= TRACE_BYTES + len(trace.chain)
            del self._traces[trace]

    def _learn_ratio(self, num_bytes: int, num_tokens: int) -> None:
        if num_bytes > MAX_BYTES_PER_TOKEN * num_tokens:
            return
        kept = max(0.0, 1 - num_tokens / MEMORY_TOKENS)
        self._seen_tokens = self._seen_tokens * kept + num_tokens
        self._seen_bytes = self._seen_bytes * kept + num_bytes


def _agreed(before: _Trace, num_tokens: int, trace: _Trace) -> int:
    """How many tokens a part has that two prompts share: as many as these do. Until now its bytes told.

    Where prompts are no longer written as they were (a template may tell the date), that is too few until the next
    prompt comes.
    """
    guess = num_tokens // trace.block_size * HASH_BYTES
    at, behind = slice(max(0, guess - HASH_BYTES), guess), slice(guess, guess + HASH_BYTES)
    if before.chain[at] == trace.chain[at] and before.chain[behind] != trace.chain[behind]:
        return num_tokens
    shared = num_shared(before.chain, trace.chain) * trace.block_size
    return num_tokens if shared <= num_tokens < shared + trace.block_size else shared


def num_shared(one: bytes, other: bytes) -> int:
    """With how many equal hashes two chains begin: a hash stands for all before it."""
    low, high = 0, min(len(one), len(other)) // HASH_BYTES
    if one[: high * HASH_BYTES] == other[: high * HASH_BYTES]:
        return high
    while low + 1 < high:
        middle = (low + high) // 2
        at = slice((middle - 1) * HASH_BYTES, middle * HASH_BYTES)
        low, high = (middle, high) if one[at] == other[at] else (low, middle)
    return low
