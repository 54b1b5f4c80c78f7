"""The time between tokens of sequences that decode together, from the moments at which their tokens came.

Pure. Counts only while all of them decode: from the last one's first token to the first one's end.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Sequence:
    num_tokens: int = 0
    from_at: float = 0.0  # the first token since all decode
    from_tokens: int = 0
    last_at: float = 0.0


@dataclass(slots=True)
class Gaps:
    num_sequences: int
    num_steps: int  # of each, then it is enough
    _sequences: dict[int, _Sequence] = field(default_factory=dict)
    _all_decode: bool = False

    def came(self, index: int, num_tokens: int, now: float) -> bool:
        """Tokens of one sequence. True: that was enough."""
        sequence = self._sequences.setdefault(index, _Sequence())
        sequence.num_tokens += num_tokens
        sequence.last_at = now
        if not self._all_decode:
            self._all_decode = len(self._sequences) == self.num_sequences
        elif not sequence.from_tokens:
            sequence.from_at, sequence.from_tokens = now, sequence.num_tokens
        return self._all_decode and all(
            each.from_tokens and each.num_tokens - each.from_tokens >= self.num_steps
            for each in self._sequences.values()
        )

    def gap_s(self) -> float | None:
        """None: they have never all decoded for long enough."""
        found = [
            (each.last_at - each.from_at) / (each.num_tokens - each.from_tokens)
            for each in self._sequences.values()
            if each.from_tokens and each.num_tokens > each.from_tokens
        ]
        return statistics.median(found) if len(found) == self.num_sequences else None

    def output_tokens(self) -> float:
        """Of a sequence, on average while it was measured."""
        return statistics.fmean((each.from_tokens + each.num_tokens) / 2 for each in self._sequences.values())
