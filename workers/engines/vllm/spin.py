"""How long vLLM's processes look for each other's messages without pause, before they sleep until one comes.

vLLM's default is a second. On a CPU those who wait take the cores from those who compute. No setting changes it, and
the process of the engine's core imports nothing of ours by name; but what an engine's configuration carries is
unpickled in each of its processes, which imports this module there.

Changes one default of vLLM's, on import, and nothing else: the waiting is its own.
"""

from __future__ import annotations

import functools

SPIN_S = 0.001


class Spin:
    """In vLLM's `additional_config`, whose contract is the hash. Imports this module wherever it comes."""

    def compute_hash(self) -> str:
        return "sluice"


def _shorten() -> None:
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    SpinCondition.__init__ = functools.partialmethod(SpinCondition.__init__, busy_loop_s=SPIN_S)


_shorten()
