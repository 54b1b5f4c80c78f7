"""Which workers may take a request at all: capabilities are the fleet's word, caps are counted here.

Pure.
"""

from __future__ import annotations

from proxy.fleet.worker import Worker
from proxy.routing.demand import Demand

# What requests of a batch leave to others: of the places to decode, and of the prompts on their way, whose length is
# what others wait for.
DECODE_RESERVE, PREFILL_RESERVE = 8, 2


def may_decode(worker: Worker, demand: Demand) -> bool:
    """Now, or when others have left."""
    return worker.caps.max_decodes > 0 and worker.key not in demand.avoid


def has_place(worker: Worker, demand: Demand) -> bool:
    cap = worker.caps.max_decodes
    return worker.all_decodes < (cap - cap // DECODE_RESERVE if demand.yields else cap) and _has_kv(worker, demand)


def _has_kv(worker: Worker, demand: Demand) -> bool:
    """What is sent where the cache is full waits in the engine, though another may have room sooner. A prompt larger
    than the cache may run where nothing else does."""
    if not worker.all_decodes or worker.capabilities is None:
        return True
    num_tokens = worker.capabilities.num_blocks * worker.capabilities.block_size
    to_come = worker.held_tokens - worker.begun_tokens_told
    return worker.load.kv_used * num_tokens + to_come + demand.num_tokens <= num_tokens


def may_compute(worker: Worker, demand: Demand) -> bool:
    return worker.caps.max_prefill_tokens > 0 and worker.key not in demand.avoid


def has_room(worker: Worker, demand: Demand, compute_tokens: int) -> bool:
    """A prompt larger than the cap may run where nothing else does."""
    cap, given = worker.caps.max_prefill_tokens, worker.all_prefill_tokens
    if demand.yields:
        cap //= PREFILL_RESERVE
    return cap > 0 and (given == 0 or given + compute_tokens <= cap)


def may_pin(worker: Worker, demand: Demand, pinned_fraction: float) -> bool:
    """Blocks prefilled and not yet pulled stall a prefill engine when they fill its cache."""
    assert worker.capabilities is not None
    pinned = max(worker.all_pinned_blocks, worker.load.pinned_blocks)
    wanted = -(-demand.num_tokens // worker.capabilities.block_size)
    return pinned == 0 or pinned + wanted <= pinned_fraction * worker.capabilities.num_blocks
