"""The part of the adapter that runs inside vLLM's worker processes: blocks on their way from engine to engine.

vLLM imports it there, before it makes its connector, and nothing else may.

Owns nothing: vLLM's connector does. A prefill engine keeps a finished request's blocks until a decode
engine has read them or their lease ends. There is no way from outside to end a lease early on the engine
that holds it: an abort of a finished request does nothing, and the notification by which a decode engine
rejects a ticket cannot be sent to oneself, as an engine refuses to be its own peer. So the lease's deadline
is moved to now, and vLLM reclaims the blocks in its next step, as it does with any lease that ends.

With the push connector it is the other way round as well: a decode engine keeps an aborted request's blocks until
its prefill engine has written into them, for ever if that one is gone.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any


class LeaseExtension:
    """vLLM mixes it into its worker and calls it between two steps.

    Names are prefixed: vLLM refuses one that its own worker class uses.
    """

    def sluice_end_leases(self, request_ids: Sequence[str]) -> list[str]:
        """End the leases of these requests; those that this worker still knows are returned: ask again.

        A request must have been aborted or have finished before: its blocks are still written to until then.
        """
        connector = _connector_worker()
        if connector is None:
            return []
        for request_id in request_ids:
            if request_id in connector._reqs_to_send:
                connector._reqs_to_send[request_id] = 0.0
        # A request that finished in the step before gets its lease in the next one; until then it is in process.
        return [rid for rid in request_ids if rid in connector._reqs_to_send or rid in connector._reqs_to_process]

    def sluice_receiving(self, request_ids: Sequence[str]) -> list[str]:
        """Those of these requests into whose blocks another engine may still write."""
        connector = _connector_worker()
        if connector is None:
            return []
        waiting = connector._recving_metadata
        # Aborted before it had blocks: nobody was told of it, so vLLM would keep the entry for ever.
        for request_id in [rid for rid, meta in waiting.items() if not any(meta.local_block_ids)]:
            del waiting[request_id]
        return [rid for rid in request_ids if rid in waiting]

    def sluice_give_up_receiving(self, request_ids: Sequence[str]) -> None:
        """Nobody will write into the blocks of these requests any more: vLLM frees them in its next step."""
        connector = _connector_worker()
        for request_id in self.sluice_receiving(request_ids):
            connector._failed_recv_reqs.put(request_id)

    def sluice_num_leases(self) -> int:
        """How many requests' blocks wait to be read, as vLLM itself counts them."""
        connector = _connector_worker()
        return 0 if connector is None else len(connector._reqs_to_send)

    def sluice_use_cpus(self, cpus: Sequence[int]) -> None:
        """On a CPU the connector pins its worker to the node's last core: with it every engine of the node."""
        os.sched_setaffinity(0, cpus)

    def sluice_kv_format(self) -> str:
        """What vLLM itself compares before two engines exchange KV; empty without a connector."""
        connector = _connector_worker()
        return "" if connector is None else str(connector.compat_hash)


def _connector_worker() -> Any:
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    return get_kv_transfer_group().connector_worker if has_kv_transfer_group() else None


def _adapt_nixl() -> None:
    """How vLLM's connectors make their NIXL agent.

    Strict about threads: the push connector uses the agent from its writer's thread and from the engine's own, and
    NIXL's default is an agent that only one thread uses; under load that has crashed the engine inside UCX.

    Without a GPU, every agent's progress thread would keep one core busy, also when the engine is idle. vLLM polls
    NIXL in each of its steps as well, and steps as long as a lease is open or a transfer runs.
    """
    from vllm.distributed import nixl_utils
    from vllm.platforms import current_platform

    config = nixl_utils.nixl_agent_config
    if config is None:
        return
    strict = importlib.import_module(config.__module__).nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
    progress = {"enable_prog_thread": False} if current_platform.is_cpu() else {}
    nixl_utils.nixl_agent_config = functools.partial(config, sync_mode=strict, **progress)


_adapt_nixl()
