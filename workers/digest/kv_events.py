"""What an engine says of its prefix cache, in vLLM's words: batches of events, and where they are published.

Owns their shape as far as it matters here. Fields that are not listed are skipped, an event of another kind is an
error. They hold users' token ids: nothing of them is logged or kept.
"""

from __future__ import annotations

from typing import Any

import msgspec

Key = int | bytes  # the engine's own hash of a block

FULL_ATTENTION = frozenset({"full_attention", "mla_attention"})
MEDIUM = "GPU"  # vLLM says so on a CPU too; other media are tiers that blocks are offloaded to


class BlockStored(msgspec.Struct, tag=True, gc=False):
    """Blocks one behind the other, all behind `parent_block_hash`."""

    block_hashes: list[Key]
    parent_block_hash: Key | None
    token_ids: list[int]
    block_size: int
    medium: str | None = MEDIUM
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None  # names, salts, digests, (media, offset)
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, gc=False):
    """One copy of each: the engine keeps as many as it has computed."""

    block_hashes: list[Key]
    medium: str | None = MEDIUM


class AllBlocksCleared(msgspec.Struct, tag=True, gc=False):
    pass


Event = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(msgspec.Struct, array_like=True, gc=False):
    """What one step of the engine has changed, at `ts` (unix seconds)."""

    ts: float
    events: list[Event]


_decoder: msgspec.msgpack.Decoder[Batch] = msgspec.msgpack.Decoder(Batch)


def decode(payload: bytes | memoryview) -> Batch:
    """Raises msgspec.DecodeError."""
    return _decoder.decode(payload)


def events_endpoint(local_dir: str) -> str:
    return f"ipc://{local_dir}/kv-events"


def replay_endpoint(local_dir: str) -> str:
    return f"ipc://{local_dir}/kv-replay"
