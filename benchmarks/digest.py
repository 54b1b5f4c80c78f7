"""What it costs to know which blocks an engine holds: `python -m benchmarks.digest [key=value ...]`.

An engine's KV events as vLLM publishes them, one prompt a batch, through the cores of the host and of the proxy: CPU
per 1,000 blocks, bytes on the link and in the host's memory per block. No process is started. Owns the experiment.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count
from benchmarks.command import command
from proxy.fleet.worker import Key
from proxy.prefixes.digests import Digests, Met, Told
from proxy.prefixes.prefix_index import PrefixIndex
from workers.digest import kv_events
from workers.digest.chains import Hasher
from workers.digest.digest import HeldBlocks
from workers.digest.digest_telling import Telling
from workers.digest.kv_events import BlockRemoved, BlockStored
from workers.digest.kv_feed import Answered, Ask, Feed, Heard, Tick
from workers.kv_messages import Digest
from workers.links.wire import decode_to_proxy, encode_batch

BLOCK_SIZES = (16, 32, 64)
VOCABULARY = 150_000
WORKER: Key = ("decode-0", 0)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    blocks: Count = 20_000
    prompt_tokens: Count = 4096
    repeats: Count = 5
    seed: int = 0
    output: str = "bench-results"


def batches(options: Options, block_size: int) -> Iterator[bytes]:
    """Every prompt comes, and later all of them go."""
    rng, per_prompt = random.Random(options.seed), max(1, options.prompt_tokens // block_size)
    prompts = [[rng.getrandbits(63) for _ in range(per_prompt)] for _ in range(max(1, options.blocks // per_prompt))]
    for keys in prompts:
        tokens = rng.choices(range(VOCABULARY), k=per_prompt * block_size)
        yield msgspec.msgpack.encode([0.0, [BlockStored(list(keys), None, tokens, block_size)], 0])
    for keys in prompts:
        yield msgspec.msgpack.encode([0.0, [BlockRemoved([key]) for key in keys], 0])


def host(payloads: list[bytes], block_size: int) -> tuple[list[bytes], HeldBlocks]:
    """What leaves for one proxy, batch by batch."""
    feed, held, sent = Feed(), HeldBlocks(Hasher(b"secret"), block_size), []
    telling = Telling(held, 0)
    feed.apply(Tick(), 0.0)
    feed.apply(Answered(), 0.0)
    for number, payload in enumerate(payloads):
        for effect in feed.apply(Heard(number, kv_events.decode(payload)), 0.0):
            assert not isinstance(effect, Ask)
            held.apply(effect)
        telling.changed(held.changes())
        said = []
        while telling.has_more:
            said.append(telling.next(0.0))
        sent.append(encode_batch(number, 0, said))
    return sent, held


def proxy(sent: list[bytes]) -> PrefixIndex:
    index = PrefixIndex()
    digests = Digests(index)
    digests.apply(Met(WORKER, 1))
    for data in sent:
        for digest in decode_to_proxy(data).messages:
            assert isinstance(digest, Digest)
            digests.apply(Told(WORKER, digest))
    return index


def one_repeat(payloads: list[bytes], block_size: int, num_blocks: int) -> dict[str, float]:
    began = time.thread_time()
    sent, held = host(payloads, block_size)
    told = time.thread_time()
    index = proxy(sent)
    ended = time.thread_time()
    assert len(held) == 0 and index.blocks_of((WORKER, 0)) == 0
    half = len(payloads) // 2
    return {
        "host_us_per_1000_changes": (told - began) * 1e9 / (2 * num_blocks),
        "proxy_us_per_1000_changes": (ended - told) * 1e9 / (2 * num_blocks),
        "event_bytes_per_added": sum(map(len, payloads[:half])) / num_blocks,
        "link_bytes_per_added": sum(map(len, sent[:half])) / num_blocks,
        "link_bytes_per_removed": sum(map(len, sent[half:])) / num_blocks,
    }


def memory(payloads: list[bytes], block_size: int) -> float:
    tracemalloc.start()
    held = host(payloads[: len(payloads) // 2], block_size)[1]
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return num_bytes / len(held)


def run(options: Options) -> None:
    figures: dict[str, float] = {}
    for block_size in BLOCK_SIZES:
        payloads = list(batches(options, block_size))
        num_blocks = len(payloads) // 2 * max(1, options.prompt_tokens // block_size)
        repeats = [one_repeat(payloads, block_size, num_blocks) for _ in range(options.repeats)]
        found = report.medians(repeats) | {"host_bytes_per_block": memory(payloads, block_size)}
        figures |= {f"{block_size}_tokens.{name}": value for name, value in found.items()}
    result = report.report("digest", figures)
    names = list(dict.fromkeys(name.partition(".")[2] for name in figures))
    rows = [[name, *(f"{figures[f'{size}_tokens.{name}']:.1f}" for size in BLOCK_SIZES)] for name in names]
    report.publish(
        Path(options.output),
        result,
        {"options": options},
        report.table(["", *(f"blocks of {size}" for size in BLOCK_SIZES)], rows),
    )


if __name__ == "__main__":
    command(Options, run)
