"""How long one step of an engine's scheduler takes: of the prompt tokens in it, the sequences that decode, and the KV
they read.

Pure. Its terms are what a GPU does and so hold beyond what was measured; the simulator's own polynomials have the same
face. Where a StepModel comes from: `roofline` estimates, `profile` fits measured points.
"""

from __future__ import annotations

import msgspec

from workers.engines.sim.steps import Numbers


class StepModel(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. Linear layers take what their weights take to be read, or what their tokens take to be computed."""

    fixed_s: float  # launches, sampling, the latency of communication
    weights_s: float  # reading what every step reads
    experts_s: float = 0.0  # reading all routed experts
    expert_share: float = 0.0  # of these, what one token takes
    token_s: float
    pair_s: float
    read_s: float  # of one token's KV
    sequence_s: float = 0.0  # more for each that decodes
    chunk_s: float = 0.0  # more where there are prompt tokens: no captured graph fits
    source: str  # what people are told: an estimate or a profile

    def linear_s(self, num_tokens: int) -> float:
        return max(self.read_weights_s(num_tokens), self.token_s * num_tokens)

    def read_weights_s(self, num_tokens: int) -> float:
        return self.weights_s + self.experts_s * (1 - (1 - self.expert_share) ** num_tokens)

    def chunk_step_s(self, num_tokens: int, num_pairs: float, num_decodes: int, kv_tokens: int, usage: float) -> float:
        attention_s = self.pair_s * num_pairs + self.read_s * kv_tokens
        more_s = self.chunk_s + self.sequence_s * num_decodes
        return self.fixed_s + self.linear_s(num_tokens + num_decodes) + attention_s + more_s

    def decode_steps_s(self, num_decodes: int, kv_tokens: Numbers, usage: Numbers) -> Numbers:
        return self._without_kv_s(num_decodes) + self.read_s * kv_tokens

    def decode_step_s(self, num_decodes: int, kv_tokens: float) -> float:
        return self._without_kv_s(num_decodes) + self.read_s * kv_tokens

    def prefill_s(self, num_tokens: int, num_cached: int, budget: int) -> float:
        """One prompt alone on the engine, chunk by chunk."""
        num_steps = -(-num_tokens // budget)
        pairs = num_tokens * (num_cached + num_tokens / 2)
        return num_steps * (self.fixed_s + self.chunk_s + self.linear_s(num_tokens // num_steps)) + self.pair_s * pairs

    def _without_kv_s(self, num_decodes: int) -> float:
        return self.fixed_s + self.linear_s(num_decodes) + self.sequence_s * num_decodes
