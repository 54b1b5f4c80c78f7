"""One sequence of the simulated engine: its tokens and the hash of it all.

Pure. Knows what its blocks should contain and notices where they do not; the scheduler moves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

_MASK = (1 << 64) - 1


def chain(parent: int, token_ids: Iterable[int]) -> int:
    """The rolling 64-bit hash of a prefix. Integers hash without a seed: the same in every process."""
    return hash((parent, *token_ids)) & _MASK


@dataclass(slots=True, eq=False)
class Sequence:
    id: int
    tokens: list[int]
    num_prompt: int
    salt: int
    hold: bool
    keys: list[int] = field(default_factory=list)  # of the full blocks of `tokens`
    state: int = 0  # hash of all of `tokens`
    taint: int = 0  # 0: every block contains what it should
    num_cached: int = 0  # when it was placed last
    seen: bool = False  # it was placed before

    def extend_hash(self, block_size: int) -> None:
        """Take `tokens` not hashed yet into `keys` and `state`; all but the last few come block by block."""
        while (start := len(self.keys) * block_size) + block_size <= len(self.tokens):
            self.keys.append(chain(self.keys[-1] if self.keys else 0, self.tokens[start : start + block_size]))
        self.state = self.keys[-1] if self.keys else 0
        for token in self.tokens[start:]:
            self.state = chain(self.state, (token,))

    def append(self, token: int, block_size: int) -> None:
        self.tokens.append(token)
        if len(self.tokens) % block_size == 0:
            self.extend_hash(block_size)
        else:
            self.state = chain(self.state, (token,))

    @property
    def contents(self) -> list[int]:
        """What its blocks contain, the last one that is not full yet too."""
        return [key ^ self.taint for key in (*self.keys, self.state)]

    def compare(self, contents: Iterable[int], expected: Iterable[int]) -> None:
        """Let every difference change what this sequence will say, as wrong KV does."""
        for content, key in zip(contents, expected, strict=True):
            if content != key:
                self.taint = chain(self.taint, (content ^ key,))
