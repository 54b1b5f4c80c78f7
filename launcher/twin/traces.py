"""Requests with times, lengths and block hashes: read from published traces, or made up.

Owns the formats and the generator. A trace says which prompts share leading blocks, never what they say; answers get
no hashes of their own here, so what a next turn repeats of an answer counts as new.
"""

from __future__ import annotations

import csv
import math
import random
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy
from numpy.typing import NDArray

BLOCK_SIZE = 64
MOONCAKE_BLOCK_SIZE = 512
_MIX = numpy.uint64(0x9E3779B97F4A7C15)  # odd: neighbours get hashes far apart, and no two the same one
_OWN = 1 << 40  # numbers of blocks that no other request has begin here


class BadTrace(Exception):
    """The message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Request:
    at_s: float
    num_prompt: int
    num_output: int
    chain: array[int]  # hashes of the prompt's full blocks


class _Mooncake(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def _hashes(numbers: NDArray[numpy.uint64]) -> array[int]:
    """A block's number to its hash; 0 stands for no block."""
    return array("Q", ((numbers + numpy.uint64(1)) * _MIX).tobytes())


def own_chain(index: int, num_prompt: int, block_size: int) -> array[int]:
    return _hashes(numpy.arange(num_prompt // block_size, dtype=numpy.uint64) + numpy.uint64(_OWN * (index + 1)))


# ---------------------------------------------------------------- files


def read(path: Path, block_size: int = BLOCK_SIZE) -> list[Request]:
    """By its ending: .jsonl is Mooncake's, .csv is Azure's. In order of arrival. Raises BadTrace, OSError."""
    readers: dict[str, Callable[[Path, int], list[Request]]] = {".jsonl": _read_mooncake, ".csv": _read_azure}
    if path.suffix not in readers:
        raise BadTrace(f"{path}: a trace ends in .jsonl (Mooncake) or .csv (Azure)")
    requests = readers[path.suffix](path, block_size)
    if not requests:
        raise BadTrace(f"{path}: no requests")
    return sorted(requests, key=lambda request: request.at_s)


def _read_mooncake(path: Path, block_size: int) -> list[Request]:
    decode = msgspec.json.Decoder(_Mooncake).decode
    requests = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = decode(line)
        except msgspec.DecodeError as error:
            raise BadTrace(f"{path}:{number}: {error}") from None
        requests.append(
            Request(row.timestamp / 1000, row.input_length, max(1, row.output_length), _mooncake_chain(row, block_size))
        )
    return requests


def _mooncake_chain(row: _Mooncake, block_size: int) -> array[int]:
    """Its ids stand for whole prefixes already; ours are parts of them."""
    parts = MOONCAKE_BLOCK_SIZE // block_size
    first = numpy.array(row.hash_ids, dtype=numpy.uint64) * numpy.uint64(parts)
    numbers = (first[:, None] + numpy.arange(parts, dtype=numpy.uint64)).reshape(-1)
    return _hashes(numbers[: row.input_length // block_size])


def _read_azure(path: Path, block_size: int) -> list[Request]:
    requests: list[Request] = []
    start: datetime | None = None
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            try:
                # Seven digits of a second are one more than Python reads.
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                num_prompt, num_output = max(1, int(row["ContextTokens"])), max(1, int(row["GeneratedTokens"]))
            except (KeyError, ValueError) as error:
                raise BadTrace(f"{path}:{number + 2}: {error}") from None
            start = start or at
            at_s = (at - start).total_seconds()
            requests.append(Request(at_s, num_prompt, num_output, own_chain(number, num_prompt, block_size)))
    return requests


# ---------------------------------------------------------------- made up


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Chats of several turns that begin with one of a few system prompts. Lengths in tokens, medians of lognormals."""

    duration_s: float = 300.0
    chats_per_s: float = 8.0
    mean_turns: float = 4.0
    think_s: float = 30.0
    system_prompts: tuple[int, ...] = (512, 1024, 2048, 6144)
    first_tokens: int = 3000
    turn_tokens: int = 300
    answer_tokens: int = 250
    spread: float = 0.9
    max_tokens: int = 60_000


# Short questions, each once, behind the same long system prompt.
HOT = Synthetic(chats_per_s=20.0, mean_turns=1.0, system_prompts=(6000,), first_tokens=500)


def synthetic(shape: Synthetic, seed: int) -> list[Request]:
    """A chat's prompt grows by the answer and the next question, and repeats all before."""
    rng = random.Random(seed)
    requests: list[Request] = []
    at_s, chat = 0.0, 0
    while (at_s := at_s + rng.expovariate(shape.chats_per_s)) < shape.duration_s:
        chat += 1
        requests += _chat(shape, chat, at_s, rng)
    return sorted(requests, key=lambda request: request.at_s)


def _chat(shape: Synthetic, chat: int, at_s: float, rng: random.Random) -> Iterable[Request]:
    def length(median: int) -> int:
        return max(1, round(median * rng.lognormvariate(0.0, shape.spread)))

    which = rng.randrange(len(shape.system_prompts))
    num_shared = shape.system_prompts[which] // BLOCK_SIZE
    num_prompt = shape.system_prompts[which] + length(shape.first_tokens)
    while at_s < shape.duration_s and num_prompt < shape.max_tokens:
        numbers = numpy.arange(num_prompt // BLOCK_SIZE, dtype=numpy.uint64)
        numbers += numpy.where(numbers < num_shared, _OWN * which, _OWN * (chat + len(shape.system_prompts))).astype(
            numpy.uint64
        )
        num_output = length(shape.answer_tokens)
        yield Request(at_s, num_prompt, num_output, _hashes(numbers))
        if rng.random() < 1 / shape.mean_turns:
            return
        num_prompt += num_output + length(shape.turn_tokens)
        at_s += rng.expovariate(1 / shape.think_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Requests that come by chance, each once. Lengths are means of lognormals."""

    num_requests: int
    per_s: float
    prompt_tokens: float
    output_tokens: float
    spread: float  # of the logarithms
    reuse: float  # the part of prompts that is one of a few beginnings
    block_size: int = BLOCK_SIZE


NUM_BEGINNINGS = 8


def described(shape: Described, seed: int) -> list[Request]:
    rng = random.Random(seed)
    num_shared = round(shape.reuse * shape.prompt_tokens)

    def length(mean: float) -> int:
        return max(1, round(rng.lognormvariate(math.log(mean) - shape.spread**2 / 2, shape.spread)))

    requests, at_s = [], 0.0
    for number in range(shape.num_requests):
        at_s += rng.expovariate(shape.per_s)
        beginning = rng.randrange(NUM_BEGINNINGS)
        num_prompt = num_shared + length(max(1.0, shape.prompt_tokens - num_shared))
        blocks = numpy.arange(num_prompt // shape.block_size, dtype=numpy.uint64)
        own = blocks >= num_shared // shape.block_size
        blocks += numpy.where(own, _OWN * (NUM_BEGINNINGS + number), _OWN * beginning).astype(numpy.uint64)
        requests.append(Request(at_s, num_prompt, length(shape.output_tokens), _hashes(blocks)))
    return requests


# ---------------------------------------------------------------- what is made of a trace


def jittered(requests: Sequence[Request], jitter_s: float, rate: float, seed: int) -> list[Request]:
    """Each arrival up to `jitter_s` later, then all of the time `rate` times as fast."""
    rng = random.Random(seed)
    moved = [replace(request, at_s=(request.at_s + rng.uniform(0, jitter_s)) / rate) for request in requests]
    return sorted(moved, key=lambda request: request.at_s)


def part(requests: Sequence[Request], start_s: float, length_s: float) -> list[Request]:
    """What arrives within a slice of the trace, told from its beginning."""
    end_s = start_s + length_s
    return [replace(r, at_s=r.at_s - start_s) for r in requests if start_s <= r.at_s < end_s]


def coarse_step_s(requests: Sequence[Request]) -> float:
    """How long a clock tick of the trace is where many arrive at the same moment: to spread them over; else 0."""
    times = sorted({request.at_s for request in requests})
    gaps = sorted(after - before for before, after in pairwise(times))
    together = len(requests) - len(times)
    return gaps[len(gaps) // 2] if gaps and together > len(requests) // 2 else 0.0


def shared_hits(requests: Sequence[Request], num_blocks: int | None) -> float:
    """The part of all prompts' blocks that one cache of this size would find, least recently used out first."""
    lru: OrderedDict[int, None] = OrderedDict()
    num_asked = num_found = 0
    for request in requests:
        num_asked += len(request.chain)
        num_found += leading(request.chain, lru)
        for block in reversed(request.chain):
            lru[block] = None
            lru.move_to_end(block)
        while num_blocks is not None and len(lru) > num_blocks:
            lru.popitem(last=False)
    return num_found / num_asked if num_asked else 0.0


def leading_cached(requests: Sequence[Request]) -> list[int]:
    """Tokens of each prompt that an endless cache would hold."""
    cached: OrderedDict[int, None] = OrderedDict()
    found = []
    for request in requests:
        found.append(leading(request.chain, cached) * BLOCK_SIZE)
        cached.update(dict.fromkeys(request.chain))
    return found


def leading(chain: Iterable[int], cached: OrderedDict[int, None]) -> int:
    found = 0
    for block in chain:
        if block not in cached:
            break
        found += 1
    return found
