"""NVIDIA Dynamo's KV router at other settings than its defaults: what its published cost makes of each.

Pure. Owns the settings, by the router's own names, how they are written as a policy's name, and the grid that `kv` is
held against. The proxy has the defaults only: `dynamo`.
"""

from __future__ import annotations

from itertools import product
from random import Random

import msgspec

from proxy.fleet.fleet import Fleet
from proxy.fleet.worker import Worker
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.demand import Demand
from proxy.routing.load_policies import Score, Scores

POLICY = "dynamo"


class Setting(msgspec.Struct, frozen=True):
    prefill_load_scale: float = 1.0
    overlap_score_credit: float = 1.0
    overlap_score_credit_decay: float = 0.0
    decode_active_request_weight: float = 0.0

    @property
    def name(self) -> str:
        return ":".join([POLICY, *(f"{value:g}" for value in msgspec.structs.astuple(self))])


GRID = tuple(Setting(*values) for values in product((1, 2, 4, 8, 16), (1, 2), (0, 1)))


def setting_of(policy: str) -> Setting | None:
    """Of `dynamo:SCALE:CREDIT:DECAY:WEIGHT`, as many of them as are given; None: it is no such name."""
    name, *values = policy.split(":")
    return Setting(*map(float, values)) if name == POLICY and values else None


def scores(setting: Setting) -> Scores:
    def of_request(fleet: Fleet, index: PrefixIndex, demand: Demand, random: Random) -> tuple[Score, Score]:
        held = index.leading(demand.chain, demand.marks)
        least = min((worker.all_prefill_tokens for worker in fleet.decoders), default=0)

        def cost(worker: Worker, cached_blocks: int) -> float:
            assert worker.capabilities is not None
            size = worker.capabilities.block_size
            excess = max(0, worker.all_prefill_tokens - least) / max(1, demand.num_tokens)
            credit = setting.overlap_score_credit / (1 + setting.overlap_score_credit_decay * excess)
            prefill_blocks = (worker.all_prefill_tokens + demand.num_tokens) / size
            decode_blocks = (worker.held_tokens + demand.num_tokens) / size
            return (
                setting.prefill_load_scale * max(0.0, prefill_blocks - credit * cached_blocks)
                + decode_blocks
                + setting.decode_active_request_weight * worker.all_decodes
            )

        return lambda worker: cost(worker, held.get((worker.key, 0), 0)), lambda worker: cost(worker, 0)

    return of_request
