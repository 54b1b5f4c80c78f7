"""How long passes of the scheduler take, by what is in them: the face, and the simulator's own polynomials.

Pure.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import numpy
from numpy.typing import NDArray

from workers.engines.sim.events import Timing

Numbers = NDArray[numpy.floating[Any]]


class Steps(Protocol):
    def chunk_step_s(self, num_tokens: int, num_pairs: float, num_decodes: int, kv_tokens: int, usage: float) -> float:
        """A step with prompt tokens in it. `num_pairs`: of a new token and one that it attends to."""
        ...

    def decode_steps_s(self, num_decodes: int, kv_tokens: Numbers, usage: Numbers) -> Numbers:
        """Steps one behind the other, in which nothing but so many sequences decode."""
        ...


class SimSteps(msgspec.Struct, frozen=True):
    """They look at the part of the blocks in use."""

    timing: Timing

    def chunk_step_s(self, num_tokens: int, num_pairs: float, num_decodes: int, kv_tokens: int, usage: float) -> float:
        return self.timing.pass_s(num_tokens, num_decodes, usage)

    def decode_steps_s(self, num_decodes: int, kv_tokens: Numbers, usage: Numbers) -> Numbers:
        a, b, c = self.timing.decode_ms
        return numpy.maximum(0.0, (a * usage + b) * usage + c) / 1000
