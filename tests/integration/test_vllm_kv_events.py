"""The contract with vLLM's prefix cache: its own block pool, its own events, and what the digest makes of them."""

from __future__ import annotations

import importlib
import random
import warnings
from typing import Any

import msgspec
import pytest

from workers.digest import kv_events
from workers.digest.chains import Hasher, Media, unpack
from workers.digest.digest import HeldBlocks
from workers.digest.kv_feed import Take
from workers.host.prompt import Prompt, trace_of

pytestmark = [pytest.mark.vllm]

HASHER = Hasher(b"secret")
BLOCK_SIZE = 4
NUM_BLOCKS = 24


def vllm(module: str) -> Any:
    """Imported late: it takes seconds and brings torch along, whose own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"vllm.{module}")


class Cache:
    """vLLM's block pool, used as its scheduler does, without a model."""

    def __init__(self) -> None:
        self._utils = vllm("v1.core.kv_cache_utils")
        sha256 = vllm("utils.hashing").sha256
        self._utils.init_none_hash(sha256)
        self._hasher = self._utils.get_request_block_hasher(BLOCK_SIZE, sha256)
        self.pool = vllm("v1.core.block_pool").BlockPool(NUM_BLOCKS, True, BLOCK_SIZE, enable_kv_cache_events=True)
        self._ended: list[Any] = []

    def request(self, prompt: Prompt) -> Any:
        inputs, lora = vllm("multimodal.inputs"), vllm("lora.request")
        features = [
            inputs.MultiModalFeatureSpec(None, "image", identifier, inputs.PlaceholderRange(offset, length))
            for identifier, offset, length in prompt.media
        ]
        return vllm("v1.request").Request(
            "r",
            list(prompt.token_ids),
            vllm("sampling_params").SamplingParams(max_tokens=1),
            None,
            mm_features=features,
            lora_request=None if prompt.lora is None else lora.LoRARequest(prompt.lora, 1, "/adapter"),
            cache_salt=prompt.salt,
            block_hasher=self._hasher,
        )

    def holds(self, request: Any) -> list[bool]:
        return [self.pool.get_cached_block(block, [0]) is not None for block in request.block_hashes]

    def compute(self, request: Any, *, reuse: bool) -> None:
        """Two requests that begin together both compute what they share: `reuse` is False for the second."""
        num_blocks, cached = len(request.block_hashes), []
        for block in request.block_hashes if reuse else ():
            found = self.pool.get_cached_block(block, [0])
            if found is None:
                break
            cached += found
        self.pool.touch(cached)
        blocks = cached + self.pool.get_new_blocks(num_blocks - len(cached))
        self.pool.cache_full_blocks(request, blocks, len(cached), num_blocks, BLOCK_SIZE, 0)
        self._ended.append(blocks)

    def end(self) -> None:
        for blocks in self._ended:
            self.pool.free_blocks(reversed(blocks))
        self._ended = []

    def step(self) -> bytes:
        """As it is published."""
        events = vllm("distributed.kv_events")
        return msgspec.msgpack.encode(events.KVEventBatch(ts=1.0, events=self.pool.take_events()))


def prompts(rng: random.Random) -> list[Prompt]:
    """They share beginnings, and what is no token sets some of these apart."""
    made = []
    for _ in range(12):
        tokens = [rng.choice([7, 8]) for _ in range(rng.randrange(1, 6)) for _ in range(BLOCK_SIZE)] + [9]
        media = [Media("cat", rng.randrange(len(tokens)), 3)] if rng.random() < 0.3 else []
        lora, salt = rng.choice([None, None, "cat"]), rng.choice([None, None, "cat"])
        made.append(Prompt(tokens, lora, salt, media))
    return made


@pytest.mark.parametrize("seed", range(8))
def test_the_digest_holds_what_vllms_pool_holds(seed: int) -> None:
    rng, cache, held = random.Random(seed), Cache(), HeldBlocks(HASHER, BLOCK_SIZE)
    asked = [(prompt, cache.request(prompt)) for prompt in prompts(rng)]
    for _ in range(150):
        for _ in range(rng.randrange(3)):
            cache.compute(rng.choice(asked)[1], reuse=rng.random() < 0.8)
        cache.end()
        if rng.random() < 0.02:
            assert cache.pool.reset_prefix_cache()
        payload = cache.step()
        assert msgspec.msgpack.decode(payload, type=vllm("distributed.kv_events").KVEventBatch).ts == 1.0
        held.apply(Take(kv_events.decode(payload)))
        assert len(held) == len(cache.pool.cached_block_hash_to_block)
        ours = set(held.snapshot())
        for prompt, request in asked:
            blocks = unpack(trace_of(prompt, 1, HASHER, BLOCK_SIZE).chain)
            assert [block in ours for block in blocks] == cache.holds(request)
    assert held.fault is None


def test_the_fields_read_are_vllms() -> None:
    """A renamed field would pass in silence: what is not told takes its default."""
    theirs = vllm("distributed.kv_events")
    for ours in (kv_events.BlockStored, kv_events.BlockRemoved, kv_events.AllBlocksCleared):
        assert set(ours.__struct_fields__) <= set(getattr(theirs, ours.__name__).__struct_fields__)
    assert {theirs.BlockStored, theirs.BlockRemoved, theirs.AllBlocksCleared} == set(
        theirs.KVCacheEvent.__subclasses__()
    )
    assert kv_events.MEDIUM == theirs.MEDIUM_GPU
