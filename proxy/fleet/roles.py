"""What each worker may take while roles are moved: its pool's caps, lowered by what was told.

Pure. Owns the rule that a fleet is never left without a role: what was told may be older than who is here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from proxy.fleet.worker import Key, Worker
from proxy.spec import PoolCaps


def caps_of(
    workers: Collection[Worker], pools: Mapping[str, PoolCaps], moved: Mapping[str, PoolCaps]
) -> dict[Key, PoolCaps]:
    """The pools' own where, as moved, nobody that is up were left to decode or to prefill."""
    lowered = {w.key: _lower(pools[w.pool], moved.get(w.key[0])) for w in workers}
    up = [lowered[worker.key] for worker in workers if worker.up]
    if any(caps.max_decodes for caps in up) and any(caps.max_prefill_tokens for caps in up):
        return lowered
    return {worker.key: pools[worker.pool] for worker in workers}


def _lower(most: PoolCaps, told: PoolCaps | None) -> PoolCaps:
    if told is None:
        return most
    return PoolCaps(
        max_prefill_tokens=min(most.max_prefill_tokens, told.max_prefill_tokens),
        max_decodes=min(most.max_decodes, told.max_decodes),
    )
