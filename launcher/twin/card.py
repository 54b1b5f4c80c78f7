"""A simulated engine's figures: what it has and how long its passes take.

Owns the figures. They are a record so that they are printed, compared and handed to live engines as they are.
"""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.twin.step_model import StepModel
from launcher.twin.traces import BLOCK_SIZE
from workers.engines.sim.events import CoreConfig, Timing
from workers.engines.sim.scheduler import Scheduler
from workers.engines.sim.steps import SimSteps


class Card(msgspec.Struct, frozen=True, kw_only=True):
    block_size: int = BLOCK_SIZE
    kv_tokens: int = 1_500_000
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    link_bytes_per_s: float = 50e9  # of each engine and direction, shared fairly by its transfers
    timing: Timing = Timing()
    model: StepModel | None = None  # of the time of a step, instead of `timing`
    lease_s: float = 120.0

    @property
    def num_blocks(self) -> int:
        return self.kv_tokens // self.block_size

    def engine(self) -> Scheduler:
        return Scheduler(self.core(), self.model or SimSteps(self.timing))

    def core(self) -> CoreConfig:
        return CoreConfig(
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            lease_s=self.lease_s,
            timing=self.timing,
        )

    def sim_args(self, speed: float) -> dict[str, Any]:
        """Of a live engine that is `speed` times as fast."""
        timing = msgspec.structs.replace(
            self.timing,
            prefill_ms=tuple(part / speed for part in self.timing.prefill_ms),
            decode_ms=tuple(part / speed for part in self.timing.decode_ms),
            handoff_bytes_per_s=self.link_bytes_per_s * speed,
        )
        return {
            "num_blocks": self.num_blocks,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "timing": msgspec.to_builtins(timing),
        }


def card(timing: str) -> Card:
    return Card(timing=msgspec.convert({"model": timing}, Timing))
