"""How long vLLM's processes look for each other's messages without pause, before they sleep until one comes.

vLLM's default is a second. On a CPU those who wait take the cores from those who compute. No setting changes it, and
the process of the engine's core imports nothing of ours by name; but what an engine's configuration carries is
unpickled in each of its processes, which imports this module there.

Who sleeps can miss the word that a message is there: the socket that says so drops words that come close together. vLLM
looks again after five seconds, since its readers hardly ever sleep while there is work; ours sleep in every step.

Changes these two of vLLM's numbers, on import, and nothing else: the waiting is its own.
"""

from __future__ import annotations

import functools

SPIN_S = 0.001
LOOK_AGAIN_MS = 50


class Spin:
    """In vLLM's `additional_config`, whose contract is the hash. Imports this module wherever it comes."""

    def compute_hash(self) -> str:
        return "sluice"


def _shorten() -> None:
    from vllm.distributed.device_communicators import shm_broadcast

    condition = shm_broadcast.SpinCondition
    condition.__init__ = functools.partialmethod(condition.__init__, busy_loop_s=SPIN_S)
    shm_broadcast.SHM_READER_RECHECK_INTERVAL_MS = LOOK_AGAIN_MS


_shorten()
